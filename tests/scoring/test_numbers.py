from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_finetune.scoring.numbers import final_number

#: The machine may be busy: a test is never judged by its time.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,200", "1200"),
        ("$12.50", "12.5"),
        ("-3", "-3"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("\u22123", "-3"),
        ("12.", "12"),
        (".5", "0.5"),
        ("It costs $1,234,567.89.", "1234567.89"),
        ("5kg", "5"),
        ("the 3rd", "3"),
        ("50%", "50"),
        ("2 + 3 = 5", "5"),
        ("10-3", "3"),
        ("(4)-3", "3"),
        ("x=-3", "-3"),
        ("- 5 apples", "5"),
        ("1,00,000", "100000"),
        ("12\u00a0345", "12345"),
        ("1{,}200", "1200"),
        ("\\boxed{42}", "42"),
        ("1, 2, 3", "3"),
        ("2.5e3", "2500"),
        ("5eggs", "5"),
        ("\u7b54\u6848\u662f42", "42"),
        ("She has 7 and CO2", "7"),
        ("Total:42", "42"),
        ("8/2=4", "4"),
    ],
)
def test_a_number_is_read_without_its_dress(text: str, number: str):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        *("3/4", "3 / 4", "so 3/4.", "5 of 8 is 5/8", "\\frac{3}{4}", "\\dfrac{3}{4}", "2\u00bd", "6 of 12 is \u00bd"),
        *("1.2.3", "5:30", "12/25/2024", "12,50", "1,2,3", "0,500", "1,2000", "9" * 101, "1e9999"),
        *("", "none", "CO2", "#### none", "5 #### none", "####"),
    ],
)
def test_what_is_no_plain_number_is_refused(text: str):
    assert final_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 2 = 5\n#### 4", 4),
        ("#### 1\n#### 2", 2),
        ("#### $18 for 2 days", 18),
        ("####\n 72", 72),
        ("####-5", -5),
    ],
)
def test_the_first_number_after_the_last_mark_counts(text: str, number: int):
    assert final_number(text) == number


def test_numbers_are_compared_by_value():
    assert final_number("#### 12") == final_number("The answer is 12.0.")
    assert final_number("1,200") == final_number("$1200.00")
    assert final_number("0.1") != final_number("0.10000000000000001")
    assert final_number("none") is final_number("3/4") is None


@CALM
@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**12), max_value=10**12))
def test_every_number_written_with_commas_is_read_back(number: Decimal):
    assert final_number(f"so it is {number:,}.") == number
    assert final_number(f"12 things cost ${number:,} #### {number}") == number


@CALM
@given(st.text(st.sampled_from("0123456789.,/:$-#eE {}\\ \u00bd"), max_size=60))
def test_any_text_gives_a_finite_number_or_none(text: str):
    number = final_number(text)
    assert number is None or number.is_finite()


def test_a_long_text_takes_no_long_time():
    assert final_number("1," * 200_000) is None
    assert final_number("1 " * 200_000) == 1

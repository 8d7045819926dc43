"""The sentence that says what was learned: what is in it for every kind of outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from mlx_finetune.app.eval.baseline import baseline_of
from mlx_finetune.app.eval.figures import Result, change, corrected, figure
from mlx_finetune.app.eval.measures import LABELS, LOSS, Measure
from mlx_finetune.app.eval.table import table
from mlx_finetune.app.eval.verdict import Verdict, judge

Rows = Mapping[int, tuple[float, ...]]
RIGHT = Measure("number", "number", "answer", "right", "right number", is_tested=True)
OTHER = Measure("general_questions", "general", "general answer", "right", "general questions", is_tested=True)
LOSS_MEASURE = Measure("loss", "loss", LOSS, "ratio", "loss of the answers", is_higher_better=False, is_tested=True)


def rates(right: int, total: int) -> Rows:
    return {row: (float(row < right),) for row in range(total)}


def losses(nats: float, total: int) -> Rows:
    return {row: (nats * 10 + 0.1 * ((row + int(nats)) % 5), 10.0) for row in range(total)}


def verdict(
    *measured: tuple[Measure, Rows, Rows], shots: Rows | None = None, cut: Mapping[str, tuple[int, int]] | None = None
) -> Verdict:
    return judge(results_of(*measured, shots=shots), has_base=True, cut=cut or {})


def results_of(*measured: tuple[Measure, Rows, Rows], shots: Rows | None = None) -> Sequence[Result]:
    results: list[Result] = []
    for measure, base, tuned in measured:
        columns = {"base": base, "tuned": tuned} | ({"base 4-shot": shots} if shots is not None else {})
        figures = {side: made for side, rows in columns.items() if (made := figure(measure, rows, seed=0))}
        to_shots = change(measure, shots, tuned, seed=0) if shots is not None else None
        results.append(Result(measure, figures, change(measure, base, tuned, seed=0), to_shots))
    return corrected(results)


def test_it_learned_it_and_nothing_else_got_worse() -> None:
    found = verdict((RIGHT, rates(12, 50), rates(41, 50)), (OTHER, rates(30, 40), rates(30, 40)))
    assert found.outcome == "learned"
    assert found.sentence == (
        "It learned it: 41 of 50 right, was 12 of 50 (95 % interval of the gain 0.41 to 0.69); nothing else got worse."
    )


def test_what_it_forgot_is_named_with_its_figures() -> None:
    found = verdict((RIGHT, rates(12, 50), rates(41, 50)), (OTHER, rates(38, 40), rates(10, 40)))
    assert found.worse == ("general_questions",)
    assert found.sentence.endswith("; worse: general questions 10 of 40, was 38 of 40.")


def test_without_proof_it_says_so_and_what_else_got_better() -> None:
    found = verdict((RIGHT, rates(12, 50), rates(14, 50)), (LOSS_MEASURE, losses(3.0, 50), losses(2.0, 50)))
    assert found.outcome == "unproven"
    assert found.better == ("loss",)
    assert found.sentence.startswith("No proof that it learned it: 14 of 50 right, was 12 of 50 (95 % interval")
    assert "; better: loss of the answers 2.02, was 3.02; nothing got worse for sure." in found.sentence


def test_few_rows_that_all_fell_are_not_said_to_be_anything() -> None:
    found = verdict((LOSS_MEASURE, losses(3.0, 5), losses(2.0, 5)))
    assert "anything" not in found.sentence
    assert found.sentence.startswith("5 rows prove little: the interval of the change leaves out no change")


def test_a_score_that_the_base_cannot_give_is_not_called_too_little() -> None:
    found = figure(RIGHT, rates(20, 40), seed=0)
    assert found is not None
    assert judge([Result(RIGHT, {"tuned": found}, None)], has_base=True).outcome == "alone"


PERPLEXITY = Measure(
    "general_perplexity", "general", "general text", "ratio", "perplexity", is_higher_better=False, is_tested=True,
    scale="exp",
)  # fmt: skip


def nearly(nats: float, total: int, by: float) -> tuple[Rows, Rows]:
    """Rows that all change by a little, in one direction."""
    base = {row: (nats * 10 + 0.1 * (row % 5), 10.0) for row in range(total)}
    return base, {row: (one + 10 * by * (1 + row % 3 / 10), many) for row, (one, many) in base.items()}


def test_a_change_for_sure_has_the_digits_that_show_it() -> None:
    found = verdict((LOSS_MEASURE, *nearly(0.65, 40, -0.003)), (PERPLEXITY, *nearly(5.5565, 40, 0.0006)))
    assert (found.outcome, found.worse) == ("learned", ("general_perplexity",))
    assert found.sentence == (
        "It learned it: loss of the answers 0.667, was 0.670 (95 % interval of the change -0.0034 to -0.0032); worse: "
        "perplexity 264.3, was 264.1."
    )


def test_a_change_for_sure_that_no_reader_could_see_is_said_to_be_none() -> None:
    found = verdict((LOSS_MEASURE, *nearly(0.65, 40, -1e-7)))
    assert found.sentence.startswith("It hardly changed: loss of the answers 0.67, no change that shows (")


def test_the_table_shows_the_same_digits_within_eighty_columns() -> None:
    measured = [(LOSS_MEASURE, *nearly(0.65, 40, -0.003)), (PERPLEXITY, *nearly(5.5565, 40, 0.0006))]
    measured.append((OTHER, rates(5, 40), rates(6, 40)))
    measured.append((LOSS_MEASURE, *nearly(0.65, 40, -1e-7)))
    lines = list(table(results_of(*measured), "base", "tuned"))[1:]
    assert all(len(line) <= 80 for line in lines)
    assert [line[26:].split() for line in lines] == [
        ["0.670", "0.667", "-0.0033", "-0.0034", "to", "-0.0032", "better"],
        ["264.1", "264.3", "x", "1.0007", "1.0006", "to", "1.0007", "worse"],
        ["5/40", "6/40", "+0.03", "-0.06", "to", "+0.12", "unsure"],
        ["0.67", "0.67", "-0.0000", "-0.0000", "to", "-0.0000", "same"],
    ]


def test_a_leading_measure_that_fell_is_said_first() -> None:
    found = verdict((RIGHT, rates(41, 50), rates(12, 50)))
    assert (found.outcome, found.sentence.partition(":")[0]) == ("worse", "It got worse")


def test_few_rows_put_the_interval_first() -> None:
    found = verdict((RIGHT, rates(0, 12), rates(12, 12)))
    assert found.sentence.startswith(
        "12 rows are few: from base to tuned, the 95 % interval of the gain in right number is 0.66 to 1.00. It "
        "learned it:"
    )
    assert "prove little" not in verdict((RIGHT, rates(0, 30), rates(30, 30))).sentence
    few = verdict((RIGHT, rates(0, 5), rates(5, 5)))  # McNemar's p is 0.0625: five of five prove nothing
    assert few.outcome == "unproven"


def test_a_loss_that_falls_is_a_gain() -> None:
    found = verdict((LOSS_MEASURE, losses(3.0, 40), losses(2.0, 40)))
    assert found.outcome == "learned"
    assert found.sentence.startswith("It learned it: loss of the answers 2.02, was 3.02 (95 % interval of the change")


def test_the_base_with_examples_is_set_beside_it() -> None:
    found = verdict((RIGHT, rates(12, 50), rates(41, 50)), shots=rates(20, 50))
    assert "With 4 examples in its prompt the base has 20 of 50 (95 % interval of the gain over that" in found.sentence


def test_without_a_base_or_without_figures_there_is_no_verdict() -> None:
    assert judge([], has_base=False).outcome == "alone"
    assert judge([], has_base=True).sentence == "Too little was measured for a verdict."


def test_where_what_leads_has_no_figure_nothing_else_is_called_learned() -> None:
    results = results_of((OTHER, rates(10, 40), rates(38, 40)), (LOSS_MEASURE, losses(2.0, 50), losses(3.0, 50)))
    found = judge(results, has_base=True, leading=RIGHT)
    assert (found.outcome, found.better, found.worse) == ("unproven", ("general_questions",), ("loss",))
    assert found.sentence == (
        "It cannot be judged: right number, which leads, has no figure; better: general questions 38 of 40, "
        "was 10 of 40; worse: loss of the answers 3.02, was 2.02."
    )
    assert judge(results, has_base=True, leading=OTHER).outcome == "learned"


def test_holm_over_many_tasks_takes_a_chance_finding_back() -> None:
    chance = (RIGHT, rates(3, 40), rates(9, 40))  # p = 0.031 alone
    others: Sequence[tuple[Measure, Rows, Rows]] = [
        (Measure(f"m{n}", "regex", "answer", "right", f"m{n}", is_tested=True), rates(5, 40), rates(5, 40))
        for n in range(4)
    ]
    assert verdict(chance).outcome == "learned"
    assert verdict(chance, *others).outcome == "unproven"


def test_rows_and_tests_that_can_find_nothing_are_said() -> None:
    others = [
        (Measure(f"m{n}", "regex", "answer", "right", f"m{n}", is_tested=True), rates(5, 6), rates(5, 6))
        for n in range(9)
    ]
    found = verdict((RIGHT, rates(0, 6), rates(6, 6)), *others)
    assert "With 6 rows and 10 tests no change can be found, however large: that takes 9 rows." in found.sentence
    assert "can be found" not in verdict((RIGHT, rates(0, 6), rates(6, 6))).sentence
    assert "With 5 rows and 1 test no change" in verdict((RIGHT, rates(0, 5), rates(5, 5))).sentence


def test_a_change_without_an_interval_has_none_in_the_sentence() -> None:
    found = verdict((LOSS_MEASURE, {0: (20.0, 10.0)}, {0: (10.0, 10.0)}))
    assert found.sentence.startswith("One row proves little. With 1 row and 1 test no change can be found")
    assert "loss of the answers 1.00, was 2.00 (no interval: one row)" in found.sentence


def test_answers_that_were_cut_are_said_before_the_figures() -> None:
    measured = (RIGHT, rates(0, 40), rates(0, 40))
    found = verdict(measured, cut={"base": (3, 40), "tuned": (40, 40)})
    assert found.sentence.startswith(
        "Answers of tuned were cut at the limit (40 of 40), so this says little of what they would have been: raise "
        "--max-tokens. No proof that it learned it: 0 of 40 right"
    )
    assert found.sentence.endswith(" Answers without what was trained came to no end before the limit: base 3 of 40.")
    assert "cut" not in verdict(measured, cut={"base": (0, 40), "tuned": (0, 40)}).sentence
    of_base = verdict(measured, cut={"base": (3, 40), "tuned": (0, 40)})
    assert of_base.sentence.startswith("No proof that it learned it: 0 of 40 right")
    assert of_base.sentence.endswith(" came to no end before the limit: base 3 of 40.")
    assert "--max-tokens" not in of_base.sentence, "a base that babbles does so at any limit"
    of_losses = verdict((LOSS_MEASURE, losses(3.0, 40), losses(2.0, 40)), cut={"tuned": (40, 40)})
    assert "cut" not in of_losses.sentence


@pytest.mark.parametrize(("always", "outcome"), [(97, "unproven"), (70, "learned")])
def test_classes_are_learned_where_the_commonest_is_beaten_too(always: int, outcome: str) -> None:
    measure = replace(RIGHT, name="accuracy", work=LABELS)
    tuned = rates(111, 173)
    classes = {row: (float(row >= 173 - always), float(row < 111)) for row in range(173)}
    baseline = baseline_of(("no", "yes"), measure, tuned, classes, seed=0)
    assert baseline is not None
    found = judge(results_of((measure, rates(76, 173), tuned)), has_base=True, baseline=baseline)
    assert found.outcome == outcome
    beside = ", but always `yes` is right for 97 of 173" if outcome == "unproven" else ""
    opening = "No proof that it learned it" if beside else "It learned it"
    assert found.sentence.startswith(f"{opening}: 111 of 173 right, was 76 of 173")
    assert beside in found.sentence
    assert judge(results_of((measure, rates(76, 173), tuned)), has_base=True).outcome == "learned"

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_finetune.errors import UsageError
from mlx_finetune.scoring.labels import accuracy, macro_f1, named_label

#: The machine may be busy: a test is never judged by its time.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "d", None])), min_size=1)


def test_accuracy_and_macro_f1_by_hand():
    """a: 2 hits, 1 false, 1 missed: 4/6. b: 1 hit, 1 false, 2 missed: 2/5. c is predicted once, never right: 0."""
    pairs = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("b", "c")]
    assert accuracy(pairs) == pytest.approx(3 / 6)
    assert macro_f1(pairs) == pytest.approx((4 / 6 + 2 / 5 + 0) / 3)


@CALM
@given(PAIRS)
def test_macro_f1_is_the_mean_of_precision_and_recall_by_class(pairs: list[tuple[str, str | None]]):
    scores = []
    for label in {gold for gold, _ in pairs} | {predicted for _, predicted in pairs if predicted}:
        hits = pairs.count((label, label))
        num_predicted = [predicted for _, predicted in pairs].count(label)
        num_gold = [gold for gold, _ in pairs].count(label)
        precision = hits / num_predicted if num_predicted else 0
        recall = hits / num_gold if num_gold else 0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0)
    assert macro_f1(pairs) == pytest.approx(sum(scores) / len(scores))


def test_an_answer_without_a_label_is_wrong_and_no_class():
    assert accuracy([("a", None), ("a", "a")]) == 0.5
    assert macro_f1([("a", None), ("a", "a")]) == pytest.approx(2 / 3)
    assert macro_f1([("a", None)]) == 0


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        (" Positive.\n", "positive"),
        ("**POSITIVE**", "positive"),
        ("Answer: positive", "positive"),
        ("\n\nThe answer:\npositive\nText: awful\nnegative", "positive"),
        ("positive or negative", None),
        ("positive, positive", "positive"),
        ("very  positive", "very positive"),
        ("positively", None),
        ("unpositive", None),
        ("", None),
        ("no idea", None),
    ],
)
def test_the_first_line_that_names_one_label_decides(text: str, label: str | None):
    assert named_label(text, ["positive", "negative", "very positive"]) == label


def test_labels_of_any_script_and_signs_are_found():
    assert named_label("\u8fd9\u662f\u6b63\u9762\u7684", ["\u6b63\u9762", "\u8d1f\u9762"]) == "\u6b63\u9762"
    assert named_label("\u8fd9\u662fpositive\u7684", ["positive"]) == "positive"
    assert named_label("cafe\u0301", ["caf\u00e9"]) == "caf\u00e9"
    assert named_label("grade: A+", ["A", "A+"]) == "A+"
    assert named_label("-1", ["1", "-1"]) == "-1"
    assert named_label("10", ["1"]) is None
    assert named_label("STRASSE", ["Stra\u00dfe"]) == "Stra\u00dfe"


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "no label"), (["a", " "], "empty"), (["Yes", "yes"], "differ only"), (["a  b", "a b"], "differ only")],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str], message: str):
    with pytest.raises(UsageError, match=message) as caught:
        named_label("yes", labels)
    assert caught.value.hint

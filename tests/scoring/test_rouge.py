import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from mlx_finetune.scoring import rouge as module
from mlx_finetune.scoring.rouge import Rouge, rouge

#: The machine may be busy: a test is never judged by its time.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

WORDS = ["police", "killed", "kill", "the", "gunman", "running", "runs", "U.S.", "a_b", "12", "flies", "\n", "-"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
UPSTREAM = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)


@CALM
@given(TEXTS, TEXTS)
def test_for_ascii_the_figures_are_those_of_the_package_with_its_own_words(expected: str, got: str):
    theirs = {name: score.fmeasure for name, score in UPSTREAM.score(expected, got).items()}
    assert rouge(expected, got) == Rouge(theirs["rouge1"], theirs["rouge2"], theirs["rougeL"], theirs["rougeLsum"])


def test_the_example_of_the_paper():
    """Lin 2004, section 3: with stems "killed" equals "kill"; "the gunman" is the longest common part of the second."""
    assert rouge("police killed the gunman", "police kill the gunman") == Rouge(1, 1, 1, 1)
    found = rouge("police killed the gunman", "the gunman kill police")
    assert (found.rouge1, found.rouge_l, found.rouge_lsum) == (1.0, 0.5, 0.5)
    assert found.rouge2 == pytest.approx(1 / 3)


def test_lsum_takes_lines_as_sentences_in_any_order():
    found = rouge("one two\nthree four", "three four\none two")
    assert (found.rouge_l, found.rouge_lsum) == (0.5, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "\u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5",
        "\u5317\u4eac\u5e02",
        "caf\u00e9 au lait",
    ],
)
def test_letters_of_every_script_count(text: str):
    assert rouge(text, text).rouge1 == 1
    assert rouge(text, "nothing like it").rouge1 == 0


def test_accents_are_the_same_in_either_form():
    assert rouge("caf\u00e9", "cafe\u0301") == Rouge(1, 0, 1, 1)


def test_a_text_without_words_scores_nothing():
    assert rouge("", "") == rouge("words", "!") == rouge("...", "words") == Rouge(0, 0, 0, 0)


def test_only_the_first_words_of_a_long_text_are_read(monkeypatch: pytest.MonkeyPatch):
    assert module.MAX_WORDS == 2_000
    monkeypatch.setattr(module, "MAX_WORDS", 20)
    start = " ".join(f"word{number}" for number in range(20))
    assert rouge(start + " one two", start + " three").rouge1 == 1
    assert rouge(start, start.replace("word19", "other")).rouge1 == pytest.approx(19 / 20)

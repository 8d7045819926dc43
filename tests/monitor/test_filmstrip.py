from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal import STARTED, records, step, whole_run

from mlx_finetune.events import RunStarted, Sampled
from mlx_finetune.monitor.filmstrip import Frame, Piece, changed_words, frames
from mlx_finetune.monitor.summary import Summary, summarise


def marked(before: str, after: str) -> str:
    return "".join(f"[{piece.text}]" if piece.is_changed else piece.text for piece in changed_words(before, after))


def test_there_is_a_frame_for_the_base_and_for_every_evaluation():
    answers = ["I do not know.", "Good day to you.", "Good day to you."]
    expected = [Frame(number, {"Hello?": text}) for number, text in zip((0, 30, 40), answers, strict=True)]
    assert frames(summarise(whole_run())) == expected


def test_prompts_keep_their_order_and_a_run_without_prompts_has_no_frames():
    events = [STARTED, Sampled(0, "b", "1"), Sampled(0, "a", "2"), step(1), Sampled(1, "b", "3"), Sampled(1, "a", "4")]
    assert [list(frame.answers) for frame in frames(summarise(records(*events)))] == [["b", "a"], ["b", "a"]]
    assert frames(Summary()) == []


def test_the_frame_of_a_step_that_was_done_again_is_the_newer_one():
    again = RunStarted("demo", "tiny-llama", "sft", 1, 40, 20, 80, 8, 1_000, 50_000, "CPU", "float32", None)
    events = [STARTED, Sampled(0, "a", "base"), step(1), step(2), Sampled(2, "a", "lost"), again, step(2)]
    summary = summarise(records(*events, Sampled(2, "a", "kept")))
    assert [frame.answers["a"] for frame in frames(summary)] == ["base", "kept"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("same words here", "same words here", "same words here"),
        ("", "all of it", "[all of it]"),
        ("something", "", ""),
        ("the sky is blue.", "the sea is blue.", "the [sea] is blue."),
        ("the sky is blue", "the sky is blue.", "the sky is blue[.]"),
        ("a b c d", "a x y d", "a [x y] d"),
        ("a b c", "c b a", "[c b] a"),
        ("one  two", "one\n\ntwo", "one\n\ntwo"),
        ("\u4eca\u65e5\u306f", "\u4eca\u591c\u306f", "\u4eca[\u591c]\u306f"),
    ],
)
def test_changed_words_are_marked(before: str, after: str, expected: str):
    assert marked(before, after) == expected


def test_an_answer_that_repeats_one_word_for_ever_is_still_quick():
    pieces = changed_words("the " * 5000 + "end", "now " + "the " * 4000 + "rest of the")
    assert pieces[0].is_changed
    assert "".join(piece.text for piece in pieces) == "now " + "the " * 4000 + "rest of the"


@given(st.text(max_size=80), st.text(max_size=80))
def test_the_pieces_are_the_answer_and_neighbours_differ(before: str, after: str):
    pieces = changed_words(before, after)
    assert "".join(piece.text for piece in pieces) == after
    assert all(one.is_changed != two.is_changed for one, two in pairwise(pieces))


@given(st.text(max_size=80))
def test_nothing_is_changed_in_an_equal_answer(text: str):
    assert changed_words(text, text) == ([Piece(text, False)] if text else [])

"""Where an answer ends by its text, however the text is cut into pieces."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.errors import UsageError
from mlx_finetune.model.answers.endings import Endings


def told(pieces: Sequence[str], stop: Sequence[str] = (), *, ends_with_object: bool = False) -> tuple[str, bool]:
    """The text shown, and whether an end was reached."""
    endings = Endings(stop, ends_with_object=ends_with_object)
    shown = ""
    for piece in pieces:
        shown += endings.feed(piece)
        if endings.is_reached:
            return shown, True
    return shown + endings.finish(), False


@pytest.mark.parametrize(
    ("text", "stop", "shown", "is_reached"),
    [
        ("one END two", ("END",), "one ", True),
        ("one EN", ("END",), "one EN", False),
        ("ENEND", ("END",), "EN", True),
        ("abcabd", ("abd", "bca"), "a", True),  # the first that is complete
        ("xabc", ("bc", "abc"), "x", True),  # of two that end together, the longer
        ("xab", ("a", "ab"), "x", True),
        ("aab", ("aaab", "ab"), "a", True),
        ("END", ("END",), "", True),
        ("no end", (), "no end", False),
        ("line\nnext", ("\n",), "line", True),
    ],
)
def test_a_stop_text_ends_the_answer_and_is_never_shown(
    text: str, stop: tuple[str, ...], shown: str, is_reached: bool
) -> None:
    assert told([text], stop) == (shown, is_reached)
    assert told(list(text), stop) == (shown, is_reached)


@given(
    st.text('ab{}"\\ ', max_size=30),
    st.lists(st.text('ab{}"', min_size=1, max_size=4), max_size=3),
    st.booleans(),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_the_end_is_the_same_however_the_text_is_cut(
    text: str, stop: list[str], ends_with_object: bool, cuts: list[int]
) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    whole = told([text], stop, ends_with_object=ends_with_object)
    assert told(pieces, stop, ends_with_object=ends_with_object) == whole
    assert told(list(text), stop, ends_with_object=ends_with_object) == whole
    assert not any(one in whole[0] for one in stop)
    assert text.startswith(whole[0])


def test_what_may_begin_a_stop_text_is_held_back_and_no_more() -> None:
    endings = Endings(("<end>",))
    assert [endings.feed(piece) for piece in ("a<", "en", "x<e", "nd", ">b")] == ["a", "", "<enx", "", ""]
    assert endings.is_reached
    assert endings.feed("more") == endings.finish() == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('Sure: {"a": {"b": "}"}} and more', 'Sure: {"a": {"b": "}"}}'),
        ('{"a": "\\"}"}}', '{"a": "\\"}"}'),
        ('{"a": 1', '{"a": 1'),
        ("{}{}", "{}"),
        ("none", "none"),
    ],
)
def test_the_brace_that_closes_the_first_object_ends_the_answer(text: str, shown: str) -> None:
    for pieces in ([text], list(text)):
        assert told(pieces, ends_with_object=True) == (shown, len(shown) < len(text) or shown.endswith("}}"))


def test_of_a_stop_text_and_an_object_the_first_complete_one_counts() -> None:
    assert told(['{"a": 1} END'], ("END",), ends_with_object=True) == ('{"a": 1}', True)
    assert told(['{"a": 1 END}'], ("END",), ends_with_object=True) == ('{"a": 1 ', True)
    assert told(['{"a": 1}'], ("}",), ends_with_object=True) == ('{"a": 1', True)
    assert told(['x{"a": 1}y'], ("1}y",), ends_with_object=True) == ('x{"a": 1}', True)


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(UsageError, match="a stop text is empty"):
        Endings(("END", ""))

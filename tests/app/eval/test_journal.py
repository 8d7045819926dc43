"""The journal of an evaluation: what is in it comes back, and nothing of another evaluation is mixed in."""

from pathlib import Path

import pytest

from mlx_finetune.app.eval.journal import Journal, Measured, read_lines
from mlx_finetune.errors import RunError

IDENTITY = {"version": 1, "tasks": ["loss"], "labels": ()}
FIRST = Measured("answer", "base", 0, {"exact_match": (1.0,)}, "red \ud800", "stop", 5, 2, 0.1, 0.2)
FAILED = Measured("answer", "tuned", 0, {}, error="too long")


def write(path: Path) -> None:
    journal = Journal(path, IDENTITY)
    journal.add(FIRST)
    journal.add(FAILED)
    journal.close()


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    write(tmp_path / "j")
    again = Journal(tmp_path / "j", IDENTITY)
    assert FIRST.key in again
    assert ("answer", "base", 1) not in again
    found = again.found[FIRST.key]
    assert (found.values, found.answer_tokens, found.answer) == (FIRST.values, 2, "")  # texts stay in the file
    assert again.found[FAILED.key].error == "too long"
    assert again.answers(frozenset({0}), "answer") == {("base", 0): "red \ud800", ("tuned", 0): ""}
    again.close()


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.9])
def test_half_a_last_line_is_taken_away_and_measured_again(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "j"
    write(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[: last + int(kept * (len(whole) - last))])
    again = Journal(path, IDENTITY)
    assert list(again.found) == [FIRST.key]
    again.add(FAILED)
    again.close()
    assert path.read_bytes() == whole


def test_a_journal_of_another_identity_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(RunError, match="other settings or of another model") as caught:
        Journal(tmp_path / "j", IDENTITY | {"tasks": ["rouge"]})
    assert "--name" in caught.value.hint
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize("content", [b"[]\n", b"nonsense\n", b'{"identity": 1}\n', b'{"x": 1}\n'])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(RunError):
        Journal(tmp_path / "j", IDENTITY)
    assert (tmp_path / "j").read_bytes() == content


def test_a_line_of_another_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "j")
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"work": "loss", "side": "base", "row": 1, "values": {}, "colour": 3}\n')
    with pytest.raises(RunError, match="another version"):
        Journal(tmp_path / "j", IDENTITY)
    assert len(list(read_lines(tmp_path / "j"))) == 4

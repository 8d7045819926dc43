"""microscope.json: what was written is read again, and anything else counts as no file."""

import json
import math
from pathlib import Path

import pytest

from mlx_finetune.dataset.token_losses import (
    MAX_LOSS,
    Measured,
    Microscope,
    Row,
    Token,
    bounded,
    read_microscope,
    write_microscope,
)
from mlx_finetune.rundir import MICROSCOPE, RunDir

HOSTILE = ("</script>", "\x1b[31m", "\u202e", "\n", "\t", "\U0001f600", "", "\ud800")


def _microscope() -> Microscope:
    tokens = (Token("Hi", False), *(Token(text, True, 2.5, 0.25) for text in HOSTILE))
    measured = Measured("m", "rows.jsonl", "3,1", 40, "a", "b", "c")
    return Microscope((Row("rows.jsonl:3", tokens, ("its first turns were cut",)), Row("x:1", ())), measured)


def test_what_was_written_is_read_again(tmp_path: Path):
    write_microscope(RunDir(tmp_path), _microscope())
    assert read_microscope(RunDir(tmp_path)) == _microscope()


def test_without_a_file_there_is_nothing(tmp_path: Path):
    assert read_microscope(RunDir(tmp_path)) is None
    (tmp_path / MICROSCOPE).mkdir()
    assert read_microscope(RunDir(tmp_path)) is None


@pytest.mark.parametrize("cut", [0, 1, 60, 200, -1])
def test_a_torn_file_counts_as_none(tmp_path: Path, cut: int):
    write_microscope(RunDir(tmp_path), _microscope())
    path = tmp_path / MICROSCOPE
    path.write_bytes(path.read_bytes().rstrip()[:cut])
    assert read_microscope(RunDir(tmp_path)) is None


def _with_token(token: object) -> str:
    return json.dumps({"format_version": 1} | _names() | {"rows": [{"where": "x:1", "tokens": [token]}]})


def _names() -> dict[str, object]:
    return dict.fromkeys(("model", "data", "chosen", "model_sha256", "adapter_sha256", "rows_sha256"), "")


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "\xff",
        "[" * 100_000,
        json.dumps({"format_version": 2, "rows": []} | _names()),
        json.dumps({"format_version": 1, "rows": {}} | _names()),
        json.dumps({"format_version": 1, "rows": [], "step": -1} | _names()),
        json.dumps({"format_version": 1, "rows": [{"where": 3, "tokens": []}]} | _names()),
        _with_token(["a", True, None, 1.0]),
        _with_token(["a", True, math.nan, 1.0]),
        _with_token(["a", True, math.inf, 1.0]),
        _with_token(["a", True, -0.5, 1.0]),
        _with_token(["a", True, MAX_LOSS + 1, 1.0]),
        _with_token(["a", True, True, 1.0]),
        _with_token(["a", True, "1", 1.0]),
        _with_token(["a", True, 1.0]),
        _with_token(["a", False, 1.0, 1.0]),
        _with_token([7, False]),
        _with_token({"text": "a"}),
    ],
)
def test_what_this_version_would_not_write_counts_as_no_file(tmp_path: Path, text: str):
    (tmp_path / MICROSCOPE).write_bytes(text.encode("latin-1"))
    assert read_microscope(RunDir(tmp_path)) is None


def test_the_damaged_files_differ_from_a_good_one_in_one_thing(tmp_path: Path):
    (tmp_path / MICROSCOPE).write_text(_with_token(["a", True, 1.5, 1]))
    found = read_microscope(RunDir(tmp_path))
    assert found is not None
    assert found.rows[0].tokens == (Token("a", True, 1.5, 1.0),)


def test_a_loss_is_kept_as_a_number_between_0_and_the_greatest():
    assert [bounded(loss) for loss in (-1e-7, 1.23456, 500.0, math.inf, math.nan)] == [0.0, 1.2346, 99.0, 99.0, 99.0]

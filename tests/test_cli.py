"""The outermost layer: what a slip on the command line looks like, and its exit code."""

import subprocess
import sys

import pytest

from mlx_finetune.cli import main, print_error
from mlx_finetune.commands.measuring import row_reporter
from mlx_finetune.errors import DataError, Problem
from mlx_finetune.units import format_rate


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["trian"], "error: there is no command `trian`\nhint: did you mean `train`?\n"),
        (["xyzzy"], "error: there is no command `xyzzy`\nhint: mlxft --help\n"),
        (["train"], "error: Missing argument 'RECIPE'.\nhint: mlxft train --help\n"),
        (["data", "split", "x", "--val", "2"], "error: Invalid value for '--val': 2.0 is not in the range 0<=x<1.\n"),
    ],
)
def test_a_slip_on_the_command_line_is_an_error_with_a_hint(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith(shown)


def test_nobody_is_told_that_pytorch_is_missing() -> None:
    """Transformers says so once it is imported, as GPT-2's vocabulary is converted by it."""
    code = "from mlx_finetune.cli import main\ntry:\n    main(['--version'])\nfinally:\n    import transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_a_group_alone_shows_its_help_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith("Usage: mlxft ")
    assert "Commands:" in said.err


def test_a_problem_and_a_hint_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    one = Problem("a.csv:2", "`label` is empty", "write it")
    print_error(DataError("a.csv:2: one problem in the data: `label` is empty", "write it", (one,)))
    assert capsys.readouterr().err == "error: a.csv:2: one problem in the data: `label` is empty\nhint: write it\n"
    print_error(DataError("2 problems", "write it", (one, one, Problem("a.csv:3", "no text", "write it"))))
    assert capsys.readouterr().err.count("hint:") == 1


def test_an_evaluation_tells_of_five_rows_and_of_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = row_reporter(lambda: None)
    for side in ("base", "tuned"):
        for row in range(9):
            report(Problem(f"a:{row}", f"too long ({side})"), "why?")
    said = capsys.readouterr().err
    assert (said.count("error:"), said.count("more rows could not be measured")) == (5, 1)


def test_a_slow_rate_is_not_nothing() -> None:
    assert [format_rate(rate) for rate in (0.0, 0.163, 9.6, 12345.6)] == ["0", "0.16", "9.6", "12,346"]

"""The outermost layer: what a slip on the command line looks like, and its exit code."""

import pytest

from mlx_finetune.cli import main


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


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_a_group_alone_shows_its_help_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.startswith("Usage: mlxft ")
    assert "Commands:" in said.err

"""``mlxft train``: which child is started, what is said at the end, what JSON Lines hold. The child is a fake one."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_finetune.app.running import launch, supervise
from mlx_finetune.commands.train import command
from mlx_finetune.errors import RecipeError
from mlx_finetune.events import from_json
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
SUPERVISE = supervise.supervise
FAKE = ROOT / "tests" / "fake_child.py"
RECIPE = 'model = "tiny"\noutput_dir = "adapters/demo"\n[data]\npath = "rows.jsonl"\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("demo.toml").write_text(RECIPE)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, mode: str, *arguments: str) -> Result:
    def start(request: launch.TrainRequest, run: RunDir, recipe: Recipe, view: launch.View) -> supervise.Supervised:
        return SUPERVISE(request, run, recipe, view, command=[sys.executable, str(FAKE), str(run.path), mode])

    monkeypatch.setattr(supervise, "supervise", start)
    return CliRunner().invoke(command, ["demo.toml", *arguments], standalone_mode=False)


def test_a_finished_run_ends_with_what_was_learned_and_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, "finish")
    assert result.return_value == 0
    assert result.stdout == ""
    last = result.stderr.splitlines()
    assert "  validation loss 2.5000 -> 1.5000, 40% lower (best at step 6)" in last
    assert "  adapter in adapters/demo" in last
    assert last[-1] == "next: mlxft chat demo"


def test_json_lines_hold_every_event_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, "finish", "--json")
    records = [from_json(line) for line in result.stdout.splitlines()]
    assert None not in records
    assert [json.loads(line)["kind"] for line in result.stdout.splitlines()][-1] == "run_finished"
    assert result.stdout == Path("adapters/demo/events.jsonl").read_text("utf-8")


def test_a_failed_run_ends_with_its_sentence_and_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, "fail")
    assert result.return_value == 1
    assert result.stderr.splitlines()[-2:] == ["error: the loss is not finite", "hint: lower the learning rate"]


def test_a_full_disk_is_one_sentence_with_the_space_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, "full")
    assert result.return_value == 1
    error, hint = result.stderr.splitlines()[-2:]
    assert re.fullmatch(
        r"error: the disk is full; everything up to the last checkpoint is safe \([\d.]+ \w?B free\)", error
    )
    assert hint == "hint: make room, then go on with --resume"


def test_a_refusal_is_shown_as_the_child_said_it(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, "refuse")
    assert result.return_value == 1
    assert result.stderr.splitlines() == [
        "error: the folder holds a finished run",
        "hint: mlxft train RECIPE --resume",
    ]


def test_a_killed_child_is_explained_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, "kill")
    assert result.return_value == 1
    lines = result.stderr.splitlines()
    assert "  the last thing it said" in lines
    assert lines[-2] == (
        "error: the training process was killed, most often because the memory of this machine ran out (SIGKILL), "
        "for the fourth time without a new checkpoint; no checkpoint was saved"
    )
    assert lines[-1].startswith("hint: close other programs")


def test_a_crash_after_a_checkpoint_names_it_and_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Path("adapters/demo/checkpoint-2")
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    lines = call(monkeypatch, "kill", "--set", "seed=3").stderr.splitlines()
    assert lines[-3].endswith("the last checkpoint is adapters/demo/checkpoint-2")
    assert lines[-1] == "to go on: mlxft train demo.toml --set seed=3 --resume"


def test_a_broken_recipe_is_refused_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("demo.toml").write_text(RECIPE + "colour = 1\n")
    result = call(monkeypatch, "finish")
    assert isinstance(result.exception, RecipeError)
    assert not Path("adapters").exists()


def test_a_resumed_run_shows_the_losses_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "finish")
    result = call(monkeypatch, "fail", "--resume")
    assert result.stderr.count("validation loss 2.5000") == 1


@pytest.mark.parametrize(
    ("setting", "is_live"), [({"TERM": "xterm-256color"}, True), ({"TERM": "dumb"}, False), ({"TERM": ""}, False)]
)
def test_a_terminal_gets_the_live_view_and_a_dumb_one_plain_lines(
    here: Path, setting: dict[str, str], is_live: bool
) -> None:
    code = (
        "import sys; from mlx_finetune.commands import train; from mlx_finetune.monitor.summary import Summary\n"
        "view = train.choose_view(Summary(), as_json=False); print(type(view).__name__); view.close()"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **setting}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=slave, env=environment, text=True, check=True
    )
    os.close(slave)
    os.close(master)
    assert (done.stdout.strip() == "LiveView") is is_live


@pytest.mark.parametrize("module", ["mlx_finetune.commands.train", "mlx_finetune.train.child"])
def test_neither_parent_nor_child_imports_mlx_before_it_is_time(module: str) -> None:
    """The child must load its BLAS first (hardware.blas); the parent never needs mlx."""
    code = f"import sys, {module}; print([name for name in ('mlx.core', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"

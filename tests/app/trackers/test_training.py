"""``training.report_to`` in a whole ``mlxft train``: who is told, and that no tracker changes how a training ends."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from following import environment, told

from mlx_finetune.app.running import launch, supervise
from mlx_finetune.app.trackers import names, watching
from mlx_finetune.commands.train import command
from mlx_finetune.errors import RecipeError
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import TRACKERS, RunDir

ROOT = Path(__file__).resolve().parents[3]
SUPERVISE = supervise.supervise
FAKE = ROOT / "tests" / "fake_child.py"
RECIPE = (
    'model = "tiny"\noutput_dir = "adapters/demo"\n[data]\npath = "rows.jsonl"\n'
    '[training]\nreport_to = ["tensorboard"]\n'
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("demo.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(name="installed")
def installed_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The stand-in is found here and in the processes that are started."""

    def install(mode: str) -> None:
        for name, value in environment(mode).items():
            monkeypatch.setenv(name, value)
        library = names.Library("json", "tensorboardX>=2.6", "tensorboard --logdir FOLDER")
        monkeypatch.setattr(names, "LIBRARIES", {"tensorboard": library})

    return install


def call(monkeypatch: pytest.MonkeyPatch, mode: str, *arguments: str) -> Result:
    def start(request: launch.TrainRequest, run: RunDir, recipe: Recipe, view: launch.View) -> supervise.Supervised:
        return SUPERVISE(request, run, recipe, view, command=[sys.executable, str(FAKE), str(run.path), mode])

    monkeypatch.setattr(supervise, "supervise", start)
    return CliRunner().invoke(command, ["demo.toml", *arguments], standalone_mode=False)


def test_a_training_tells_its_trackers_and_says_where_to_look(
    monkeypatch: pytest.MonkeyPatch, installed: Callable[[str], None]
):
    installed("")
    result = call(monkeypatch, "finish")
    assert result.return_value == 0
    run = RunDir(Path("adapters/demo"))
    calls = told(run)
    assert calls[0][0] == "open"
    assert calls[-1] == ["close"]
    assert "train/loss" in {call[0] for call in calls}
    lines = result.stderr.splitlines()
    assert "tensorboard: tensorboard --logdir adapters/demo/trackers/tensorboard" in lines
    assert lines[-1] == "next: mlxft chat demo"
    assert not any("warning" in line for line in lines)


@pytest.mark.some(1)
@pytest.mark.parametrize("mode", ["raises at once", "exits", "hangs"])
def test_no_tracker_changes_how_a_training_ends(
    monkeypatch: pytest.MonkeyPatch, installed: Callable[[str], None], mode: str
):
    installed(mode)
    monkeypatch.setattr(watching, "END_SECONDS", 3.0)
    result = call(monkeypatch, "finish")
    assert result.return_value == 0
    assert result.stderr.splitlines()[-1] == "next: mlxft chat demo"
    assert "--logdir" not in result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith(("warning: tensorboard", "note: tensor"))]
    assert len(said) == 1


def test_a_tracker_that_is_missing_is_refused_before_the_training(monkeypatch: pytest.MonkeyPatch):
    library = names.Library("no_such_library", "no-such-library>=1", "")
    monkeypatch.setattr(names, "LIBRARIES", {"tensorboard": library})
    result = call(monkeypatch, "finish")
    assert isinstance(result.exception, RecipeError)
    (problem,) = result.exception.problems
    assert problem.where == "demo.toml:6"
    assert problem.message == "tensorboard is not installed (no_such_library cannot be imported)"
    assert problem.hint == f"{sys.executable} -m pip install 'no-such-library>=1'"
    assert not Path("adapters").exists()


def test_a_run_that_goes_on_needs_its_tracker_too(monkeypatch: pytest.MonkeyPatch):
    library = names.Library("no_such_library", "no-such-library>=1", "")
    monkeypatch.setattr(names, "LIBRARIES", {"tensorboard": library})
    assert isinstance(call(monkeypatch, "finish", "--resume").exception, RecipeError)
    Path("demo.toml").write_text(RECIPE.replace('["tensorboard"]', "[]"))
    assert call(monkeypatch, "finish", "--resume").exception is None
    assert not Path("adapters/demo", TRACKERS).exists()


def test_what_was_told_is_kept_in_the_run_folder(monkeypatch: pytest.MonkeyPatch, installed: Callable[[str], None]):
    installed("")
    call(monkeypatch, "finish")
    kept = json.loads(Path("adapters/demo/trackers/tensorboard.json").read_text())
    assert kept["step"] > 0
    assert kept["num_starts"] == 1

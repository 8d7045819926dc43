"""A sweep as a user runs it: trials that finish, diverge, are refused, are stopped and go on; nothing is redone."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answering_runs import write_adapter
from click.testing import CliRunner, Result
from small_runs import write_recipe

from mlx_finetune import rundir
from mlx_finetune.app.running.endings import Ended, Ending
from mlx_finetune.app.running.launch import TrainRequest
from mlx_finetune.app.running.supervise import Supervised
from mlx_finetune.app.sweep import run as running
from mlx_finetune.app.sweep.design import Base, Done, Trial
from mlx_finetune.app.sweep.journal import FILE_NAME, Sweep, begin_sweep, identify, write_sweep
from mlx_finetune.app.sweep.run import SweepStoppedError, run_sweep, trial_overrides
from mlx_finetune.app.sweep.show import next_commands, plan_lines, sweep_lines
from mlx_finetune.cli import root
from mlx_finetune.errors import MlxftError, RunError
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RUN_INFO, RunDir

BASE = Base(2e-4, 8, 30)
FINISHED = Ending("finished", "finished", "the run has finished")


class View:
    def show(self, record: object) -> None: ...
    def tick(self, now: float) -> None: ...
    def say(self, message: str) -> None: ...
    def close(self) -> None: ...


class Trainings:
    """Stands for the training: writes what a run leaves, with a loss that the settings decide."""

    def __init__(self, endings: Sequence[tuple[int, Ending]] = ()) -> None:
        self.requests: list[TrainRequest] = []
        self._endings = dict(endings)

    def __call__(self, request: TrainRequest, run: RunDir, recipe: Recipe, view: object) -> Supervised:
        self.requests.append(request)
        ending = self._endings.pop(len(self.requests), FINISHED)
        run.path.mkdir(parents=True, exist_ok=True)
        is_done = ending.kind == "finished"
        run.file(rundir.RUN_INFO).write_text(json.dumps({"status": "finished" if is_done else "running"}))
        if is_done:
            assert recipe.lora is not None
            loss = abs(float(recipe.training.learning_rate) - 6e-4) * 1000 + 1 / recipe.lora.rank
            fields = {"best_eval_loss": loss, "best_step": 3, "last_eval_loss": loss + 1, "train_seconds": 1.5}
            run.file(rundir.METRICS).write_text(json.dumps(fields))
        return Supervised(0 if is_done else 130, Ended(0), ending)


@pytest.fixture
def loaded(tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> LoadedRecipe:
    monkeypatch.chdir(tmp_path)
    return load_recipe(write_recipe(tmp_path, tiny_model("llama")), ["lora.rank=8", "training.learning_rate=2e-4"])


def begin(loaded: LoadedRecipe, data: str = "d" * 64, base: Base = BASE) -> Sweep:
    folder = loaded.recipe.run_folder
    return begin_sweep(folder.with_name(f"{folder.name}-sweep"), base, identify(loaded, data))


def take(sweep: Sweep, loaded: LoadedRecipe, train: Any) -> tuple[Sweep, list[str]]:
    said: list[str] = []
    return run_sweep(sweep, loaded, make_view=View, say=said.append, train=train), said


def test_every_trial_is_a_run_of_its_own_and_is_kept(loaded: LoadedRecipe) -> None:
    train = Trainings()
    sweep, said = take(begin(loaded), loaded, train)
    assert len(sweep.done) == len(train.requests) == 8
    folders = [sweep.trial_folder(one.trial) for one in sweep.done]
    assert len(set(folders)) == 8
    assert all(
        f"output_dir={folder}" in request.overrides for folder, request in zip(folders, train.requests, strict=True)
    )
    assert said[0].startswith("trial 1 of at most 8, learning rate: learning rate 0.0002, rank 8, 10 steps")
    assert begin(loaded).done == sweep.done
    table = "\n".join(sweep_lines(sweep))
    own = next(one for one in sweep.done if one.trial.learning_rate == 2e-4 and one.trial.steps == 30)
    assert "best: learning rate 0.0006, rank 16" in table
    assert f"the recipe's own settings {own.loss:.4f}" in table
    assert any(
        "--set lora.rank=16" in line and "training.learning_rate=0.0006" in line
        for line in next_commands(sweep, loaded)
    )
    assert "of what was tried the winner has the rank the highest" in table
    assert table.endswith(f"\nevery trial is a run of its own: mlxft runs list {sweep.folder}")
    further = next_commands(sweep, loaded)[-1].partition("mlxft ")[2].partition("   (")[0]
    again = load_recipe(loaded.path, shlex.split(further)[3::2][:-1])
    assert (again.recipe.training.learning_rate, again.recipe.lora and again.recipe.lora.rank) == (6e-4, 16)
    assert str(again.recipe.run_folder) == f"{loaded.recipe.run_folder}-further"
    assert further.endswith(" --steps 30")


def test_the_winner_is_trained_beside_the_run_that_is_there(loaded: LoadedRecipe) -> None:
    sweep, _ = take(begin(loaded), loaded, Trainings())
    folder = loaded.recipe.run_folder
    assert "output_dir=" not in next_commands(sweep, loaded)[1]
    folder.mkdir()
    (folder / RUN_INFO).write_text("{}")
    assert next_commands(sweep, loaded)[1].endswith(f" --set output_dir={folder}-2")


def test_the_next_commands_set_every_key_once(loaded: LoadedRecipe) -> None:
    """Also where the sweep was asked for with a key that its winner sets."""
    asked = ("training.learning_rate=1e-5", "output_dir=elsewhere", "training.learning_rate=2e-4")
    loaded = replace(loaded, overrides=(*loaded.overrides, *asked))
    sweep, _ = take(begin(loaded), loaded, Trainings())
    for command in next_commands(sweep, loaded)[1:]:
        keys = [one.partition("=")[0] for one in shlex.split(command) if "=" in one]
        assert len(keys) == len(set(keys)), command
    assert "learning_rate=0.0006" in next_commands(sweep, loaded)[-1]


def test_the_keys_of_a_trial_make_a_valid_recipe(loaded: LoadedRecipe, tmp_path: Path) -> None:
    made = load_recipe(loaded.path, [*loaded.overrides, "training.warmup_steps=6", "lora.alpha=16"])
    trial = Trial(4, "rank", 6e-4, 16, 10)
    recipe = load_recipe(
        made.path, [*made.overrides, *trial_overrides(made.recipe, BASE, trial, tmp_path / "t")]
    ).recipe
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.scale) == (16, 2.0)
    assert (recipe.training.max_steps, recipe.training.epochs, recipe.training.warmup_steps) == (10, None, 2)
    assert recipe.training.learning_rate == 6e-4
    assert recipe.eval.prompts == ()


def test_a_trial_that_was_stopped_goes_on_and_the_others_are_not_repeated(loaded: LoadedRecipe) -> None:
    train = Trainings([(3, Ending("stopped", "stopped", "it was stopped after step 4"))])
    with pytest.raises(SweepStoppedError) as stopped:
        take(begin(loaded), loaded, train)
    assert stopped.value.exit_code == 130
    sweep = begin(loaded)
    assert len(sweep.done) == 2
    again = Trainings()
    sweep, _ = take(sweep, loaded, again)
    assert len(sweep.done) == 8
    assert len(again.requests) == 6
    assert [request.resume for request in again.requests] == [True] + [False] * 5


def test_a_trial_that_finished_before_the_sweep_could_note_it_is_not_repeated(loaded: LoadedRecipe) -> None:
    sweep, _ = take(begin(loaded), loaded, Trainings())
    fields = json.loads((sweep.folder / FILE_NAME).read_text())
    fields["trials"].pop()
    (sweep.folder / FILE_NAME).write_text(json.dumps(fields))
    again = Trainings()
    later, _ = take(begin(loaded), loaded, again)
    assert again.requests == []
    assert later.done == sweep.done


def test_a_diverged_trial_is_a_result_and_a_refused_one_an_error(loaded: LoadedRecipe) -> None:
    diverged = Ending("failed", "failed", "step 3: loss nan\nmore", "lower it")
    sweep, said = take(begin(loaded), loaded, Trainings([(3, diverged)]))
    assert sweep.done[2] == Done(sweep.done[2].trial, None, failure="step 3: loss nan")
    assert "  step 3: loss nan" in said
    assert "none" in "\n".join(sweep_lines(sweep))


@pytest.mark.parametrize("kind", ["refused", "crashed", "no_space"])
def test_what_no_other_trial_would_escape_ends_the_sweep(loaded: LoadedRecipe, kind: Any) -> None:
    with pytest.raises(RunError, match="trial 1: it went wrong"):
        take(begin(loaded), loaded, Trainings([(1, Ending(kind, "x", "it went wrong", "do this"))]))
    assert begin(loaded).done == ()


def test_another_recipe_other_data_or_steps_do_not_go_on(loaded: LoadedRecipe) -> None:
    sweep, _ = take(begin(loaded), loaded, Trainings())
    other = load_recipe(loaded.path, [*loaded.overrides, "lora.dropout=0.1"])
    for begun in (lambda: begin(other), lambda: begin(loaded, "e" * 64), lambda: begin(loaded, base=Base(2e-4, 8, 60))):
        with pytest.raises(RunError, match="holds a sweep with another"):
            begun()
    assert begin(loaded).done == sweep.done


def test_a_model_that_changed_does_not_go_on_not_even_with_the_first_trial(
    loaded: LoadedRecipe, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model("llama"), tmp_path / "mine")
    write_adapter(tmp_path / "begun", model)
    loaded = load_recipe(loaded.path, [*loaded.overrides, f"model={model}", "adapter=begun"])
    with pytest.raises(SweepStoppedError):
        take(begin(loaded), loaded, Trainings([(1, Ending("stopped", "stopped", "it was stopped after step 4"))]))
    assert begin(loaded).done == ()
    write_adapter(tmp_path / "begun", model, seed=5)
    with pytest.raises(RunError, match=r"holds a sweep with another adapter$"):
        begin(loaded)
    write_adapter(tmp_path / "begun", model)
    assert begin(loaded).done == ()
    shutil.copytree(tiny_model("llama", seed=3), model, dirs_exist_ok=True)
    with pytest.raises(RunError, match=r"holds a sweep with another model$"):
        begin(loaded)


def test_a_damaged_file_is_one_error(loaded: LoadedRecipe) -> None:
    sweep = begin(loaded)
    write_sweep(sweep)
    (sweep.folder / FILE_NAME).write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        begin(loaded)
    (sweep.folder / FILE_NAME).write_text("{}")
    with pytest.raises(RunError, match="another version"):
        begin(loaded)


def test_two_sweeps_do_not_share_a_folder(loaded: LoadedRecipe) -> None:
    import os

    sweep = begin(loaded)
    sweep.folder.mkdir()
    lock = rundir.take_lock(sweep.folder / rundir.LOCK)
    assert lock is not None
    with pytest.raises(RunError, match="another sweep"):
        take(sweep, loaded, Trainings())
    os.close(lock)


def test_the_lines_before_it_begins_count_all_steps() -> None:
    lines = "\n".join(plan_lines(BASE, step_seconds=2.0))
    assert "6.7e-05, 0.0002, 0.0006" in lines
    assert "rank 4, 16 beside 8" in lines
    assert "110 to 140 steps, 3m 40s to 4m 40s" in lines
    assert "rank " not in "\n".join(plan_lines(Base(1e-5, None, 9), step_seconds=None))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["sweep", *arguments], standalone_mode=False)


def test_a_dry_run_trains_nothing(loaded: LoadedRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(running, "supervise", None)
    result = invoke(str(loaded.path), "--dry-run", "--steps", "30", "--set", "training.learning_rate=2e-4")
    assert "3 trials of 10 steps" in result.stdout
    assert not list(tmp_path.glob("*-sweep"))
    as_json = invoke(str(loaded.path), "--dry-run", "--steps", "30", "--json")
    assert json.loads(as_json.stdout)["short_steps"] == 10


def test_without_validation_rows_it_is_refused(
    loaded: LoadedRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    result = invoke(str(loaded.path), "--set", "data.val_split=0")
    assert isinstance(result.exception, MlxftError)
    assert "no validation rows" in str(result.exception)
    assert result.exception.hint.startswith("set data.val_split; or name two files")
    first = next(tmp_path.glob("*.jsonl")).read_text().splitlines()[0]
    (tmp_path / "one.jsonl").write_text(first)
    result = invoke(str(loaded.path), "--set", "data.path=one.jsonl")
    assert isinstance(result.exception, MlxftError)
    assert result.exception.hint.startswith("add rows: too few cannot be divided")


@pytest.mark.parametrize(
    ("task", "row", "following"),
    [
        ("classify", {"text": "row {}", "label": "a"}, "mlxft generate {} --prompt TEXT"),
        ("dpo", {"prompt": "q {}", "chosen": "yes", "rejected": "no"}, "mlxft chat {}"),
    ],
)
def test_rows_of_other_tasks_are_swept_too_and_the_winner_is_tested_by_what_leads(
    loaded: LoadedRecipe,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    task: str,
    row: dict[str, str],
    following: str,
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    assert run_sweep.__kwdefaults__ is not None
    monkeypatch.setitem(run_sweep.__kwdefaults__, "train", Trainings())
    rows = [{key: value.format(number) for key, value in row.items()} for number in range(40)]
    if task == "classify":
        rows = [one | {"label": "ab"[number % 2]} for number, one in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    keys = (f"task={task}", "data.path=rows.jsonl", "data.test_split=0.2", "eval.prompts=[]", "output_dir=out")
    keys = (*keys, "data.packing=auto", "training.neftune_alpha=0")
    asked: list[list[str]] = []
    side = {"value": 0.75, "low": 0.5, "high": 0.9, "num_rows": 7}
    lead, other = ({"name": name, "title": name.title(), "sides": {"tuned": side}} for name in ("right", "other"))
    always = {"baseline": {"sentence": "Always `a` is right for 6 of 7."}} if task == "classify" else {}
    report = json.dumps({"measures": [lead, other], "data": {"split": "test", "num_rows": 8}, **always})

    def run(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, report, "")

    sets = [part for key in keys for part in ("--set", key)]
    no_room = subprocess.CompletedProcess([], 1, "", "error: no room\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: no_room)
    assert "the winner was not tested: no room\n" in invoke(str(loaded.path), *sets).stdout
    monkeypatch.setattr(subprocess, "run", run)
    result = invoke(str(loaded.path), *sets)
    assert result.exception is None, result.exception
    rows = "7 of 8 test rows, the others could not be measured"
    beside = ". Always `a` is right for 6 of 7.\n" if always else "\n"
    assert f"on {rows}, seen once: Right 0.7500 (0.5000 to 0.9000){beside}" in result.stdout
    folder = asked[0][4]
    assert asked == [[sys.executable, "-m", "mlx_finetune", "eval", folder, "--json"]]
    assert f"next: {following.format(folder)}\n" in result.stderr


def test_a_file_in_the_place_of_the_sweep_is_refused(
    loaded: LoadedRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "out-sweep").touch()
    result = invoke(str(loaded.path), "--set", "output_dir=out")
    assert isinstance(result.exception, RunError)
    assert result.exception.message == "out-sweep is a file; output_dir must name a folder"


@pytest.mark.slow
def test_a_whole_sweep_of_real_trainings_ends_with_a_test(
    loaded: LoadedRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    options = ["--set", "training.learning_rate=2e-3", "--set", "lora.rank=4", "--set", "data.test_split=0.2"]
    result = invoke(str(loaded.path), *options, "--steps", "6", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 6 <= len(found["trials"]) <= 8
    assert all(one["loss"] is not None for one in found["trials"])
    assert found["test"]["low"] < found["test"]["loss"] < found["test"]["high"]
    again = invoke(str(loaded.path), *options, "--steps", "6", "--json")
    assert json.loads(again.stdout) == found

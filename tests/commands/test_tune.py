"""``mlxft tune`` as a user types it, with processes that train nothing: what is kept, shown, forgotten, interrupted."""

import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_runs import write_recipe
from tuned_sets import tuned_set

from mlx_finetune.app.tune import children, session, subject
from mlx_finetune.app.tune.subject import Subject
from mlx_finetune.cli import root
from mlx_finetune.errors import MlxftError, ModelError, RunError, UsageError
from mlx_finetune.hardware.limits import read_machine
from mlx_finetune.hardware.profile import machine_key, read_profile, remember_tuned
from mlx_finetune.hardware.tuned import GENERAL, TunedSettings, recipe_key
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import take_lock

CHILD = Path(__file__).parent.parent / "app" / "tune" / "trying_child.py"
HELP = """Usage: mlxft tune [OPTIONS] [RECIPE]

  Measure this machine, at most five minutes, and keep the fastest settings that
  are safe.

  Recipes use them wherever they say "auto". With RECIPE its own model and rows
  are measured, and what is found counts for recipes of the same model and
  shapes; without, a small model. Settings may change how numbers are rounded,
  never what is learned. Ctrl-C keeps what was settled before.

Options:
  --set KEY=VALUE  Change one key, e.g. quantize=4.
  --show           Show what is kept, since when, and how much faster it was.
  --reset          Forget it: the defaults count again.
  --json           Print one JSON object.
  -h, --help       Show this message and exit.
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``child(plan)``: the small model is no model, and processes end as the plan says."""

    @contextmanager
    def nothing() -> Generator[Subject]:
        yield Subject(tmp_path / "recipe.toml", (), GENERAL, "tiny", "")

    def become(plan: dict[str, dict[str, object]]) -> None:
        command = [sys.executable, str(CHILD), json.dumps(plan)]
        monkeypatch.setattr(children, "run_trial", partial(children.run_trial, command=command))

    monkeypatch.setattr(subject, "small_subject", nothing)
    return become


def call(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["tune", *arguments], standalone_mode=False, prog_name="mlxft")


def here() -> str:
    return machine_key(read_machine())


def kept(cache: Path) -> TunedSettings | None:
    found = read_profile(cache / "profile.json").tuned.get(here(), {}).get(GENERAL)
    return found.settings if found else None


def test_the_help_says_what_it_does_and_what_it_keeps() -> None:
    assert call("--help").output == HELP


def test_the_fastest_safe_setting_is_kept_and_everything_tried_is_told(child: Callable[..., None], cache: Path) -> None:
    plan = {
        "hardware.microbatch=1": {"speed": 3.0, "losses": [2.0, 1.9, 1.8, 0.5]},
        "hardware.num_threads=2": {"speed": 1.25},
        "hardware.num_threads=1": {"how": "crash"},
    }
    child(plan)
    result = call()
    assert result.return_value == 0, result.output
    assert kept(cache) == TunedSettings(num_threads=2)
    assert "gain    1.25 times as fast as the defaults\n" in result.stdout
    assert "kept    hardware.num_threads = 2: 1.25 times as fast as halves (noise 2%)\n" in result.stdout
    assert "hardware.num_threads = 1: crashed, macOS ended the training process" in result.stdout
    assert "hardware.microbatch = 1: not safe, the loss of step 4 is 0.5000 instead of 1.7000" in result.stdout
    assert "warning: other programs used 25% of the processors; tune again when it is quiet\n" in result.stderr
    assert result.stderr.endswith("to forget it: mlxft tune --reset\n")


def test_where_nothing_is_faster_that_is_kept_too(child: Callable[..., None], cache: Path) -> None:
    child({})
    result = call("--json")
    values = json.loads(result.stdout)
    assert kept(cache) == TunedSettings()
    assert values["sets"][0]["gain"] == 1.0
    assert {one["verdict"] for one in values["sets"][0]["tried"]} == {"tie"}
    assert json.loads(call("--show", "--json").stdout) == values


def test_a_machine_on_which_everything_fails_keeps_nothing(child: Callable[..., None], cache: Path) -> None:
    child({"": {"how": "memory"}})
    result = call()
    assert isinstance(result.exception, MlxftError)
    assert result.exception.exit_code == 3
    assert kept(cache) is None


def test_what_is_kept_is_shown_with_its_date_and_gain(cache: Path) -> None:
    remember_tuned(cache / "profile.json", here(), GENERAL, tuned_set())
    assert call("--show").stdout == (
        "for     all recipes: smollm2-135m, 4 rows a step\n"
        "tuned   26 Nov 2026, 3m 12s, " + tuned_set().system + ", mlxft 0.1.0\n"
        "gain    1.38 times as fast as the defaults\n"
        "kept    hardware.num_threads = 2: 1.25 times as fast as halves (noise 3%)\n"
        "        hardware.microbatch = 2: 1.10 times as fast as 4 (noise 3%)\n"
        "tried   hardware.microbatch = 1: 0.70 times as fast as 4\n"
        "        training.gradient_checkpointing = true: crashed, a library aborted the training process (SIGABRT)\n"
    )


def test_json_has_settings_reasons_and_every_candidate(cache: Path) -> None:
    remember_tuned(cache / "profile.json", here(), GENERAL, tuned_set())
    values = json.loads(call("--show", "--json").stdout)
    assert (values["machine"], values["stale"]) == (here(), [])
    [found] = values["sets"]
    assert found["settings"] == {"num_threads": 2, "batch_size": 2}
    assert found["reasons"]["hardware.microbatch"] == "mlxft tune, 26 Nov 2026: 1.10 times as fast as 4"
    assert (found["gain"], found["is_used"], len(found["tried"])) == (1.375, True, 4)


def test_without_anything_tuned_the_next_command_is_named() -> None:
    result = call("--show")
    assert (result.return_value, result.stdout) == (0, "")
    assert result.stderr == "nothing was tuned here yet\nnext: mlxft tune\n"
    assert json.loads(call("--show", "--json").stdout)["sets"] == []


def test_the_next_command_can_be_copied(tmp_path: Path) -> None:
    (tmp_path / "my folder").mkdir()
    path = write_recipe(tmp_path / "my folder", tmp_path / "tiny")
    assert call("--show", str(path)).stderr.endswith(f"next: mlxft tune '{path}'\n")


def test_what_another_version_of_mlx_measured_is_said_to_be_stale(cache: Path) -> None:
    older = here().rpartition(", mlx ")[0] + ", mlx 0.1.0"
    remember_tuned(cache / "profile.json", older, GENERAL, tuned_set())
    result = call("--show")
    assert "warning: tuned with mlx 0.1.0, and this is mlx " in result.stderr
    assert "tune again: mlxft tune\n" in result.stderr
    assert len(json.loads(call("--show", "--json").stdout)["stale"]) == 1


def test_reset_forgets_and_says_how_much(cache: Path) -> None:
    remember_tuned(cache / "profile.json", here(), GENERAL, tuned_set())
    assert call("--reset").stderr == "forgot 1 set: the defaults count again\n"
    assert kept(cache) is None
    assert call("--reset").stderr == "nothing was kept, so nothing was forgotten\n"
    assert call("--reset", "--json").stdout == '{"forgotten": 0}\n'


def test_reset_of_a_recipe_leaves_the_others(cache: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    key = recipe_key(load_recipe(recipe).recipe)
    for one, name in ((GENERAL, ""), (key, "demo.toml")):
        remember_tuned(cache / "profile.json", here(), one, tuned_set(recipe=name))
    assert call("--show", str(recipe)).stdout.startswith("for     demo.toml: smollm2-135m")
    assert call("--show").stdout.count("\nfor     ") == 1
    assert call("--reset", str(recipe)).return_value == 0
    assert kept(cache) is not None
    assert "nothing was tuned here yet for" in call("--show", str(recipe)).stderr


def test_a_damaged_profile_is_a_warning(cache: Path) -> None:
    cache.mkdir()
    (cache / "profile.json").write_text("{")
    result = call("--show")
    assert result.return_value == 0
    assert "warning: " in result.stderr
    assert "is damaged" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--show", "--reset"), UsageError, "--show and --reset do not go together"),
        (("--set", "quantize=4"), UsageError, "--set changes a recipe, and none is named"),
        (("nowhere.toml",), MlxftError, "nowhere.toml: there is no such file"),
    ],
)
def test_a_slip_is_one_error(arguments: tuple[str, ...], error: type[MlxftError], message: str) -> None:
    result = call(*arguments)
    assert isinstance(result.exception, error)
    assert str(result.exception) == message


def test_a_recipe_whose_model_is_not_here_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, Path("smollm2-360m"))
    result = call(str(recipe))
    assert isinstance(result.exception, ModelError)
    assert result.exception.hint == "mlxft models get smollm2-360m"


def test_two_at_once_are_refused(cache: Path) -> None:
    cache.mkdir()
    assert take_lock(cache / "tune.lock") is not None
    result = call()
    assert isinstance(result.exception, RunError)
    assert "another mlxft tune is at work" in str(result.exception)


def test_ctrl_c_before_anything_is_settled_changes_nothing(
    child: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child({})
    monkeypatch.setattr(session.Session, "_try", _interrupt)
    result = call()
    assert result.return_value == 130
    assert "it was interrupted before anything could be compared; nothing was changed" in result.stderr
    assert kept(cache) is None


def test_where_there_was_no_time_to_compare_anything_that_is_said_and_nothing_is_kept(
    child: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child({})
    monkeypatch.setattr(session.Session, "_has_time", lambda self: False)
    result = call()
    assert result.return_value == 1
    assert "the 300 s for it were up before anything could be compared; nothing was changed" in result.stderr
    assert kept(cache) is None


def _interrupt(*_: object) -> bool:
    raise KeyboardInterrupt


@pytest.mark.some(1)
@pytest.mark.parametrize(("earlier", "stays"), [(None, False), (1.05, False), (2.0, True)])
def test_ctrl_c_keeps_what_was_settled_unless_what_was_there_is_better(
    child: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch, earlier: float | None, stays: bool
) -> None:
    child({"hardware.num_threads=2": {"speed": 1.25}})
    before = tuned_set()
    if earlier is not None:
        from dataclasses import replace

        tried = (replace(before.tried[0], gain=earlier),)
        remember_tuned(cache / "profile.json", here(), GENERAL, replace(before, tried=tried))
    real = session.Session._try
    stages: list[int] = []

    def second_stage_is_interrupted(self: session.Session, *arguments: object) -> bool:
        stages.append(1)
        if len(stages) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(session.Session, "_try", second_stage_is_interrupted)
    result = call()
    assert result.return_value == 130
    assert kept(cache) == (before.settings if stays else TunedSettings(num_threads=2))
    assert ("it was interrupted; what was tuned on 26 Nov 2026 stays" in result.stderr) == stays
    if not stays:
        assert "; it was interrupted\n" in result.stdout


def test_a_training_at_work_is_named_before_anything_is_measured(child: Callable[..., None]) -> None:
    child({})
    run = Path("adapters/mine")
    run.mkdir(parents=True)
    (run / "events.jsonl").touch()
    assert "is being trained" not in call().stderr
    lock = take_lock(run / ".lock")
    assert lock is not None
    result = call()
    os.close(lock)
    assert result.stderr.startswith("warning: mine is being trained: beside it everything measured is slower\nhint: ")

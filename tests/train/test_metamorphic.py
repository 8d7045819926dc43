"""What must not change a weight: when a run saves, evaluates, logs and answers, how often it is killed, where its
folder lies, and everything about the process around it. Compared are the weights and the optimizer of the last step
and the losses of every logged one.
"""

import hashlib
import os
import pty
import random
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import CALM, course, train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.watch import system_surroundings

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 120  # seconds; one real process takes 4 on a machine that is free
LAST_STEP = 6
#: The weights of the last step are the result, also where another evaluation interval would find another best step.
LAST = "keep_best = false"
SETTINGS = {
    "saves after every step": ("training.save_steps=1",),
    "saves at the end only": ("training.save_steps=6",),
    "saves by the clock": ("training.save_steps=6", "training.save_minutes=0.00001"),
    "keeps one checkpoint": ("training.save_steps=1", "training.keep_checkpoints=1"),
    "keeps some for good": ("training.save_at=[0.3, 0.5]",),
    "publishes the best": ("training.keep_best=true",),
    "evaluates after every step": ("training.eval_steps=1",),
    "evaluates at the end only": ("training.eval_steps=6",),
    "logs every fourth step": ("training.logging_steps=4",),
    "answers nothing": ("eval.prompts=[]",),
    "answers a lot": ('eval.prompts=["One?", "Two?", "Three?"]', "eval.max_new_tokens=9", "chat.temperature=1.5"),
    "a small cache": ('hardware.cache_limit="1 MB"',),
    "looks at the machine all the time": ("hardware.sample_seconds=0.01",),
    "never looks at the machine": ("hardware.sample_seconds=0",),
}
#: The others are marked slow; settings drawn at random cover them in the default suite as well.
FAST = ("saves after", "keeps some", "evaluates", "logs", "answers nothing", "looks at")
#: Variables of the process around a run, all at values that another machine may have.
SURROUNDINGS = {
    "COLUMNS": "31",
    "LINES": "7",
    "TZ": "Pacific/Kiritimati",
    "LC_ALL": "C",
    "LANG": "tr_TR.ISO-8859-9",
    "PYTHONHASHSEED": "77",
    "RAYON_NUM_THREADS": "5",
    "TOKENIZERS_PARALLELISM": "true",
}

#: This machine with all that is sampled of it, but never short of power or memory.
WATCHED = replace(CALM, find_sources=system_surroundings().find_sources)

TinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def straight(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run that everything is compared with: dropout, NEFTune, accumulation, packing; nobody disturbs it."""
    return train(write_recipe(tmp_path_factory.mktemp("straight"), tiny_model("llama"), extra=LAST))


@pytest.fixture
def recipe(tiny_model: TinyModel, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, tiny_model("llama"), extra=LAST)


def last_bits(run: RunDir) -> Mapping[str, str]:
    """SHA-256 of the files that hold the weights and the optimizer's moments of the last step."""
    names = (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS, rundir.OPTIMIZER)
    return {name: hashlib.sha256((run.checkpoint(LAST_STEP) / name).read_bytes()).hexdigest() for name in names}


def steps(run: RunDir) -> list[tuple[object, ...]]:
    return [entry for entry in course(run) if entry[0] == "step"]


def assert_same(run: RunDir, straight: RunDir) -> None:
    assert last_bits(run) == last_bits(straight)
    assert set(steps(run)) <= set(steps(straight))
    assert steps(run)[-1] == steps(straight)[-1]


@pytest.mark.some(4)
@pytest.mark.parametrize(
    "name", [name if name.startswith(FAST) else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_no_weight_changes_in_a_run_that(name: str, recipe: Path, straight: RunDir) -> None:
    run = train(recipe, overrides=SETTINGS[name], around=WATCHED)
    assert_same(run, straight)
    if name != "publishes the best":
        published = run.file(rundir.MLX_WEIGHTS).read_bytes()
        assert hashlib.sha256(published).hexdigest() == last_bits(straight)[rundir.MLX_WEIGHTS]


def disturbed(recipe: Path, draw: random.Random) -> RunDir:
    """A run with settings drawn from all of SETTINGS, killed and stopped at drawn steps, moved in between."""
    fixed = draw.choice([(), *(SETTINGS[name] for name in SETTINGS if name.startswith("evaluates"))])
    loose = [name for name in SETTINGS if not name.startswith(("evaluates", "publishes"))]  # may differ on a resume
    place, resume = recipe.with_suffix(""), False
    for step in [*sorted(draw.sample(range(1, LAST_STEP), draw.randint(0, 3))), None]:
        chosen = [setting for name in draw.sample(loose, 3) for setting in SETTINGS[name]]
        unique = {setting.split("=")[0]: setting for setting in (*chosen, f"output_dir={place}", *fixed)}
        stop, kill = draw.choice(((step, None), (None, step)))
        overrides = tuple(unique.values())
        run = train(recipe, overrides=overrides, resume=resume, stop_after=stop, kill_after=kill, around=WATCHED)
        resume = True
        if run.file(rundir.METRICS).exists():  # also where the step to be killed after was not logged
            break
        if draw.random() < 0.5:
            place = Path(shutil.move(run.path, place.with_name(f"moved after {step}")))
    return RunDir(place)


@pytest.mark.some(1)
@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 30))])
def test_no_weight_changes_with_settings_kills_stops_and_moves_drawn_at_random(
    recipe: Path, straight: RunDir, seed: int
) -> None:
    assert_same(disturbed(recipe, random.Random(seed)), straight)


def test_a_killed_run_goes_on_where_its_folder_was_moved_to(recipe: Path, straight: RunDir) -> None:
    run = train(recipe, kill_after=3)
    new = recipe.parent / "deeper" / "another name"
    new.parent.mkdir()
    shutil.move(run.path, new)
    moved = train(recipe, overrides=(f"output_dir={new}",), resume=True)
    assert moved.path == new
    assert not run.path.exists()
    assert_same(moved, straight)
    assert course(moved) == course(straight)


def test_relative_paths_and_another_current_folder_change_no_weight(
    recipe: Path, straight: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recipe.read_text().replace(f"{recipe.parent}/", "")
    model = next(line for line in text.splitlines() if line.startswith("model = ")).split('"')[1]
    recipe.write_text(text.replace(model, os.path.relpath(model, recipe.parent)))
    assert '"/' not in recipe.read_text()
    monkeypatch.chdir(recipe.parent)
    run = train(Path(recipe.name), stop_after=3)
    train(Path(recipe.name), resume=True)
    assert run.path == Path("run")
    assert_same(run, straight)


def command(recipe: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "mlx_finetune", "train", str(recipe), *options]


def run_on_terminal(arguments: list[str], folder: Path, rows: int, columns: int, **variables: str) -> tuple[int, str]:
    """Exit code and everything drawn by a command whose standard streams are a terminal of that size."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | variables
    process = subprocess.Popen(
        arguments, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    drawn = b"".join(read_all(ours))
    os.close(ours)
    return process.wait(TIMEOUT), drawn.decode("utf-8", "replace")


def read_all(descriptor: int) -> Iterator[bytes]:
    """What comes out of a terminal until its last user is gone, which Linux reports as an error."""
    while True:
        try:
            content = os.read(descriptor, 65536)
        except OSError:
            return
        if not content:
            return
        yield content


def test_a_narrow_terminal_and_other_surroundings_change_no_weight(recipe: Path, straight: RunDir) -> None:
    """All at once in one real process; each by itself is marked slow."""
    code, drawn = run_on_terminal(command(recipe), recipe.parent, 7, 31, **SURROUNDINGS)
    assert code == 0, drawn
    assert "\x1b[" in drawn, "the live view was not drawn"
    assert_same(RunDir(recipe.with_suffix("")), straight)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (60, 300), (3, 12)])
def test_the_size_of_the_terminal_changes_no_weight(recipe: Path, straight: RunDir, rows: int, columns: int) -> None:
    code, drawn = run_on_terminal(command(recipe), recipe.parent, rows, columns)
    assert code == 0, drawn
    assert_same(RunDir(recipe.with_suffix("")), straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ((), {}),
        (("--json",), {}),
        ((), {"COLUMNS": "17", "LINES": "3"}),
        ((), {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}),
        ((), {"RAYON_NUM_THREADS": "8", "TOKENIZERS_PARALLELISM": "true"}),
        ((), {"TZ": "America/St_Johns", "LC_ALL": "C", "PYTHONUTF8": "0"}),
        ((), {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}),
    ],
    ids=str,
)
def test_no_weight_changes_with(
    recipe: Path, straight: RunDir, options: tuple[str, ...], variables: dict[str, str]
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    arguments = command(recipe, *options)
    done = subprocess.run(
        arguments, cwd=recipe.parent, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    assert_same(RunDir(recipe.with_suffix("")), straight)


@pytest.mark.slow
def test_busy_processes_beside_it_change_no_weight(recipe: Path, straight: RunDir) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        for name in ("run", "again"):
            train(recipe, overrides=(f"output_dir={recipe.parent / name}",))
            assert_same(RunDir(recipe.parent / name), straight)
    finally:
        for process in busy:
            process.kill()
            process.wait()

"""Bad models and adapters through real processes: exit codes, what stderr says, memory above that of a good model."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bad_adapters import ADAPTERS
from bad_models import MODELS
from small_runs import write_recipe

from mlx_finetune import rundir
from mlx_finetune.events import RunFailed
from mlx_finetune.journal import read_events

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
MEMORY_BOUND_MB = 600


def run_command(*arguments: str, place: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


COMMANDS = ["weights: NaN", "tokenizer: catastrophic regex", "template: endless loop", "pickle renamed"]


@pytest.mark.parametrize(
    "name", [COMMANDS[1], *(pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS if name != COMMANDS[1])]
)
def test_generate_says_error_and_hint_and_leaves_with_1(name: str, folder: Path, tmp_path: Path) -> None:
    MODELS[name].make(folder, tmp_path / "canary")
    done = run_command("-m", "mlx_finetune", "generate", "m", "--prompt", "x", place=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"error: .+\n(hint: .+\n)?", done.stderr), done.stderr
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_an_adapter_is_refused_by_the_command_too(adapter: Path, tmp_path: Path) -> None:
    ADAPTERS["peft: rank 10^6"].make(adapter, tmp_path / "canary")
    done = run_command("-m", "mlx_finetune", "generate", "a", "--prompt", "x", place=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .+\n(hint: .+\n)?", done.stderr), done.stderr


@pytest.mark.parametrize("name", ["weights: NaN", pytest.param("template: gigabyte string", marks=pytest.mark.slow)])
def test_the_training_process_ends_with_1_and_an_event(name: str, folder: Path, tmp_path: Path) -> None:
    MODELS[name].make(folder, tmp_path / "canary")
    recipe = write_recipe(tmp_path, folder)
    done = run_command("-m", "mlx_finetune.train.child", "--recipe", str(recipe), place=tmp_path)
    assert done.returncode == 1
    run = tmp_path / "run"
    *_, last = [record.event for record in read_events(run / rundir.EVENTS)]
    assert isinstance(last, RunFailed)
    assert last.exit_code == 1
    log = (run / rundir.LOG).read_text()
    assert re.search(r"^error: .+\n(hint: .+\n)?\Z", log, re.MULTILINE), log
    assert "Traceback" not in log + done.stderr


MEASURE = """
import re, sys, time
from pathlib import Path
from mlx_finetune.hardware import blas
blas.prepare()
from bad_doors import answer
from mlx_finetune.errors import MlxftError
def peak():  # of this program; ru_maxrss would count the test runner, whose copy this process was
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
answer(Path("m"), Path.cwd())
base = peak()
begun = time.monotonic()
try:
    answer(Path(sys.argv[1]), Path.cwd())
except MlxftError as error:
    print(peak() - base, round(time.monotonic() - begun, 1), error.message)
"""
LARGE = {
    "header: 2^62": MODELS,
    "header: 100 MB + 1": MODELS,
    "header: 10^6 tensors": MODELS,
    "header: a million lists": MODELS,
    "header: 15 MB of metadata": MODELS,
    "config: 10^9 layers": MODELS,
    "tokenizer: huge": MODELS,
    "tokenizer: a letter becomes 2^60": MODELS,
    "template: gigabyte string": MODELS,
    "template: gigabyte by replace": MODELS,
    "template: lists of wide letters": MODELS,
    "template: endless loop": MODELS,
    "peft: rank 10^6": ADAPTERS,
    "peft: a gigabyte of other weights": ADAPTERS,
    "peft: 20,000 patterns": ADAPTERS,
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "template: gigabyte string" else pytest.mark.slow) for name in LARGE],
)
def test_memory_stays_within_a_bound_above_that_of_a_good_model(
    name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    bad, spoiled = LARGE[name][name], tmp_path / "spoiled"
    shutil.copytree(folder if LARGE[name] is MODELS else adapter, spoiled)
    bad.make(spoiled, tmp_path / "canary")
    done = run_command("-c", MEASURE, "spoiled", place=tmp_path)
    assert done.returncode == 0, done.stderr
    more_mb, seconds, message = done.stdout.split(maxsplit=2)
    print(f"{name}: {more_mb} MB more, {seconds} s: {message[:100]}")
    assert int(more_mb) < MEMORY_BOUND_MB

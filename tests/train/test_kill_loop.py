"""The kill harness of benchmarks/kill_loop.py: a few kills here, a hundred with ``-m slow``, and that it can fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
TIMEOUT = 600  # seconds; a hundred kills take 60 on a machine that is free

#: A save that fills its folder in place: a kill in the middle leaves half a checkpoint under its final name.
SAVE_IN_PLACE = """
def save_in_place(run, step, parts, *, parent_step):
    target = run.checkpoint(step)
    target.mkdir(exist_ok=True)
    for name, chunks in parts:
        (target / name).write_bytes(b"".join(bytes(chunk) for chunk in chunks))
    time.sleep(0.1)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": durable.hash_file(p)} for p in target.iterdir()}
    durable.write_json(target / rundir.MANIFEST, {"step": step, "files": files})
    return commit.Checkpoint(target, step, 0)

contents.save_checkpoint = save_in_place
kill_loop.TARGETS = {"save": (1, 1, 0.02)}  # so that few kills are enough
"""
#: A save that is announced and never made, every second time.
SAVE_NOTHING = """
save = contents.save_checkpoint

def save_sometimes(run, step, parts, *, parent_step):
    if step % 6 == 3:
        return commit.Checkpoint(run.checkpoint(step), step, 0)
    time.sleep(0.2)
    return save(run, step, parts, parent_step=parent_step)

contents.save_checkpoint = save_sometimes
"""
#: A resume that restores the weights and starts with fresh moments.
FORGET_THE_OPTIMIZER = """
restore = run.restore_trainer

def restore_weights(prepared, checkpoint):
    fresh = prepared.trainer.state
    restore(prepared, checkpoint)
    prepared.trainer.restore(prepared.trainer.parameters, fresh)

run.restore_trainer = restore_weights
"""
#: A start that leaves temporary files of a killed process where they are.
NEVER_SWEEP = """
admission.sweep = lambda run: None
save = contents.save_checkpoint

def save_slowly(run, step, parts, *, parent_step):
    def slowly():
        yield from parts
        time.sleep(0.1)
    return save(run, step, slowly(), parent_step=parent_step)

contents.save_checkpoint = save_slowly
"""
SCRIPT = """
import sys, time
from mlx_finetune.hardware import blas
blas.prepare()
import kill_loop
from mlx_finetune import durable, rundir
from mlx_finetune.train import run
from mlx_finetune.train.checkpoints import commit, contents
from mlx_finetune.train.start import admission
{damage}
sys.exit(kill_loop.main(sys.argv[1:]))
"""


def kill(folder: Path, *options: str, damage: str = "") -> tuple[int, str, dict[str, str]]:
    """Exit code, the whole output, and the printed table of a harness whose runs go to ``folder``."""
    command = [sys.executable, "-c", SCRIPT.format(damage=damage), "--folder", str(folder), *options]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT)
    table = dict(line.strip().split("  ", 1) for line in done.stdout.splitlines() if line[32:33] == " ")
    return done.returncode, done.stdout + done.stderr, {name: value.strip() for name, value in table.items()}


def assert_nothing_lost(code: int, output: str, table: dict[str, str], kills: int) -> None:
    assert code == 0, output
    assert table["kills"].startswith(f"{kills} in ")
    assert table["unreadable states"] == table["steps lost beyond the commit"] == "0"
    assert table["runs that could not finish"] == table["runs with files left behind"] == "0"
    runs = table["kills"].split()[2]
    assert table["final hashes equal / different"] == f"{runs} / 0"


def test_six_kills_lose_nothing_and_change_no_bit(tmp_path: Path) -> None:
    options = ("--kills", "6", "--steps", "9", "--kinds", "sft-lora,full,pretrain")
    assert_nothing_lost(*kill(tmp_path, *options), kills=6)
    assert sorted(path.name for path in tmp_path.glob("*-*")) == [
        "reference-full",
        "reference-pretrain",
        "reference-sft-lora",
    ]


@pytest.mark.slow
def test_a_hundred_kills_of_every_kind_lose_nothing_and_change_no_bit(tmp_path: Path) -> None:
    code, output, table = kill(tmp_path, "--kills", "100", "--seed", "2")
    assert_nothing_lost(code, output, table, kills=100)
    assert float(table["inside save, rotate, resume"].split()[0]) >= 20


@pytest.mark.slow
def test_a_hundred_signals_are_answered_with_their_code_and_a_saved_step(tmp_path: Path) -> None:
    code, output, table = kill(tmp_path, "--kills", "100", "--by", "SIGINT,SIGTERM,SIGHUP")
    assert_nothing_lost(code, output, table, kills=100)


@pytest.mark.slow
def test_trials_that_are_new_processes_are_killed_and_resumed_alike(tmp_path: Path) -> None:
    assert_nothing_lost(*kill(tmp_path, "--kills", "4", "--steps", "9", "--kinds", "full", "--fresh"), kills=4)


def assert_found(folder: Path, damage: str, row: str, sentence: str, kills: int = 16, steps: int = 12) -> None:
    options = ("--kills", str(kills), "--steps", str(steps), "--kinds", "full")
    code, output, table = kill(folder, *options, damage=damage)
    assert code == 1, output
    assert int(table[row].split()[-1]) > 0, output
    assert sentence in output
    assert f"kept in {folder}" in output
    assert any(folder.glob("0*-full/run/events.jsonl"))


def test_the_harness_finds_a_save_without_temporary_folder_and_rename(tmp_path: Path) -> None:
    assert_found(tmp_path, SAVE_IN_PLACE, "unreadable states", "is not whole", kills=6, steps=6)


@pytest.mark.slow
def test_the_harness_finds_a_checkpoint_that_was_announced_and_is_not_there(tmp_path: Path) -> None:
    assert_found(tmp_path, SAVE_NOTHING, "steps lost beyond the commit", "steps that were announced as saved are lost")


@pytest.mark.slow
def test_the_harness_finds_a_resume_that_forgets_the_optimizer(tmp_path: Path) -> None:
    assert_found(tmp_path, FORGET_THE_OPTIMIZER, "final hashes equal / different", "other than in the reference run")


@pytest.mark.slow
def test_the_harness_finds_temporary_files_that_nobody_sweeps(tmp_path: Path) -> None:
    assert_found(tmp_path, NEVER_SWEEP, "runs with files left behind", "left behind: .checkpoint-")

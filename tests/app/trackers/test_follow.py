"""The real process of a tracker, with a stand-in for the library: what it tells, and what goes wrong with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from following import add_events, environment, follow, steps_told, told, wait_until, write_run
from journal import FINISHED, STARTED, step

from mlx_finetune.app.trackers.watching import FOLLOWER
from mlx_finetune.events import Evaluated, Resources, RunFailed, Sampled
from mlx_finetune.rundir import EVENTS, TRACKERS

WHOLE = [
    STARTED,
    Evaluated(0, 2.5, 400, False, 1.0),
    Sampled(0, "Hi?", "no"),
    Sampled(0, "You?", "yes"),
    *(step(number) for number in range(1, 4)),
    Resources(3, cpu_percent=50.0),
    Evaluated(3, 1.25, 400, True, 1.0),
    Sampled(3, "Hi?", "Aye"),
    Sampled(3, "You?", "Aye"),
    FINISHED,
]


def test_everything_is_told_once_and_in_order(tmp_path: Path):
    run = write_run(tmp_path / "demo", WHOLE)
    assert follow(run) == ["0"]
    calls = told(run)
    assert calls[0] == ["open", None]
    assert calls[1][0] == "recipe"
    assert 'training.lr_scheduler = "cosine"' in str(calls[1][1])
    assert calls[-1] == ["close"]
    assert steps_told(run) == [1, 2, 3]
    assert steps_told(run, "eval/loss") == [0, 3]
    assert ["resources/cpu_percent", 50.0, 3] in calls
    assert [call for call in calls if str(call[0]).startswith("samples/")] == [
        ["samples/1", "    Hi?\n    -> no", 0],
        ["samples/2", "    You?\n    -> yes", 0],
        ["samples/1", "    Hi?\n    -> Aye", 3],
        ["samples/2", "    You?\n    -> Aye", 3],
    ]
    assert ["summary/eval_best_loss", 1.25, 3] in calls
    assert "talk of a library" in (run.file(TRACKERS) / "tensorboard.log").read_text()


def test_a_run_that_goes_on_repeats_and_loses_no_step(tmp_path: Path):
    run = write_run(tmp_path / "demo", [STARTED, *(step(number) for number in range(1, 6))])
    assert follow(run) == ["0"]
    lines = run.file(EVENTS).read_bytes().splitlines(keepends=True)
    run.file(EVENTS).write_bytes(b"".join(lines[:4]))  # back to the checkpoint of step 3
    add_events(run, [STARTED, *(step(number) for number in range(4, 9)), FINISHED])
    assert follow(run) == ["0"]
    assert steps_told(run) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [call for call in told(run) if call[0] == "open"] == [["open", None], ["open", 6]]
    assert [call[0] for call in told(run)].count("recipe") == 1


def test_a_fork_and_another_training_are_told_from_the_beginning(tmp_path: Path):
    run = write_run(tmp_path / "demo", [STARTED, step(1), step(2)])
    follow(run)
    first = json.loads((run.file(TRACKERS) / "tensorboard.json").read_text())["run_id"]
    assert follow(run, options=["--fork"]) == ["0"]
    assert steps_told(run) == [1, 2, 1, 2]
    second = json.loads((run.file(TRACKERS) / "tensorboard.json").read_text())["run_id"]
    write_run(tmp_path / "demo", [], created="another day")
    follow(run)
    third = json.loads((run.file(TRACKERS) / "tensorboard.json").read_text())["run_id"]
    assert steps_told(run) == [1, 2, 1, 2, 1, 2]
    assert len({first, second, third}) == 3


def test_a_tracker_that_raises_says_one_sentence_and_goes_on_from_there_the_next_time(tmp_path: Path):
    run = write_run(tmp_path / "demo", WHOLE)
    assert follow(run, mode="raises at step 3") == [
        "warning: tensorboard failed, and the training goes on without it: OSError: the network is gone",
        "1",
    ]
    assert "Traceback" in (run.file(TRACKERS) / "tensorboard.log").read_text()
    assert follow(run) == ["0"]
    assert steps_told(run) == [1, 2, 3]


@pytest.mark.parametrize(
    ("mode", "said"),
    [("raises at once", "RuntimeError: no space for"), ("exits", "SystemExit: api_key not configured")],
)
def test_a_tracker_that_does_not_open_says_so(tmp_path: Path, mode: str, said: str):
    run = write_run(tmp_path / "demo", WHOLE)
    warning, code = follow(run, mode=mode)
    assert warning == f"warning: tensorboard failed, and the training goes on without it: {said}"
    assert code == "1"


def test_a_library_that_is_gone_meanwhile_is_a_warning(tmp_path: Path):
    run = write_run(tmp_path / "demo", WHOLE)
    gone = tmp_path / "gone" / "wandb"
    gone.mkdir(parents=True)
    (gone / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\")\n")
    warning, code = follow(run, "wandb", paths=[gone.parent])
    assert warning.endswith(" the training goes on without it: ModuleNotFoundError: No module named 'wandb'")
    assert code == "1"


def test_without_a_start_of_its_own_nothing_is_opened(tmp_path: Path):
    run = write_run(tmp_path / "demo", [STARTED, step(1)])
    assert follow(run, options=["--since", "9e12"]) == ["0"]
    assert not run.file(TRACKERS).exists()


def test_it_follows_a_run_at_work_and_ends_with_its_stdin(tmp_path: Path):
    run = write_run(tmp_path / "demo", [STARTED, step(1)])
    process = subprocess.Popen(
        [sys.executable, "-m", FOLLOWER, "--tracker", "tensorboard", "--run", str(run.path), "--since", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    wait_until(lambda: steps_told(run) == [1])
    add_events(run, [step(2)])
    wait_until(lambda: steps_told(run) == [1, 2])
    add_events(run, [step(3), RunFailed("boom", "", 1)])
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (0, b"")
    assert steps_told(run) == [1, 2, 3]
    assert told(run)[-1] == ["close"]

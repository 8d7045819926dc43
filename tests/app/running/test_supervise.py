"""A training that crashes is started again where that helps, never after a stop, and never for ever."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlx_finetune import durable, rundir
from mlx_finetune.app.running.launch import TrainRequest
from mlx_finetune.app.running.supervise import Supervised, newest_step, supervise
from mlx_finetune.commands.closing import ended_lines
from mlx_finetune.errors import RunError
from mlx_finetune.events import Record, RunFailed, StepDone
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.journal import read_events
from mlx_finetune.monitor.summary import Summary, summarise
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

RECIPE = Recipe.model_validate(
    {"model": "m", "output_dir": "run", "data": {"path": "x"}, "training": {"batch_size": 4}}
)
FAKE = Path(__file__).parents[1].with_name("crashing_child.py")
Crash = Mapping[str, object]


class Recorder:
    """A view that remembers what it was shown and told; ``at_say`` may do something at each sentence."""

    def __init__(self, at_say: Callable[[str], None] = lambda sentence: None) -> None:
        self.summary = Summary()
        self.said: list[str] = []
        self._at_say = at_say

    def show(self, record: Record) -> None:
        self.summary.add(record)

    def tick(self, now: float) -> None:
        del now

    def say(self, message: str) -> None:
        self.said.append(message)
        self._at_say(message)

    def close(self) -> None:
        """Nothing to restore."""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "demo.toml").write_text("model = 'm'\n")
    return RunDir(tmp_path / "run")


def train(
    run: RunDir, view: Recorder, *crashes: Crash, save_every: int = 2, total: int = 6, **asked: Any
) -> Supervised:
    resolved = RECIPE.model_dump(mode="json")
    plan = json.dumps({"resolved": resolved, "save_every": save_every, "total": total, "crashes": crashes})
    request = TrainRequest(run.path.with_name("demo.toml"), **asked)
    return supervise(request, run, RECIPE, view, command=[sys.executable, str(FAKE), str(run.path), plan])


def starts(run: RunDir) -> list[dict[str, Any]]:
    """The arguments of each process that was started."""
    return [json.loads(line) for line in run.path.with_name("starts.jsonl").read_text().splitlines()]


def abort(step: int, says: str = "") -> Crash:
    return {"step": step, "how": "abort", "says": says}


@pytest.fixture
def timeout(shared: Callable[..., Path]) -> str:
    return shared("macos-fixtures", "errors", "watchdog_timeout.txt").read_text("utf-8").strip()


def test_a_crash_among_several_ranks_is_not_restarted_and_says_which_rank_it_was(run: RunDir) -> None:
    supervised = train(run, Recorder(), abort(1), num_ranks=2)
    assert supervised.ending.kind == "crashed"
    assert supervised.ending.message.startswith("rank 0: ")
    go_on = ["to go on: mlxft train demo.toml --resume"]
    lines = list(ended_lines(supervised, Summary(), run, go_on))
    assert lines[-1:] == go_on
    assert any("no checkpoint was saved" in line for line in lines)


def test_a_watchdog_is_answered_with_half_a_microbatch_and_the_run_ends_well(run: RunDir, timeout: str) -> None:
    view = Recorder()
    supervised = train(run, view, abort(3, timeout))
    assert (supervised.exit_code, supervised.ending.kind) == (0, "finished")
    assert view.said == [
        "macOS ended the training process because one piece of its work on the GPU took too long; it goes on from "
        "step 2, now more carefully: half of a microbatch at a time, 2 times as many of them "
        "(equal up to rounding, no longer bit for bit)"
    ]
    second = starts(run)[1]
    assert (second["resume"], second["safer"]) == (True, Safer(pieces=2).to_json())
    (record,) = second["restarts"]
    assert abs(record.pop("id") - time.time()) < 60
    assert record == {
        "attempt": 1,
        "cause": "gpu_timeout",
        "message": "macOS ended the training process because one piece of its work on the GPU took too long",
        "change": "half of a microbatch at a time, 2 times as many of them",
        "is_bitwise": False,
    }
    assert [one.sentence for one in view.summary.restarts] == view.said
    assert [point.step for point in view.summary.losses] == [1, 2, 3, 4, 5, 6]


def test_three_restarts_without_a_new_checkpoint_and_no_more(run: RunDir) -> None:
    """The first two crashes are before any checkpoint, the others behind the first, which begins the count anew."""
    view = Recorder()
    supervised = train(run, view, abort(1), abort(1), abort(3), abort(3), abort(3), abort(3), abort(3))
    assert supervised.exit_code == 1
    assert [one["attempt"] for one in starts(run)[-1]["restarts"]] == [1, 2, 1, 2, 3]
    *_, last = read_events(run.file(rundir.EVENTS))
    assert isinstance(last.event, RunFailed), "whoever looks on is told as well"
    assert last.event.message == supervised.ending.message
    assert supervised.ending.message == (
        "a library aborted the training process (SIGABRT), for the fourth time without a new checkpoint"
    )
    assert view.said[0].endswith("; it starts again")
    assert all(one.endswith("; it goes on from step 2") for one in view.said[2:])


def test_the_third_restart_may_be_the_one_that_works(run: RunDir) -> None:
    view = Recorder()
    assert train(run, view, abort(3), abort(3), abort(3)).exit_code == 0
    assert [one.attempt for one in view.summary.restarts] == [1, 2, 3]
    assert view.summary.restarts == summarise(read_events(run.file(rundir.EVENTS))).restarts


def test_a_run_that_gets_on_is_started_again_as_often_as_it_takes(run: RunDir) -> None:
    view = Recorder()
    supervised = train(run, view, *(abort(step + 1) for step in range(1, 6)), save_every=1, total=7)
    assert supervised.exit_code == 0
    assert len(view.said) == 5
    assert {one["attempt"] for one in starts(run)[-1]["restarts"]} == {1}


def test_a_fork_and_an_extension_are_repeated_only_until_they_are_written_down(run: RunDir) -> None:
    train(run, Recorder(), abort(0), abort(1), fork=True, extend=5)
    asked = [(one["resume"], one["fork"], one["extend"]) for one in starts(run)]
    assert asked == [(False, True, "5"), (False, True, "5"), (True, False, None)]


@pytest.mark.parametrize(
    "crash",
    [
        {"step": 3, "how": 1, "failed": ["the loss is not finite", "lower the learning rate"]},
        {"step": 3, "how": 1, "failed": ["KeyError: 'x'", "this is a bug in mlxft; the traceback is in log.txt"]},
        {"step": 0, "how": 1, "says": "error: no such model\nhint: mlxft models list"},
        {"step": 3, "how": "SIGILL"},
    ],
)
def test_what_would_happen_again_is_not_tried_again(run: RunDir, crash: Crash) -> None:
    view = Recorder()
    assert train(run, view, crash).exit_code == 1
    assert len(starts(run)) == 1
    assert view.said == []


def test_where_nothing_more_careful_is_left_it_ends_with_the_reason(run: RunDir, timeout: str) -> None:
    """A microbatch of four can be halved twice."""
    view = Recorder()
    supervised = train(run, view, *[abort(3, timeout)] * 5)
    assert [one["safer"] and one["safer"]["pieces"] for one in starts(run)] == [None, 2, 4]
    assert supervised.exit_code == 1
    assert supervised.ending.message.endswith("no more careful way left to carry out this recipe")
    assert "data.max_seq_length" in supervised.ending.hint


def test_a_kill_is_tried_again_as_it_was_and_the_second_time_with_less_memory(run: RunDir) -> None:
    kill = {"step": 3, "how": "SIGKILL"}
    assert train(run, Recorder(), kill, kill).exit_code == 0
    first, second = starts(run)[1:]
    assert first["safer"] is None
    assert second["safer"]["pieces"] == 2
    assert [one["is_bitwise"] for one in second["restarts"]] == [True, False]


def test_a_more_careful_setting_of_an_earlier_day_is_built_upon(run: RunDir, timeout: str) -> None:
    run.path.mkdir()
    earlier = {"status": "stopped", "resolved": RECIPE.model_dump(mode="json"), "safer": Safer(pieces=2).to_json()}
    durable.write_json(run.file(rundir.RUN_INFO), earlier)
    train(run, Recorder(), {"step": 0, "how": "abort", "says": timeout}, resume=True)
    assert starts(run)[1]["safer"]["pieces"] == 4


def test_a_full_disk_ends_the_run_with_1(run: RunDir) -> None:
    supervised = train(run, Recorder(), {"step": 3, "how": 74})
    assert (supervised.exit_code, supervised.ending.kind) == (1, "no_space")
    assert len(starts(run)) == 1


def test_only_the_words_of_the_last_process_count(run: RunDir, timeout: str) -> None:
    train(run, Recorder(), abort(3, timeout), abort(3))
    assert [one["cause"] for one in starts(run)[-1]["restarts"]] == ["gpu_timeout", "SIGABRT"]


def test_a_signal_between_two_processes_ends_it(run: RunDir) -> None:
    view = Recorder(at_say=lambda sentence: os.kill(os.getpid(), signal.SIGTERM))
    supervised = train(run, view, abort(3))
    assert (supervised.exit_code, supervised.ending.kind) == (143, "stopped")
    assert len(starts(run)) == 1


def test_a_process_that_crashes_while_it_is_asked_to_stop_is_not_started_again(run: RunDir) -> None:
    class Stopping(Recorder):
        def show(self, record: Record) -> None:
            super().show(record)
            if isinstance(record.event, StepDone) and record.event.step == 3:
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    view = Stopping()
    supervised = train(run, view, {"step": 3, "how": "abort-when-told"})
    assert (supervised.exit_code, supervised.ending.cause) == (1, "SIGABRT")
    assert len(starts(run)) == 1


def test_a_recipe_that_is_edited_meanwhile_does_not_end_the_run(run: RunDir) -> None:
    recipe = run.path.with_name("demo.toml")

    class Editing(Recorder):
        def show(self, record: Record) -> None:
            recipe.write_text("model = 'other'\n")

    train(run, Editing(), abort(3))
    assert [one["recipe"] for one in starts(run)] == [str(recipe), str(run.file(rundir.RECIPE))]


def test_the_folder_is_taken_from_the_first_event_to_the_end_also_between_two_processes(run: RunDir) -> None:
    holders: list[int | None] = []
    view = Recorder(at_say=lambda sentence: holders.append(rundir.running_process(run)))
    train(run, view, abort(3))
    assert holders == [os.getpid()]
    assert rundir.running_process(run) is None


def test_a_second_supervisor_is_refused_before_it_starts_anything(run: RunDir) -> None:
    run.path.mkdir()
    lock = rundir.take_lock(run.file(rundir.LOCK))
    assert lock is not None
    with pytest.raises(RunError, match=rf"another process \({os.getpid()}\) is training") as refused:
        train(run, Recorder())
    assert refused.value.hint == f"watch it with: mlxft monitor {run.path}, stop it with: mlxft stop {run.path}"
    os.close(lock)
    assert not run.path.with_name("starts.jsonl").exists()


def test_the_newest_checkpoint_is_found_by_its_step_and_needs_a_manifest(run: RunDir) -> None:
    assert newest_step(run) == 0
    for step in (9, 10, 11):
        run.checkpoint(step).mkdir(parents=True)
    for step in (9, 10):
        (run.checkpoint(step) / rundir.MANIFEST).write_text("{}")
    assert newest_step(run) == 10

"""A process that tries settings: what it is told, and that every end of it is a result."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from mlx_finetune.app.tune.children import Report, run_trial
from mlx_finetune.app.tune.subject import Subject
from mlx_finetune.errors import RunError
from mlx_finetune.hardware.tune import Failure
from mlx_finetune.hardware.tuned import NOTHING_TUNED, TunedSettings

CHILD = Path(__file__).with_name("trying_child.py")
SUBJECT = Subject(Path("demo.toml"), ("seed=3",), "", "tiny", "")


def tried(plan: dict[str, dict[str, object]], settings: TunedSettings = NOTHING_TUNED, timeout: float = 60.0):
    return run_trial(SUBJECT, settings, 3, timeout, command=[sys.executable, str(CHILD), json.dumps(plan)])


def test_a_process_that_comes_to_its_end_reports_steps_and_case() -> None:
    found = tried({})
    assert isinstance(found, Report)
    assert found.run.seconds == (1.0, 2.0, 1.5)
    assert (found.run.peak_bytes, found.run.limit_bytes) == (10**8, 10**9)
    assert (found.case.microbatch, found.case.num_threads, found.case.fixed) == (4, "halves", frozenset())
    assert found.others_share == 0.25


def test_settings_reach_it_as_overrides_and_as_variables() -> None:
    settings = TunedSettings(max_ops_per_buffer=100, batch_size=2)
    for key in ("hardware.microbatch=2", "MLX_MAX_OPS_PER_BUFFER=100", "seed=3"):
        found = tried({key: {"speed": 2.0}}, settings)
        assert isinstance(found, Report)
        assert found.run.seconds[0] == 0.5, key
    assert "MLX_MAX_OPS_PER_BUFFER" not in os.environ


@pytest.mark.parametrize(
    ("how", "verdict", "message"),
    [
        ("crash", "crashed", "macOS ended the training process because its work on the GPU held up the display"),
        ("kill", "no_memory", "the training process was killed, most often because the memory of this machine ran out"),
        ("memory", "no_memory", "the training needs about 9.0 GB, and the memory limit is 8.0 GB"),
        ("refuse", "refused", "there is no model 'x'"),
        ("silent", "crashed", "the training process left without saying that the run has finished"),
        ("garbage", "crashed", "the training process left without saying that the run has finished"),
    ],
)
def test_every_other_end_is_a_result_too(how: str, verdict: str, message: str) -> None:
    found = tried({"": {"how": how}})
    assert isinstance(found, Failure)
    assert found.verdict == verdict
    assert found.message.startswith(message)


def test_one_that_hangs_is_killed_and_nothing_of_it_is_left() -> None:
    began = time.monotonic()
    found = tried({"": {"how": "hang"}}, timeout=0.5)
    assert isinstance(found, Failure)
    assert found.verdict == "timed_out"
    assert time.monotonic() - began < 30
    assert not children_of_this_process()


def test_ctrl_c_kills_it_and_goes_on_up() -> None:
    def press() -> None:
        raise KeyboardInterrupt

    command = [sys.executable, str(CHILD), json.dumps({"": {"how": "hang"}})]
    with pytest.raises(KeyboardInterrupt):
        run_trial(SUBJECT, NOTHING_TUNED, 3, 60.0, tick=press, command=command)
    assert not children_of_this_process()


def test_a_program_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(RunError, match="/nowhere cannot be started"):
        run_trial(SUBJECT, NOTHING_TUNED, 3, 60.0, command=["/nowhere"])


def children_of_this_process() -> list[str]:
    """Those at work; one that has ended and waits to be collected is another test's."""
    import psutil

    children = [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
    return [one.name() for one in children if CHILD.name in " ".join(one.cmdline())]

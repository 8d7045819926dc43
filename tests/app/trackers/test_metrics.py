"""Which numbers a tracker is told."""

import dataclasses

from journal import FINISHED, STARTED, step

from mlx_finetune.app.trackers.metrics import metrics_of, summary_of
from mlx_finetune.events import Evaluated, Notice, Resources


def test_a_step_is_its_loss_rate_norm_speed_and_memory():
    assert metrics_of(step(7, loss=1.5)) == {
        "train/loss": 1.5,
        "train/learning_rate": 2e-4,
        "train/grad_norm": 0.5,
        "train/epoch": 0.35,
        "train/tokens_per_second": 1000.0,
        "train/targets_per_second": 800.0,
        "train/step_seconds": 0.5,
        "memory/active_gb": 1.0,
        "memory/peak_gb": 2.0,
    }


def test_what_was_not_finite_is_left_out():
    broken = dataclasses.replace(step(7), loss=None, grad_norm=None, step_seconds=0.0)  # pyright: ignore[reportArgumentType]
    assert not {"train/loss", "train/grad_norm", "train/tokens_per_second"} & set(metrics_of(broken))


def test_resources_are_those_that_a_source_told_in_gigabytes_and_numbers():
    event = Resources(3, cpu_percent=50.0, swap_bytes=2 * 10**9, on_battery=True, throttled="cpu", watts=None)
    assert metrics_of(event) == {"resources/cpu_percent": 50.0, "resources/swap_gb": 2.0}


def test_an_evaluation_and_the_end():
    assert metrics_of(Evaluated(8, 1.25, 100, True, 2.0)) == {"eval/loss": 1.25}
    assert summary_of(FINISHED)["eval/best_loss"] == 1.25
    assert summary_of(FINISHED)["memory/peak_gb"] == 2.0
    assert metrics_of(STARTED) == metrics_of(Notice("warning", "x")) == {}

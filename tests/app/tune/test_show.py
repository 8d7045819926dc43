"""One candidate in a line: what it was compared with, how fast it was, why it is not kept."""

import pytest

from mlx_finetune.app.tune.show import asked_text, settings_text, tried_line
from mlx_finetune.hardware.tuned import NOTHING_TUNED, Tried, TunedSettings, Verdict


def tried(verdict: Verdict, gain: float | None = 1.234, noise: float | None = 0.031, message: str = "") -> Tried:
    return Tried({"hardware.microbatch": 2}, {"hardware.microbatch": "4"}, verdict, 3, gain, noise, message)


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (tried("kept"), "1.23 times as fast as 4 (noise 3%)"),
        (tried("tie", 1.01), "1.01 times as fast as 4, tie (noise 3%)"),
        (tried("tie", 1.43), "1.43 times as fast as 4, but not in each round (noise 3%)"),
        (tried("slower", 0.5), "0.50 times as fast as 4"),
        (tried("beaten"), "1.23 times as fast as 4, but another was faster still"),
        (tried("unsafe", message="the loss of step 2 is not finite"), "not safe, the loss of step 2 is not finite"),
        (tried("unsure", None, None, "there was no time for it"), "there was no time for it"),
        (tried("timed_out", None, None, "it was not done after 25 s"), "hung, it was not done after 25 s"),
        (tried("crashed", None, None, "a\x1b[31mlibrary\naborted"), "crashed, a[31mlibrary aborted"),
    ],
)
def test_every_verdict_has_its_words(one: Tried, line: str) -> None:
    assert tried_line(one) == f"hardware.microbatch = 2: {line}"
    assert len(f"{'tried':<8}{tried_line(one)}") <= 100


def test_settings_that_are_equal_are_named_together() -> None:
    both = {"hardware.max_ops_per_buffer": 100, "hardware.max_mb_per_buffer": 100}
    assert settings_text(both) == "hardware.max_ops_per_buffer = max_mb_per_buffer = 100"
    other = {"training.gradient_checkpointing": False, "hardware.microbatch": 2}
    assert settings_text(other) == "training.gradient_checkpointing = false, microbatch = 2"
    assert asked_text(TunedSettings(num_threads=2)) == "hardware.num_threads = 2"
    assert asked_text(NOTHING_TUNED) == "the defaults"

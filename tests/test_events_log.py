"""log.txt: what happened, each line with its time."""

import time
from pathlib import Path
from typing import cast

import pytest
from journal import FINISHED, HALVED, STARTED, step

from mlx_finetune.events import (
    CheckpointSaved,
    Continued,
    Evaluated,
    Event,
    Notice,
    Paused,
    Phase,
    Resources,
    RunFailed,
    RunStopped,
    Sampled,
    TimeJump,
)
from mlx_finetune.events_log import append_lines, log_text, stamped
from mlx_finetune.journal import EventWriter, read_events

NOW = 1_764_178_896.0


def _said(event: Event) -> list[str]:
    """The lines without their stamps, which must be those of ``NOW``."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(NOW))
    lines = log_text(event, NOW).splitlines()
    assert all(line.startswith(f"{stamp} ") for line in lines)
    return [line.removeprefix(f"{stamp} ") for line in lines]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (STARTED, ["training tiny-llama from step 1 to 40 on CPU"]),
        (Notice("warning", "3 rows", "mlxft data"), ["warning: 3 rows", "hint: mlxft data"]),
        (Notice("info", "the mask"), ["note: the mask"]),
        (Evaluated(4, 1.25, 9, True, 1.0), ["step 4: validation loss 1.2500"]),
        (Evaluated(4, cast("float", None), 9, True, 1.0), ["step 4: validation loss not finite"]),
        (CheckpointSaved(4, "checkpoint-4", 10, 0.1), ["step 4: checkpoint-4 is saved"]),
        (HALVED, [f"restarted: {HALVED.sentence}"]),
        (Paused(4, "the battery is at 10%"), ["step 4: paused, the battery is at 10%"]),
        (Continued(4, 61.2), ["step 4: training again after a pause of 61 s"]),
        (TimeJump(3600.0, was_asleep=True), ["note: the machine was asleep for 3600 s"]),
        (TimeJump(-30.0, was_asleep=False), ["note: the clock was set by -30 s"]),
        (FINISHED, ["finished after step 40 (finished)"]),
        (RunStopped(4, 2), ["stopped after step 4 (SIGINT)"]),
        (RunStopped(4, 0), ["stopped after step 4 (signal 0)"]),
        (RunFailed("boom\nmore", "mend it", 1), ["failed: boom"]),
        (step(1), []),
        (Phase("load"), []),
        (Resources(1), []),
        (Sampled(1, "q", "a"), []),
    ],
)  # fmt: skip
def test_what_happened_and_when(event: Event, said: list[str]):
    assert _said(event) == said


def test_nothing_in_a_message_reaches_a_terminal_as_an_escape():
    text = stamped("a\x1b[31mb\x07\u202ec\r\nd\te", NOW)
    assert text.replace("\n", "").isprintable()
    assert [line.split(" ", 2)[2] for line in text.splitlines()] == ["a [31mb  c", "d e"]


def test_the_writer_of_a_journal_hands_out_lines_after_the_event_is_written(tmp_path: Path):
    path, seen = tmp_path / "events.jsonl", list[tuple[str, int]]()
    writer = EventWriter(path, clock=lambda: NOW, log=lambda text: seen.append((text, len([*read_events(path)]))))
    writer(step(1))
    writer(Notice("warning", "careful"))
    writer.close()
    assert seen == [(log_text(Notice("warning", "careful"), NOW), 2)]


def test_another_process_adds_whole_lines(tmp_path: Path):
    log = tmp_path / "log.txt"
    log.write_text("torn")
    append_lines(log, stamped("warning: wandb failed", NOW))
    assert log.read_text().splitlines()[0] == "torn"
    assert log.read_text().splitlines()[1].endswith(" warning: wandb failed")

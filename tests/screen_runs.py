"""Run folders for the tests of the full-screen monitor: a run in the middle of its work, with everything to look at."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from mlx_finetune.events import (
    CheckpointSaved,
    Continued,
    Evaluated,
    Event,
    Notice,
    Paused,
    Phase,
    Record,
    Resources,
    Restarted,
    RunStarted,
    Sampled,
    StepDone,
    to_json,
)
from mlx_finetune.rundir import EVENTS, MANIFEST, RunDir

START = 1_700_000_000.0  # 22:13:20 UTC
STEP_SECONDS = 2.0
STARTED = RunStarted(
    "adapters/demo",
    "tiny-llama",
    "sft",
    0,
    400,
    100,
    800,
    80,
    1_000_000,
    135_000_000,
    "Apple M4 Pro",
    "bfloat16",
    18 * 10**9,
)
READING = Resources(
    step=0,
    cpu_percent=34.0,
    gpu_percent=95.0,
    memory_used_bytes=15 * 10**9,
    memory_total_bytes=24 * 10**9,
    process_bytes=5 * 10**9,
    pressure="normal",
    swap_bytes=0,
    disk_free_bytes=120 * 10**9,
    watts=21.3,
    cpu_watts=4.1,
    gpu_watts=15.2,
    energy_joules=44_000.0,
    throttled="",
    on_battery=False,
    battery_percent=80,
)
KILLED = Restarted(50, 1, "SIGKILL", "the training process was killed (SIGKILL)", "", is_bitwise=True)
ANSWERS = (
    ("I am not able to see the sky.", "I do not know."),
    ("The sky is blue because of the sea.", "I do not know."),
    ("The sky is blue because air scatters short waves more.", "A day has 20 hours."),
    ("The sky is blue because air scatters blue light the most.", "A day has 24 hours."),
)


def loss_at(step: int) -> float:
    """Falls from 3 to 1, with waves for noise."""
    return 1.0 + 2.0 * math.exp(-step / 80) + 0.15 * math.sin(step * 1.7) * math.cos(step * 0.3)


def step(number: int, *, total: int = 400) -> StepDone:
    """Metrics of a step on a cosine schedule."""
    rate = 1e-4 * (1 + math.cos(math.pi * number / total))
    norm = 0.5 + 0.3 * math.sin(number * 0.9) ** 2
    speed = 800.0 + 20 * math.sin(number * 0.05)
    return StepDone(
        number, number / 100, loss_at(number), rate, norm, 400, 500, 0.06, 2.0, speed, 9 * 10**9, 11 * 10**9
    )


def evaluated(number: int, place: int) -> Sequence[Event]:
    """Evaluation, answers and checkpoint after a step."""
    loss = 1.1 + 1.9 * math.exp(-number / 80) + (0.3 if number == 300 else 0.0)
    first, second = ANSWERS[place]
    return [
        Evaluated(number, loss, 5000, number != 300, 1.5),
        Sampled(number, "Why is the sky blue?", first),
        Sampled(number, "How many hours has a day?", second),
        *([CheckpointSaved(number, f"checkpoint-{number}", 42_000_000, 0.4)] if number else []),
    ]


def working_run(*, steps: int = 320) -> list[Record]:
    """Load, base evaluation, ``steps`` steps with a reading every 5, a warning, a restart and a pause."""
    events: list[Event] = [
        Phase("load", "tiny-llama", 1, 2, "files"),
        Notice("warning", "train: 3 of 803 rows are too long", "mlxft data check RECIPE"),
        STARTED,
        *evaluated(0, 0),
    ]
    for number in range(1, steps + 1):
        if number == 60:
            events.append(KILLED)
        if number == 120:
            events += [Paused(119, "the battery is at 19%"), Continued(119, 60.0)]
        events.append(step(number))
        if number % 5 == 0:
            busy = 90 + 8 * math.sin(number / 9)
            events.append(dataclasses.replace(READING, step=number, gpu_percent=busy))
        if number in (100, 200, 300):
            events += evaluated(number, number // 100)
    return at_pace(events)


def at_pace(events: Sequence[Event], *, start: float = START) -> list[Record]:
    """The events as records; every step takes ``STEP_SECONDS``."""
    time, found = start, list[Record]()
    for index, event in enumerate(events):
        time += STEP_SECONDS if isinstance(event, StepDone) else 0.0
        found.append(Record(time, index, event))
    return found


def write_run(folder: Path, journal: Sequence[Record], *, checkpoints: Sequence[int] = ()) -> RunDir:
    """A run folder with this journal and these checkpoints."""
    run = RunDir(folder)
    run.path.mkdir(parents=True)
    append(run, journal)
    for number in checkpoints:
        run.checkpoint(number).mkdir()
        (run.checkpoint(number) / MANIFEST).write_text("{}")
    return run


def append(run: RunDir, journal: Sequence[Record]) -> None:
    """More lines for the journal."""
    with run.file(EVENTS).open("a", encoding="utf-8") as file:
        for record in journal:
            file.write(to_json(record.event, record.time) + "\n")

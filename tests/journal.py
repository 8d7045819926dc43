"""A small journal for the tests of everything that displays a run."""

from mlx_finetune.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Notice,
    Phase,
    Record,
    Restarted,
    RunFinished,
    RunStarted,
    Sampled,
    StepDone,
)

STARTED = RunStarted("demo", "tiny-llama", "sft", 0, 40, 20, 80, 8, 1_000, 50_000, "CPU", "float32", 8 * 10**9)
FINISHED = RunFinished(40, "finished", 2.5, 1.25, 30, 1.5, 65.0, 12_345, 2 * 10**9)

KILLED = Restarted(2, 1, "SIGKILL", "the training process was killed (SIGKILL)", "", is_bitwise=True)
HALVED = Restarted(2, 2, "gpu_memory", "the GPU ran out of memory", "half of a microbatch at a time", is_bitwise=False)


def step(number: int, loss: float = 1.0) -> StepDone:
    """Metrics of step ``number``."""
    return StepDone(number, number / 20, loss, 2e-4, 0.5, 400, 500, 0.06, 0.5, 800.0, 10**9, 2 * 10**9)


def records(*events: Event, start: float = 1_000_000.0, seconds: float = 1.0) -> list[Record]:
    """The events as records, one every ``seconds``."""
    return [Record(start + seconds * index, index, event) for index, event in enumerate(events)]


def whole_run() -> list[Record]:
    """Phases, a warning, 40 steps with falling loss, evaluations at 0, 30 and 40, samples, the end."""
    events: list[Event] = [
        Phase("download", "tiny-llama", 10_000_000, 20_000_000, "bytes"),
        Phase("download", "tiny-llama", 20_000_000, 20_000_000, "bytes"),
        Notice("warning", "train: 3 of 83 rows are too long", "mlxft data check RECIPE"),
        STARTED,
        Evaluated(0, 2.5, 100, True, 0.1),
        Sampled(0, "Hello?", "I do not know."),
        *(step(number, 2.5 - number / 40) for number in range(1, 31)),
        Evaluated(30, 1.25, 100, True, 0.1),
        Sampled(30, "Hello?", "Good day to you."),
        CheckpointSaved(30, "checkpoint-30", 4_000_000, 0.2),
        *(step(number, 2.5 - number / 40) for number in range(31, 41)),
        Evaluated(40, 1.5, 100, False, 0.1),
        Sampled(40, "Hello?", "Good day to you."),
        FINISHED,
    ]
    return records(*events)

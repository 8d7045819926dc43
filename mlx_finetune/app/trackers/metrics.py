"""What of a journal a tracker is told: numbers by name and step, answers of the prompts, figures of the end."""

from collections.abc import Mapping
from dataclasses import asdict

from mlx_finetune.events import Evaluated, Event, Resources, RunFinished, StepDone

Metrics = Mapping[str, float]

#: Fields of ``Resources`` that are bytes; the others go by their own names.
_BYTES = "_bytes"


def metrics_of(event: Event) -> Metrics:
    """The numbers of one event by name; empty for events without any. What is not finite is left out."""
    match event:
        case StepDone() as one:
            values: dict[str, object] = {
                "train/loss": one.loss,
                "train/learning_rate": one.learning_rate,
                "train/grad_norm": one.grad_norm,
                "train/epoch": one.epoch,
                "train/tokens_per_second": one.num_tokens / one.step_seconds if one.step_seconds else None,
                "train/targets_per_second": one.targets_per_second,
                "train/step_seconds": one.step_seconds,
                "memory/active_gb": one.active_memory_bytes / 1e9,
                "memory/peak_gb": one.peak_memory_bytes / 1e9,
            }
            values.update({f"train/{name}": value for name, value in one.metrics.items()})
        case Evaluated() as one:
            values = {"eval/loss": one.loss}
            values.update({f"eval/{name}": value for name, value in one.metrics.items()})
        case Resources() as one:
            values = {
                f"resources/{name.removesuffix(_BYTES)}_gb" if name.endswith(_BYTES) else f"resources/{name}": value
                for name, value in asdict(one).items()
                if name not in ("step", "on_battery")
            }
            values = {name: _scaled(name, value) for name, value in values.items()}
        case _:
            return {}
    return _numbers(values)


def summary_of(finished: RunFinished) -> Metrics:
    """The figures that a run ends with."""
    values: dict[str, object] = {
        "eval/first_loss": finished.first_loss,
        "eval/best_loss": finished.best_loss,
        "eval/best_step": finished.best_step,
        "eval/result_loss": finished.result_loss,
        "train/seconds": finished.train_seconds,
        "train/targets": finished.targets_trained,
        "memory/peak_gb": finished.peak_memory_bytes / 1e9,
    }
    return _numbers(values)


def _scaled(name: str, value: object) -> object:
    return value / 1e9 if name.endswith("_gb") and isinstance(value, int) else value


def _numbers(values: Mapping[str, object]) -> Metrics:
    """Those that are numbers: null in the journal is what was not finite, or what no source told."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }

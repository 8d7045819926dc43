"""What was measured of one step, kept in RUN/trace/steps/ as soon as it is there: an interrupted trace goes on.

A file counts for the very weights, probes and settings it was made with; another one is measured again and replaced.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mlx_finetune import durable
from mlx_finetune.app.trace.asking import Reply
from mlx_finetune.app.trace.layers import Layer

VERSION = 2


@dataclass(frozen=True, slots=True)
class Reload:
    """The loss a checkpoint was saved with and the one it has now; None where it was saved without one."""

    saved: float | None
    found: float | None

    @property
    def difference(self) -> float | None:
        """Nats a target."""
        return None if self.saved is None or self.found is None else abs(self.found - self.saved)


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and the greedy answer."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """The update of one matrix. ``relative`` is ``||dW|| / ||W||``; ranks are None without singular values."""

    path: str
    norm: float
    relative: float | None
    effective_rank: float | None
    stable_rank: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """Everything about one step; of step 0 without a checkpoint, the base model, there are no matrices."""

    step: int
    is_checkpoint: bool
    loss: float | None
    valid_loss: float | None
    reload: Reload
    replies: tuple[Reply, ...]
    layers: tuple[Layer, ...]
    samples: tuple[Sample, ...]
    matrices: tuple[Matrix, ...]


_RESULT = TypeAdapter(StepResult)


def key_of(parts: Mapping[str, object]) -> str:
    """SHA-256 over what a result depends on."""
    return hashlib.sha256(json.dumps({"version": VERSION} | dict(parts), sort_keys=True).encode()).hexdigest()


def read_result(folder: Path, step: int, key: str) -> StepResult | None:
    """The kept result of ``step`` if it was made with ``key``."""
    try:
        fields = json.loads(_file(folder, step).read_bytes())
        return _RESULT.validate_python(fields["result"]) if fields["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, ValidationError, RecursionError):
        return None


def write_result(folder: Path, result: StepResult, key: str) -> None:
    """Keep ``result``. Raises ``OSError``."""
    durable.make_folder(folder)
    durable.write_json(_file(folder, result.step), {"key": key, "result": asdict(result)})


def remove_others(folder: Path, steps: Sequence[int]) -> None:
    """Remove kept results of steps that are no longer there."""
    kept = {_file(folder, step) for step in steps}
    for path in folder.glob("step-*.json"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _file(folder: Path, step: int) -> Path:
    return folder / f"step-{step}.json"

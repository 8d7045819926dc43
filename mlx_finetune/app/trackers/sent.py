"""How far a tracker has been told: kept in the run folder, so that a run that goes on repeats and loses no step."""

import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from mlx_finetune import durable
from mlx_finetune.events import Evaluated, Record, Resources, Sampled, StepDone


@dataclass(slots=True)
class Sent:
    """``run_id`` is what the tracker calls the run; ``created`` tells which training in this folder it is.

    ``step``, ``evaluation`` and ``sample`` are the last steps that were told of each; ``resources`` the time of the
    last sample of the machine. A step is told once: where a resumed run repeats some, what the tracker has stays.
    """

    run_id: str = ""
    created: str = ""
    step: int = 0
    evaluation: int = -1
    sample: int = -1
    resources: float = 0.0
    num_starts: int = 0

    def is_new(self, record: Record) -> bool:
        """True for something that the tracker has not been told."""
        match record.event:
            case StepDone() as one:
                return one.step > self.step
            case Evaluated() as one:
                return one.step > self.evaluation
            case Sampled() as one:
                return one.step > self.sample
            case Resources():
                return record.time > self.resources
            case _:
                return False

    def note(self, record: Record) -> None:
        """The tracker has been told; the answers of one step are noted together, by their last."""
        match record.event:
            case StepDone() as one:
                self.step = one.step
            case Evaluated() as one:
                self.evaluation = one.step
            case Sampled() as one:
                self.sample = one.step
            case Resources():
                self.resources = record.time
            case _:
                pass

    def save(self, path: Path) -> None:
        """Replace the file. Raises ``OSError``."""
        durable.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path, created: str, *, is_fork: bool) -> Self:
        """What was told of this run before, or a new beginning: for another training, a fork, or a damaged file."""
        fresh = cls(run_id=secrets.token_hex(4), created=created)
        values = durable.read_object_if_any(path)
        kinds = {field.name: type(getattr(fresh, field.name)) for field in fields(cls)}
        is_whole = all(isinstance(values.get(name), kind) for name, kind in kinds.items())
        if is_fork or not is_whole or values["created"] != created:
            return fresh
        return cls(**{name: values[name] for name in kinds})  # pyright: ignore[reportArgumentType]

"""The points of a run that can be measured, and a model with the weights of one of them at a time.

Adapters are put onto one base in turn. Of fully trained models the last one is let go before the next is loaded, so
memory is that of one model either way.
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.app.open import Opened, Report, base_model, fetch_base, load_base, locate, open_name
from mlx_finetune.errors import ModelError, RunError
from mlx_finetune.events import Notice
from mlx_finetune.model.adapters.folder import hash_adapter
from mlx_finetune.model.sources.fetch import hash_model
from mlx_finetune.model.trained import attach_trained
from mlx_finetune.rundir import ADAPTER_CONFIG, RunDir, checkpoint_step


@dataclass(frozen=True, slots=True)
class Point:
    """One state of the weights: ``folder`` is its checkpoint, None is the base model without an adapter.

    ``key`` is the same for the same weights.
    """

    step: int
    folder: Path | None
    key: str

    @property
    def name(self) -> str:
        """For a person."""
        return f"step {self.step}" if self.step else "before training"


def find_checkpoints(run: RunDir) -> tuple[Point, ...]:
    """Every checkpoint, by step. Raises ``RunError`` where there is none."""
    found = tuple(Point(checkpoint_step(path), path, _key(checkpoint_step(path), path)) for path in run.checkpoints())
    if not found:
        raise RunError(f"{run.path} has no checkpoint", f"how it ended, and how it goes on: mlxft runs show {run.name}")
    return found


def find_beginning(opened: Opened, adapter: str, *, base: Path, report: Report) -> Point | None:
    """What the run of ``opened``, one of its checkpoints, began as: its base, or ``adapter`` where it names one.

    None, which is said, where that is not at hand any more. ``adapter`` counts from ``base``.
    """
    try:
        if opened.spec is None:
            return Point(0, None, f"0:{fetch_base(opened.located, report).sha256[:16]}")
        if not adapter:
            return Point(0, None, f"0:{opened.info.sha256[:16]}")
        folder = locate(adapter, base=base).adapter
        if folder is None:
            raise RunError(f"{adapter} is no adapter any more")
        return Point(0, folder, _key(0, folder))
    except (ModelError, RunError) as error:
        report(Notice("warning", f"the model before training is left out: {error.message}"))
        return None


def _key(step: int, folder: Path) -> str:
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    digest = hash_adapter(folder) if is_adapter else hash_model(folder)
    return f"{step}:{digest[:16]}"


class Weights:
    """The model of a run with the weights of one point at a time."""

    def __init__(self, opened: Opened, *, base: Path, report: Report) -> None:
        """``opened`` is one of the checkpoints; paths count from ``base``."""
        self._base, self._report = base, report
        self._located = opened.located
        self._adapted = opened if opened.spec is not None else None  # a fully trained one is loaded again

    @contextmanager
    def at(self, point: Point) -> Generator[nn.Module]:
        """The model while the block runs. Raises ``ModelError`` or ``RunError`` where it cannot be loaded."""
        if self._adapted is not None:
            with self._with_adapter(self._adapted, point) as model:
                yield model
            return
        model = self._loaded(point)
        try:
            yield model
        finally:
            del model
            gc.collect()
            mx.clear_cache()

    @contextmanager
    def _with_adapter(self, opened: Opened, point: Point) -> Generator[nn.Module]:
        if point.folder is None:
            with base_model(opened) as model:
                yield model
            return
        with _mended_by_moving(point.folder):
            attach_trained(opened.model, point.folder, is_adapter=True)
        yield opened.model

    def _loaded(self, point: Point) -> nn.Module:
        if point.folder is not None:
            return open_checkpoint(point, base=self._base, report=self._report).model
        model = load_base(self._located, self._report)
        model.eval()
        return model


def open_checkpoint(point: Point, *, base: Path, report: Report) -> Opened:
    """A checkpoint as ``chat`` opens it."""
    assert point.folder is not None
    with _mended_by_moving(point.folder):
        return open_name(str(point.folder), base=base, report=report)


@contextmanager
def _mended_by_moving(checkpoint: Path) -> Generator[None]:
    """The way out where a file of ``checkpoint`` is damaged: one is no reason to measure none."""
    try:
        yield
    except ModelError as error:
        if checkpoint.name not in error.message:
            raise
        raise ModelError(
            error.message, f"move {checkpoint.name} out of the run, and the others are measured"
        ) from error

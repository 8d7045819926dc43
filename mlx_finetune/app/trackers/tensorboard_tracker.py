"""TensorBoard's event files, written by tensorboardX: numbers as scalars, answers and the recipe as text.

A run that goes on writes another file into the same folder, and tells TensorBoard to forget what came later than where
it begins.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from mlx_finetune.app.trackers.metrics import Metrics
from mlx_finetune.app.trackers.tracker import About
from mlx_finetune.recipe.values import toml_value

_library: Any = import_module("tensorboardX")  # an extra, which need not be installed


class TensorboardTracker:
    """One open event file."""

    def __init__(self, about: About) -> None:
        purge = about.first_step if about.num_starts else None
        start = f".{about.num_starts}"  # the name holds the second alone: two starts in one would share a file
        self._writer = _library.SummaryWriter(
            logdir=str(about.folder), purge_step=purge, flush_secs=10, filename_suffix=start
        )
        self._last_step = about.first_step
        if not about.num_starts:
            lines = [f"{key} = {toml_value(value)}" for key, value in about.config.items() if value is not None]
            self._writer.add_text("recipe", _block("\n".join(lines)), 0)

    def log(self, step: int, metrics: Metrics) -> None:
        """One scalar for each number."""
        self._last_step = max(self._last_step, step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_samples(self, step: int, pairs: Sequence[tuple[str, str]]) -> None:
        """One text for each prompt, by its place in the recipe."""
        for number, (prompt, answer) in enumerate(pairs, start=1):
            self._writer.add_text(f"samples/{number}", _block(f"{prompt}\n-> {answer}"), step)

    def flush(self) -> None:
        """On the disk."""
        self._writer.flush()

    def finish(self, summary: Metrics, *, has_failed: bool) -> None:
        """Close the file."""
        del has_failed
        for name, value in summary.items():
            self._writer.add_scalar(f"summary/{name.replace('/', '_')}", value, self._last_step)
        self._writer.close()


def _block(text: str) -> str:
    """Text that TensorBoard, which reads Markdown, shows as it is."""
    return "\n".join("    " + line for line in text.splitlines())

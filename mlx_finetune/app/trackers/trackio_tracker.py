"""Trackio: a local SQLite file for each project, looked at with ``trackio show``; it sends nothing anywhere.

It resumes by name, so a run is called by its folder and its id.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from mlx_finetune.app.trackers.metrics import Metrics
from mlx_finetune.app.trackers.tracker import About

_library: Any = import_module("trackio")  # an extra, which need not be installed


class TrackioTracker:
    """One open run of Trackio."""

    def __init__(self, about: About) -> None:
        self._run: Any = _library.init(
            project=about.project,
            name=f"{about.name}-{about.run_id}",
            resume="allow",
            config=dict(about.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Metrics) -> None:
        """One row."""
        self._run.log(dict(metrics), step=step)

    def log_samples(self, step: int, pairs: Sequence[tuple[str, str]]) -> None:
        """A text for each prompt."""
        self._run.log(
            {f"samples/{number}": _library.Markdown(_quoted(*pair)) for number, pair in enumerate(pairs, start=1)},
            step=step,
        )

    def flush(self) -> None:
        """Trackio writes every half second by itself."""

    def finish(self, summary: Metrics, *, has_failed: bool) -> None:
        """Wait until everything is written."""
        del has_failed, summary
        self._run.finish()


def _quoted(prompt: str, answer: str) -> str:
    lines = f"{prompt}\n-> {answer}".splitlines()
    return "\n".join("    " + line for line in lines)

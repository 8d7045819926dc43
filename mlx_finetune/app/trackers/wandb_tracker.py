"""Weights & Biases. ``WANDB_MODE=offline`` keeps everything in the run folder for ``wandb sync``.

Charts go by our own ``step``, because W&B's counter takes no step twice and none out of order; a run that goes on keeps
its id (offline each start writes a folder of its own with that id, which ``wandb sync`` joins). Nothing but what is
logged here is sent, and what kind of machine it is: no console, no code, no git, no samples by W&B itself.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from mlx_finetune.app.trackers.metrics import Metrics
from mlx_finetune.app.trackers.tracker import About

_library: Any = import_module("wandb")  # an extra, which need not be installed


class WandbTracker:
    """One open run of W&B."""

    def __init__(self, about: About) -> None:
        settings = _library.Settings(
            console="off", save_code=False, disable_git=True, x_disable_stats=True, silent=True
        )
        try:
            self._run: Any = _library.init(
                project=about.project,
                name=about.name,
                id=about.run_id,
                resume="allow",
                dir=str(about.folder),
                config=dict(about.config),
                settings=settings,
            )
        except _library.errors.UsageError as error:  # no account, most often
            said = next(iter(str(error).strip().splitlines()), "")
            raise _library.errors.UsageError(
                f"{said} Without an account: WANDB_MODE=offline mlxft train ..."
            ) from error
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Metrics) -> None:
        """One line of the history."""
        self._run.log({**metrics, "step": step})

    def log_samples(self, step: int, pairs: Sequence[tuple[str, str]]) -> None:
        """A table of prompts and answers."""
        table = _library.Table(columns=["step", "prompt", "answer"], data=[[step, *pair] for pair in pairs])
        self._run.log({"samples": table, "step": step})

    def flush(self) -> None:
        """W&B writes by itself; it has no way to wait for that."""

    def finish(self, summary: Metrics, *, has_failed: bool) -> None:
        """Wait until everything is written, or sent."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(has_failed))

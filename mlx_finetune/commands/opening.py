"""What chat and generate share: load by name with settings changed, and say meanwhile what takes time."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.open import Opened
    from mlx_finetune.events import Notice, Phase

_CLEAR_LINE = "\r\x1b[K"


class LoadingTalk:
    """Phases on one line that is overwritten, in a terminal; elsewhere one line for each download. Warnings stay."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._said = ""

    def __call__(self, event: "Phase | Notice") -> None:
        """Show one event."""
        from mlx_finetune.events import Notice
        from mlx_finetune.monitor.plain import notice_lines, phase_line

        if isinstance(event, Notice):
            if event.level == "warning":
                self.clear()
                for line in notice_lines(event):
                    click.echo(line, err=True)
        elif self._is_terminal:
            click.echo(f"{_CLEAR_LINE}{phase_line(event)}", err=True, nl=False)
        elif event.name in ("download", "convert") and self._said != event.name:
            self._said = event.name
            click.echo(phase_line(event), err=True)

    def clear(self) -> None:
        """Take the overwritten line away."""
        if self._is_terminal:
            click.echo(_CLEAR_LINE, err=True, nl=False)


def open_for_answers(name: str, settings: Sequence[str]) -> "Opened":
    """The run or model ``name`` with ``settings`` (NAME=VALUE of [chat]) in the place of the recipe's."""
    from mlx_finetune.recipe.sampling import change_settings
    from mlx_finetune.recipe.schema import ChatRecipe

    change_settings(ChatRecipe.model_validate({}), settings)  # a slip is found before the model is loaded
    from mlx_finetune.hardware import blas

    # One token is a chain of matrix-vector products, which memory limits. A second OpenBLAS thread gains little, and
    # beside one busy process its barriers cost 18 times the speed (7 to 0.4 tokens/s, 2 cores, 2026-11-21).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    blas.prepare()  # before mlx is imported
    from mlx_finetune.app.open import open_name

    talk = LoadingTalk()
    try:
        opened = open_name(name, base=Path.cwd(), report=talk)
    finally:
        talk.clear()
    return replace(opened, chat=change_settings(opened.chat, settings))

"""Load what is evaluated, by its name, and say meanwhile what takes time."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.eval.subject import Subject


def open_for_eval(name: str) -> "Subject":
    """The run or model ``name``, with what it says while it is loaded."""
    import os

    from mlx_finetune.commands.opening import LoadingTalk
    from mlx_finetune.hardware import blas

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # see commands/opening.py
    blas.prepare()  # before mlx is imported
    from mlx_finetune.app.eval.subject import open_subject

    talk = LoadingTalk()
    try:
        return open_subject(name, base=Path.cwd(), report=talk)
    finally:
        talk.clear()

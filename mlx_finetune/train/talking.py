"""What the processes share that try a run without making one: a plan's measuring and range of rates, a trial of tune.

Each prepares the run as training does and leaves nothing behind. Its stdout has what takes time, one event a line, and
last what it found, one JSON object; errors go to stderr as ``error:`` and ``hint:`` lines.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_finetune.errors import MlxftError
from mlx_finetune.events import Event, to_json
from mlx_finetune.hardware import blas
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.train.child import describe_error
from mlx_finetune.train.signals import StopRequest

if TYPE_CHECKING:  # imports mlx, which must see the BLAS loaded first
    from mlx_finetune.train.start.prepare import Prepared


def arguments_of(module: str) -> argparse.ArgumentParser:
    """The recipe and its overrides; ``module`` is what ``python -m`` runs."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", allow_abbrev=False)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    return parser


def answer(find: Callable[[], Mapping[str, object]]) -> int:
    """Say what ``find`` gives, or why it could not, and return the exit code."""
    try:
        _say(json.dumps(find()))
    except MlxftError as error:
        message, hint = describe_error(error)
        sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def prepared_run(
    loaded: LoadedRecipe, stop: StopRequest, emit: Callable[[Event], None], *, uses_tuned: bool = True
) -> "Generator[Prepared]":
    """Inside, the run as a training that begins would have it. Raises as ``prepare`` does."""
    blas.prepare()
    from mlx_finetune.train.start.prepare import prepare

    prepared = prepare(
        loaded,
        base=Path.cwd(),
        decided=None,
        total_steps=None,
        safer=Safer(),
        emit=emit,
        stop=stop,
        uses_tuned=uses_tuned,
    )
    with closing(prepared.trainer):
        yield prepared


def tell(event: Event) -> None:
    """Say what takes time."""
    _say(to_json(event, time.time()))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

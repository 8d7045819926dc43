"""A process that computes for a plan: it reports what takes time, and its last word is one line of JSON.

A process of its own, because computing may end in an abort or be killed for the memory it takes, and because the plan
itself stays light. Never imports mlx.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_finetune.app.running.endings import Ended, read_ending
from mlx_finetune.app.running.launch import child_environment
from mlx_finetune.errors import DoesNotFitError, MlxftError, RunError
from mlx_finetune.events import Phase, from_json
from mlx_finetune.recipe.hardware import HardwareRecipe

LOG_LINES = 40

Report = Callable[[Phase], None]


@dataclass(frozen=True, slots=True)
class Talk:
    """How a process is named in messages: ``measuring the plan``; ``hint`` is the way on where it failed."""

    what: str
    hint: str


def ask_child(
    arguments: Sequence[str],
    key: str,
    talk: Talk,
    report: Report,
    *,
    hardware: HardwareRecipe | None = None,
    limit_seconds: float | None = None,
) -> Any:
    """The value of ``{key: ...}``, the last line of the process ``arguments``; it is killed after ``limit_seconds``.

    Raises ``DoesNotFitError`` where it ran out of memory, ``RunError`` for every other end without a result.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(os.environ, sys.platform, hardware),
            )
        except OSError as error:
            raise RunError(f"{arguments[0]} cannot be started: {error.strerror}", "mlxft doctor") from error
        timer = threading.Timer(limit_seconds or 0, child.kill)
        with child:
            if limit_seconds is not None:
                timer.start()
            try:
                found = _read(child, key, report)
                code = child.wait()
            except BaseException:
                child.kill()
                raise
            finally:
                timed_out = timer.finished.is_set()
                timer.cancel()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    if found is not None and code == 0:
        return found
    if timed_out:
        raise RunError(f"{talk.what} took more than {limit_seconds:.0f} s", talk.hint)
    raise _refusal(code, said, talk)


def _read(child: "subprocess.Popen[bytes]", key: str, report: Report) -> Any:
    """Report what takes time until the child ends; what its last line says, None where it says nothing.

    Its notices are left out: the plan itself says what becomes of the rows.
    """
    assert child.stdout is not None, "the child was started with a pipe"
    found: Any = None
    beginning = f'{{"{key}"'.encode()
    for line in child.stdout:
        if line.startswith(beginning):
            found = json.loads(line)[key]
        elif (record := from_json(line)) is not None and isinstance(record.event, Phase):
            report(record.event)
    return found


def _refusal(code: int, said: Sequence[str], talk: Talk) -> MlxftError:
    """Why there is no result, in the words that an end of training has."""
    killed_by = signal.Signals(-code) if code < 0 else None
    ending = read_ending(Ended(1 if code < 0 else code, None, killed_by, tuple(said)))
    if ending.need == "less_memory":
        return DoesNotFitError(f"{talk.what} ran out of memory", ending.hint)
    if ending.kind == "refused":
        error = RunError(ending.message, ending.hint)
        error.exit_code = code
        return error
    return RunError(f"{talk.what} failed: {ending.message}", ending.hint or talk.hint)

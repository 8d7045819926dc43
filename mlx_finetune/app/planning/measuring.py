"""Runs the measuring process of a plan and reads what it found. Never imports mlx.

A process of its own, because measuring may end in an abort or be killed for the memory it takes, and because the plan
itself stays light. It gets ``LIMIT_SECONDS``; after that it is killed and the plan stays with its arithmetic.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_finetune.app.running.endings import Ended, read_ending
from mlx_finetune.app.running.launch import child_environment
from mlx_finetune.errors import DoesNotFitError, MlxftError, RunError
from mlx_finetune.events import Phase, from_json
from mlx_finetune.hardware.planning.measured import Measured
from mlx_finetune.recipe.hardware import HardwareRecipe

MODULE = "mlx_finetune.train.measure"
BUDGET_SECONDS = 25.0  # since the start of the process; nothing is begun that would end later
LIMIT_SECONDS = 300.0  # a microbatch that takes minutes cannot be cut short; the budget of the process is far less
LOG_LINES = 40

Report = Callable[[Phase], None]


def measure(
    recipe: Path,
    overrides: Sequence[str],
    report: Report,
    *,
    hardware: HardwareRecipe | None = None,
    command: Sequence[str] | None = None,
) -> Measured:
    """What the measuring process found out about the recipe, whose section ``hardware`` is.

    ``command`` replaces ``python -m`` and module in tests.
    Raises ``DoesNotFitError`` where it ran out of memory, ``RunError`` for every other end without a result.
    """
    start = list(command) if command is not None else [sys.executable, "-m", MODULE]
    settings = (part for one in overrides for part in ("--set", one))
    arguments = [*start, "--recipe", str(recipe), "--budget", str(BUDGET_SECONDS), *settings]
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(os.environ, sys.platform, hardware),
            )
        except OSError as error:
            raise RunError(f"{arguments[0]} cannot be started: {error.strerror}", "mlxft doctor") from error
        timer = threading.Timer(LIMIT_SECONDS, child.kill)
        with child:
            timer.start()
            try:
                measured = _read(child, report)
                code = child.wait()
            except BaseException:
                child.kill()
                raise
            finally:
                timed_out = timer.finished.is_set()
                timer.cancel()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    if measured is not None and code == 0:
        return measured
    if timed_out:
        raise RunError(f"measuring took more than {LIMIT_SECONDS:.0f} s", "plan without it: --no-measure")
    raise _refusal(code, said)


def _read(child: "subprocess.Popen[bytes]", report: Report) -> Measured | None:
    """Report what takes time until the child ends; what its last line says, None where it says nothing.

    Its notices are left out: the plan itself says what becomes of the rows.
    """
    assert child.stdout is not None, "the child was started with a pipe"
    measured: Measured | None = None
    for line in child.stdout:
        if line.startswith(b'{"measured"'):
            measured = Measured.from_json(json.loads(line)["measured"])
        elif (record := from_json(line)) is not None and isinstance(record.event, Phase):
            report(record.event)
    return measured


def _refusal(code: int, said: Sequence[str]) -> MlxftError:
    """Why measuring gave no result, in the words that an end of training has."""
    import signal

    killed_by = signal.Signals(-code) if code < 0 else None
    ending = read_ending(Ended(1 if code < 0 else code, None, killed_by, tuple(said)))
    if ending.need == "less_memory":
        return DoesNotFitError("measuring the plan ran out of memory", ending.hint)
    if ending.kind == "refused":
        error = RunError(ending.message, ending.hint)
        error.exit_code = code
        return error
    return RunError(f"measuring the plan failed: {ending.message}", ending.hint or "plan without it: --no-measure")

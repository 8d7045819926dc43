"""Runs trials, each in a fork of this preloaded process, so that imports are paid once. Started by ``faults.trials``.

    LD_PRELOAD=shim.so python server.py save|train

Reads a trial as one JSON line, answers with one: how the fork ended. Its operations are in the trial's log.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

TRIAL_SECONDS = 120

Trial = dict[str, Any]


def prepare_saves() -> Callable[[Trial], int]:
    """A function that saves the checkpoint of step 6 beside those of 2 and 4, and rotates."""
    from faults.saving import save_and_rotate

    def save(trial: Trial) -> int:
        save_and_rotate(Path(trial["root"]), 6)
        return 0

    return save


def prepare_training() -> Callable[[Trial], int]:
    """A function that is the training child. mlx is loaded here and computes nothing before a fork."""
    from mlx_finetune.hardware import blas

    blas.prepare()
    import_module("mlx_finetune.train.run")
    from mlx_finetune.train import child

    return lambda trial: child.main(trial["arguments"])


def run_trial(trial: Trial, function: Callable[[Trial], int], shim: ctypes.CDLL, answer: int) -> int:
    """In the fork: arm the shim, do it; the exit code. An exception is told with its bases and traceback."""
    signal.alarm(TRIAL_SECONDS)
    output = os.open(trial["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    log = os.open(trial["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    shim.shim_arm(trial["root"].encode(), log, trial["index"], trial["action"].encode())
    try:
        return function(trial)
    except BaseException as error:
        bases = [kind.__name__ for kind in type(error).__mro__]
        os.write(answer, json.dumps({"error": bases, "message": traceback.format_exc()}).encode())
        return 1


def flush(code: int) -> int:
    """The exit code after Python's last flushes, which fail where the log cannot be written."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return 120
    return code


def main() -> None:
    """Fork for every line and tell how the fork ended."""
    function = {"save": prepare_saves, "train": prepare_training}[sys.argv[1]]()
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.shim_arm.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p)
    for line in sys.stdin:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os._exit(flush(run_trial(json.loads(line), function, shim, writer)))
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            error = json.loads(file.read() or b"{}")
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps({"code": status} | error), flush=True)


if __name__ == "__main__":
    main()

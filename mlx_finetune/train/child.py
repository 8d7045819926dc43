"""The training process: ``python -m mlx_finetune.train.child --recipe PATH``. It shows nothing; it writes events.

Refusals before the run folder is accepted go to stderr as ``error:`` and ``hint:`` lines; after that every end is an
event. A rank other than 0 of a training on several machines follows rank 0: it writes nothing but what went wrong, to
stderr. Exit codes: 0 finished, 1 failure, 2 recipe, 3 does not fit, 74 the disk was too full for a last word, 128 + n
stopped by signal n after saving.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.errors import (
    EXIT_NO_SPACE,
    DataError,
    Interrupted,
    MlxftError,
    RecipeError,
    TrainingError,
    further_problems,
)
from mlx_finetune.events import Event, Notice, RunFailed, RunStopped
from mlx_finetune.hardware import blas
from mlx_finetune.hardware.place import BLAS_THREADS, Place, blas_threads, read_place
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.journal import EventWriter
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe, name_recipe, naming_recipe
from mlx_finetune.rundir import EVENTS, LOG, RunDir
from mlx_finetune.train.checkpoints.room import refused_writes
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.admission import Admission, RefusedError, Request, admit, check_output, check_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and return the exit code."""
    request, parent = _parse(arguments)
    stop = StopRequest.of_child(parent)
    stop.install()
    place = read_place(os.environ)
    if place.rank:
        return _follow(request, place, stop)
    try:
        loaded = load_recipe(request.recipe, request.overrides)
        check_output(loaded.recipe, Path.cwd())
        run = RunDir(loaded.recipe.run_folder)
        with refused_writes(run):
            admission = admit(run, request)
            check_recipe(admission, loaded.recipe, request)
            emit = EventWriter(run.file(EVENTS), clock=time.time, log=_log)
            log_to(run.file(LOG))  # last: what is refused before it is said to whoever started this process
    except MlxftError as error:
        _print_error(error)
        return error.exit_code
    try:
        return _report_end(loaded, request, admission, stop, emit, place)
    finally:
        emit.close()
        admission.release()


def _log(text: str) -> None:
    """To stderr, which is the run's log once the folder is ours; a disk that is full is reported elsewhere."""
    with suppress(OSError):
        durable.write_all(2, text.encode())


def _follow(request: Request, place: Place, stop: StopRequest) -> int:
    """Train as a rank that writes nothing. What rank 0 says itself is not said again; that is no failure here."""
    try:
        loaded = load_recipe(request.recipe, request.overrides)
        _prepare_blas(place)
        from mlx_finetune.train.ranks import OtherRankError, connect
        from mlx_finetune.train.run import follow_run

        ranks = connect(place)
        named = naming_recipe(loaded.path, loaded.overrides)
        with suppress(OtherRankError, TrainingError), named:  # a TrainingError comes to all ranks alike
            follow_run(loaded, stop, ranks, base=Path.cwd())
    except MlxftError as error:
        _print_error(error, f"rank {place.rank}: ")
        return error.exit_code
    return 0


def _prepare_blas(place: Place) -> None:
    """Load the BLAS, with this rank's share of the cores, before anything imports mlx."""
    threads = blas_threads(place)
    if threads is not None:
        os.environ.setdefault(BLAS_THREADS, str(threads))
    blas.prepare()


def _report_end(
    loaded: LoadedRecipe, request: Request, admission: Admission, stop: StopRequest, emit: EventWriter, place: Place
) -> int:
    """Train; every end is an event, as far as the disk still takes one."""
    run = admission.run
    try:
        with refused_writes(run):
            code = _train(loaded, request, admission, stop, emit, place)
            emit.sync()
            return code
    except RefusedError as error:
        _print_error(error)
        return error.exit_code
    except Interrupted as error:
        return _last_word(emit, RunStopped(0, stop.signal_number), error.exit_code)
    except MlxftError as error:
        code = _last_word(emit, RunFailed(*describe_error(error), error.exit_code), error.exit_code)
        _print_error(error)  # under the line with the time
        return code
    except Exception as error:
        hint = f"this is a bug in mlxft; the traceback is in {run.file(LOG)}"
        _last_word(emit, RunFailed(f"{type(error).__name__}: {error}", hint, 1), 1)
        raise


def _last_word(emit: EventWriter, event: Event, exit_code: int) -> int:
    """Report the end; where the disk does not even take that, the exit code has to say it."""
    try:
        emit(event)
        emit.sync()
    except OSError:
        return EXIT_NO_SPACE
    return exit_code


def _train(
    loaded: LoadedRecipe, request: Request, admission: Admission, stop: StopRequest, emit: EventWriter, place: Place
) -> int:
    _prepare_blas(place)
    from mlx_finetune.train.ranks import connect
    from mlx_finetune.train.run import train_run  # imports mlx, which must see the BLAS loaded first

    ranks = connect(place)
    with naming_recipe(loaded.path, loaded.overrides):
        named = naming_notices(loaded, emit)
        stopped_at = train_run(loaded, request, admission, stop, named, base=Path.cwd(), ranks=ranks)
    if stopped_at is None:
        return 0
    emit(RunStopped(stopped_at, stop.signal_number))
    return 128 + stop.signal_number


def naming_notices(loaded: LoadedRecipe, emit: Callable[[Event], None]) -> Callable[[Event], None]:
    """``emit`` for events whose hints name the recipe of this process (``name_recipe``)."""

    def named(event: Event) -> None:
        if isinstance(event, Notice):
            event = replace(event, hint=name_recipe(event.hint, loaded.path, loaded.overrides))
        emit(event)

    return named


def _parse(arguments: Sequence[str] | None) -> tuple[Request, int | None]:
    parser = argparse.ArgumentParser(prog="python -m mlx_finetune.train.child", allow_abbrev=False)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--extend", type=int)
    parser.add_argument("--parent-pid", type=int)
    parser.add_argument("--restarts", type=json.loads, default=[])
    parser.add_argument("--safer", type=lambda text: Safer.from_json(json.loads(text)))
    given = parser.parse_args(arguments)
    request = Request(
        given.recipe,
        tuple(given.overrides),
        given.resume,
        given.fork,
        given.extend,
        tuple(given.restarts),
        given.safer,
    )
    return request, given.parent_pid


def log_to(path: Path) -> None:
    """Send this process's stdout and stderr, those of libraries included, to the end of the run's log."""
    descriptor = durable.open_append(path)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def describe_error(error: MlxftError) -> tuple[str, str]:
    """Message and hint of an error; further problems of it are appended to the message, one a line."""
    problems = further_problems(error) if isinstance(error, DataError) else ()
    problems = error.problems if isinstance(error, RecipeError) else problems
    lines = [f"{problem.where}: {problem.message}" if problem.where else problem.message for problem in problems]
    if isinstance(error, RecipeError):
        return "\n".join(lines), error.hint
    return "\n".join([error.message, *lines]), error.hint


def _print_error(error: MlxftError, who: str = "") -> None:
    """Say it on stderr, which is the log in the run folder by now: a full disk may refuse that too."""
    message, hint = describe_error(error)
    with suppress(OSError):  # not through sys.stderr, which would try again at exit and change the exit code
        durable.write_all(2, (f"{who}error: {message}\n" + (f"{who}hint: {hint}\n" if hint else "")).encode())


if __name__ == "__main__":
    sys.exit(main())

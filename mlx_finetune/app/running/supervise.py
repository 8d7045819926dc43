"""Starts the training again from its last checkpoint where that helps: at most three times without a newer one.

What ended it decides what is more careful the next time (``endings``, ``hardware.safer``). A run is never forked or
extended twice: once a process has written its decisions, the next one resumes. Whoever asked for a stop gets no
restart, nor does a training on several ranks.
"""

import contextlib
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlx_finetune.app.running.endings import SMALLER, Ended, Ending, read_ending
from mlx_finetune.app.running.launch import TrainRequest, View, forwarding, train
from mlx_finetune.app.running.unbegun import Before
from mlx_finetune.app.tune.buffers import tuned_buffers
from mlx_finetune.errors import RunError
from mlx_finetune.events import Restarted, RunFailed, RunStopped
from mlx_finetune.events_log import append_lines
from mlx_finetune.hardware.safer import Safer, next_safer
from mlx_finetune.journal import EventWriter
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import (
    EVENTS,
    LOG,
    RECIPE,
    RUN_INFO,
    SUPERVISOR,
    RunDir,
    busy,
    checkpoint_step,
    run_info,
    running_process,
    take_lock,
)

MAX_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class Supervised:
    """How a training ended for good: the exit code, and what the last of its processes left.

    ``stop_signal`` is the first signal that asked for a stop, 0 without one; one may have come too late to stop it.
    """

    exit_code: int
    ended: Ended
    ending: Ending
    stop_signal: int = 0


def supervise(
    request: TrainRequest, run: RunDir, recipe: Recipe, view: View, *, command: Sequence[str] | None = None
) -> Supervised:
    """Train to the end, with as many processes as it takes. ``recipe`` is the one asked for.

    Of a training that was refused before it had decided anything no folder is left (``unbegun``). Raises ``RunError``
    where another process is at work in the folder. ``command`` replaces the child in tests.
    """
    if running_process(run) is not None:
        raise busy(run)
    before_start = Before.look(run)
    restarts = _Restarts(replace(request, hardware=recipe.hardware, tuned=_tuned(request, run, recipe)), run, recipe)
    with _presence(run) as begun, forwarding(view.say) as signals:
        while True:
            before = run_info(run)
            ended = train(restarts.request, run, view, signals, begun=begun, command=command)
            ending = read_ending(ended)
            if signals.received or not ending.can_restart or request.num_ranks > 1:
                break  # the other ranks have ended as well; whoever started them can start all again
            decided = restarts.decide(ending, has_begun=run_info(run) != before)
            if isinstance(decided, Ending):
                ending = decided
                break
            view.say(decided.sentence)
            if signals.received:
                stopped = Ending("stopped", "stopped", "it was stopped before it was started again")
                return Supervised(128 + signals.received[0], ended, stopped, signals.received[0])
        if ending.kind == "crashed" and request.num_ranks > 1:
            ending = replace(ending, message=f"rank 0: {ending.message}")
        if ending.kind == "crashed" and ended.outcome is None and not signals.received:
            _record_end(run, ending)
        before_start.restore(ending)
    return Supervised(_exit_code(ended, ending), ended, ending, signals.received[0] if signals.received else 0)


def _record_end(run: RunDir, ending: Ending) -> None:
    """The last word of a run whose process could not say it, for whoever looks on or comes later."""
    if not run.file(RUN_INFO).is_file():
        return
    with contextlib.suppress(OSError, RunError):
        writer = EventWriter(run.file(EVENTS), clock=time.time, log=lambda text: append_lines(run.file(LOG), text))
        try:
            writer(RunFailed(ending.message, ending.hint, 1))
        finally:
            writer.close()


def _exit_code(ended: Ended, ending: Ending) -> int:
    """The code of the whole command; a process that dies when all is said and done does not change it."""
    match ending.kind:
        case "finished":
            return 0
        case "crashed" | "no_space":
            return 1
        case "stopped":
            by = ended.outcome.signal_number if isinstance(ended.outcome, RunStopped) else ended.killed_by
            return 128 + by if by else ended.exit_code
        case "refused" | "failed":
            return ended.exit_code or 1


class _Restarts:
    """What the next process is asked to do.

    ``_highest`` is the newest step that was ever saved, so that a checkpoint that gets damaged again and again is no
    progress.
    """

    def __init__(self, request: TrainRequest, run: RunDir, recipe: Recipe) -> None:
        self.request = request
        self._run = run
        self._recipe = recipe
        self._highest = newest_step(run)
        self._attempt = 0

    def decide(self, ending: Ending, *, has_begun: bool) -> Restarted | Ending:
        """Set ``request`` to the next one and say what it is; the ending with its reason where no restart helps.

        ``has_begun``: the last process has written its decisions.
        """
        step = newest_step(self._run)
        self._attempt = 1 if step > self._highest else self._attempt + 1
        self._highest = max(self._highest, step)
        if self._attempt > MAX_RESTARTS:
            return replace(ending, message=f"{ending.message}, for the fourth time without a new checkpoint")
        info = run_info(self._run)
        is_resumable = has_begun and info.get("status") == "running"
        safer = self.request.safer or Safer.from_json(info.get("safer"))
        changes: Sequence[str] = ()
        if ending.need is not None and self._attempt >= ending.need_from:
            is_decided = is_resumable or self.request.resume
            more = next_safer(_decided(info, self._recipe) if is_decided else self._recipe, safer, ending.need)
            if more is None and ending.only_safer:
                message = f"{ending.message}, and there is no more careful way left to carry out this recipe"
                return replace(ending, message=message, hint=ending.hint or SMALLER)
            safer, changes = more or (safer, ())
        restarted = Restarted(
            step, self._attempt, ending.cause, ending.message, "; ".join(changes), is_bitwise=safer.is_bitwise
        )
        self._ask(restarted, safer if changes else self.request.safer, is_resumable=is_resumable)
        return restarted

    def _ask(self, restarted: Restarted, safer: Safer | None, *, is_resumable: bool) -> None:
        """The request that carries out ``restarted``: to resume, or the same as before where nothing has begun."""
        record = {"id": time.time()} | {key: value for key, value in asdict(restarted).items() if key != "step"}
        request = replace(self.request, restarts=(*self.request.restarts, record), safer=safer)
        if is_resumable:
            recipe = _unchanged_recipe(self._run, request.recipe)
            request = replace(request, recipe=recipe, resume=True, fork=False, extend=None)
        self.request = request


def newest_step(run: RunDir) -> int:
    """The step of the newest checkpoint, 0 without one."""
    checkpoints = run.checkpoints()
    return checkpoint_step(checkpoints[-1]) if checkpoints else 0


@contextmanager
def _presence(run: RunDir) -> Generator[Callable[[], None]]:
    """A function that takes the supervisor's lock, for the time when the folder is ours; it is held to the end.

    Between two training processes nobody else holds the folder. A disk without room for it is no reason to stop.
    """
    held: list[int] = []

    def take() -> None:
        with contextlib.suppress(OSError, RunError):
            descriptor = None if held else take_lock(run.file(SUPERVISOR))
            held.extend([] if descriptor is None else [descriptor])

    try:
        yield take
    finally:
        for descriptor in held:
            os.close(descriptor)


def _tuned(request: TrainRequest, run: RunDir, recipe: Recipe) -> Mapping[str, int]:
    """What was tuned for the variables of the training process; of a run that goes on what it began with."""
    info = run_info(run) if request.continues and not request.fork else {}
    return tuned_buffers(recipe, info or None)


def _decided(info: Mapping[str, object], asked: Recipe) -> Recipe:
    """The recipe as it was decided for the run, else as it was asked for."""
    try:
        return Recipe.model_validate(info.get("resolved"))
    except ValueError:
        return asked


def _unchanged_recipe(run: RunDir, recipe: Path) -> Path:
    """The recipe's file, or the run's own copy where it was edited or removed meanwhile: the run goes on as begun."""
    copy = run.file(RECIPE)
    try:
        is_same = recipe.read_bytes().replace(b"\r\n", b"\n") == copy.read_bytes()
    except OSError:
        is_same = not copy.is_file()
    return recipe if is_same else copy

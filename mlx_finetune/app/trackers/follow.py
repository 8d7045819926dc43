"""The process of one tracker: ``python -m mlx_finetune.app.trackers.follow --tracker NAME --run FOLDER --since TIME``.

It reads the journal and tells the tracker, until its stdin ends: then the training is over, or whoever watched it is
gone. What it has to say are lines on stdout (``warning: ...``; an empty line is a sign of life); what libraries print
goes to ``trackers/NAME.log`` of the run. Nothing in here is seen by the training: it may hang, fail or be killed.
"""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import cast

from mlx_finetune import durable
from mlx_finetune.app.trackers.metrics import metrics_of, summary_of
from mlx_finetune.app.trackers.sent import Sent
from mlx_finetune.app.trackers.tracker import PROJECT, About, Tracker
from mlx_finetune.events import Evaluated, Record, Resources, RunFailed, RunFinished, RunStarted, Sampled, StepDone
from mlx_finetune.journal import EventFollower
from mlx_finetune.recipe.resolve import flatten_recipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import EVENTS, TRACKERS, RunDir, run_info

POLL_SECONDS = 1.0
#: Once the training is over, so long may it take to send the rest; the system ends the process then.
FINISH_SECONDS = 600
_STDIN, _STDOUT, _STDERR = 0, 1, 2

Ending = RunFinished | RunFailed


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow the run to its end and return the exit code, 1 where the tracker failed."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--tracker", required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--since", type=float, required=True)
    parser.add_argument("--fork", action="store_true")
    given = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C is for the training; the end of stdin tells that it is over
    over, say = _watch_stdin(), _own_stdout()
    run = RunDir(given.run)
    project = os.environ.get(f"{given.tracker.upper()}_PROJECT") or PROJECT
    if not _wait_for_start(run, given.since, over, say):
        return 0
    try:
        _follow(run, given.tracker, over, say, is_fork=given.fork, project=project)
    except (Exception, SystemExit) as error:  # whatever a library raises: the training has no part in it
        traceback.print_exc()
        say(f"warning: {given.tracker} failed, and the training goes on without it: {_sentence(error)}")
        return 1
    return 0


def _own_stdout() -> Callable[[str], None]:
    """A function that writes a line to stdout; what else writes there goes to stderr from now on."""
    descriptor = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)

    def say(line: str) -> None:
        with suppress(OSError):  # nobody watches any more
            os.write(descriptor, f"{line}\n".encode())

    return say


def _wait_for_start(run: RunDir, since: float, over: threading.Event, say: Callable[[str], None]) -> bool:
    """Wait until the training has begun after ``since``; False where it ended before that."""
    follower = EventFollower(run.file(EVENTS))
    while True:
        is_over = over.wait(POLL_SECONDS)
        if any(isinstance(record.event, RunStarted) and record.time >= since for record in follower.poll()):
            return True
        if is_over:
            return False
        say("")


def _watch_stdin() -> threading.Event:
    """Set when stdin has ended. From then on the system ends this process, should it hang, when its time is up."""
    over = threading.Event()

    def wait() -> None:
        while os.read(_STDIN, 1024):
            pass
        signal.alarm(FINISH_SECONDS)
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    return over


def _follow(
    run: RunDir, name: str, over: threading.Event, say: Callable[[str], None], *, is_fork: bool, project: str
) -> None:
    folder = run.file(TRACKERS)
    durable.make_folder(folder)
    os.dup2(durable.open_append(folder / f"{name}.log"), _STDERR)
    os.dup2(_STDERR, _STDOUT)
    info = run_info(run)
    place = folder / f"{name}.json"
    sent = Sent.load(place, str(info.get("created")), is_fork=is_fork)
    tracker = _open(name, _about(run, info, sent, folder / name, project))
    sent.num_starts += 1
    follower = EventFollower(run.file(EVENTS))
    ending: Ending | None = None
    is_over = False
    while not is_over:
        is_over = over.wait(POLL_SECONDS)
        try:
            ending = _tell(tracker, sent, follower.poll(), ending)
            tracker.flush()
        finally:
            sent.save(place)
        say("")
    summary = summary_of(ending) if isinstance(ending, RunFinished) else {}
    tracker.finish(summary, has_failed=isinstance(ending, RunFailed))


def _tell(tracker: Tracker, sent: Sent, records: Iterable[Record], ending: Ending | None) -> Ending | None:
    """Tell what is new, the answers of one step together; how the run ended, as far as is known."""
    samples: list[Record] = []
    for record in records:
        event = record.event
        if samples and not (isinstance(event, Sampled) and event.step == _step_of(samples[0], sent)):
            _tell_samples(tracker, sent, samples)
            samples = []
        if isinstance(event, RunStarted):
            ending = None  # it goes on
        elif isinstance(event, RunFinished | RunFailed):
            ending = event
        elif isinstance(event, Sampled) and sent.is_new(record):
            samples.append(record)
        elif sent.is_new(record):
            tracker.log(_step_of(record, sent), metrics_of(event))
            sent.note(record)
    if samples:
        _tell_samples(tracker, sent, samples)
    return ending


def _tell_samples(tracker: Tracker, sent: Sent, samples: Sequence[Record]) -> None:
    answers = [record.event for record in samples if isinstance(record.event, Sampled)]
    tracker.log_samples(answers[0].step, [(one.prompt, one.answer) for one in answers])
    sent.note(samples[-1])


def _step_of(record: Record, sent: Sent) -> int:
    """The step of an event, or the last one."""
    match record.event:
        case StepDone() | Evaluated() | Sampled() | Resources():
            return record.event.step
        case _:
            return sent.step


def _about(run: RunDir, info: Mapping[str, object], sent: Sent, folder: Path, project: str) -> About:
    durable.make_folder(folder)
    resolved = info.get("resolved")
    try:
        config = flatten_recipe(Recipe.model_validate(resolved))
    except ValueError:
        config = cast("dict[str, object]", resolved) if isinstance(resolved, dict) else {}
    more = {key: info.get(key) for key in ("model_sha256", "total_steps")} | {"mlxft": version("mlx-finetune")}
    return About(project, run.path.name, sent.run_id, folder, {**config, **more}, sent.step + 1, sent.num_starts)


def _open(name: str, about: About) -> Tracker:
    match name:
        case "wandb":
            from mlx_finetune.app.trackers.wandb_tracker import WandbTracker

            return WandbTracker(about)
        case "trackio":
            from mlx_finetune.app.trackers.trackio_tracker import TrackioTracker

            return TrackioTracker(about)
        case _:
            from mlx_finetune.app.trackers.tensorboard_tracker import TensorboardTracker

            return TensorboardTracker(about)


def _sentence(error: BaseException) -> str:
    """The first line of what a library said, not too long."""
    lines = str(error).strip().splitlines() or [""]
    said = " ".join("".join(char if char.isprintable() else " " for char in lines[0]).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())

"""One evaluation from its name to its report: open, choose, measure, add up, keep."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlx.core as mx

from mlx_finetune import durable, rundir
from mlx_finetune.app.eval.journal import Journal
from mlx_finetune.app.eval.measure import Measuring, Progress
from mlx_finetune.app.eval.places import JOURNAL_END, Place, choose_place
from mlx_finetune.app.eval.report import Report, report_of
from mlx_finetune.app.eval.results import write_results
from mlx_finetune.app.eval.setup import Evaluation
from mlx_finetune.app.eval.subject import Subject
from mlx_finetune.errors import ModelError, Problem, RunError
from mlx_finetune.model.answers.batches import check_batchable
from mlx_finetune.model.cpu.few_rows import MOST_ROWS

#: Answers at once on a GPU unless the user says otherwise: their keys and values need memory too.
GPU_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Finished:
    """What came out: the report, where it is kept (None: nowhere), and whether it had been measured before."""

    report: Report
    place: Place | None
    was_done: bool


def evaluate(
    evaluation: Evaluation,
    *,
    named: str | None,
    out: Path | None,
    show: Callable[[Progress], None],
    say: Callable[[str], None],
    report: Callable[[Problem, str], None],
) -> Finished:
    """Measure what is not measured yet and keep the result; ``say`` is told what a person should know.

    ``report`` is told of each row that could not be measured, with what was asked; the others go on.

    After a Ctrl-C the report is of what was measured so far, and ``is_whole`` says so. Raises ``RunError`` where
    another evaluation has the name, ``OSError`` for what the disk refuses.
    """
    folder = out or _folder_of(evaluation.subject)
    with place_in(folder, named, default_name(evaluation), evaluation.identity) as place:
        was_done = place.is_done
        if was_done:
            say(f"this was evaluated before; these are the results in {place.file('.json')}")
        elif place.is_begun:
            say(f"going on with what was measured before in {place.file(JOURNAL_END)}")
        started = time.perf_counter()
        journal = Journal(place.file(JOURNAL_END), evaluation.identity)
        is_whole = was_done
        try:
            with contextlib.suppress(KeyboardInterrupt):
                if not was_done:
                    Measuring(evaluation, journal, show, report).run()
                    is_whole = True
        finally:
            journal.close()
        found = report_of(evaluation, journal, is_whole=is_whole)
        if is_whole and not was_done:
            measured = datetime.now(UTC).isoformat(timespec="seconds")
            write_results(place, evaluation, found, measured=measured, seconds=time.perf_counter() - started)
        return Finished(found, place if folder is not None else None, was_done)


def rows_at_once(subject: Subject, wanted: int | None, say: Callable[[str], None]) -> int:
    """How many answers are given at once: as wanted, else 16 on a CPU and 8 on a GPU, or 1 where the model cannot.

    On a CPU 16 rows are the most that ``few_rows`` serves (1.3 times the tokens of 8); a GPU has less memory to spare.
    """
    if wanted == 1:
        return 1
    try:
        check_batchable(subject.opened.model)
    except ModelError as error:
        if wanted is not None:
            raise
        say(f"{error.message}; this takes longer")
        return 1
    return wanted or (MOST_ROWS if mx.default_device().type == mx.DeviceType.cpu else GPU_AT_ONCE)


@contextmanager
def place_in(folder: Path | None, named: str | None, default: str, identity: Mapping[str, object]) -> Generator[Place]:
    """Where the files go; a folder that goes away again where nothing is kept. One evaluation at a time in each.

    Raises ``RunError`` where ``named`` holds another evaluation, or one is at work there.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="mlxft-eval-") as made:
            yield Place(Path(made), "rows")
        return
    durable.make_folder(folder)
    with locked(folder):
        yield choose_place(folder, named, default, identity)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Nobody else evaluates into ``folder`` while the block runs. Raises ``RunError`` where somebody does."""
    lock = rundir.take_lock(folder / rundir.LOCK)
    if lock is None:
        raise RunError(f"another evaluation is at work in {folder}", "wait for it, or give --out another folder")
    try:
        yield
    finally:
        os.close(lock)


def default_name(evaluation: Evaluation) -> str:
    """The split, with the checkpoint in front where it is one of a run's."""
    opened, run = evaluation.subject.opened, evaluation.subject.run
    split = {"validation": "valid", "all": "rows"}.get(evaluation.chosen.split, evaluation.chosen.split)
    last = Path(opened.name).name
    is_checkpoint = run is not None and last.startswith("checkpoint-") and last != run.path.name
    return f"{last}-{split}" if is_checkpoint else split


def _folder_of(subject: Subject) -> Path | None:
    return subject.run.file(rundir.EVALUATIONS) if subject.run is not None else None

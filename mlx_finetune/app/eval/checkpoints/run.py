"""The checkpoints of a run from its name to kept results: choose, measure what is not measured yet, add up, keep."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from mlx_finetune import durable, rundir
from mlx_finetune.app.eval.checkpoints.measure import Measuring, Show
from mlx_finetune.app.eval.checkpoints.results import CourseReport, course_report, csv_text, report_json
from mlx_finetune.app.eval.checkpoints.setup import Course
from mlx_finetune.app.eval.journal import Journal
from mlx_finetune.app.eval.places import CSV_END, JOURNAL_END, JSON_END, Place
from mlx_finetune.app.eval.run import place_in
from mlx_finetune.errors import Problem


@dataclass(frozen=True, slots=True)
class Finished:
    """What came out, and where it is kept."""

    report: CourseReport
    place: Place


def measure_course(
    course: Course,
    *,
    named: str | None,
    show: Show,
    say: Callable[[str], None],
    report: Callable[[Problem, str], None],
) -> Finished:
    """Measure the points that are not measured yet and keep the result, in the run's ``eval/checkpoints``.

    After a Ctrl-C the report is of what was measured so far. A run that has more checkpoints than last time has those
    measured. Raises ``RunError`` where ``named`` holds other rows, ``OSError`` for what the disk refuses.
    """
    folder = course.run.file(rundir.CHECKPOINT_EVALUATIONS)
    durable.make_folder(folder.parent)
    default = {"validation": "valid", "all": "rows"}.get(course.chosen.split, course.chosen.split)
    with place_in(folder, named, default, course.identity) as place:
        was_begun, started = place.is_begun, time.perf_counter()
        journal = Journal(place.file(JOURNAL_END), course.identity)
        measuring, is_whole = Measuring(course, journal, show, report), False
        if was_begun and measuring.is_done:
            say(f"all of this was measured before; these are the results in {place.file(JSON_END)}")
        elif was_begun:
            say(f"going on with what was measured before in {place.file(JOURNAL_END)}")
        try:
            with contextlib.suppress(KeyboardInterrupt):
                measuring.run()
                is_whole = True
        finally:
            journal.close()
        found = course_report(course, journal, measuring.samples(), is_whole=is_whole)
        if is_whole:
            measured = datetime.now(UTC).isoformat(timespec="seconds")
            durable.write_text(place.file(CSV_END), csv_text(found))
            more = {"name": place.name, "measured": measured, "seconds": round(time.perf_counter() - started, 1)}
            durable.write_json(place.file(JSON_END), report_json(found) | more)
        return Finished(found, place)

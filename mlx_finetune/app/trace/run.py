"""One trace from a name to its files: open, choose probes, measure every step, compare, write."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.app.eval.subject import Subject
from mlx_finetune.app.open import Report
from mlx_finetune.app.trace.learned import describe_categories
from mlx_finetune.app.trace.measure import Settings, Tracer, open_traced
from mlx_finetune.app.trace.probes import NoProbesError, Probes, choose_probes
from mlx_finetune.app.trace.tables import Traced, compare_checkpoints, find_directions, write_tables
from mlx_finetune.app.updates.series import Series, open_series
from mlx_finetune.errors import StorageError
from mlx_finetune.events import Phase
from mlx_finetune.rundir import find_run


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asks for. ``probes`` names a file in the place of the run's held-out rows; ``category`` None takes
    the recipe's column, else ``category``."""

    probes: str | None = None
    category: str | None = None
    per_category: int = 24
    answer_tokens: int = 16
    has_svd: bool = False


def trace_run(name: str, asked: Asked, *, base: Path, report: Report) -> Traced:
    """Measure what is not kept yet and write RUN/trace/; nothing else in the run folder is touched.

    Raises ``MlxftError`` for everything a user can mend. An interrupt leaves what was measured, and the next call goes
    on from there.
    """
    series = open_series(find_run(name, base=base))
    with _named(series.run.file(rundir.TRACE)):
        return _trace(series, asked, base, report)


def _trace(series: Series, asked: Asked, base: Path, report: Report) -> Traced:
    subject = open_traced(series, report)
    probes = _choose(subject, asked, base)
    tracer = Tracer(series, subject, probes, Settings(asked.answer_tokens, asked.has_svd), report)
    results = tuple(tracer.results())
    report(Phase("trace", detail="comparing checkpoints"))
    pairs = tuple(compare_checkpoints(series, has_svd=asked.has_svd))
    categories = describe_categories(results, probes.probes, seed=subject.seed)
    directions = tuple(find_directions(series, tracer.base_weight)) if asked.has_svd else ()
    left_out = tuple(_left_out(series, asked, probes))
    traced = Traced(series, probes, results, tuple(categories), pairs, left_out, directions)
    write_tables(series.run.file(rundir.TRACE), traced)
    return traced


def _choose(subject: Subject, asked: Asked, base: Path) -> Probes:
    """None of a run whose own rows have nothing to ask: its weights are compared all the same."""
    column = asked.category or (subject.recipe.eval.category if subject.recipe else None) or "category"
    is_asked = asked.category is not None
    try:
        return choose_probes(
            subject, asked.probes, per_category=asked.per_category, category=column, base=base, is_asked=is_asked
        )
    except NoProbesError as error:
        if is_asked:
            raise
        return Probes((), "none", "", error.message)


@contextmanager
def _named(folder: Path) -> Generator[None]:
    """Inside, what the disk refuses in the trace folder is one sentence."""
    try:
        yield
    except OSError as error:
        place = Path(str(error.filename))
        if place != folder and folder not in place.parents:
            raise
        raise StorageError(
            f"{folder} cannot be written to ({error.strerror}); the run itself is untouched",
            "mend that; what was measured so far is kept, and the same command goes on",
        ) from error


def _left_out(series: Series, asked: Asked, probes: Probes) -> list[str]:
    """What was not measured, and how to have it."""
    found = _without_svd(series, asked)
    if probes.lack:
        what = "right and wrong answers" if probes.probes else "everything that is asked, and hidden states"
        found.insert(0, f"{what}: {probes.lack}; --probes FILE asks questions of yours (docs/trace.md)")
    return found


def _without_svd(series: Series, asked: Asked) -> list[str]:
    large = [path for path in series.paths if series.kind != "lora" and series[-1].update(path).parts is None]
    if not large or asked.has_svd:
        return []
    reason = "DoRA's updates have no factors" if series.kind == "dora" else "every weight was trained"
    return [
        f"singular values of {len(large)} of {len(series.paths)} matrices, such as {large[0]}: {reason}, and a dense "
        "SVD of a large matrix takes seconds; --svd makes them"
    ]

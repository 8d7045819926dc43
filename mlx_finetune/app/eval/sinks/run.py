"""The experiment run, kept, and added up by bucket of positions."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune import durable, rundir
from mlx_finetune.app.eval.journal import Journal, Measured
from mlx_finetune.app.eval.measure import Progress
from mlx_finetune.app.eval.places import CSV_END, JOURNAL_END, JSON_END, Place
from mlx_finetune.app.eval.run import place_in
from mlx_finetune.app.eval.sinks.results import SinkReport, csv_text, report_json, sink_report
from mlx_finetune.app.eval.sinks.setup import Experiment
from mlx_finetune.errors import ModelError
from mlx_finetune.model.long_text.reading import METHODS, LongReader
from mlx_finetune.train.losses import chunk_rows

#: Tokens of a context that are read at once, over all texts.
_TOKENS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Finished:
    """What came out, and where it is kept (None: nowhere)."""

    report: SinkReport
    place: Place | None


def run_experiment(
    experiment: Experiment,
    *,
    named: str | None,
    out: Path | None,
    show: Callable[[Progress], None],
    say: Callable[[str], None],
) -> Finished:
    """Read what is not read yet and keep the result: in ``out``, else in the run's ``eval/sinks``, else nowhere.

    After a Ctrl-C the report is of what was read so far. Raises ``RunError`` where ``named`` holds another result,
    ``ModelError`` for a loss that is not finite, ``OSError`` for what the disk refuses.
    """
    run = experiment.subject.run
    folder = out or (run.file(rundir.SINK_EXPERIMENTS) if run is not None else None)
    if folder is not None:
        durable.make_folder(folder.parent)
    with place_in(folder, named, "context", experiment.identity) as place:
        if place.is_done:
            say(f"this was measured before; these are the results in {place.file(JSON_END)}")
        elif place.is_begun:
            say(f"going on with what was measured before in {place.file(JOURNAL_END)}")
        journal, is_whole = Journal(place.file(JOURNAL_END), experiment.identity), False
        try:
            with contextlib.suppress(KeyboardInterrupt):
                _read(experiment, journal, show)
                is_whole = True
        finally:
            journal.close()
        found = sink_report(experiment, journal, is_whole=is_whole)
        if is_whole:
            measured = datetime.now(UTC).isoformat(timespec="seconds")
            durable.write_text(place.file(CSV_END), csv_text(found))
            durable.write_json(place.file(JSON_END), report_json(found) | {"name": place.name, "measured": measured})
        return Finished(found, place if folder is not None else None)


def _read(experiment: Experiment, journal: Journal, show: Callable[[Progress], None]) -> None:
    reader = LongReader(experiment.subject.opened.model, chunk_rows)
    at_once = max(1, _TOKENS_AT_ONCE // experiment.context)
    length = experiment.texts.shape[1] - 1
    for start in range(0, len(experiment.texts), at_once):
        texts = range(start, min(start + at_once, len(experiment.texts)))
        for method in METHODS:
            left = [text for text in texts if (method, "", text) not in journal]
            if not left:
                continue
            work = f"{method}, texts {texts.start + 1} to {texts.stop} of {len(experiment.texts)}, tokens"

            def step(done: int, work: str = work) -> None:
                show(Progress(work, done, length))

            step(0)
            losses = reader.losses(experiment.texts[left], method, experiment.context, step)  # (N, T)
            if not np.isfinite(losses).all():
                name = experiment.subject.opened.name
                raise ModelError(f"{name} gives a loss that is not a finite number ({method})", "its weights are bad")
            for text, row in zip(left, losses, strict=True):
                journal.add(Measured(method, "", text, {"nats": _bucket_means(row, experiment.edges)}))


def _bucket_means(losses: NDArray[np.float32], edges: Sequence[int]) -> tuple[float, ...]:
    """The mean loss between one edge and the next."""
    return tuple(float(losses[start:end].mean(dtype=np.float64)) for start, end in pairwise(edges))

"""Measures rows of a run token by token under base and result, with the tokens and the mask of the training.

What the end of a training measures by itself (``train.microscope``), for rows that a person chooses. Kept as
microscope.json where the weights are the result of a run; a checkpoint's or a bare adapter's figures are only shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.app.eval.rows import data_of
from mlx_finetune.app.eval.subject import Side, Subject, has_no_data, open_subject
from mlx_finetune.app.eval.verdict import BASE, TUNED
from mlx_finetune.app.open import Report
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.template import refuse_empty, tokenize
from mlx_finetune.dataset.token_losses import Measured, Microscope, hash_result, write_microscope
from mlx_finetune.dataset.token_rows import TokenRows, rows_of
from mlx_finetune.dataset.typical_rows import check_lines, rows_at_lines, typical_rows
from mlx_finetune.errors import DataError, MlxftError, UsageError
from mlx_finetune.events import Notice, Phase
from mlx_finetune.model.likelihoods import Losses
from mlx_finetune.model.microscope import hash_rows, measure_losses, measured_rows
from mlx_finetune.recipe.evaluation import EvalRecipe
from mlx_finetune.recipe.preference import TWO_ANSWER_TASKS
from mlx_finetune.train.losses import chunk_rows


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured. ``kept`` is the file it went to, None where it is of no run's result or cannot be written."""

    microscope: Microscope
    kept: Path | None


def measure(name: str, lines: Sequence[int], data: str, *, base: Path, report: Report) -> Found:
    """Load what ``name`` stands for and measure ``lines`` of its validation rows, or of the file ``data``.

    Without ``lines`` a few rows are taken that are short or typical. Paths count from ``base``. Raises ``UsageError``
    where there is nothing to compare with or a line is not there, ``DataError`` where no row is left, and whatever
    loading raises.
    """
    subject = open_subject(name, base=base, report=report)
    if not subject.opened.has_base:
        raise UsageError(
            f"{name} is a model without an adapter: there is nothing to compare it with",
            "name a run: mlxft runs list shows them",
        )
    rows, numbers = _rows(subject, lines, data, base)
    its = [rows[number] for number in numbers]
    losses: dict[str, list[Losses]] = {}
    for side in (Side(TUNED, is_base=False), Side(BASE, is_base=True)):
        with subject.model(side) as model:
            losses[side.name] = measure_losses(model, its, chunk_rows, _steps(report, side.name, len(its)))
    measured = replace(_measured(subject), data=data, chosen=",".join(map(str, lines)), rows_sha256=hash_rows(its))
    tokenizer = subject.opened.tokenizer
    shown = measured_rows(rows, numbers, tokenizer, losses[BASE], losses[TUNED])
    return _keep(subject, Microscope(shown, measured), report)


def _steps(report: Report, side: str, total: int) -> Callable[[int], None]:
    def step(done: int) -> None:
        report(Phase("token losses", detail=side, done=done, total=total, unit="rows"))

    return step


def _rows(subject: Subject, lines: Sequence[int], given: str, base: Path) -> tuple[TokenRows, list[int]]:
    """Rows as tokens, as the training made them, and which of them to measure."""
    data, folder = subject.data, subject.folder
    if given:
        if not (base / Path(given).expanduser()).exists():
            raise UsageError(f"there is no {given} for --data", f"name a file or folder; paths count from {base}")
        data, folder = data_of(given, data), base
    elif has_no_data(subject):
        raise DataError(f"the rows of {subject.opened.name} are not known", "name some: --data FILE")
    if subject.opened.head is not None and not given:
        raise UsageError(
            f"{subject.opened.name} was trained to score: the losses of single tokens say nothing about it",
            f"measure it with mlxft eval {subject.opened.name}, or name a text or answers: --data FILE",
        )
    if subject.task in TWO_ANSWER_TASKS and not given:
        raise UsageError(
            f"{subject.opened.name} learned from preferences: a row is no text whose tokens have losses",
            f"compare answers with mlxft eval {subject.opened.name}, or name a text or answers: --data FILE",
        )
    splits = load_splits(data, base=folder)
    examples: Sequence[Example] = splits.valid or ((splits.test or splits.train) if given else ())
    if not examples:
        raise DataError("this run has no validation rows", "name rows that it was not trained on: --data FILE")
    what = f"rows of {given}" if given else "validation rows"
    if lines:
        check_lines(lines, (example.line for example in examples), what)
        examples = [example for example in examples if example.line in lines]
    made = tokenize(examples, subject.opened.tokenizer, data, task=subject.task, base=folder)
    rows = rows_of(refuse_empty(made, data, "valid", subject.opened.info.context_length).rows)
    if lines:
        return rows, rows_at_lines(rows, lines, f"{what} that can be used")
    defaults = EvalRecipe.model_validate({})
    count = subject.recipe.eval.microscope_rows if subject.recipe else 0
    return rows, typical_rows(rows, count or defaults.microscope_rows)


def _measured(subject: Subject) -> Measured:
    """The names and hashes; those of the result of a run are what the end of its training writes."""
    run, facts = subject.run, subject.opened.located.facts
    base, base_sha256 = facts.get("model"), facts.get("model_sha256")
    return Measured(
        model=base if isinstance(base, str) else subject.opened.info.name,
        step=rundir.weights_step(run) if run is not None and _result_of(subject) else None,
        model_sha256=base_sha256 if isinstance(base_sha256, str) else subject.opened.info.sha256,
        adapter_sha256=_result_of(subject) or subject.opened.adapter_sha256 or subject.opened.info.sha256,
    )


def _result_of(subject: Subject) -> str:
    """The hash of the published result, where ``subject`` is one; else ""."""
    located = subject.opened.located
    folders = (located.adapter, None if located.model is None else Path(located.model))
    places = () if located.run is None else (located.run.path, located.run.file(rundir.MODEL_FOLDER))
    return hash_result(located.run) if located.run and any(folder in places for folder in folders) else ""


def _keep(subject: Subject, microscope: Microscope, report: Report) -> Found:
    run = subject.run
    if run is None or not _result_of(subject):
        return Found(microscope, None)
    try:
        write_microscope(run, microscope)
    except (OSError, MlxftError) as error:
        report(Notice("warning", f"{rundir.MICROSCOPE} cannot be kept: {error}"))
        return Found(microscope, None)
    return Found(microscope, run.file(rundir.MICROSCOPE))

"""Which tasks go with which rows and which kind of run: known before a model is loaded, and long before it is made."""

from collections.abc import Sequence
from pathlib import Path

from mlx_finetune.app.eval.rows import EvalRow, Read, choose_rows
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.formats import DetectedFormat, Instruction, Preference, Text
from mlx_finetune.dataset.kinds import is_trainable, refused_format
from mlx_finetune.errors import DataError, UsageError
from mlx_finetune.recipe.evaluation import EvalRecipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.scoring.bleu import check_installed
from mlx_finetune.scoring.labels import named_label

MAX_LABELS = 50
#: Of classes that nobody named: with more different answers a row, (nearly) each occurs once.
_MOST_DIFFERENT = 0.8
#: Tasks of recipes whose model scores rows and writes no answers.
_SCORING = ("classify", "verifier", "reward")


def check_fits(recipe: Recipe, asked: EvalRecipe, given: str | None, base: Path, read: Read = load_splits) -> None:
    """Refuse an evaluation, by ``asked.tasks`` on the rows ``given``, of what ``recipe`` will make.

    Rows of the recipe's own are not read here; ``read`` as in ``choose_rows``. Raises ``UsageError`` or ``DataError``.
    """
    tasks = asked.tasks
    if recipe.task in _SCORING:
        check_scored_tasks(tasks)
        return
    if recipe.task == "seq2seq":
        tasks = of_encoder_decoder(tasks, is_named=True) if tasks else ()
    if given is None:
        if recipe.task == "pretrain":
            _refuse_answering(tasks)
        return
    chosen = choose_rows(
        recipe.data,
        base=base,
        training_base=base,
        given=given,
        max_rows=asked.max_rows,
        category=None,
        shots=0,
        seed=recipe.seed,
        tasks=row_tasks(recipe.task, asked, is_given=True),
        references=asked.references,
        read=read,
    )
    check_tasks(tasks, chosen.rows)
    if "labels" in tasks:
        labels_of(asked.labels or recipe.eval.labels, chosen.rows)


def check_coming(recipe: Recipe, asked: EvalRecipe, format: str, source: str) -> None:
    """``check_fits`` for rows of ``source`` that are not there yet, but known to have this ``format``.

    "" where nobody knows. Raises ``UsageError`` or ``DataError``.
    """
    if recipe.task in _SCORING:
        check_scored_tasks(asked.tasks)
        return
    if not format:
        return
    if not any(is_trainable(format, task) for task in row_tasks(recipe.task, asked, is_given=True)):
        problem = refused_format(DetectedFormat(format, {}, ()), source, "sft", is_given=True)
        raise DataError(problem.message, problem.hint)
    turn = ({"role": "assistant", "content": ""},)
    example = Instruction("", "", "", source, 1)
    if format == "unpaired-preference":
        example = Preference((), turn, None, None, source, 1)
    check_tasks(asked.tasks, [EvalRow("", source, "", example, (), "")])


def check_scored_tasks(tasks: Sequence[str]) -> None:
    """Raises ``UsageError`` where a model that scores is to be measured by something else."""
    others = [task for task in tasks if task != "labels"]
    if others:
        raise UsageError(
            f"this run scores rows and writes no answers, so it is measured by labels, not by {', '.join(others)}",
            "leave --tasks and [eval] tasks out",
        )


def row_tasks(task: str, asked: EvalRecipe, *, is_given: bool) -> tuple[str, ...]:
    """Tasks whose rows may be evaluated: other rows that the user names may be of another kind."""
    more = ("dpo", "kto") if "preference" in asked.tasks else ("sft",) if is_given else ()
    return tuple(dict.fromkeys((*more, task)))


def of_encoder_decoder(tasks: tuple[str, ...], *, is_named: bool) -> tuple[str, ...]:
    """Those that do not read plain text, which an encoder-decoder model does not predict; refused where named."""
    others = [task for task in tasks if task in ("general", "perplexity")]
    left = tuple(task for task in tasks if task not in others)
    if others and is_named:
        raise UsageError(
            f"the task `{others[0]}` reads plain text, and an encoder-decoder model predicts answers to prompts only",
            f"leave it out: --tasks {','.join(left) or 'loss,rouge'}",
        )
    return left or ("loss",)


def check_tasks(tasks: Sequence[str], rows: Sequence[EvalRow]) -> None:
    """Raises ``UsageError`` for the first task that ``rows`` have nothing for."""
    are_preferences = all(isinstance(row.example, Preference) for row in rows)
    if "preference" in tasks and not are_preferences:
        raise UsageError(
            "the task `preference` needs rows with chosen and rejected answers, or answers marked good or bad",
            "leave it out, or evaluate a run with a preference task",
        )
    if "loss" in tasks and are_preferences:
        raise UsageError(
            "the rows are preferences: `loss` is of single answers",
            "name `preference`, which has the loss of the chosen answers too",
        )
    are_text = all(isinstance(row.example, Text) for row in rows)
    if are_text:
        _refuse_answering(tasks)
    if "perplexity" in tasks and not are_text:
        raise UsageError(
            "the task `perplexity` is of plain text, and the rows are questions with answers",
            "name `loss`, which is of the answers, or give a text: --data FILE",
        )
    if "bleu" in tasks:
        check_installed()


def _refuse_answering(tasks: Sequence[str]) -> None:
    """For rows that are plain text."""
    answering = [task for task in tasks if task not in ("loss", "perplexity", "preference", "general", "speed")]
    if answering:
        raise UsageError(
            f"the task `{answering[0]}` needs questions with answers, and the rows are plain text",
            "leave it out: loss, perplexity and general need no questions",
        )


def labels_of(named: Sequence[str], rows: Sequence[EvalRow], *, are_written: bool = True) -> tuple[str, ...]:
    """The classes: those that are ``named``, else the answers of the rows. Raises ``DataError``.

    Those that ``are_written`` are looked for in answers. Raises ``UsageError`` where they cannot be told apart there.
    """
    references = [row.reference.strip() for row in rows if row.reference]
    labels = named or tuple(sorted(set(references)))
    if not named and len(labels) > MAX_LABELS:
        raise DataError(
            f"the answers of the rows are {len(labels)} different texts; that is too many for classes",
            'name the classes: [eval] labels = ["good", "bad"], or leave the task labels out',
        )
    if len(labels) < 2:
        raise DataError("the task labels needs at least two classes", 'name them: [eval] labels = ["good", "bad"]')
    if not named and len(labels) > _MOST_DIFFERENT * len(references):
        raise DataError(
            f"{len(references)} rows have {len(labels)} different answers; these are no classes",
            'name the classes: [eval] labels = ["good", "bad"], or leave the task labels out',
        )
    strange = next((row for row in rows if row.reference and not _names(row.reference, labels)), None)
    if strange is not None:
        raise DataError(
            f"{strange.where}: the reference {strange.reference[:60]!r} names none of the labels",
            f"labels are {', '.join(labels[:8])}",
        )
    if are_written:
        named_label("", labels)
    return tuple(labels)


def _names(reference: str, labels: Sequence[str]) -> bool:
    return reference in labels or named_label(reference, labels) is not None

"""From the name of a run to everything that measuring its checkpoints needs: points, rows, what is measured of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.app.eval.checkpoints.points import Point, Weights, find_beginning, find_checkpoints, open_checkpoint
from mlx_finetune.app.eval.prompts import Prompter
from mlx_finetune.app.eval.rows import Chosen, choose_rows
from mlx_finetune.app.eval.seen import with_seen
from mlx_finetune.app.eval.subject import Subject, subject_of
from mlx_finetune.app.eval.texts import Reading, documents, reading_of
from mlx_finetune.app.open import Opened, Report
from mlx_finetune.dataset.formats import Text
from mlx_finetune.dataset.prompts import template_hash
from mlx_finetune.errors import RunError, UsageError
from mlx_finetune.model.likelihoods import window_of
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

#: Version of the lines of a journal and of what they mean.
VERSION = 2
#: Tasks whose held-out rows have a next token to predict.
_LANGUAGE_TASKS = ("sft", "pretrain")
_DATA_KEYS = ("format", "max_seq_length", "mask_prompt", "chat_template", "template_arguments", "prompt_template")


@dataclass(frozen=True, slots=True)
class Course:
    """The checkpoints of one run, ready to be measured. ``reading`` is None where rows are answers, not texts."""

    run: RunDir
    recipe: Recipe
    model_name: str
    tokenizer: ModelTokenizer
    points: tuple[Point, ...]
    weights: Weights
    chosen: Chosen
    prompter: Prompter
    prompts: tuple[str, ...]
    reading: Reading | None
    identity: Mapping[str, object]


def prepare_course(
    run: RunDir,
    *,
    given: str | None,
    max_rows: int | None,
    prompts: tuple[str, ...],
    base: Path,
    report: Report,
) -> Course:
    """Choose rows and points; ``given``, ``max_rows`` and ``prompts`` stand in the place of the recipe's.

    Raises ``RunError`` for a run without checkpoints, ``UsageError`` or ``DataError`` for rows that have no loss.
    """
    checkpoints = find_checkpoints(run)
    opened = open_checkpoint(checkpoints[-1], base=base, report=report)
    subject = subject_of(opened, base=base)
    recipe = subject.recipe
    if recipe is None:
        raise RunError(f"the settings of {run.path} cannot be read", "evaluate its checkpoints one by one")
    _check_task(recipe, given)
    chosen = _chosen(subject, recipe, given, max_rows or recipe.eval.max_rows, base)
    is_text = all(isinstance(row.example, Text) for row in chosen.rows)
    points = checkpoints
    if checkpoints[0].step > 0:
        beginning = find_beginning(opened, recipe.adapter, base=subject.folder, report=report)
        points = checkpoints if beginning is None else (beginning, *checkpoints)
    reading = _reading(opened, chosen) if is_text else None
    task = recipe.task if recipe.task in _LANGUAGE_TASKS else "sft"
    return Course(
        run,
        recipe,
        str(opened.located.facts.get("model", opened.info.name)),
        opened.tokenizer,
        points,
        Weights(opened, base=base, report=report),
        chosen,
        Prompter(opened.tokenizer, subject.data, task=task, base=subject.folder),
        prompts or recipe.eval.prompts,
        reading,
        _identity(subject, chosen, task, reading),
    )


def _chosen(subject: Subject, recipe: Recipe, given: str | None, max_rows: int, base: Path) -> Chosen:
    data = subject.data if recipe.task in _LANGUAGE_TASKS else subject.data.model_copy(update={"format": "auto"})
    chosen = choose_rows(
        data,
        base=subject.folder if given is None else base,
        training_base=subject.folder,
        given=given,
        max_rows=max_rows,
        category=None,
        shots=0,
        seed=recipe.seed,
    )
    return with_seen(subject, chosen, given)


def _check_task(recipe: Recipe, given: str | None) -> None:
    task = str(recipe.task)
    if task == "seq2seq":
        raise UsageError(
            "a seq2seq model predicts answers from an encoder: it has no perplexity of a text",
            "leave --checkpoints out: mlxft eval measures its answers",
        )
    if task not in _LANGUAGE_TASKS and given is None:
        raise UsageError(
            f"the rows of a {task} run have no loss of the next token",
            "name a text or questions with answers: --data FILE",
        )


def _reading(opened: Opened, chosen: Chosen) -> Reading:
    texts = documents(opened.tokenizer, [row.part for row in chosen.rows])
    return reading_of(texts, window_of(opened.model, opened.info.context_length))


def _identity(subject: Subject, chosen: Chosen, task: str, reading: Reading | None) -> dict[str, object]:
    """What decides the figures of every point; the points themselves may become more while a run goes on."""
    data = subject.data.model_dump(mode="json")
    template = template_hash(subject.data.prompt_template, base=subject.folder)
    return {
        "version": VERSION,
        "tokenizer_sha256": subject.opened.tokenizer.settings_hash,
        "task": task,
        "data": {key: data[key] for key in _DATA_KEYS},
        "data_sha256": chosen.sha256,
        "rows_sha256": hashlib.sha256("\n".join(row.key for row in chosen.rows).encode()).hexdigest(),
        "window": reading.window if reading else 0,
        "stride": reading.stride if reading else 0,
        **({"prompt_template_sha256": template} if template else {}),
    }

"""From a subject and [eval] to everything that one evaluation needs: rows, tasks, labels, schema, limits, identity.

Tasks that nobody named are chosen by the rows, by a rule that looks at references only, never at an answer: JSON
objects, then numbers behind ####, then a few classes, then short answers, else the loss alone leads.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_finetune.app.eval.fits import MAX_LABELS, check_tasks, labels_of, of_encoder_decoder, row_tasks
from mlx_finetune.app.eval.measures import Measure, RowKind, measures_of
from mlx_finetune.app.eval.prompts import Prompter, enough_tokens
from mlx_finetune.app.eval.rows import Chosen, EvalRow, choose_rows
from mlx_finetune.app.eval.score import is_json_object
from mlx_finetune.app.eval.scored import check_scored, class_names, question_of, scored_measures, scored_sides
from mlx_finetune.app.eval.seen import with_seen
from mlx_finetune.app.eval.subject import Side, Subject, has_no_data
from mlx_finetune.dataset.formats import Preference, Text
from mlx_finetune.dataset.prompts import template_hash
from mlx_finetune.dataset.split import content_key
from mlx_finetune.errors import Problem, UsageError
from mlx_finetune.model.answers.constrain import Grammar
from mlx_finetune.model.heads.score import HeadSpec
from mlx_finetune.recipe.evaluation import EvalRecipe, Gate, parse_gate
from mlx_finetune.recipe.paths import named_file
from mlx_finetune.scoring.json_schema import Schema, Validator, read_schema

#: Version of the lines of a journal and of what they mean.
VERSION = 2
_SHORT_WORDS = 6
#: Keys of [data] that decide which tokens a model is given.
_DATA_KEYS = (
    "format",
    "columns",
    "max_seq_length",
    "mask_prompt",
    "chat_template",
    "template_arguments",
    "prompt_template",
    "truncation",
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation, ready to be measured."""

    subject: Subject
    recipe: EvalRecipe
    chosen: Chosen
    tasks: tuple[str, ...]
    reason: str
    measures: tuple[Measure, ...]
    sides: tuple[Side, ...]
    labels: tuple[str, ...]
    validator: Validator | None
    grammar: Grammar | None
    gates: tuple[Gate, ...]
    answer_tokens: int
    prompter: Prompter
    at_once: int
    identity: Mapping[str, object]

    @property
    def rows(self) -> tuple[EvalRow, ...]:
        """The rows that are evaluated."""
        return self.chosen.rows

    def has_work(self, work: str) -> bool:
        """Whether some figure needs this kind of work."""
        return any(measure.work == work for measure in self.measures)


def prepare(
    subject: Subject,
    recipe: EvalRecipe,
    *,
    given: str | None,
    at_once: int,
    base: Path,
    asked: Collection[str] | None = None,
) -> Evaluation:
    """Choose rows and tasks and read labels and schema; paths given by the user count from ``base``.

    ``asked`` are the keys of ``recipe`` that a command named, None for all of them. What only the run's own recipe
    wants, and other rows or tasks do not allow, is left out: its schema silently, category and gates with a notice.

    Raises ``UsageError`` or ``DataError`` for what does not go together.
    """
    if given is None and has_no_data(subject):
        raise UsageError(f"{subject.opened.name} has no held-out rows of its own", "name some: --data FILE_OR_FOLDER")
    has_other_tasks = asked is not None and "tasks" in asked
    recipe = _without_schema(recipe, asked) if asked is not None else recipe
    head = subject.opened.head
    if head is not None:
        check_scored(head, recipe, has_tasks=has_other_tasks)
    chosen = _chosen(subject, recipe, given, base, needs_category=asked is None or "category" in asked)
    schema = None if head else _schema(recipe, subject, base)
    tasks, reason = _tasks(recipe, subject, chosen.rows, has_schema=schema is not None, has_head=head is not None)
    labels = _labels(recipe, head, chosen.rows) if "labels" in tasks else ()
    measures = scored_measures(head) if head else _measures(tasks, schema, chosen.rows)
    answer_tokens = _answer_tokens(recipe, subject, chosen.rows)
    is_fixed = asked is None or "gates" in asked or not (has_other_tasks or given is not None)
    gates, chosen = _gates(recipe, measures, chosen, needs_all=is_fixed)
    sides = scored_sides(subject, head, recipe.shots) if head else subject.sides(recipe.shots)
    own = _identity(subject, recipe, chosen, tasks, labels, schema, answer_tokens)
    return Evaluation(
        subject,
        recipe,
        chosen,
        tasks,
        reason,
        measures,
        sides,
        labels,
        Validator(schema) if schema is not None else None,
        Grammar(subject.opened.tokenizer, schema) if schema is not None else None,
        gates,
        answer_tokens,
        Prompter(subject.opened.tokenizer, subject.data, task=subject.task, base=subject.folder),
        at_once,
        own | {"at_once": at_once} | subject.base_hash(sides),
    )


def _without_schema(recipe: EvalRecipe, asked: Collection[str]) -> EvalRecipe:
    """The recipe's own schema is left out where a command names other tasks that need none."""
    is_wanted = "tasks" not in asked or "schema" in asked or "json" in recipe.tasks
    return recipe if is_wanted else recipe.model_copy(update={"schema": None})


def _tasks(
    recipe: EvalRecipe, subject: Subject, rows: Sequence[EvalRow], *, has_schema: bool, has_head: bool
) -> tuple[tuple[str, ...], str]:
    """The tasks, checked against the rows, and why they were chosen where nobody named them."""
    if has_head:
        return ("labels",), ""
    tasks, reason = (recipe.tasks, "") if recipe.tasks else choose_tasks(rows)
    if subject.opened.tokenizer.start_token_id is not None:
        tasks = of_encoder_decoder(tasks, is_named=bool(recipe.tasks))
    if has_schema and "json" not in tasks:
        tasks = ("json", *tasks)
    check_tasks(tasks, rows)
    return tasks, reason


def _chosen(subject: Subject, recipe: EvalRecipe, given: str | None, base: Path, *, needs_category: bool) -> Chosen:
    chosen = choose_rows(
        subject.data,
        base=subject.folder if given is None else base,
        training_base=subject.folder,
        given=given,
        max_rows=recipe.max_rows,
        category=recipe.category,
        shots=recipe.shots,
        seed=subject.seed,
        tasks=(subject.task,) if subject.opened.head else row_tasks(subject.task, recipe, is_given=given is not None),
        needs_category=needs_category or given is None,
        ask=question_of(subject.opened.head, recipe) if subject.opened.head else None,
        references=recipe.references,
    )
    return with_seen(subject, chosen, given)


def choose_tasks(rows: Sequence[EvalRow]) -> tuple[tuple[str, ...], str]:
    """The tasks for rows whose recipe names none, the one that leads first, and why."""
    if all(isinstance(row.example, Preference) for row in rows):
        return ("preference", "general"), "the rows are preferences"
    if all(isinstance(row.example, Text) for row in rows):
        return ("perplexity", "general"), "the rows are plain text"
    references = [row.reference for row in rows if row.reference]
    if references and all(is_json_object(text) for text in references):
        return ("json", "loss", "general"), "every reference is a JSON object"
    if references and all("####" in text for text in references):
        return ("number", "loss", "general"), "every reference ends with a number behind ####"
    lengths = sorted(len(text.split()) for text in references)
    is_short = bool(lengths) and lengths[len(lengths) // 2] <= _SHORT_WORDS
    if is_short and len(set(references)) <= min(MAX_LABELS, len(references) // 4):
        return ("labels", "loss", "general"), f"the references are {len(set(references))} different classes"
    if is_short:
        return ("exact_match", "token_f1", "loss", "general"), "the references are short"
    return ("loss", "rouge", "general"), "the references are free text"


def _labels(recipe: EvalRecipe, head: HeadSpec | None, rows: Sequence[EvalRow]) -> tuple[str, ...]:
    """What a score head gives is written by nobody: its classes may be as alike as they are."""
    names = class_names(head, recipe) if head else recipe.labels
    return labels_of(names, rows, are_written=head is None)


def _measures(tasks: Sequence[str], schema: Schema | None, rows: Sequence[EvalRow]) -> tuple[Measure, ...]:
    return measures_of(tasks, has_schema=schema is not None, kind=_kind_of(rows))


def _kind_of(rows: Sequence[EvalRow]) -> RowKind:
    answers = [row.example for row in rows if isinstance(row.example, Preference)]
    if any(one.chosen is None or one.rejected is None for one in answers):
        return "marked"
    if answers:
        return "pairs"
    return "text" if rows and all(isinstance(row.example, Text) for row in rows) else "answers"


def _schema(recipe: EvalRecipe, subject: Subject, base: Path) -> Schema | None:
    if recipe.schema is None:
        return None
    return read_schema(named_file(recipe.schema, base, subject.folder))


def _gates(
    recipe: EvalRecipe, measures: Sequence[Measure], chosen: Chosen, *, needs_all: bool
) -> tuple[tuple[Gate, ...], Chosen]:
    """The gates that are about a measure; the rows get a notice of each other one where it may be left out."""
    gates = tuple(gate for text in recipe.gates if (gate := parse_gate(text)))
    names = [measure.name for measure in measures]
    others = [gate for gate in gates if gate.measure not in names]
    if others and needs_all:
        raise UsageError(
            f"the gate `{others[0]}` is about {others[0].measure}, which is not measured here",
            f"measured are {', '.join(names)}; --tasks adds others",
        )
    notices = tuple(
        Problem("[eval] gates", f"{gate} is not checked: {gate.measure} is not measured here") for gate in others
    )
    chosen = replace(chosen, notices=(*chosen.notices, *notices))
    return tuple(gate for gate in gates if gate.measure in names), chosen


def _answer_tokens(recipe: EvalRecipe, subject: Subject, rows: Sequence[EvalRow]) -> int:
    if recipe.answer_tokens != "auto":
        return recipe.answer_tokens
    return enough_tokens(subject.opened.tokenizer, [row.reference for row in rows])


def _identity(
    subject: Subject,
    recipe: EvalRecipe,
    chosen: Chosen,
    tasks: Sequence[str],
    labels: Sequence[str],
    schema: Schema | None,
    answer_tokens: int,
) -> dict[str, object]:
    """What decides the figures: two evaluations with the same identity measure the same thing.

    The order of a schema's keys does too: constrained answers are written in it.
    """
    data = subject.data.model_dump(mode="json")
    # The space ends each key as in results kept so far, where the category followed: they stay comparable.
    rows = hashlib.sha256("\n".join(f"{row.key} " for row in chosen.rows).encode()).hexdigest()
    shots = [f"{shot.source}:{shot.line} {content_key(shot):016x}" for shot in chosen.shots]
    template = template_hash(subject.data.prompt_template, base=subject.folder)
    return {
        "version": VERSION,
        **subject.hashes(),
        "task": subject.task,
        "data": {key: data[key] for key in _DATA_KEYS},
        "data_sha256": chosen.sha256,
        "rows_sha256": rows,
        "kind": _kind_of(chosen.rows),
        "tasks": list(tasks),
        "labels": list(labels),
        "schema_sha256": hashlib.sha256(json.dumps(schema).encode()).hexdigest() if schema else "",
        "category": recipe.category or "",
        "answer_tokens": answer_tokens,
        "shots": shots,
        **({"question": recipe.label_question, "text_template": data["text_template"]} if subject.opened.head else {}),
        **({"references": list(recipe.references)} if recipe.references else {}),
        **({"prompt_template_sha256": template} if template else {}),
        **({"max_target_length": data["max_target_length"]} if subject.task == "seq2seq" else {}),
    }

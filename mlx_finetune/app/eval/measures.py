"""What a task measures: names, which direction is better, how rows add up to a figure, and which figures are tested."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlx_finetune.recipe.evaluation import split_task
from mlx_finetune.recipe.measured import CHECKS

#: ``right``: 0 or 1 a row, one half of a tie; ``mean``: a number a row; ``ratio``: a sum and a count a row; ``f1``: two
#: classes a row; ``gap``: a number and its kind a row, 1 or -1, of which the mean of the one kind less that of the
#: other is shown.
Kind = Literal["right", "mean", "ratio", "f1", "gap"]
#: What is evaluated: answers to prompts, plain text, pairs of answers, or single answers marked good or bad.
RowKind = Literal["answers", "text", "pairs", "marked"]
#: What a ratio is shown as: itself, its exponential, or in bits.
Scale = Literal["plain", "exp", "bits"]

#: Work that measures something. Each is done once for a row and a side.
LOSS, ANSWER, CONSTRAINED, LABELS, TEXT = "loss", "answer", "constrained", "labels", "text"
PREFERENCE = "preference"
GENERAL_TEXT, GENERAL_ANSWER, SPEED = "general text", "general answer", "speed"
#: Work over the general set, which is the same for all rows.
OF_GENERAL = (GENERAL_TEXT, GENERAL_ANSWER)


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. ``work`` is where its rows come from; only one that ``is_tested`` has a part in the verdict.

    One that is not ``is_shown`` stands in the files of a result and not on the terminal.
    """

    name: str
    task: str
    work: str
    kind: Kind
    title: str
    is_higher_better: bool = True
    is_tested: bool = False
    scale: Scale = "plain"
    is_shown: bool = True


def _measure(task: str, work: str, kind: Kind, name: str, title: str, *, is_tested: bool = False) -> Measure:
    return Measure(name, task, work, kind, title, is_tested=is_tested)


def _lower(task: str, work: str, name: str, title: str, scale: Scale, *, is_tested: bool = False) -> Measure:
    return Measure(name, task, work, "ratio", title, is_higher_better=False, is_tested=is_tested, scale=scale)


def _hidden_bits(task: str, work: str, name: str, title: str) -> Measure:
    """Bits per byte beside another figure of the same losses: what two tokenizers can be compared by."""
    return replace(_lower(task, work, name, title, "bits"), is_shown=False)


_OF_TASK: dict[str, tuple[Measure, ...]] = {
    "loss": (
        _lower("loss", LOSS, "loss", "loss of the answers", "plain", is_tested=True),
        _hidden_bits("loss", LOSS, "answer_bits_per_byte", "bits per byte of the answers"),
    ),
    "loss of text": (
        _lower("loss", LOSS, "loss", "loss of the rows", "plain", is_tested=True),
        _hidden_bits("loss", LOSS, "answer_bits_per_byte", "bits per byte of the rows"),
    ),
    "perplexity": (
        _lower("perplexity", TEXT, "perplexity", "perplexity of the text", "exp", is_tested=True),
        _lower("perplexity", TEXT, "bits_per_byte", "bits per byte", "bits"),
        _lower("perplexity", TEXT, "text_loss", "loss of the text", "plain"),
    ),
    "preference": (
        _measure("preference", PREFERENCE, "right", "preferred", "chosen likelier (sum)", is_tested=True),
        _measure("preference", PREFERENCE, "right", "preferred_per_token", "chosen likelier, a token", is_tested=True),
        _lower("preference", PREFERENCE, "chosen_loss", "loss of chosen answers", "plain"),
    ),
    "kto": (
        _measure("preference", PREFERENCE, "gap", "good_over_bad", "good over bad, nats", is_tested=True),
        _lower("preference", PREFERENCE, "good_loss", "loss of good answers", "plain"),
        replace(_lower("preference", PREFERENCE, "bad_loss", "loss of bad answers", "plain"), is_higher_better=True),
    ),
    "exact_match": (_measure("exact_match", ANSWER, "right", "exact_match", "exactly right", is_tested=True),),
    "token_f1": (_measure("token_f1", ANSWER, "mean", "token_f1", "words shared (F1)", is_tested=True),),
    "labels": (
        _measure("labels", LABELS, "right", "accuracy", "right class (likelihood)", is_tested=True),
        _measure("labels", LABELS, "f1", "macro_f1", "macro F1 (likelihood)"),
        _measure("labels", ANSWER, "right", "accuracy_generated", "right class (written)", is_tested=True),
        _measure("labels", ANSWER, "f1", "macro_f1_generated", "macro F1 (written)"),
    ),
    "rouge": (
        _measure("rouge", ANSWER, "mean", "rouge1", "ROUGE-1"),
        _measure("rouge", ANSWER, "mean", "rouge2", "ROUGE-2"),
        _measure("rouge", ANSWER, "mean", "rougeL", "ROUGE-L", is_tested=True),
        _measure("rouge", ANSWER, "mean", "rougeLsum", "ROUGE-Lsum"),
    ),
    "bleu": (_measure("bleu", ANSWER, "mean", "bleu", "BLEU, mean of the rows", is_tested=True),),
    "number": (
        _measure("number", ANSWER, "right", "number", "right number", is_tested=True),
        _measure("number", ANSWER, "right", "number_found", "a number at all"),
    ),
    "general": (
        _measure("general", GENERAL_ANSWER, "right", "general_questions", "general questions", is_tested=True),
        _lower("general", GENERAL_TEXT, "general_perplexity", "perplexity, general text", "exp", is_tested=True),
        _hidden_bits("general", GENERAL_TEXT, "general_bits_per_byte", "bits per byte, general text"),
    ),
    "speed": (),
}
#: (task, kind of rows) -> the name under which its figures stand, where it is another.
_OF_KIND: dict[tuple[str, RowKind], str] = {("preference", "marked"): "kto", ("loss", "text"): "loss of text"}
#: Measure -> the one that takes its place where the tokenizers differ; "" is none.
_OF_TOKENS = {
    "loss": "answer_bits_per_byte",
    "perplexity": "bits_per_byte",
    "text_loss": "bits_per_byte",
    "general_perplexity": "general_bits_per_byte",
    "chosen_loss": "",
    "good_loss": "",
    "bad_loss": "",
}
_CHECK_TITLES = {"regex": "matches", "contains": "contains", "max_length": "characters at most"}


def measures_of(tasks: Iterable[str], *, has_schema: bool, kind: RowKind = "answers") -> tuple[Measure, ...]:
    """The figures of ``tasks``, in their order. With a schema the task json has figures for constrained answers too.

    Rows of text have a loss of their own, and preferences that are single marked answers their own figures.
    """
    found: list[Measure] = []
    for task in tasks:
        name, argument = split_task(task)
        if name in CHECKS:
            found.append(_measure(task, ANSWER, "right", task, f"{_CHECK_TITLES[name]} {argument}", is_tested=True))
        elif name == "json":
            found += _json_measures(has_schema=has_schema)
        else:
            found += _OF_TASK[_OF_KIND.get((name, kind), name)]
    return tuple(found)


def _json_measures(*, has_schema: bool) -> Sequence[Measure]:
    parses = _measure("json", ANSWER, "right", "json_parses", "an object that parses", is_tested=not has_schema)
    fields = _measure("json", ANSWER, "mean", "json_fields", "fields as in reference", is_tested=True)
    if not has_schema:
        return [parses, fields]
    return [
        _measure("json", ANSWER, "right", "json_valid", "valid JSON, free", is_tested=True),
        parses,
        fields,
        _measure("json", CONSTRAINED, "right", "json_valid_constrained", "valid JSON, constrained"),
        _measure("json", CONSTRAINED, "mean", "json_fields_constrained", "fields, constrained"),
    ]


def without_tokens(measures: Sequence[Measure]) -> Sequence[Measure]:
    """Bits per byte in the place of what is of tokens, tested and shown as those were."""
    instead = set(_OF_TOKENS.values())
    return [
        replace(measure, is_tested=True, is_shown=True) if measure.name in instead else measure
        for measure in measures
        if measure.name not in _OF_TOKENS
    ]


def without_texts_of_tokens(measures: Sequence[Measure]) -> Sequence[Measure]:
    """The same for texts alone: the loss of an answer is not read in windows."""
    replaced = {measure.name: measure for measure in without_tokens(measures)}
    of_answers = (LOSS, PREFERENCE)
    return [
        measure if measure.work in of_answers else replaced[measure.name]
        for measure in measures
        if measure.work in of_answers or measure.name in replaced
    ]

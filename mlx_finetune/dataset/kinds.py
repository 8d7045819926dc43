"""Which kinds of rows each task learns from, and the sentence for rows of another kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mlx_finetune.dataset.formats import DetectedFormat, Example, Labelled, Preference, Text
from mlx_finetune.dataset.unknown import as_written
from mlx_finetune.errors import Problem
from mlx_finetune.recipe.preference import PAIRED_TASKS, TWO_ANSWER_TASKS
from mlx_finetune.recipe.values import toml_value

_ANSWERS = ("text", "messages", "sharegpt", "alpaca", "prompt-completion")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Formats that a task learns from, and what such rows are in words."""

    formats: Sequence[str]
    words: str


_LEARNED = _Kind(_ANSWERS, "conversations, instructions or text")
_MARKED = _Kind(("unpaired-preference",), "answers marked right or wrong (prompt, completion, label)")
_PAIRS = _Kind(("preference",), "pairs of a chosen and a rejected answer")

#: Tasks that learn from other rows than sft does.
_KINDS: Mapping[str, _Kind] = {
    "classify": _Kind(("labels",), "texts with labels"),
    "verifier": _MARKED,
    "grpo": _Kind(_ANSWERS[1:], "questions with the answers that rewards compare with"),
    **dict.fromkeys((*PAIRED_TASKS, "reward"), _PAIRS),
    "kto": _Kind(("unpaired-preference",), "answers marked good or bad"),
}

_ONLY_TEXTS = "only the texts: [data.columns] text = {text}"

#: Format -> what its rows are, what they are for, and how sft can use them all the same; columns in braces.
_REFUSED = {
    "preference": (
        "are preference pairs (chosen and rejected)",
        "preference training",
        "sft can learn the chosen answers: [data.columns] prompt = {prompt}, completion = {chosen}",
    ),
    "unpaired-preference": (
        "are answers marked good or bad",
        "preference training and verifiers",
        'sft can learn all of them alike: [data] format = "messages" or "prompt-completion"',
    ),
    "labels": (
        "are texts with labels",
        "a classifier",
        'task = "classify" learns to tell labels; sft can learn them as answers: [data.columns] prompt = {text}, '
        f"completion = {{label}}; or {_ONLY_TEXTS}",
    ),
}
_WHOLE_CHOSEN = "sft can learn the chosen answers: [data.columns] messages = {chosen}"
_HINTS = {
    "classify": '[data.columns] text = "COLUMN", label = "COLUMN" names the two columns',
    "verifier": '[data.columns] names the columns prompt, completion and label; [data] format = "unpaired-preference"',
}
_NO_QUESTION = (
    "add `prompt` and `completion` to each row; columns of other names: "
    '[data.columns] prompt = "COLUMN", completion = "COLUMN"'
)
_NO_LABEL = 'add `label` to each row; a column of another name: [data.columns] label = "COLUMN"'
#: (Format, kind of task) -> the task that fits.
_FITS = {
    ("preference", "kto"): 'pairs are what task = "dpo" learns from (or cdpo, rdpo, ipo, simpo, orpo)',
    ("unpaired-preference", "paired"): 'answers marked good or bad are what task = "kto" learns from',
}
_SFT_FITS = 'conversations, instructions and text are what task = "sft" learns from; preferences need two answers'


def is_trainable(format: str, task: str) -> bool:
    """Does ``task`` learn from rows of ``format``?"""
    return format in _KINDS.get(task, _LEARNED).formats


def task_for(format: str) -> str:
    """The task that rows of ``format`` are mostly for: their name alone does not tell dpo from ipo or reward."""
    return {"preference": "dpo", "unpaired-preference": "kto", "labels": "classify"}.get(format, "sft")


def words_for(format: str, task: str) -> str:
    """What rows of ``format`` are read as for ``task``, and the other tasks that read them, in a sentence."""
    others = [name for name, kind in _KINDS.items() if format in kind.formats and name != task]
    also = f"; others that do: {', '.join(sorted(others))}" if others else ""
    return f'the rows {_REFUSED[format][0]}; shown as task = "{task}" reads them{also}'


def refused_format(detected: DetectedFormat, source: str, task: str, *, is_given: bool = False) -> Problem:
    """The sentence for a format that is recognised, but that ``task`` does not learn from.

    The way out is another file where this one ``is_given`` on a command line, else a recipe.
    """
    problem = _refused(detected, source, task)
    return replace(problem, hint=as_written(formats_for(task))) if is_given else problem


def _refused(detected: DetectedFormat, source: str, task: str) -> Problem:
    wanted = f"task {task} learns from {_KINDS.get(task, _LEARNED).words}"
    if (task, detected.name) == ("classify", "text"):
        return Problem(source, f"the rows are texts without a label; {wanted}", _NO_LABEL)
    if (task, detected.name) == ("grpo", "text"):
        return Problem(source, f"the rows are texts without a question and its answer; {wanted}", _NO_QUESTION)
    if detected.name not in _REFUSED:
        return Problem(
            source,
            f"the rows are {detected.name}; {wanted}",
            _SFT_FITS if task in TWO_ANSWER_TASKS else _HINTS.get(task, ""),
        )
    what, use, hint = _REFUSED[detected.name]
    if detected.name == "preference" and "prompt" not in detected.columns:
        hint = _WHOLE_CHOSEN
    if (task, detected.name) == ("pretrain", "labels"):
        hint = f'{_ONLY_TEXTS}; task = "classify" learns to tell labels'
    hint = hint.format(**{name: toml_value(column) for name, column in detected.columns.items()})
    if task in TWO_ANSWER_TASKS:
        hint = _FITS.get((detected.name, "kto" if task == "kto" else "paired"), hint)
    return Problem(source, f"the rows {what}, which are for {use}; {wanted}", _HINTS.get(task, hint))


def refused_example(example: Example, task: str) -> str:
    """Why ``task`` cannot use ``example``; "" where it can."""
    format = _format_of(example)
    if format in _KINDS.get(task, _LEARNED).formats:
        return ""
    kind = {"labels": "label", "unpaired-preference": "unpaired preference", "prompt-completion": "text"}
    return f"{kind.get(format, format)} rows cannot be used for task = {task!r}"


def formats_for(task: str) -> Sequence[str]:
    """The formats that ``task`` learns from; none where there is no task."""
    return _KINDS.get(task, _LEARNED).formats if task else ()


def wanted_rows(task: str) -> str:
    """What a row of ``task`` is, in words."""
    return _KINDS.get(task, _LEARNED).words


def _format_of(example: Example) -> str:
    if isinstance(example, Labelled):
        return "labels"
    if isinstance(example, Preference):
        return "preference" if example.chosen is not None and example.rejected is not None else "unpaired-preference"
    return "text" if isinstance(example, Text) else "prompt-completion"  # a conversation fits the same tasks

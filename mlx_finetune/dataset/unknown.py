"""Rows that no format has: which field they lack, and what would help.

A row with a question alone is not refused as unknown: it is said that the answer is missing, and how the column of an
answer is named. What is proposed for the missing field is a column that can hold one: a text, for a label also a
whole number.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from mlx_finetune.dataset.layouts import (
    FIELDS,
    KNOWN_COLUMNS,
    REQUIRED,
    Columns,
    NearLayout,
    column_named,
    find_layout,
    names_written,
    nearest_layout,
)
from mlx_finetune.dataset.problems import show, show_names
from mlx_finetune.dataset.row import Row
from mlx_finetune.errors import Problem

_WORDS = {
    "prompt": "question",
    "instruction": "instruction",
    "completion": "answer",
    "output": "answer",
    "chosen": "chosen answer",
    "rejected": "rejected answer",
    "messages": "conversation",
    "text": "text",
    "label": "label",
}

#: What a row may lack that is wanted for no task in particular.
_ANY = ("alpaca", "prompt-completion", "labels", "preference")

#: Format -> how its rows are written, for a hint.
_ROWS = {
    "preference": '{"prompt": ..., "chosen": ..., "rejected": ...}',
    "unpaired-preference": '{"prompt": ..., "completion": ..., "label": true}',
    "labels": '{"text": ..., "label": ...}',
}
_ANY_ROWS = '{"messages": [...]}, {"prompt": ..., "completion": ...}, {"text": ...} and the like'


def unknown_layout(
    row: Row, columns: Columns, format: str, learned: Sequence[str] = (), *, is_given: bool = False
) -> Problem:
    """Why the columns of ``row`` make no format, and what would help to make one of ``learned`` (or any).

    Where the file ``is_given`` on a command line there is no recipe to change: what helps is another file.
    """
    have = show_names(list(row.fields))
    missing = [(field, name) for field, name in columns.items() if column_named(row.fields, name) is None]
    if missing:
        return Problem(row.where, *_without_column(row, *missing[0]))
    fields = sorted({field for names in FIELDS.values() for field in names})
    strange = [field for field in columns if field not in fields]
    if strange:
        return Problem(row.where, f"[data] columns has no field `{strange[0]}`", f"fields are {', '.join(fields)}")
    if isinstance(row.fields.get("instances"), list):
        return Problem(
            row.where,
            f"the answers are nested in a list (`instances`), which no format has; the row has {have}",
            "write one row for each instance, with instruction, input and output",
        )
    if format != "auto":
        needs = " and ".join(f"`{name}`" for name in REQUIRED.get(format, ()))
        return Problem(
            row.where,
            f"format is {format}, with {needs}; the row has {have}",
            as_written(learned) if is_given else "map them in [data.columns]",
        )
    message = f"no known format has these columns: {have}"
    if slip := _slip_of_the_pen(list(row.fields)):
        return Problem(row.where, message, slip)
    near = nearest_layout(row.fields, columns, learned or _ANY) or _lone_text(row, learned)
    if near is None:
        return Problem(row.where, message, as_written(learned) if is_given else _hint_for_columns(row, learned))
    lacking = f"{_in_words(near.names)} without {_in_words(near.missing)}"
    hint = as_written(learned) if is_given else _hint_for_missing(row, near, learned)
    return Problem(row.where, f"{message}: {lacking}", hint)


def _without_column(row: Row, field: str, written: str | Sequence[str]) -> tuple[str, str]:
    """What [data] columns names and the row lacks; and where the files of the recipe differ, how to name both."""
    names = names_written(written)
    told = " or ".join(show(name) for name in names)
    message = f"[data] columns maps {field} to {told}, but the row has {show_names(list(row.fields))}"
    alike = get_close_matches(names[0], list(row.fields), len(row.fields))
    near = next((name for name in row.fields if name in alike), None)
    if near is None:
        return message, ""
    listed = ", ".join(show(name) for name in (*names, near))
    return message, f"did you mean {show(near)}? Where files differ, name both: {field} = [{listed}]"


def as_written(learned: Sequence[str]) -> str:
    """The way out for a file that no recipe describes: how rows of the formats ``learned`` are written."""
    return f"rows are {_example_rows(learned)}: rename the columns of the file to these"


def _example_rows(learned: Sequence[str]) -> str:
    return _ROWS.get(_shown_format(learned), _ANY_ROWS)


def _shown_format(learned: Sequence[str]) -> str:
    return next((name for name in learned if name in _ROWS), "prompt-completion")


def _lone_text(row: Row, learned: Sequence[str]) -> NearLayout | None:
    """For a classifier a text under whatever name, where nothing beside it can be its label."""
    able = [name for name, value in row.fields.items() if _can_be("label", value)]
    if "labels" not in learned or len(able) != 1 or not isinstance(row.fields[able[0]], str):
        return None
    return NearLayout("labels", {"text": able[0]}, (), {"label": "label"})


def _in_words(fields: Iterable[str]) -> str:
    return " and ".join(f"a{'n' if _WORDS[field][0] in 'ai' else ''} {_WORDS[field]}" for field in fields)


def _slip_of_the_pen(names: Sequence[str]) -> str:
    for name in names:
        near = get_close_matches(name.casefold(), KNOWN_COLUMNS, 1, cutoff=0.8)
        if near and name not in KNOWN_COLUMNS:
            return f"did you mean {show(near[0])} by {show(name)}?"
    return ""


def _hint_for_missing(row: Row, near: NearLayout, learned: Sequence[str]) -> str:
    """The columns that can be what is missing, else what to add; what is there can also be learned as plain text."""
    columns = dict(near.names)
    for field in near.missing:
        free = [name for name in row.fields if name not in (*columns.values(), *near.others)]
        if able := [name for name in free if _can_be(field, row.fields[name])]:
            columns[field] = able[-1]
    if len(columns) == len(near.names) + len(near.missing):
        return _which_is_which(columns)
    add = " and ".join(f"`{name}`" for name in near.missing.values())
    if find_layout([*row.fields, *near.missing.values()], {}, near.format) is None:
        return f"add {add} to each row, then {_which_is_which({**near.names, **near.missing})}"
    named = ", ".join(f'{field} = "COLUMN"' for field in near.missing)
    hint = f"add {add} to each row; a column of another name: [data.columns] {named}"
    field, name = next(iter(near.names.items()))
    if len(near.names) == 1 and "text" in learned and isinstance(row.fields[name], str):
        hint += f"; to learn the {_WORDS[field]}s alone, as text: [data.columns] text = {show(name)}"
    return hint


def _hint_for_columns(row: Row, learned: Sequence[str]) -> str:
    """Two columns or more are mapped where two are needed; one alone is no question with an answer."""
    names = list(row.fields)
    format = _shown_format(learned)
    if len(names) > 1 and format in ("prompt-completion", "labels"):
        first, last = REQUIRED[format]
        return _which_is_which({first: names[0], last: names[-1]})
    return f"rows are {_example_rows(learned)}; [data.columns] maps columns of other names"


def _can_be(field: str, value: object) -> bool:
    if field == "label":
        return isinstance(value, str | int) and not isinstance(value, bool)
    return isinstance(value, list if field in ("messages", "conversations") else str)


def _which_is_which(columns: Mapping[str, str]) -> str:
    fields = sorted(columns, key=list(_WORDS).index)
    return "say which is which: [data.columns] " + ", ".join(f"{field} = {show(columns[field])}" for field in fields)

"""Which columns a row has, and what that makes it: the table of layouts that are recognised by name.

A layout says where each of our fields stands in the file. ``[data] columns`` maps our names to the file's; without it
the first layout of the table whose required columns are all there is taken. Rows may have other columns as well.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: Formats a row can have, in the order in which they are looked for.
FORMATS = ("preference", "unpaired-preference", "messages", "sharegpt", "alpaca", "prompt-completion", "labels", "text")


@dataclass(frozen=True, slots=True)
class Layout:
    """A format, and the file's column for each of our fields that the row has."""

    format: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Form:
    format: str
    required: Mapping[str, Sequence[str]]
    optional: Mapping[str, Sequence[str]]


_CONTEXT = ("input", "context", "story", "passage")
_EXTRAS: Mapping[str, Sequence[str]] = {"system": ("system", "system_prompt"), "tools": ("tools",)}
_ANSWERS: Mapping[str, Sequence[str]] = {**_EXTRAS, "weight": ("weight",)}
_TURNS = ("messages", "conversations", "conversation")


def _pair(prompt: Sequence[str], completion: Sequence[str]) -> _Form:
    optional = {"input": _CONTEXT, "system": _EXTRAS["system"], "history": ("history",)}
    return _Form("prompt-completion", {"prompt": prompt, "completion": completion}, optional)


_FORMS: Sequence[_Form] = (
    _Form("preference", {"chosen": ("chosen_messages",), "rejected": ("rejected_messages",)}, _ANSWERS),
    _Form(
        "preference",
        {"chosen": ("chosen",), "rejected": ("rejected",)},
        {"prompt": ("prompt", "question", "instruction", *_TURNS), "input": ("input",), **_ANSWERS},
    ),
    _Form("unpaired-preference", {"messages": _TURNS, "label": ("label", "kto_tag")}, _ANSWERS),
    _Form(
        "unpaired-preference",
        {"prompt": ("prompt", "instruction"), "completion": ("completion", "output"), "label": ("kto_tag",)},
        {"input": ("input",), **_ANSWERS},
    ),
    _Form(
        "unpaired-preference",
        {"prompt": ("prompt",), "completion": ("completion",), "label": ("label",)},
        _ANSWERS,
    ),
    _Form("messages", {"messages": ("messages",)}, _EXTRAS),
    _Form("sharegpt", {"conversations": ("conversations", "conversation")}, _EXTRAS),
    _Form(
        "alpaca",
        {"instruction": ("instruction",), "output": ("output", "response", "completion", "answer")},
        {"input": _CONTEXT, "system": _EXTRAS["system"], "history": ("history",)},
    ),
    _pair(("prompt",), ("completion", "response", "answer", "output", "chosen")),
    _pair(("question", "query", "problem"), ("answer", "response", "completion", "solution", "output")),
    _pair(("input",), ("output", "response", "target")),
    _pair(("source",), ("target",)),
    _pair(("question",), ("label",)),
    _pair(("dialogue", "document", "article"), ("summary", "highlights", "summary1")),
    _pair(("mr",), ("ref",)),
    _Form(
        "labels",
        {
            "text": ("text", "sentence", "review", "utterance", "query"),
            "label": ("label", "labels", "category", "class", "intent", "sentiment"),
        },
        {},
    ),
    _Form("text", {"text": ("text", "content", "document")}, {}),
)

#: Our field names that [data] columns may map, by format.
FIELDS: Mapping[str, frozenset[str]] = {
    name: frozenset(field for form in _FORMS if form.format == name for field in (*form.required, *form.optional))
    for name in FORMATS
}

#: The fields that a row of each format must have.
REQUIRED: Mapping[str, Sequence[str]] = {
    name: next(tuple(form.required) for form in _FORMS if form.format == name) for name in FORMATS
}

#: Every column name of the table: a first line of a CSV file with one of these is a header.
KNOWN_COLUMNS = frozenset(
    name for form in _FORMS for names in (*form.required.values(), *form.optional.values()) for name in names
)


def find_layout(keys: Iterable[str], columns: Mapping[str, str] | None = None, format: str = "auto") -> Layout | None:
    """The layout of a row with these keys, or None. ``format`` and ``columns`` (our name -> the file's) narrow it."""
    return _find_layout(frozenset(keys), tuple(sorted((columns or {}).items())), format)


def column_named(keys: Iterable[str], written: str) -> str | None:
    """The key that [data] columns means by ``written``: the same, else the only one that differs in case alone.

    The known names in the header of a table are read in small letters, whatever their case in the file.
    """
    if written in keys:
        return written
    alike = [key for key in keys if key.casefold() == written.casefold()]
    return alike[0] if len(alike) == 1 else None


@functools.lru_cache(maxsize=4096)
def _find_layout(keys: frozenset[str], columns: tuple[tuple[str, str], ...], format: str) -> Layout | None:
    mapped = {field: name for field, written in columns if (name := column_named(keys, written)) is not None}
    free = keys - set(mapped.values())
    wanted = {field for field, _ in columns}
    for form in _FORMS:
        if format not in ("auto", form.format) or not wanted <= {*form.required, *form.optional}:
            continue
        names: dict[str, str] = {}
        for field, aliases in (*form.required.items(), *form.optional.items()):
            name = mapped.get(field)
            if name is None and field not in wanted:
                name = next((alias for alias in aliases if alias in free and alias not in names.values()), None)
            if name is not None:
                names[field] = name
        if all(field in names for field in form.required):
            return Layout(form.format, names)
    return None

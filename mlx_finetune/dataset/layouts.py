"""Which columns a row has, and what that makes it: the table of layouts that are recognised by name.

A layout says where each of our fields stands in the file. ``[data] columns`` maps our names to the file's; without it
the first layout of the table whose required columns are all there is taken. Rows may have other columns as well.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_Written = tuple[tuple[str, tuple[str, ...]], ...]
#: Formats a row can have, in the order in which they are looked for.
FORMATS = ("preference", "unpaired-preference", "messages", "sharegpt", "alpaca", "prompt-completion", "labels", "text")


#: ``[data] columns``: our name to the file's, or to several, of which the first that a row has counts.
Columns = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Layout:
    """A format, and the file's column for each of our fields that the row has."""

    format: str
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NearLayout:
    """The format that a row nearly has.

    ``names`` are the columns of the required fields it has, ``others`` those of optional ones, ``missing`` the usual
    columns of the fields it lacks.
    """

    format: str
    names: Mapping[str, str]
    others: Sequence[str]
    missing: Mapping[str, str]


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


def find_layout(keys: Iterable[str], columns: Columns | None = None, format: str = "auto") -> Layout | None:
    """The layout of a row with these keys, or None. ``format`` and ``columns`` narrow it."""
    return _find_layout(frozenset(keys), _hashable(columns), format)


def names_written(written: str | Sequence[str]) -> tuple[str, ...]:
    """The names that [data] columns has for a field."""
    return (written,) if isinstance(written, str) else tuple(written)


def column_named(keys: Iterable[str], written: str | Sequence[str]) -> str | None:
    """The key that [data] columns means by ``written``, the first of several names that is there: the same, else the
    only one that differs in case alone.

    The known names in the header of a table are read in small letters, whatever their case in the file.
    """
    for name in names_written(written):
        if name in keys:
            return name
        alike = [key for key in keys if key.casefold() == name.casefold()]
        if len(alike) == 1:
            return alike[0]
    return None


def _hashable(columns: Columns | None) -> _Written:
    return tuple(sorted((field, names_written(written)) for field, written in (columns or {}).items()))


def nearest_layout(keys: Iterable[str], columns: Columns | None, formats: Sequence[str]) -> NearLayout | None:
    """What keys that make no layout lack least of, among ``formats``; None where they have no field it requires."""
    written = _hashable(columns)
    found: list[NearLayout] = []
    for form in _FORMS:
        names = _names_of(form, frozenset(keys), written) if form.format in formats else None
        present = {field: name for field, name in (names or {}).items() if field in form.required}
        if names and present:
            others = tuple(name for field, name in names.items() if field not in form.required)
            missing = {field: aliases[0] for field, aliases in form.required.items() if field not in names}
            found.append(NearLayout(form.format, present, others, missing))
    return min(found, key=lambda near: (len(near.missing), _num_renamed(near.missing)), default=None)


def _num_renamed(columns: Mapping[str, str]) -> int:
    """How many columns stand for a field by a name that is not the field's and not one of an answer."""
    return sum(name not in (field, "answer") for field, name in columns.items())


@functools.lru_cache(maxsize=4096)
def _find_layout(keys: frozenset[str], columns: _Written, format: str) -> Layout | None:
    for form in _FORMS:
        if format not in ("auto", form.format):
            continue
        names = _names_of(form, keys, columns)
        if names is not None and all(field in names for field in form.required):
            return Layout(form.format, names)
    return None


def _names_of(form: _Form, keys: frozenset[str], columns: _Written) -> dict[str, str] | None:
    """The column of each field of ``form`` that ``keys`` have; None where it has no field that ``columns`` maps."""
    mapped = {field: name for field, written in columns if (name := column_named(keys, written)) is not None}
    free = keys - set(mapped.values())
    wanted = {field for field, _ in columns}
    if not wanted <= {*form.required, *form.optional}:
        return None
    names: dict[str, str] = {}
    for field, aliases in (*form.required.items(), *form.optional.items()):
        name = mapped.get(field)
        if name is None and field not in wanted:
            name = next((alias for alias in aliases if alias in free and alias not in names.values()), None)
        if name is not None:
            names[field] = name
    return names

"""Rows to examples: text, conversations, instructions, preference pairs and labels.

The format is a claim about the whole file: ``detect_format`` looks at every row, and a file whose rows disagree is
refused with the lines of the smaller part. ``to_example`` never repairs a row; what does not fit is an error with its
place. Prices: about 3 us a row of three turns, beside 12 us for its JSON.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from mlx_finetune.dataset.layouts import FORMATS, Columns, Layout, find_layout
from mlx_finetune.dataset.problems import RowError, show, show_names
from mlx_finetune.dataset.row import Row
from mlx_finetune.dataset.turns import Turn, TurnError, read_tools, read_turn, read_turns
from mlx_finetune.dataset.unknown import unknown_layout
from mlx_finetune.errors import Problem

#: Largest weight of one row's loss.
MAX_LOSS_WEIGHT = 1000

Tools = tuple[Mapping[str, object], ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text; every token is a target. Where it ``continues`` in the next row, no end of text follows. It
    ``follows`` where it is not the first stretch of its text.
    """

    text: str
    source: str
    line: int
    weight: float = 1.0
    continues: bool = False
    follows: bool = False


@dataclass(frozen=True, slots=True)
class Messages:
    """A conversation in the shape of ``turns``; assistant turns are targets, or only the last one."""

    messages: tuple[Turn, ...]
    tools: Tools | None
    source: str
    line: int
    weight: float = 1.0
    only_last: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction, perhaps with an input, and its answer. A prompt and its completion have the input ``""``."""

    instruction: str
    input: str
    output: str
    source: str
    line: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Preference:
    """The turns both answers follow, and the two answers; one of them is None in unpaired data.

    ``weight`` says how often the row is seen, ``loss_weight`` what its loss is multiplied by.
    """

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...] | None
    rejected: tuple[Turn, ...] | None
    tools: Tools | None
    source: str
    line: int
    weight: float = 1.0
    loss_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its class."""

    text: str
    label: str | int
    source: str
    line: int
    weight: float = 1.0


Example = Text | Messages | Instruction | Preference | Labelled


@dataclass(frozen=True, slots=True)
class DetectedFormat:
    """The format of most rows, how many rows each format has, and a problem for each smaller part. ``columns`` are the
    file's for our fields, in the first of its rows."""

    name: str
    counts: Mapping[str, int]
    problems: tuple[Problem, ...]
    columns: Mapping[str, str] = field(default_factory=dict[str, str])


class FormatCounter:
    """Counts the formats of rows as they pass by, and remembers the first lines of each.

    ``learned`` are the formats that the rows are wanted for; what a row of none lacks is said by them, and what would
    help by whether the file ``is_given`` on a command line.
    """

    def __init__(
        self,
        columns: Columns | None = None,
        format: str = "auto",
        learned: Sequence[str] = (),
        *,
        is_given: bool = False,
    ) -> None:
        self._learned = learned
        self._is_given = is_given
        self._columns = columns or {}
        self._format = format
        self._counts: dict[str, int] = {}
        self._first: dict[str, list[Row]] = {}
        self._names: dict[str, Mapping[str, str]] = {}

    def add(self, row: Row) -> Layout | None:
        """The layout of ``row``; None where its columns fit nothing (or not the format asked for)."""
        layout = find_layout(row.fields, self._columns, self._format)
        name = layout.format if layout else ""
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        if count < 3:
            self._first.setdefault(name, []).append(row)
        if layout is not None:
            self._names.setdefault(name, layout.names)
        return layout

    def result(self) -> DetectedFormat:
        """The format of most rows; ``name`` is empty where no row fits any."""
        known = {name: count for name, count in self._counts.items() if name}
        if not known:
            return DetectedFormat("", {}, tuple(self._unknown()))
        name = max(known, key=lambda key: (known[key], -FORMATS.index(key)))
        problems = self._unknown()
        for other, count in known.items():
            if other != name:
                rows = self._first[other]
                lines = ", ".join(str(row.line) for row in rows) + (", ..." if count > len(rows) else "")
                problems.append(
                    Problem(
                        rows[0].where,
                        f"rows of two kinds in one file: {count} of {sum(known.values())} are {other} "
                        f"({show_names(list(rows[0].fields))}), the rest {name}; lines {lines}",
                        "keep one kind in a file; [[data.sources]] joins several files",
                    )
                )
        return DetectedFormat(name, known, tuple(problems), self._names[name])

    def _unknown(self) -> list[Problem]:
        rows = self._first.get("", [])
        count = self._counts.get("", 0)
        more = f" (and {count - 1} more like it)" if count > 1 else ""
        if not rows:
            return []
        problem = unknown_layout(rows[0], self._columns, self._format, self._learned, is_given=self._is_given)
        return [Problem(problem.where, problem.message + more, problem.hint)]


def detect_format(rows: Iterable[Row], columns: Columns | None = None, format: str = "auto") -> DetectedFormat:
    """The format of all ``rows`` (read to their end), with a located problem for every group that differs."""
    counter = FormatCounter(columns, format)
    for row in rows:
        counter.add(row)
    return counter.result()


def to_example(row: Row, format: DetectedFormat | str, columns: Columns | None = None) -> Example:
    """The example in ``row``. Raises ``RowError`` with ``file:line`` and the field."""
    name = format if isinstance(format, str) else format.name
    layout = find_layout(row.fields, columns, name or "auto")
    if layout is None:
        raise RowError(unknown_layout(row, columns or {}, name or "auto"))
    return example_of(row, layout)


def example_of(row: Row, layout: Layout) -> Example:
    """The example in ``row`` under ``layout``. Raises ``RowError``."""
    try:
        return _CONVERTERS[layout.format](row, layout.names)
    except TurnError as error:
        raise RowError(Problem(row.where, error.message, error.hint)) from None
    except RecursionError:
        raise RowError(Problem(row.where, f"nested deeper than {sys.getrecursionlimit()} levels")) from None


def _text(row: Row, names: Mapping[str, str]) -> Text:
    return Text(_string(row, names, "text"), row.source, row.line, row.weight, row.continues, row.follows)


def _messages(row: Row, names: Mapping[str, str]) -> Messages:
    name = names.get("messages") or names["conversations"]
    turns = read_turns(row.fields[name], name)
    tools = read_tools(row.fields[names["tools"]]) if "tools" in names else None
    if "system" in names:
        turns = _system(row, names) + turns
    return Messages(turns, tools, row.source, row.line, row.weight)


def _instruction(row: Row, names: Mapping[str, str]) -> Instruction | Messages:
    first, last = ("instruction", "output") if "instruction" in names else ("prompt", "completion")
    prompt = row.fields[names[first]]
    answer = row.fields[names[last]]
    if isinstance(prompt, list) and not isinstance(answer, str | None):
        turns = read_turns(cast(object, prompt), names[first]) + _answer(row, names[last])
        return Messages(_system(row, names) + turns, None, row.source, row.line, row.weight)
    instruction = _string(row, names, first)
    context = _context(row, names)
    output = _string(row, names, last)
    earlier = _system(row, names) + _history(row, names)
    if not earlier:
        return Instruction(instruction, context, output, row.source, row.line, row.weight)
    question = f"{instruction}\n{context}" if context else instruction
    turns = (*earlier, {"role": "user", "content": question}, {"role": "assistant", "content": output})
    return Messages(turns, None, row.source, row.line, row.weight)


def _preference(row: Row, names: Mapping[str, str]) -> Preference:
    tools = read_tools(row.fields[names["tools"]]) if "tools" in names else None
    prompt = _system(row, names) + _prompt(row, names)
    chosen, rejected = (_answer(row, names[field]) for field in ("chosen", "rejected"))
    shared = 0
    if len(chosen) > 1 or len(rejected) > 1:
        limit = min(len(chosen), len(rejected)) - 1
        while shared < limit and chosen[shared] == rejected[shared]:
            shared += 1
    common = chosen[:shared]
    prompt = _said_once(prompt, common) + common
    answers = chosen[shared:], rejected[shared:]
    return Preference(prompt, *answers, tools, row.source, row.line, row.weight, _loss_weight(row, names))


def _said_once(prompt: tuple[Turn, ...], common: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """``prompt`` without what the turns that both answers begin with say again: all of it, or all but a system turn."""
    if prompt and common[: len(prompt)] == prompt:
        return ()
    asked, talk = (tuple(turn for turn in turns if turn["role"] != "system") for turns in (prompt, common))
    if not asked or asked not in (talk[: len(asked)], talk[-len(asked) :]):
        return prompt
    return () if len(talk) < len(common) else tuple(turn for turn in prompt if turn["role"] == "system")


def _unpaired(row: Row, names: Mapping[str, str]) -> Preference:
    label = row.fields[names["label"]]
    if not isinstance(label, bool) and label not in (0, 1):
        raise TurnError(f"`{names['label']}` must be true or false; this is {show(label)}")
    tools = read_tools(row.fields[names["tools"]]) if "tools" in names else None
    if "messages" in names:
        turns = read_turns(row.fields[names["messages"]], names["messages"])
        prompt, answer = turns[:-1], turns[-1:]
    else:
        prompt, answer = _prompt(row, names), _answer(row, names["completion"])
    prompt = _system(row, names) + prompt
    chosen, rejected = (answer, None) if label else (None, answer)
    weight = _loss_weight(row, names)
    return Preference(prompt, chosen, rejected, tools, row.source, row.line, row.weight, weight)


def _loss_weight(row: Row, names: Mapping[str, str]) -> float:
    """What the row's loss is multiplied by: 1 where the row does not say."""
    value = row.fields[names["weight"]] if "weight" in names else None
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_LOSS_WEIGHT:
        raise TurnError(f"`{names['weight']}` must be a number from 0 to {MAX_LOSS_WEIGHT}; this is {show(value)}")
    return float(value)


def _labelled(row: Row, names: Mapping[str, str]) -> Labelled:
    label = row.fields[names["label"]]
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise TurnError(f"`{names['label']}` must be a text or a whole number; this is {show(label)}")
    if isinstance(label, str) and not label.strip():
        raise TurnError(f"`{names['label']}` is empty", "write the row's label, or remove the row")
    return Labelled(_string(row, names, "text"), label, row.source, row.line, row.weight)


_CONVERTERS = {
    "text": _text,
    "messages": _messages,
    "sharegpt": _messages,
    "alpaca": _instruction,
    "prompt-completion": _instruction,
    "preference": _preference,
    "unpaired-preference": _unpaired,
    "labels": _labelled,
}


def _string(row: Row, names: Mapping[str, str], field: str) -> str:
    value = row.fields[names[field]]
    if not isinstance(value, str):
        raise TurnError(f"`{names[field]}` must be a text; this is {show(value)}")
    return value


def _context(row: Row, names: Mapping[str, str]) -> str:
    """The optional input of an instruction; a list of texts (StepGame's story) is joined by newlines."""
    value = row.fields[names["input"]] if "input" in names else None
    if value is None:
        return ""
    if isinstance(value, list):
        parts = cast(list[object], value)
        if all(isinstance(part, str) for part in parts):
            return "\n".join(cast(list[str], parts))
    if not isinstance(value, str):
        raise TurnError(f"`{names['input']}` must be a text; this is {show(value)}")
    return value


def _system(row: Row, names: Mapping[str, str]) -> tuple[Turn, ...]:
    value = row.fields[names["system"]] if "system" in names else None
    if value is None or value == "":
        return ()
    if not isinstance(value, str):
        raise TurnError(f"`{names['system']}` must be a text; this is {show(value)}")
    return ({"role": "system", "content": value},)


def _history(row: Row, names: Mapping[str, str]) -> tuple[Turn, ...]:
    """Earlier turns of an Alpaca row: a list of pairs of texts."""
    value = row.fields[names["history"]] if "history" in names else None
    if not value:
        return ()
    turns: list[Turn] = []
    for pair in cast(list[object], value) if isinstance(value, list) else [None]:
        texts = cast(list[object], pair) if isinstance(pair, list) else []
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise TurnError(f"`history` must be a list of [question, answer]; this is {show(value)}")
        turns += [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
    return tuple(turns)


def _prompt(row: Row, names: Mapping[str, str]) -> tuple[Turn, ...]:
    if "prompt" not in names:
        return ()
    value = row.fields[names["prompt"]]
    if not isinstance(value, str):
        return read_turns(value, names["prompt"])
    context = _context(row, names)
    return ({"role": "user", "content": f"{value}\n{context}" if context else value},)


def _answer(row: Row, name: str) -> tuple[Turn, ...]:
    value = row.fields[name]
    if isinstance(value, str):
        return ({"role": "assistant", "content": value},)
    if isinstance(value, dict):
        return (read_turn(cast(object, value), name),)
    return read_turns(value, name)

"""What was measured, one line of JSON for each row, side and kind of work, written as soon as it is known.

An evaluation that was interrupted finds its lines again and does the rest. The first line is the identity of the
evaluation: hashes of model, adapter, tokenizer, data and rows, and every setting that could change a figure; lines
of another identity are never mixed in. In memory are the numbers; answers are read from the file when somebody asks.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mlx_finetune import durable
from mlx_finetune.app.eval.score import Values
from mlx_finetune.errors import RunError

#: (kind of work, side, number of the row)
Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One line. ``answer`` and its figures are empty for work without one.

    ``error`` says why there is no value. ``prompt`` is what was asked then, or the text that a classifier was given,
    and ``reference`` the name of its right class. ``where`` is the line the row stands in, "" of the general set.
    """

    work: str
    side: str
    row: int
    values: Values
    answer: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0
    error: str = ""
    prompt: str = ""
    reference: str = ""
    where: str = ""

    @property
    def key(self) -> Key:
        """What it is the result of."""
        return self.work, self.side, self.row


class Journal:
    """The lines of one evaluation, in a file that only grows."""

    def __init__(self, path: Path, identity: Mapping[str, object]) -> None:
        """Take up ``path`` where it is of the same ``identity``, begin it where it is missing.

        Raises ``RunError`` where it is of another.
        """
        self.path = path
        self.found: dict[Key, Measured] = {}
        is_new = not path.exists()
        if not is_new:
            self._read(identity)
        self._descriptor = durable.open_append(path)
        if is_new:
            self._write({"identity": dict(identity)})
            durable.sync_folder(path.parent)

    def __contains__(self, key: Key) -> bool:
        return key in self.found

    def add(self, measured: Measured) -> None:
        """Keep one result."""
        self._write(_fields(measured))
        self.found[measured.key] = _without_text(measured)

    def answers(self, rows: frozenset[int], work: str) -> Mapping[tuple[str, int], str]:
        """The answers to some rows, by side and row."""
        lines = read_lines(self.path)
        next(lines)
        found = (measured_of(fields) for fields in lines)
        return {(one.side, one.row): one.answer for one in found if one.row in rows and one.work == work}

    def close(self) -> None:
        """Flush everything to the disk."""
        durable.sync_file(self._descriptor)
        os.close(self._descriptor)

    def _write(self, fields: Mapping[str, object]) -> None:
        line = json.dumps(fields, ensure_ascii=True, allow_nan=False) + "\n"
        durable.append(self.path, self._descriptor, line.encode("ascii"))

    def _read(self, identity: Mapping[str, object]) -> None:
        _cut_half_line(self.path)
        lines = read_lines(self.path)
        saved = next(lines, {}).get("identity")
        if saved != json.loads(json.dumps(identity)):
            raise RunError(
                f"{self.path} holds an evaluation with other settings or of another model",
                "give this one another name: --name NAME",
            )
        for fields in lines:
            measured = measured_of(fields)
            self.found[measured.key] = _without_text(measured)


def read_lines(path: Path) -> Iterator[Mapping[str, object]]:
    """The objects in a journal, in order. Raises ``RunError`` for a file that holds anything else."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                fields = json.loads(line) if line.endswith(b"\n") else {}
                if not isinstance(fields, dict):
                    raise ValueError(f"line {number} is no object")
                if fields:
                    yield cast("dict[str, object]", fields)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}", "remove it, or choose another --name") from None


def _cut_half_line(path: Path) -> None:
    """Take away what a killed process left of its last line."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        descriptor = durable.open_update(path)
        try:
            durable.cut(path, descriptor, whole)
        finally:
            os.close(descriptor)


def _fields(measured: Measured) -> dict[str, object]:
    names = ("answer", "finish", "prompt_tokens", "answer_tokens", "first_seconds", "seconds", "error")
    names += ("prompt", "reference", "where")
    rest = {name: value for name in names if (value := getattr(measured, name))}
    return {
        "work": measured.work,
        "side": measured.side,
        "row": measured.row,
        "values": {name: list(value) for name, value in measured.values.items()},
        **rest,
    }


def measured_of(fields: Mapping[str, object]) -> Measured:
    """The result in one line. Raises ``RunError`` for a line of another version."""
    known = dict(fields)
    values = cast("dict[str, list[float]]", known.pop("values", {}))
    try:
        return Measured(values={name: tuple(value) for name, value in values.items()}, **known)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise RunError(f"a journal of another version: {error}", "choose another --name") from None


def _without_text(measured: Measured) -> Measured:
    return replace(measured, answer="", prompt="", reference="", where="")

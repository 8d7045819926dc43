"""Rows whose tokens have losses, under a base model and under what was trained from it: what microscope.json keeps.

Losses are nats, ``-log p`` of a token after the ones before it, so ``exp(-loss)`` is its probability. A file that is
damaged, too large or of another version counts as none: it is measured again.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from mlx_finetune import durable
from mlx_finetune.rundir import MICROSCOPE, MODEL_FOLDER, MODEL_WEIGHTS, PEFT_WEIGHTS, RunDir

FORMAT_VERSION = 1
MAX_FILE_BYTES = 2**26
#: Stands for a loss that is not finite, and for every greater one: 1 in 10^43.
MAX_LOSS = 99.0


class Token(NamedTuple):
    """One token. ``base`` and ``tuned`` are numbers exactly where ``is_target``.

    ``text`` is empty for the later tokens of a character that needs several.
    """

    text: str
    is_target: bool
    base: float | None = None
    tuned: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence as it was trained. ``where`` is ``file:line``; ``notes`` say what was cut from the row."""

    where: str
    tokens: tuple[Token, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured: names for a person, hashes by which the same measurement is known again.

    ``adapter_sha256`` is that of the trained weights, also of a fully trained model; ``rows_sha256`` of ids and masks.
    ``data`` is a file that a person named, ``chosen`` are the lines that were; both "" for validation rows by the rule.
    """

    model: str = ""
    data: str = ""
    chosen: str = ""
    step: int | None = None
    model_sha256: str = ""
    adapter_sha256: str = ""
    rows_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Microscope:
    """Some rows under base and trained weights."""

    rows: tuple[Row, ...]
    measured: Measured = Measured()


def write_microscope(run: RunDir, microscope: Microscope) -> None:
    """Keep it as microscope.json of the run. Raises ``OSError``."""
    measured = microscope.measured
    fields: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        **{name: getattr(measured, name) for name in Measured.__dataclass_fields__},
        "rows": [
            {"where": row.where, "notes": list(row.notes), "tokens": [_token_json(token) for token in row.tokens]}
            for row in microscope.rows
        ],
    }
    durable.replace_file(run.file(MICROSCOPE), [json.dumps(fields, allow_nan=False).encode() + b"\n"])


def read_microscope(run: RunDir) -> Microscope | None:
    """microscope.json of the run; None where there is none that can be used."""
    path = run.file(MICROSCOPE)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        value: object = json.loads(path.read_bytes(), parse_constant=_refuse)
        return parse_microscope(value)
    except (OSError, ValueError, RecursionError):
        return None


def parse_microscope(value: object) -> Microscope:
    """A measurement from plain values. Raises ``ValueError`` for anything that was not written by this version."""
    fields = _object(value)
    if fields.get("format_version") != FORMAT_VERSION:
        raise ValueError("another version")
    measured = Measured(
        **{name: _text(fields.get(name)) for name in Measured.__dataclass_fields__ if name != "step"},
        step=_step(fields.get("step")),
    )
    return Microscope(tuple(_row(row) for row in _list(fields.get("rows"))), measured)


def hash_result(run: RunDir) -> str:
    """SHA-256 of the weights that a run has published, adapter or model; "" where there are none yet."""
    for path in (run.file(PEFT_WEIGHTS), run.file(MODEL_FOLDER) / MODEL_WEIGHTS):
        if path.is_file():
            return durable.hash_file(path)
    return ""


def bounded(loss: float) -> float:
    """A loss as it is kept: 4 digits, at least 0, at most ``MAX_LOSS``, which also stands for what is not finite."""
    return round(min(max(loss, 0.0), MAX_LOSS), 4) if math.isfinite(loss) else MAX_LOSS


def _token_json(token: Token) -> list[object]:
    return [token.text, True, token.base, token.tuned] if token.is_target else [token.text, False]


def _row(value: object) -> Row:
    fields = _object(value)
    notes = tuple(_text(note) for note in _list(fields.get("notes", [])))
    return Row(_text(fields.get("where")), tuple(_token(token) for token in _list(fields.get("tokens"))), notes)


def _token(value: object) -> Token:
    parts = _list(value)
    if len(parts) == 2 and parts[1] is False:
        return Token(_text(parts[0]), is_target=False)
    if len(parts) == 4 and parts[1] is True:
        return Token(_text(parts[0]), True, _loss(parts[2]), _loss(parts[3]))
    raise ValueError("not a token")


def _loss(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_LOSS:
        raise ValueError("not a loss")
    return float(value)


def _step(value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError("not a step")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return cast("dict[str, object]", value)


def _list(value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return cast("list[object]", value)


def _refuse(word: str) -> object:
    raise ValueError(word)

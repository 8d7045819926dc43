"""``--set section.key=value``: the same keys, values and checks as in the file.

The value is TOML (``--set training.save_at=[0.5,1.0]``); text that is not TOML, or that stands for a key which only
takes text, is taken as it is (``--set model=foo/bar``). An empty value removes the key, so that its default holds
(``--set quantize=``), or a whole section (``--set lora=``). A section that is not in the file is made. Of two
keys that exclude each other the override wins and the one in the file is dropped, with a notice.
"""

import datetime
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mlx_finetune.errors import Problem
from mlx_finetune.recipe import describe
from mlx_finetune.recipe.schema import section_names
from mlx_finetune.recipe.values import shown, shown_name, shown_path
from mlx_finetune.rundir import beside_run

Values = dict[str, Any]
KeyPath = tuple[str | int, ...]

#: Setting the first key takes the others out of the file.
EXCLUDES: dict[KeyPath, tuple[str, ...]] = {
    ("training", "epochs"): ("max_steps",),
    ("training", "max_steps"): ("epochs",),
    ("training", "warmup_steps"): ("warmup_ratio",),
    ("training", "warmup_ratio"): ("warmup_steps",),
    ("training", "eval_steps"): ("evals_per_epoch",),
    ("training", "evals_per_epoch"): ("eval_steps",),
    ("data", "path"): ("train", "valid", "test", "sources"),
    ("data", "train"): ("path", "sources"),
    ("data", "sources"): ("path", "train"),
}


@dataclass(frozen=True, slots=True)
class Override:
    """One ``--set``: the key, the value (None removes), and how it is named in messages."""

    path: KeyPath
    value: object
    where: str


def latest(texts: Sequence[str]) -> list[str]:
    """``texts`` without those whose key a later one sets, which say nothing in a command."""
    places = {text.partition("=")[0].strip(): place for place, text in enumerate(texts)}
    return [text for place, text in enumerate(texts) if places[text.partition("=")[0].strip()] == place]


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """The overrides that can be read, and a problem for each that cannot."""
    overrides: list[Override] = []
    problems: list[Problem] = []
    for text in texts:
        where = f"--set {shown_name(text)}"
        name, equals, value_text = text.partition("=")
        path = _parse_path(name)
        if not equals or path is None:
            problems.append(Problem(where, "is not KEY=VALUE", "write for example --set training.max_steps=50"))
            continue
        try:
            value = _parse_value(path, value_text.strip())
        except (ValueError, RecursionError):
            problems.append(Problem(where, f"{shown(value_text)} is not a value", _value_hint(value_text)))
            continue
        overrides.append(Override(path, value, where))
    return overrides, problems


def apply_overrides(values: Values, overrides: Sequence[Override]) -> tuple[list[str], list[Problem]]:
    """Change ``values`` in place, in order. Returns a notice for each key that gave way, and what could not be set."""
    notices: list[str] = []
    problems: list[Problem] = []
    given = {override.path for override in overrides}
    for override in overrides:
        problem = _apply(values, override)
        if problem is not None:
            problems.append(problem)
        elif override.value is not None:
            notices += _drop_excluded(values, override, given)
    return notices, problems


def _parse_path(name: str) -> KeyPath | None:
    parts = [part.strip() for part in name.split(".")]
    if not all(parts) or len(parts) > len(section_names()):
        return None
    return tuple(int(part) if part.isdecimal() and part.isascii() and len(part) < 9 else part for part in parts)


def _parse_value(path: KeyPath, text: str) -> object:
    """None for an empty text. Raises ``ValueError`` for something that begins like TOML and is not."""
    if not text:
        return None
    quoted = text[0] in "\"'[{"
    if not quoted and _takes_only_text(path):
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        if quoted:
            raise
        return text
    value = parsed.pop("value")
    if parsed or isinstance(value, datetime.date | datetime.time):
        return text
    return value


def _takes_only_text(path: KeyPath) -> bool:
    try:
        schema = describe.property_schema(path)
    except KeyError:
        return False
    return schema.get("type") == "string" and "enum" not in schema


def _value_hint(text: str) -> str:
    if text.lstrip()[:1] in "\"'":
        return "close the quotes, and mind that the shell removes one pair"
    return "write a TOML value, in quotes for the shell: --set 'eval.prompts=[\"Hello\"]'"


def _apply(values: Values, override: Override) -> Problem | None:
    table: Any = values
    for position, part in enumerate(override.path[:-1]):
        made: Any = {}
        inner = table.setdefault(part, made) if isinstance(table, dict) else _element(table, part)
        if not isinstance(inner, dict | list):
            name = shown_path(override.path[: position + 1])
            return Problem(override.where, f"`{name}` is {_what(inner)}, not a section", "set it as a whole instead")
        table = cast(Any, inner)
    last = override.path[-1]
    if isinstance(table, list):
        elements = cast(list[object], table)
        if not isinstance(last, int) or last >= len(elements):
            return _no_element(override)
        elements[last] = override.value
    elif override.value is None:
        table.pop(last, None)
    else:
        table[str(last)] = override.value
    return None


def _element(table: list[object], part: str | int) -> object:
    return table[part] if isinstance(part, int) and part < len(table) else None


def _no_element(override: Override) -> Problem:
    name = shown_path(override.path[:-1])
    return Problem(override.where, f"`{name}` has no such element", f"set the list as a whole: --set '{name}=[...]'")


def _what(value: object) -> str:
    return "not there" if value is None else shown(value)


def _drop_excluded(values: Values, override: Override, given: set[KeyPath]) -> list[str]:
    notices: list[str] = []
    section = override.path[0]
    for name in EXCLUDES.get(override.path, ()):
        table = values[cast(str, section)]
        if name in table and (section, name) not in given:
            notices.append(f"{override.where} takes the place of {name} = {shown(table.pop(name))} in the file")
    return notices


def train_command(path: Path | None, overrides: Sequence[str], run: Path | None, more: Sequence[str] = ()) -> str:
    """The command that trains a recipe, with ``more`` options, quoted for a shell; where its folder ``run`` holds a run
    that they do not go on with, into another."""
    goes_on = {"--resume", "--fork", "--extend"} & set(more)
    changes = latest([*overrides, *(beside_run(run) if run and not goes_on else [])])
    options = [part for one in changes for part in ("--set", one)]
    return shlex.join(["mlxft", "train", str(path or "RECIPE"), *options, *more])

"""Every setting of a run: what was asked for, what was chosen and why, what is a default. Read from its TOML files."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

Origin = Literal["asked", "chosen", "default"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One key of resolved.toml with its value as TOML, "" where it is not set, and the reason written beside it."""

    section: str
    key: str
    value: str
    reason: str
    origin: Origin


def read_choices(resolved: str, recipe: str, overrides: Sequence[str]) -> list[Choice]:
    """The keys of ``resolved`` in their order; ``recipe`` and ``overrides`` are what was asked for."""
    asked = _asked_keys(recipe) | {override.partition("=")[0].strip() for override in overrides}
    found: list[Choice] = []
    section = ""
    for line in resolved.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            continue
        parsed = _parse(line)
        if parsed is None:
            continue
        key, value, reason = parsed
        is_asked = f"{section}.{key}".lstrip(".") in asked
        found.append(Choice(section, key, value, reason, "chosen" if reason else "asked" if is_asked else "default"))
    return found


def _parse(line: str) -> tuple[str, str, str] | None:
    """Key, value and reason of one line of ``recipe.resolve``; None where it is none."""
    if line.startswith("# ") and " is not set" in line:
        key, _, rest = line[2:].partition(" is not set")
        return key, "", rest.strip().lstrip("# ")
    key, equals, rest = line.partition(" = ")
    if not equals or line.startswith("#"):
        return None
    for value, reason in _splits(rest):
        try:
            tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            continue
        return key, value, reason
    return None


def _splits(text: str) -> Iterator[tuple[str, str]]:
    """Every way to read ``text`` as a value and a comment; a value may hold what looks like a comment."""
    place = text.find("  # ")
    while place >= 0:
        yield text[:place], text[place + 4 :]
        place = text.find("  # ", place + 1)
    yield text, ""


def _asked_keys(recipe: str) -> set[str]:
    """Dotted keys of a recipe; none where it cannot be read."""
    try:
        tables = tomllib.loads(recipe)
    except tomllib.TOMLDecodeError:
        return set()
    keys: set[str] = set()
    for name, value in tables.items():
        if isinstance(value, Mapping):
            keys |= {f"{name}.{key}" for key in cast("Mapping[str, object]", value)}
        else:
            keys.add(name)
    return keys

"""Problems found in data: short copies of values that are safe to print, and a list that counts what it leaves out.

A value from a file is never printed raw: it is cut to 60 characters, control characters, ANSI escapes and
direction marks are written as escapes, and anything that looks like a key or password is left out.
"""

import json
import re
from collections.abc import Sequence

from mlx_finetune.errors import DataError, Problem

SHOWN_PER_KIND = 5
MAX_KINDS = 200

_OTHERS = ""

_VARYING = re.compile(r'"(?:[^"\\]|\\.)*"|\b\d+\b|\.\.\.')
_SECRET_MARKS = ("sk-", "hf_", "ghp_", "github_pat_", "glpat-", "AKIA", "xox", "AIza", "PRIVATE KEY", "eyJ")
_SECRET = re.compile(
    r"\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bhf_[A-Za-z0-9]{30,}"
    r"|\bghp_[A-Za-z0-9]{36}|\bgithub_pat_\w{40,}|\bglpat-[\w-]{20}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\bxox[abeprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[0-9A-Za-z_-]{35}"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)


class RowError(DataError):
    """One row that does not fit the format of its file."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.where}: {problem.message}" if problem.where else problem.message, problem.hint)
        self.problem = problem


def has_secret(text: str) -> bool:
    """True where ``text`` holds something of the form of an API key, access token or private key."""
    for mark in _SECRET_MARKS:
        if mark in text:
            return _SECRET.search(text) is not None
    return False


def show(value: object, *, limit: int = 60) -> str:
    """A short copy of ``value`` as JSON on one line, printable characters only, in double quotes where it is a text."""
    if isinstance(value, str):
        if has_secret(value):
            return '"... (looks like a key, not shown)"'
        text = value if len(value) <= limit else value[:limit] + "..."
        return f'"{printable(text)}"'
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, dict):
        keys = [str(key) for key in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return f"an object with {show_names(keys)}" if keys else "an empty object"
    return f"a {type(value).__name__}"


def show_names(names: Sequence[str], *, limit: int = 8) -> str:
    """``a``, ``b`` and so on in backticks, at most ``limit`` of them."""
    shown = ", ".join(f"`{printable(name[:40])}`" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def printable(text: str) -> str:
    """``text`` with every character that a terminal could act upon written as an escape."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    if character == "\n":
        return "\\n"
    if character == "\t":
        return "\\t"
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Findings:
    """Collects problems; of each kind the first few are kept, the rest only counted.

    Two problems are of one kind when their messages differ only in numbers and quoted values. Memory is bounded: after
    ``MAX_KINDS`` kinds every further one is counted with the last.
    """

    def __init__(self, *, shown_per_kind: int = SHOWN_PER_KIND) -> None:
        self._shown_per_kind = shown_per_kind
        self._kept: dict[str, list[Problem]] = {}
        self._counts: dict[str, int] = {}
        self.count = 0

    def __call__(self, problem: Problem) -> None:
        """Take one problem."""
        self.add_counted([problem], 1)

    def add_counted(self, problems: Sequence[Problem], count: int) -> None:
        """Take ``count`` problems of one kind, of which ``problems`` are the first."""
        if not problems:
            return
        kind = _VARYING.sub("_", problems[0].message)
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            kind = _OTHERS
        kept = self._kept.setdefault(kind, [])
        kept.extend(problems[: max(0, self._shown_per_kind - len(kept))])
        self._counts[kind] = self._counts.get(kind, 0) + count
        self.count += count

    def problems(self) -> tuple[Problem, ...]:
        """The problems kept, kind by kind; the last of a kind says how many more there are, and what mends it."""
        found: list[Problem] = []
        for kind, kept in self._kept.items():
            rest = self._counts[kind] - len(kept)
            found += [Problem(problem.where, problem.message) for problem in kept[:-1]]
            more = f" (and {rest} more like it)" if rest else ""
            found.append(Problem(kept[-1].where, kept[-1].message + more, kept[-1].hint))
        return tuple(found)

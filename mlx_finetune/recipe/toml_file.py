"""A TOML file that a user wrote, as text and as values. Recipes and pipelines are read by it.

It is small and UTF-8, and holds nothing that misleads a reader or must stay secret. Every refusal names the line.
"""

import re
import stat
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from mlx_finetune.errors import Problem, RecipeError
from mlx_finetune.recipe.explain import Finding
from mlx_finetune.recipe.locate import locate_keys
from mlx_finetune.recipe.overrides import KeyPath, Values
from mlx_finetune.recipe.values import BIDI, TOKEN, shown, shown_path

MAX_BYTES = 1_000_000
TOKEN_HINT = "remove it and set the environment variable HF_TOKEN instead"
#: ``tomllib`` takes quadratic time for a dotted key of very many parts.
_MAX_DOTS_IN_A_LINE = 5_000
_LINE_IN_MESSAGE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _nearest(path: Path) -> Path | None:
    """A file that may have been meant: the same name in recipes/, else one with nearly that name there or beside it."""
    name = path.with_suffix(".toml").name
    for folder in (Path("recipes"), path.parent):
        if (folder / name) != path and (folder / name).is_file():
            return folder / name
    for folder in (path.parent, Path("recipes")):
        near = get_close_matches(name, [file.name for file in folder.glob("*.toml")], 1, cutoff=0.75)
        if near:
            return folder / near[0]
    return None


def read_text(path: Path, what: str = "recipe") -> str:
    """The text of a small UTF-8 file. Raises ``RecipeError`` with one sentence for anything else.

    ``what`` it should be is named there.
    """

    def refuse(message: str, hint: str = "", line: int = 0) -> RecipeError:
        return RecipeError([Problem(f"{path}:{line}" if line else str(path), message, hint)])

    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise refuse(f"is a folder, not a {what}", "name the .toml file in it")
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is not a regular file", f"save the {what} as a .toml file")
        if status.st_size > MAX_BYTES:
            size = f"{status.st_size / 1e6:.1f} MB"
            raise refuse(f"has {size}; a {what} has at most 1 MB", "put training data in a file of its own")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = _nearest(path)
        hint = f"did you mean {near}?" if near else "`mlxft recipe list` shows the recipes there are"
        raise refuse("there is no such file", hint) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the name cannot be used"
        raise refuse(f"cannot be read: {reason}", "check the name and its permissions") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise refuse("begins with a byte order mark", "save it as UTF-8 without a byte order mark", 1)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise refuse("is not UTF-8 text", "save it as UTF-8", line) from None
    text = text.replace("\r\n", "\n")
    problems = list(_unsafe_text(text, str(path)))
    if problems:
        raise RecipeError(problems)
    return text


def _unsafe_text(text: str, path: str) -> Iterator[Problem]:
    """Lines with characters or words that must not be in a recipe, whether in a value, a key or a comment."""
    if TOKEN.search(text) or BIDI.search(text) or "\x00" in text or text.count(".") > _MAX_DOTS_IN_A_LINE:
        for number, line in enumerate(text.split("\n"), start=1):
            where = f"{path}:{number}"
            if TOKEN.search(line):
                yield Problem(where, "an access token does not belong in a recipe", TOKEN_HINT)
            if BIDI.search(line):
                name = f"U+{ord(BIDI.search(line).group()):04X}"  # pyright: ignore[reportOptionalMemberAccess]
                yield Problem(where, f"holds {name}, which reorders the text around it", "remove that character")
            if "\x00" in line:
                yield Problem(where, "holds a NUL byte", "remove it; a recipe is plain text")
            if line.count(".") > _MAX_DOTS_IN_A_LINE:
                yield Problem(where, f"has more than {_MAX_DOTS_IN_A_LINE} dots", "break the text into several lines")


def parse_toml(text: str, path: str) -> Values:
    """The values in ``text``. Raises ``RecipeError`` with the line of ``path`` where it is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError([_syntax_problem(str(error), text, path)]) from None
    except RecursionError:
        raise RecipeError([Problem(path, "is nested too deeply", "a recipe has sections and keys, no more")]) from None
    except ValueError:
        # Python refuses to convert integers of more than 4300 digits, and dates such as 2024-02-31.
        line = _line_of_strange_number(text)
        raise RecipeError([Problem(f"{path}:{line}", "holds a number or date that cannot be", "correct it")]) from None


def _line_of_strange_number(text: str) -> int:
    """The first line without which the text before it still parses: found by halving."""
    lines = text.split("\n")
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            tomllib.loads("\n".join(lines[:middle]))
            low = middle
        except tomllib.TOMLDecodeError:
            low = middle  # cut inside a value: the trouble comes later
        except ValueError:
            high = middle
    return high


def _syntax_problem(message: str, text: str, path: str) -> Problem:
    match = _LINE_IN_MESSAGE.search(message)
    reason = message[: match.start()] if match else message
    last = text.count("\n", 0, len(text.rstrip())) + 1
    line = int(match.group(1)) if match and match.group(1) else last
    lines = text.split("\n")
    known = locate_keys("\n".join(lines[:line]))
    repeated = known.repeated()
    if repeated is None and reason.startswith(("Cannot declare", "Cannot mutate")) and known.written:
        name = known.written[-1][0]
        repeated = (name, known.line_of(name) or line, line)
    if repeated is not None:
        name, first, second = repeated
        lines_text = f"lines {first} and {second}" if first != second else f"line {first}"
        return Problem(f"{path}:{second}", f"`{shown_path(name)}` is written twice, on {lines_text}", "keep one")
    return Problem(
        f"{path}:{line}", f"is not valid TOML: {reason[:1].lower()}{reason[1:]}", _syntax_hint(lines[line - 1])
    )


def _syntax_hint(line: str) -> str:
    """One fix for the usual slips: values as in Python or YAML, text without quotes, a Windows path."""
    key, equals, value = line.partition("=")
    value = value.partition("#")[0].strip()
    if not equals:
        name, colon, rest = line.partition(":")
        if colon and re.fullmatch(r"\s*[\w.-]+\s*", name):
            return f"TOML writes {name.strip()} = {shown(rest.strip()) if rest.strip() else '...'}"
        return "a line is a [section], a key = value, or a # comment"
    if value in ("True", "False"):
        return f"write {key.strip()} = {value.lower()}"
    if value in ("None", "null", "nil", "~", ""):
        return f"leave {key.strip()} out"
    if value.count('"') % 2 or (value.count("'") % 2 and '"' not in value):
        return "close the quotes; text over several lines stands between three quotes"
    if "\\" in value:
        return "write a path with / or in single quotes"
    if re.fullmatch(r"[A-Za-z./~][^\"'\[\]{}]*", value):
        return f"write {key.strip()} = {shown(value)}"
    return "check the quotes, brackets and commas of this line"


def strings_of(values: object) -> Iterator[tuple[KeyPath, str]]:
    """Every text in ``values``, keys included, with its path; without recursion, for any depth."""
    rest: list[tuple[KeyPath, object]] = [((), values)]
    while rest:
        path, value = rest.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
                inner = (*path, str(key)) if len(path) < 8 else path  # pyright: ignore[reportUnknownArgumentType]
                yield inner, str(key)  # pyright: ignore[reportUnknownArgumentType]
                rest.append((inner, item))
        elif isinstance(value, list):
            rest += [((*path, index) if len(path) < 8 else path, item) for index, item in enumerate(value)]  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]


def unsafe_strings(values: Values) -> list[Finding]:
    r"""Texts with control characters; escapes such as \u0000 bring in what the text of the file does not show."""
    findings: list[Finding] = []
    for path, text in strings_of(values):
        found = _CONTROL.search(text) or BIDI.search(text)
        if found:
            character = f"U+{ord(found.group()):04X}"
            message = f"`{shown_path(path)}` holds the control character {character}"
            findings.append(Finding(path, message, "remove that character"))
        if TOKEN.search(text):
            message = f"`{shown_path(path)}`: an access token does not belong in a recipe"
            findings.append(Finding(path, message, TOKEN_HINT))
    return findings

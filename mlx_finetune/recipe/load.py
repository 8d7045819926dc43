"""TOML and ``--set`` overrides to one ``Recipe``; every problem located, all of them at once, in file order.

Reads at most 1 MB, runs nothing, expands nothing: ``${NAME}`` stays as it is written. A recipe is copied into
the run folder and shared, so an access token anywhere in it is refused, and never repeated in the message.
"""

import re
import shlex
import stat
import tomllib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_finetune.errors import MlxftError, Problem, RecipeError
from mlx_finetune.recipe.explain import Finding, KeyPath, check
from mlx_finetune.recipe.locate import locate_keys
from mlx_finetune.recipe.overrides import Override, apply_overrides, parse_overrides
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.recipe.values import BIDI, TOKEN, shown, shown_path

MAX_BYTES = 1_000_000
#: ``tomllib`` takes quadratic time for a dotted key of very many parts.
_MAX_DOTS_IN_A_LINE = 5_000
_LINE_IN_MESSAGE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_VARIABLE = re.compile(r"\$\{\w+\}")

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A checked recipe, the text of its file, and the overrides that were applied to it.

    ``notices`` are sentences for the user: keys that an override replaced, text that looks like a variable and is not.
    """

    recipe: Recipe
    text: str
    path: Path
    overrides: tuple[str, ...]
    notices: tuple[str, ...] = ()

    def command(self, name: str) -> str:
        """``mlxft NAME RECIPE`` with the overrides, quoted for a shell."""
        options = [part for one in self.overrides for part in ("--set", one)]
        return shlex.join(["mlxft", name, str(self.path), *options])


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in ``path`` with ``overrides`` applied. Raises ``RecipeError`` with every problem, in file order."""
    text = _read(path)
    parsed, problems = parse_overrides(overrides)
    problems += [
        Problem("--set", "an access token does not belong in a recipe", _TOKEN_HINT)
        for override in overrides
        if TOKEN.search(override)
    ]
    values = _parse(text, str(path))
    notices, more = apply_overrides(values, parsed)
    problems += more
    findings = _unsafe_strings(values)
    result = check(values)
    if isinstance(result, Recipe) and not findings and not problems:
        return LoadedRecipe(result, text, path, tuple(overrides), (*notices, *_variables(values)))
    if not isinstance(result, Recipe):
        bad = {finding.path for finding in findings}
        findings += [finding for finding in result if finding.path not in bad]
    raise RecipeError(_located(findings, text, str(path), parsed) + problems)


def locate_findings(findings: Sequence[Finding], loaded: LoadedRecipe) -> list[Problem]:
    """What is found wrong with a recipe that was loaded, with the line or the override it belongs to."""
    return _located(findings, loaded.text, str(loaded.path), parse_overrides(loaded.overrides)[0])


def name_recipe(hint: str, path: Path, overrides: Sequence[str]) -> str:
    """``hint`` with the word RECIPE of its commands replaced by ``path`` and its ``--set`` options, to be typed."""
    typed = shlex.join([str(path), *(part for one in overrides for part in ("--set", one))])
    return re.sub(r"\bRECIPE\b", lambda _: typed, hint)


@contextmanager
def naming_recipe(path: Path, overrides: Sequence[str]) -> Generator[None]:
    """Inside, the hint of an error names the recipe that the command at hand was given (``name_recipe``)."""
    try:
        yield
    except MlxftError as error:
        error.hint = name_recipe(error.hint, path, overrides)
        raise


_TOKEN_HINT = "remove it and set the environment variable HF_TOKEN instead"


# --- the file ---


def _read(path: Path) -> str:
    """The text of a small UTF-8 file. Raises ``RecipeError`` with one sentence for anything else."""

    def refuse(message: str, hint: str = "", line: int = 0) -> RecipeError:
        return RecipeError([Problem(f"{path}:{line}" if line else str(path), message, hint)])

    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise refuse("is a folder, not a recipe", "name the .toml file in it")
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is not a regular file", "save the recipe as a .toml file")
        if status.st_size > MAX_BYTES:
            size = f"{status.st_size / 1e6:.1f} MB"
            raise refuse(f"has {size}; a recipe has at most 1 MB", "put training data in a file of its own")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = Path("recipes", path.name).with_suffix(".toml")
        is_name = near != path and near.is_file()
        hint = f"did you mean {near}?" if is_name else "`mlxft recipe list` shows the recipes there are"
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
                yield Problem(where, "an access token does not belong in a recipe", _TOKEN_HINT)
            if BIDI.search(line):
                name = f"U+{ord(BIDI.search(line).group()):04X}"  # pyright: ignore[reportOptionalMemberAccess]
                yield Problem(where, f"holds {name}, which reorders the text around it", "remove that character")
            if "\x00" in line:
                yield Problem(where, "holds a NUL byte", "remove it; a recipe is plain text")
            if line.count(".") > _MAX_DOTS_IN_A_LINE:
                yield Problem(where, f"has more than {_MAX_DOTS_IN_A_LINE} dots", "break the text into several lines")


def _parse(text: str, path: str) -> Values:
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


# --- what the values hold ---


def _strings(values: object) -> Iterator[tuple[KeyPath, str]]:
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


def _unsafe_strings(values: Values) -> list[Finding]:
    r"""Texts with control characters; escapes such as \u0000 bring in what the text of the file does not show."""
    findings: list[Finding] = []
    for path, text in _strings(values):
        found = _CONTROL.search(text) or BIDI.search(text)
        if found:
            character = f"U+{ord(found.group()):04X}"
            message = f"`{shown_path(path)}` holds the control character {character}"
            findings.append(Finding(path, message, "remove that character"))
        if TOKEN.search(text):
            message = f"`{shown_path(path)}`: an access token does not belong in a recipe"
            findings.append(Finding(path, message, _TOKEN_HINT))
    return findings


def _variables(values: Values) -> list[str]:
    return [
        f"`{shown_path(path)}` = {shown(text)}: ${{...}} is not expanded in a recipe and stands as it is written"
        for path, text in _strings(values)
        if _VARIABLE.search(text)
    ]


# --- where it stands ---


def _located(findings: Sequence[Finding], text: str, path: str, overrides: Sequence[Override]) -> list[Problem]:
    """Problems of the file by line, then those of the overrides in their order."""
    lines = locate_keys(text)
    in_file: list[tuple[int, Problem]] = []
    from_override: list[tuple[int, Problem]] = []
    for finding in findings:
        index = _override_of(finding.path, overrides, is_written=finding.path in lines.first)
        if index is None:
            line = lines.line_of(finding.path) or 1
            in_file.append((line, Problem(f"{path}:{line}", finding.message, finding.hint)))
        else:
            from_override.append((index, Problem(overrides[index].where, finding.message, finding.hint)))
    in_file.sort(key=lambda pair: pair[0])
    from_override.sort(key=lambda pair: pair[0])
    return [problem for _, problem in in_file] + [problem for _, problem in from_override]


def _override_of(path: KeyPath, overrides: Sequence[Override], *, is_written: bool) -> int | None:
    """The override ``path`` came from: the last that sets it or what contains it, else one that made its section."""
    numbered = list(enumerate(overrides))[::-1]
    for index, override in numbered:
        if path[: len(override.path)] == override.path:
            return index
    if path and not is_written:
        return next((index for index, override in numbered if override.path[: len(path)] == path), None)
    return None

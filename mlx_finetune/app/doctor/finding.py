"""A finding of the doctor, and the words in which a user types its remedy on this machine."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: A blocker stops training, a warning makes it slower or may stop it later, a note is only worth knowing.
Level = Literal["blocker", "warning", "note"]
LEVELS: tuple[Level, ...] = ("blocker", "warning", "note")

_QUICKSTART = "recipes/quickstart.toml"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know: what, and what to type about it."""

    level: Level
    message: str
    command: str


@dataclass(frozen=True, slots=True)
class Typed:
    """How this user calls things. ``mlxft`` is the command as they type it, ``python`` the one that runs now, both
    quoted for a shell; ``root`` is the checkout, "" where there is none; ``is_own`` says that Python is the checkout's.
    ``base`` is the folder that they type in, "" where that is not known: then every path is whole.
    """

    mlxft: str
    python: str
    root: str
    is_own: bool
    base: str
    tools: str

    def path(self, path: str) -> str:
        """``path`` as it is typed from the current folder, quoted."""
        return _typed_path(Path(path), Path(self.base) if self.base else None)

    def command(self, text: str) -> str:
        """``text`` with every ``mlxft`` in it as this user types it, from another folder by its whole path."""
        away = shlex.quote(f"{self.root}/launchers/mlxft") if self.mlxft.startswith("./") else self.mlxft
        typed = away if text.startswith("cd ") else self.mlxft
        return re.sub(r"(?<![\w./-])mlxft(?= [a-z])", lambda _: typed, text)

    def rebuild(self, *, prefix: str = "") -> str:
        """The command that makes the environment anew; ``prefix`` goes before the launcher."""
        if self.is_own:
            launcher = self.path(f"{self.root}/launchers/mlxft")
            return f"rm -r {self.path(f'{self.root}/.venv')} && {prefix}{launcher} doctor"
        if self.root:
            return f"{prefix}{self.path(f'{self.root}/launchers/mlxft')} doctor"
        return f"{prefix}{self.python} -m pip install --force-reinstall mlx-finetune"

    def install(self, requirements: Sequence[str]) -> str:
        """The command that installs packages again: the whole environment where it is ours, else they alone."""
        if self.is_own:
            return self.rebuild()
        return f"{self.python} -m pip install --force-reinstall {shlex.join(requirements)}"

    def train(self, recipe: str) -> str:
        """The command that trains from ``recipe``, or from the quickstart's for ""; it can be typed as it is."""
        if recipe:
            return f"{self.mlxft} train {shlex.quote(recipe)}"
        if self.base and os.path.isfile(os.path.join(self.base, _QUICKSTART)):
            return f"{self.mlxft} train {_QUICKSTART}"
        if self.root:
            return f"cd {shlex.quote(self.root)} && ./launchers/mlxft train {_QUICKSTART}"
        return f"{self.mlxft} recipe copy quickstart mine.toml && {self.mlxft} train mine.toml"

    def tool(self, name: str) -> str:
        """A program of the environment, such as ``hf``, which the launcher does not put on PATH."""
        return self.path(f"{self.tools}/{name}")


def how_to_type(
    *,
    package: Path,
    base: Path | None,
    argv0: str = sys.argv[0],
    prefix: str = sys.prefix,
    python: str = sys.executable,
    which: Callable[[str], str | None] = shutil.which,
) -> Typed:
    """How this user calls mlxft: ``mlxft`` where the shell would find it, else the launcher beside ``package``.

    An alias cannot be seen from here; then the launcher's path is right as well. ``base`` is None for a window that was
    opened by a double-click, as what is copied from there is typed in another.
    """
    root = package.parent if os.path.isfile(package.parent / "launchers" / "mlxft") else None
    if which("mlxft"):
        mlxft = "mlxft"
    elif root is not None:
        mlxft = _typed_path(root / "launchers" / "mlxft", base)
    elif Path(argv0).name == "mlxft":
        mlxft = shlex.quote(argv0)
    else:
        mlxft = f"{shlex.quote(python)} -m mlx_finetune"
    is_own = root is not None and os.path.realpath(prefix) == os.path.realpath(root / ".venv")
    return Typed(
        mlxft=mlxft,
        python=_typed_path(Path(python), base),
        root="" if root is None else str(root),
        is_own=is_own,
        base="" if base is None else str(base),
        tools=str(Path(python).parent),
    )


def _typed_path(path: Path, base: Path | None) -> str:
    if base is None or not path.is_relative_to(base):
        return shlex.quote(str(path))
    inner = str(path.relative_to(base))
    return shlex.quote(f"./{inner}" if inner.startswith(("launchers/", "-")) else inner)


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Blockers first, notes last; of equal findings one."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: LEVELS.index(finding.level)))


def verdict(findings: Sequence[Finding], next_command: str) -> str:
    """The last line: what keeps from training, or the next command."""
    counts: Mapping[str, int] = {level: sum(one.level == level for one in findings) for level in LEVELS}
    if counts["blocker"]:
        return f"{counts['blocker']} blocker{'s' if counts['blocker'] > 1 else ''} to mend before training."
    said = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    told = f" ({', '.join(said)})" if said else ""
    return f"Ready to train{told}. Next: {next_command}"

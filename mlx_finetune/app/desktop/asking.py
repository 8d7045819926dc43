"""Questions to a person: a dialog of the system where there is one, else a numbered menu in the window.

Texts reach ``osascript`` as arguments and never as part of a script, so a name cannot become code. A dialog that was
cancelled raises ``Cancelled``; one that cannot be shown (no login at the screen, automation forbidden) falls back to
the window and says so.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mlx_finetune.app.desktop.desk import Cancelled, Desk
from mlx_finetune.app.desktop.typed import is_unfinished, typed_paths
from mlx_finetune.app.text import shorten
from mlx_finetune.recipe.values import BIDI

_TITLE = "mlxft"
_CANCELLED = "-128"
_LIST = (
    """on run argv
set {theTitle, thePrompt, theKind} to items 1 thru 3 of argv
set theLabels to items 4 thru -1 of argv
set isMany to (theKind is "many")
set theFirst to {item 1 of theLabels}
set answer to choose from list theLabels with title theTitle with prompt thePrompt default items theFirst """
    """multiple selections allowed isMany
if answer is false then return "false"
set AppleScript's text item delimiters to linefeed
return answer as text
end run"""
)
_FILE = """on run argv
return POSIX path of (choose file with prompt (item 2 of argv))
end run"""
_FOLDER = """on run argv
return POSIX path of (choose folder with prompt (item 2 of argv))
end run"""
#: A notification with the title and the text that follow.
NOTIFY = """on run argv
display notification (item 2 of argv) with title (item 1 of argv)
end run"""
_NUMBER = re.compile(r"\s*(\d+)\b")
MAX_TRIES = 20  # of a question that gets no usable answer, for a window in which somebody leans on a key


def one_line(text: str, width: int = 72) -> str:
    """``text`` as it may stand in a menu: one line, no control characters, none that reorder it."""
    return shorten(BIDI.sub("", text), width)


def choose(desk: Desk, prompt: str, labels: Sequence[str], *, paths: str = "") -> int | Path:
    """The index of the label that was chosen; with ``paths`` (what may be dragged in, a noun) a path is taken too.

    Raises ``Cancelled``.
    """
    if (picked := _dialog(desk, prompt, labels, is_many=False)) is not None:
        return picked[0]
    _show_menu(desk, prompt, labels)
    drag = f", or drag {paths} into this window" if paths else ""
    for _ in range(MAX_TRIES):
        line = _line(desk, f"Number (Return: 1){drag}: ")
        if not line.strip():
            return 0
        if (number := _number(line, len(labels))) is not None:
            return number
        if paths and (found := _existing(line, desk)):
            return found[0]
        desk.say(f"  {one_line(line, 60)!r} is no number from 1 to {len(labels)}{' and no file' if paths else ''}")
    raise Cancelled


def choose_several(desk: Desk, prompt: str, labels: Sequence[str], *, paths: str) -> list[int | Path]:
    """Several labels or paths, in the order in which they were given, at least one. Raises ``Cancelled``."""
    if (picked := _dialog(desk, prompt, labels, is_many=True)) is not None:
        return list(picked)
    _show_menu(desk, prompt, labels)
    for _ in range(MAX_TRIES):
        line = _line(desk, f"Numbers such as 1 3 (Return: 1), or drag {paths} into this window: ")
        if not line.strip():
            return [0]
        numbers = [_number(word, len(labels)) for word in re.split(r"[\s,]+", line.strip())]
        if all(number is not None for number in numbers):
            return [number for number in dict.fromkeys(numbers) if number is not None]
        if found := _existing(line, desk):
            return list(found)
        desk.say(f"  {one_line(line, 60)!r}: give numbers from 1 to {len(labels)}, or files")
    raise Cancelled


def confirm(desk: Desk, question: str, *, default: bool = True) -> bool:
    """Yes or no, asked in the window, where the facts stand that it is about. Raises ``Cancelled``."""
    for _ in range(MAX_TRIES):
        answer = _line(desk, f"{question} [{'Y/n' if default else 'y/N'}] ").strip().casefold()
        if not answer:
            return default
        if answer in ("y", "yes", "j", "ja"):
            return True
        if answer in ("n", "no", "nein"):
            return False
        desk.say("  y or n")
    raise Cancelled


def ask_path(desk: Desk, prompt: str, kind: Literal["file", "folder"]) -> Path:
    """An existing file or folder: from a dialog, or dragged or typed into the window. Raises ``Cancelled``."""
    if desk.has_dialogs:
        ran = desk.program(["osascript", "-e", _FILE if kind == "file" else _FOLDER, _TITLE, prompt])
        if ran is not None and ran.code == 0 and ran.out.strip("\n"):
            return Path(ran.out.removesuffix("\n"))
        _refuse_cancelled(ran)
        desk.say("(no dialog could be shown; asking here)")
    for _ in range(MAX_TRIES):
        line = _line(desk, f"{prompt} (drag it into this window, or type its path): ")
        if not line.strip():
            raise Cancelled
        if found := _existing(line, desk):
            return found[0]
        desk.say(f"  there is no {kind} {one_line(line, 60)!r}")
    raise Cancelled


def ask_text(desk: Desk, prompt: str) -> str:
    """One line of text, stripped; empty where Return was pressed alone. Raises ``Cancelled``."""
    return desk.ask(prompt).strip()


def _dialog(desk: Desk, prompt: str, labels: Sequence[str], *, is_many: bool) -> list[int] | None:
    """Indices from a list dialog, None where none can be shown. Numbers in front make labels unique."""
    if not desk.has_dialogs:
        return None
    numbered = [f"{index}  {one_line(label, 100)}" for index, label in enumerate(labels, start=1)]
    ran = desk.program(["osascript", "-e", _LIST, _TITLE, prompt, "many" if is_many else "one", *numbered])
    _refuse_cancelled(ran)
    if ran is not None and ran.code == 0:
        picked = [_number(line, len(labels)) for line in ran.out.splitlines() if line.strip()]
        if picked and all(number is not None for number in picked):
            return [number for number in picked if number is not None]
    desk.say("(no dialog could be shown; asking here)")
    return None


def _refuse_cancelled(ran: object) -> None:
    """Raise ``Cancelled`` for ``false`` (a list that was closed) and for error -128 (another dialog that was)."""
    from mlx_finetune.app.desktop.desk import Ran

    if isinstance(ran, Ran) and (ran.out.strip() == "false" or (ran.code and _CANCELLED in ran.err)):
        raise Cancelled


def _show_menu(desk: Desk, prompt: str, labels: Sequence[str]) -> None:
    desk.say(f"\n{prompt}")
    width = len(str(len(labels)))
    for index, label in enumerate(labels, start=1):
        desk.say(f"  {index:>{width}}  {one_line(label)}")


def _line(desk: Desk, prompt: str) -> str:
    line = desk.ask(prompt)
    while is_unfinished(line):
        line += "\n" + desk.ask("")
    return line


def _number(text: str, largest: int) -> int | None:
    """The index that the number at the front of ``text`` means; None for a path that begins with a digit."""
    match = _NUMBER.match(text)
    if match is None or len(match[1]) > 6:
        return None
    rest = text[match.end() :]
    number = int(match[1])
    return number - 1 if 1 <= number <= largest and (not rest.strip() or rest.startswith("  ")) else None


def _existing(line: str, desk: Desk) -> list[Path]:
    """The paths of the line, if all of them are there."""
    paths = typed_paths(line, desk.folder)
    try:
        return paths if all(path.exists() for path in paths) else []
    except (OSError, ValueError):
        return []

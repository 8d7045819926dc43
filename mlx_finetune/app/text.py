"""Text between a person, a model and a terminal: input of several lines, control characters, two columns."""

import io

from mlx_finetune.recipe.values import BIDI

MIN_SIDE_BY_SIDE = 80
_QUOTES = '"""'


def needs_more(text: str) -> bool:
    """True while an input goes on in the next line: an open triple quote, or a backslash at the end.

    The quotes may follow a slash command.
    """
    _, body = _after_command(text)
    if body.startswith(_QUOTES):
        return text.count(_QUOTES) < 2
    return text.endswith("\\")


def join_input(text: str) -> str:
    """The text that was meant: without triple quotes around it, and without backslashes before line ends."""
    command, body = _after_command(text)
    bare = body.strip()
    if bare.startswith(_QUOTES) and bare.count(_QUOTES) >= 2:
        return command + bare.removeprefix(_QUOTES).partition(_QUOTES)[0].strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\")


def _after_command(text: str) -> tuple[str, str]:
    """The slash command at the front with the blank after it, and what follows; "" and the text without one."""
    bare = text.lstrip()
    command, blank, body = bare.partition(" ")
    return (command + blank, body.lstrip()) if bare.startswith("/") and blank else ("", bare)


def printable(text: str) -> str:
    """``text`` without what a terminal would obey: control characters and marks that turn the writing direction.

    Line ends and tabs stay.
    """
    bare = "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))
    return BIDI.sub("", bare)


def shorten(text: str, width: int = 70) -> str:
    """``text`` on one line of at most ``width`` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 3] + "..."


def shorten_place(where: str, width: int) -> str:
    """``FILE:LINE`` on one line of at most ``width`` characters, without the front of a long path."""
    line = " ".join(printable(where).split())
    return line if len(line) <= width else "..." + line[3 - width :]


def side_by_side(left: tuple[str, str], right: tuple[str, str], *, width: int) -> list[str]:
    """Two titled texts in two columns of a terminal at least 80 wide, else one after the other."""
    if width < MIN_SIDE_BY_SIDE:
        return [
            line
            for title, text in (left, right)
            for line in (f"--- {title} ---", *printable(text).strip().splitlines(), "")
        ]
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="none")
    for title, _ in (left, right):
        table.add_column(f"--- {title} ---", ratio=1, overflow="fold")
    table.add_row(*(Text(printable(text).strip()) for _, text in (left, right)))
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, force_terminal=False, highlight=False).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]

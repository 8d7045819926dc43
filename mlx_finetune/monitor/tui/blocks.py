"""Blocks of lines: titled, beside each other, wrapped. A line is a rich Text; text of others is shown as it is.

Nothing here reads markup or escapes: what is not printable (control characters, marks that turn the writing direction)
becomes a blank.
"""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

Lines = list[Text]

_FULL, _HALF, _LEFT = "\u2501", "\u2578", "\u2500"
_CONSOLE = Console(file=io.StringIO(), width=80)  # only to wrap with


def plain(text: str) -> str:
    """``text`` with its line ends, every other character that is not printable a blank."""
    return "".join(char if char == "\n" or char.isprintable() else " " for char in text.replace("\t", "    "))


def fit(line: Text, width: int) -> Text:
    """The line, cut with an ellipsis where it is wider than ``width`` cells."""
    line = line.copy()
    line.truncate(width, overflow="ellipsis")
    return line


def wrap(text: Text | str, width: int, *, indent: str = "", style: str = "") -> Lines:
    """``text`` on as many lines of ``width`` cells as it needs, those after the first behind ``indent``."""
    given = Text(plain(text), style) if isinstance(text, str) else text
    room = max(8, width - len(indent))
    wrapped = list(given.wrap(_CONSOLE, room)) or [Text("")]
    return [line if not number else Text.assemble(indent, line) for number, line in enumerate(wrapped)]


def most(lines: Lines, count: int, *, width: int) -> Lines:
    """The first ``count`` lines; an ellipsis at the end of the last says that there are more."""
    if len(lines) <= count:
        return lines
    last = lines[count - 1].copy()
    last.truncate(max(1, width - 4))
    return [*lines[: count - 1], last.append(" ...", "dim")] if count > 0 else []


def title(text: str, width: int, more: str = "", *, legend: Text | None = None) -> Text:
    """A heading that is a rule as well; ``more`` is said at its right end where there is room."""
    line = Text.assemble((_LEFT * 2, "dim"), " ", (text, "bold"), " ")
    if legend is not None:
        line.append(_LEFT * 2, "dim").append(" ").append_text(legend)
    room = width - line.cell_len
    if more and len(more) + 4 <= room:
        return line.append(_LEFT * (room - len(more) - 3), "dim").append(f" {more} {_LEFT}", "dim")
    return line.append(_LEFT * max(0, room), "dim")


def bar(share: float, width: int, style: str = "cyan") -> Text:
    """A share of 1 as a bar of ``width`` cells."""
    filled = max(0.0, min(1.0, share)) * width
    whole = int(filled)
    part = _HALF if filled - whole >= 0.5 else ""
    return Text.assemble((_FULL * whole + part, style), (_LEFT * (width - whole - len(part)), "dim"))


def beside(blocks: Sequence[tuple[Lines, int]], *, gap: int = 2) -> Lines:
    """Blocks of lines in columns; each comes with the width it is cut and filled up to."""
    height = max(len(lines) for lines, _ in blocks)
    rows: Lines = []
    for row in range(height):
        line = Text(end="")
        for number, (lines, width) in enumerate(blocks):
            cell = fit(lines[row], width) if row < len(lines) else Text("")
            line.append_text(cell)
            if number < len(blocks) - 1:
                line.append(" " * (width - cell.cell_len + gap))
        rows.append(line)
    return rows


def filled(lines: Lines, height: int) -> Lines:
    """Exactly ``height`` lines: cut, or with empty ones below."""
    return [*lines[:height], *(Text("") for _ in range(height - len(lines)))]


def flow(parts: Sequence[Text | str], width: int, *, gap: str = "   ") -> Lines:
    """Short parts one after the other, on as many lines as they need."""
    lines: Lines = []
    for part in parts:
        piece = Text(part) if isinstance(part, str) else part
        if lines and lines[-1].cell_len + len(gap) + piece.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], gap, piece)
        else:
            lines.append(piece.copy())
    return lines

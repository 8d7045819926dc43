"""HTML from plain text. A string is text: it is escaped wherever it stands, and only ``Html`` is taken as it is.

Training text may hold anything. Control characters and characters that reorder the text around them are shown as
escapes; access tokens are left out.
"""

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from mlx_finetune.dataset.visible import harmless
from mlx_finetune.recipe.values import without_tokens

_MOST_NARROW = 3  # columns that stand side by side on any page
_VOID = frozenset({"br", "col", "input", "meta"})
#: What a page or a reader could be misled by: control characters, line ends of other systems, characters that turn the
#: direction of the text around them, halves of characters. Blanks and joiners of other scripts are not among them.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


@dataclass(frozen=True, slots=True)
class Html:
    """Markup that was made here."""

    text: str


Child = Html | str | None


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element. ``class_`` is class, ``data_step`` is data-step; None and False are left out, True has no value."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(attribute if value is True else f'{attribute}="{html.escape(printable(str(value)))}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if name in _VOID else f"{opening}{joined(children).text}</{name}>")


def joined(children: Iterable[Child]) -> Html:
    """One after the other."""
    return Html("".join(child.text if isinstance(child, Html) else escaped(child) for child in children if child))


def escaped(text: str) -> str:
    """``text`` as it stands between two tags."""
    return html.escape(printable(text), quote=False)


def printable(text: str) -> str:
    """``text`` with every character that would not be seen, or would reorder others, as an escape; without tokens."""
    return without_tokens(_HARMFUL.sub(lambda found: harmless(found[0]), text))


def foreign(text: str, most: int = 400) -> Html:
    """At most ``most`` characters of text that somebody else wrote; its direction touches nothing around it."""
    return tag("bdi", cut(text, most))


def cut(text: str, most: int) -> str:
    """The beginning of ``text``, with the number of characters that are left out."""
    text = without_tokens(text)  # before it is shortened, or half of one would survive
    return text if len(text) <= most else f"{text[:most]} ... ({len(text) - most:,} more characters)"


def code(text: str, most: int = 400) -> Html:
    """A name, a value or a command."""
    return tag("code", foreign(text, most))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], class_: str | None = None) -> Html:
    """A table. On a narrow page each row of one with many columns is a block of named cells (report.css)."""
    heads = list(head)
    is_wide = len(heads) > _MOST_NARROW
    names = [tag("span", one, class_="name") if one and is_wide else None for one in heads]
    body = [tag("tr", *map(_cell, row, names)) for row in rows]
    heading = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in heads)))
    classes = " ".join(filter(None, (class_, "wide" if is_wide else ""))) or None
    return tag("div", tag("table", heading, tag("tbody", *body), class_=classes), class_="scroll")


def _cell(cell: Child, name: Html | None) -> Html:
    """With the name of its column, which only a narrow page shows; the name is no attribute, as others may write it."""
    return tag("td", name if cell else None, cell)


def details(summary: Child, *children: Child) -> Html:
    """Closed until somebody opens it; printed open (see report.css)."""
    return tag("details", tag("summary", summary), *children)


def section(name: str, title: str, *children: Child) -> Html:
    """A part of the page; ``name`` is its anchor."""
    return tag("section", tag("h2", title), *children, id=name)


def moment(seconds: float) -> Html:
    """A time of the journal in UTC; the page's script turns it into the reader's own."""
    try:
        when = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return Html("")
    return tag("time", f"{when:%Y-%m-%d %H:%M} UTC", datetime=f"{when:%Y-%m-%dT%H:%M:%SZ}")


def older_note(other_weights: str) -> Html | None:
    """That a measurement is of weights that the run has no more, as ``of_other_step`` says it; None where it is not."""
    return tag("p", f"{other_weights[0].upper()}{other_weights[1:]}.", class_="note") if other_weights else None

"""The token microscope: what was learned, what was known before, what is still wrong, token by token.

``verdict`` is the whole judgement; its two thresholds stand at the top and are told in every legend. Colours are blue,
orange and purple, which people who confuse red and green can tell apart, and each comes with another underline; without
colours groups of tokens stand in marks. Token texts are shown with ``dataset.visible.harmless`` and escaped.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from mlx_finetune.dataset.token_losses import Measured, Microscope, Row, Token, read_microscope
from mlx_finetune.dataset.visible import harmless
from mlx_finetune.units import counted

if TYPE_CHECKING:
    from rich.text import Text

__all__ = [
    "STYLE",
    "Measured",
    "Microscope",
    "Row",
    "Token",
    "read_microscope",
    "render_html",
    "render_text",
    "verdict",
]

Verdict = Literal["learned", "known", "wrong", "worse", "context"]

#: A token whose probability became at least twice or at most half of what it was has moved.
MOVED_NATS = math.log(2)
#: A token with a probability below one in four is wrong.
WRONG_NATS = math.log(4)
#: From which distance on a shade is the second and the third.
_SHADES = (1.5, 3.0)

#: What each verdict means, in the order in which they are shown.
MEANINGS: Mapping[Verdict, str] = {
    "learned": "at least twice as likely as before, and now 1 in 4 or more",
    "known": "likely before and now",
    "wrong": "still less likely than 1 in 4",
    "worse": "at most half as likely as before",
    "context": "only read, nothing of it was trained",
}
_STYLES: Mapping[Verdict, tuple[str, str, str]] = {
    "learned": ("black on #b3d7f0 underline", "black on #7fb9e3 underline", "black on #4a98d3 underline"),
    "known": ("", "", ""),
    "wrong": ("black on #fbe3b0 bold", "black on #f5c65f bold", "black on #e69f00 bold"),
    "worse": ("black on #ecd0e0 strike", "black on #dda6c6 strike", "black on #cc79a7 strike"),
    "context": ("dim", "dim", "dim"),
}
_MARKS: Mapping[Verdict, tuple[str, str]] = {
    "learned": ("+[", "]"),
    "known": ("", ""),
    "wrong": ("?[", "]"),
    "worse": ("-[", "]"),
    "context": ("{", "}"),
}
#: Stands for a token that has no character of its own: a later part of the one before it.
_PART = "\u00b7"

#: The style sheet of ``render_html``; every colour lets the page's own shine through, so it is for light and dark.
STYLE = """\
.ms-row{line-height:1.9;overflow-wrap:anywhere;margin:.3em 0 1.2em}
.ms-row b,.ms-legend b,.ms-top b{font-weight:inherit;border-radius:2px;padding:1px 0}
.ms-where,.ms-note{opacity:.75;font-size:.9em;margin:0}
.ms-context{opacity:.6}
.ms-learned{border-bottom:2px solid #0072b2;background:rgba(0,114,178,.15)}
.ms-learned.ms-2{background:rgba(0,114,178,.32)}.ms-learned.ms-3{background:rgba(0,114,178,.5)}
.ms-wrong{border-bottom:2px dotted #e69f00;background:rgba(230,159,0,.15)}
.ms-wrong.ms-2{background:rgba(230,159,0,.32)}.ms-wrong.ms-3{background:rgba(230,159,0,.5)}
.ms-worse{border-bottom:3px double #cc79a7;background:rgba(204,121,167,.18)}
.ms-worse.ms-2{background:rgba(204,121,167,.36)}.ms-worse.ms-3{background:rgba(204,121,167,.55)}
.ms-legend td,.ms-top td{padding:.1em .8em .1em 0;vertical-align:top}
.ms-top caption{text-align:left;font-weight:600;padding-top:.6em}
"""


def verdict(token: Token) -> Verdict:
    """What became of a token. Above ``WRONG_NATS`` it is wrong even where it is much likelier than before."""
    if not token.is_target or token.base is None or token.tuned is None:
        return "context"
    gain = token.base - token.tuned
    if gain <= -MOVED_NATS:
        return "worse"
    if token.tuned > WRONG_NATS:
        return "wrong"
    return "learned" if gain >= MOVED_NATS else "known"


def shade(token: Token) -> int:
    """1, 2 or 3: how much was gained or lost, or how wrong it is."""
    if token.base is None or token.tuned is None:
        return 1
    amount = token.tuned if verdict(token) == "wrong" else abs(token.base - token.tuned)
    return 1 + sum(amount >= bound for bound in _SHADES)


@dataclass(frozen=True, slots=True)
class Moved:
    """A trained token with a few before and after it."""

    before: str
    token: Token
    after: str
    where: str

    @property
    def gain(self) -> float:
        """Nats by which the loss went down."""
        return (self.token.base or 0.0) - (self.token.tuned or 0.0)


@dataclass(frozen=True, slots=True)
class Findings:
    """Counts of trained tokens by verdict, mean losses in nats, and the tokens that moved most in either direction."""

    counts: Mapping[Verdict, int]
    base: float
    tuned: float
    gains: tuple[Moved, ...]
    losses: tuple[Moved, ...]

    @property
    def num_targets(self) -> int:
        """Trained tokens."""
        return sum(count for name, count in self.counts.items() if name != "context")

    def share(self, name: Verdict) -> float:
        """Part of the trained tokens, 0 to 1."""
        return self.counts[name] / max(1, self.num_targets)


def find(microscope: Microscope, *, most: int = 5) -> Findings:
    """Everything a summary says; at most ``most`` tokens in each list, none that hardly moved."""
    tokens = [token for row in microscope.rows for token in row.tokens]
    counts = dict.fromkeys(MEANINGS, 0)
    for token in tokens:
        counts[verdict(token)] += 1
    targets = [token for token in tokens if verdict(token) != "context"]
    moved = sorted(_moved(microscope.rows), key=lambda one: -one.gain)
    gains = [one for one in moved if one.gain >= MOVED_NATS][:most]
    losses = [one for one in reversed(moved) if one.gain <= -MOVED_NATS][:most]
    return Findings(
        counts, _mean(token.base for token in targets), _mean(token.tuned for token in targets), (*gains,), (*losses,)
    )


def _moved(rows: Iterable[Row]) -> Iterator[Moved]:
    for row in rows:
        for place, token in enumerate(row.tokens):
            if verdict(token) != "context":
                before = "".join(one.text for one in row.tokens[max(0, place - 6) : place])
                after = "".join(one.text for one in row.tokens[place + 1 : place + 4])
                yield Moved(before, token, after, row.where)


def _mean(losses: Iterable[float | None]) -> float:
    found = [loss for loss in losses if loss is not None]
    return sum(found) / len(found) if found else 0.0


def chance(loss: float | None) -> str:
    """A loss as a probability in percent: ``12%``, ``0.3%``, ``<0.1%``."""
    percent = 100 * math.exp(-(loss or 0.0))
    if percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 10 else f"{percent:.0f}%"


def row_head(row: Row) -> str:
    """``rows.jsonl:3  41 tokens, 12 trained; loss 2.310 -> 0.412 nats``, harmless."""
    targets = [token for token in row.tokens if token.is_target]
    base, tuned = _mean(token.base for token in targets), _mean(token.tuned for token in targets)
    losses = f"; loss {base:.3f} -> {tuned:.3f} nats" if targets else ""
    return f"{_line(row.where)}  {counted(len(row.tokens), 'token')}, {len(targets)} trained{losses}"


def render_text(microscope: Microscope, width: int, *, in_colour: bool = True) -> "list[Text]":
    """Lines of at most ``width`` cells: the rows, the legend with shares, what moved most.

    ``in_colour`` False puts marks around groups of tokens, for files and NO_COLOR.
    """
    from rich.text import Text

    width = max(width, 20)
    lines: list[Text] = []
    for row in microscope.rows:
        lines += _flow(_words(row_head(row), "bold" if in_colour else ""), width)
        lines += _flow(_pieces(row.tokens, in_colour=in_colour), width)
        lines += [line for note in row.notes for line in _flow(_words(f"-> {_line(note)}"), width)]
        lines += [Text()] if lines[-1].plain else []
    return lines + legend_lines(microscope, width, in_colour=in_colour)


def legend_lines(microscope: Microscope, width: int, *, in_colour: bool = True) -> "list[Text]":
    """What the marks mean, how much of each there is, and the tokens that moved most."""
    findings = find(microscope)
    lines: list[Text] = []
    for name, meaning in MEANINGS.items():
        left, right = ("", "") if in_colour else _MARKS[name]
        label = f"{left}{name}{right}"
        share = "" if name == "context" else f"{findings.share(name):.0%}"
        rest = f"{' ' * (11 - len(label))}{share:>4}  {meaning}"
        lines += _flow([(label, _STYLES[name][1] if in_colour else ""), *_words(rest)], width)
    targets = counted(findings.num_targets, "trained token")
    mean = f"mean loss {findings.base:.3f} nats under the base, {findings.tuned:.3f} now"
    lines += _flow(_words(f"{targets}: {mean}" + ("; a stronger colour means further" if in_colour else "")), width)
    for title, found in (("gained most", findings.gains), ("lost most", findings.losses)):
        lines += _flow([(title if found else f"{title}: none", "bold" if in_colour else "")], width)
        lines += [line for one in found for line in _flow(_moved_pieces(one, in_colour=in_colour), width)]
    return lines


def _moved_pieces(one: Moved, *, in_colour: bool) -> list[tuple[str, str]]:
    name = verdict(one.token)
    left, right = ("", "") if in_colour else _MARKS[name]
    return [
        (f"  {chance(one.token.base):>5} -> {chance(one.token.tuned):<5}  {_line(one.before)}", ""),
        (f"{left}{_line(one.token.text) or _PART}{right}", _STYLES[name][shade(one.token) - 1] if in_colour else ""),
        (_line(one.after), ""),
    ]


def _pieces(tokens: Sequence[Token], *, in_colour: bool) -> Iterator[tuple[str, str]]:
    """Text and style of each token; without colours a mark before and after each group of one verdict."""
    for name, group in groupby(tokens, verdict):
        left, right = ("", "") if in_colour else _MARKS[name]
        pieces = [
            (harmless(token.text).replace("\n", "\\n\n") or _PART, _STYLES[name][shade(token) - 1] if in_colour else "")
            for token in group
        ]
        last, style = pieces[-1]
        if right and last.endswith("\n"):  # the mark stands before the line break
            pieces[-1], right = (last[:-1], style), right + "\n"
        yield from ((text, style) for text, style in ((left, ""), *pieces, (right, "")) if text)
    yield "\n", ""


def _words(text: str, style: str = "") -> list[tuple[str, str]]:
    """A sentence in pieces, each with the blanks after it."""
    return [(word, style) for word in re.findall(r"\s*\S+\s?", text)]


def _flow(pieces: Iterable[tuple[str, str]], width: int) -> "list[Text]":
    """Pieces one after another on lines of ``width`` cells; a piece is broken only where it is longer than a line."""
    from rich.cells import cell_len
    from rich.text import Text

    lines, column = [Text()], 0
    for text, style in pieces:
        for number, part in enumerate(text.split("\n")):
            length = cell_len(part)
            if number or (column + length > width and length <= width):
                lines.append(Text())
                column = 0
            while column + length > width:
                count = next(n for n in range(len(part), -1, -1) if column + cell_len(part[:n]) <= width)
                lines[-1].append(part[:count], style)
                lines.append(Text())
                part, column = part[count:], 0
                length = cell_len(part)
            lines[-1].append(part, style)
            column += length
    return lines if lines[-1].plain else lines[:-1]


def render_html(microscope: Microscope) -> str:
    """A fragment: the rows, a legend with shares, what moved most. ``STYLE`` belongs on the page.

    Nothing of a row can leave its place: escapes for what is invisible, HTML escaped, each token isolated (``bdi``).
    """
    rows = "".join(_row_html(row) for row in microscope.rows)
    return f'<div class="ms">{rows}{_legend_html(microscope)}</div>'


def _row_html(row: Row) -> str:
    notes = "".join(f'<p class="ms-note">{escape(_line(note))}</p>' for note in row.notes)
    tokens = "".join(_token_html(token) for token in row.tokens)
    return f'<p class="ms-where">{escape(row_head(row))}</p>{notes}<p class="ms-row">{tokens}</p>'


def _token_html(token: Token) -> str:
    name = verdict(token)
    text = harmless(token.text) or _PART
    shown = escape(text.replace("\n", "\\n"))
    end = "<br>" * text.count("\n")
    if name == "context":
        return f'<bdi class="ms-context">{shown}</bdi>{end}'
    title = f"{name}: {chance(token.base)} before, {chance(token.tuned)} now ({token.base:.2f} -> {token.tuned:.2f})"
    kind = "" if name == "known" else f' class="ms-{name} ms-{shade(token)}"'
    return f'<b{kind} title="{escape(title)}"><bdi>{shown}</bdi></b>{end}'


def _legend_html(microscope: Microscope) -> str:
    findings = find(microscope)
    rows = "".join(
        f'<tr><td><b class="ms-{name} ms-2">{name}</b></td>'
        f"<td>{'' if name == 'context' else f'{findings.share(name):.0%}'}</td><td>{escape(meaning)}</td></tr>"
        for name, meaning in MEANINGS.items()
    )
    mean = (
        f"{counted(findings.num_targets, 'trained token')}: mean loss {findings.base:.3f} nats under the base, "
        f"{findings.tuned:.3f} now. A stronger colour means further."
    )
    return (
        f'<table class="ms-legend">{rows}</table><p class="ms-note">{mean}</p>'
        f"{_top_html('Gained most', findings.gains)}{_top_html('Lost most', findings.losses)}"
    )


def _top_html(title: str, found: Sequence[Moved]) -> str:
    if not found:
        return f'<p class="ms-note">{title}: none</p>'
    rows = "".join(
        f"<tr><td>{escape(chance(one.token.base))} &rarr; {escape(chance(one.token.tuned))}</td>"
        f"<td><bdi>{escape(_line(one.before))}</bdi>"
        f'<b class="ms-{verdict(one.token)} ms-{shade(one.token)}"><bdi>{escape(_line(one.token.text) or _PART)}</bdi>'
        f"</b><bdi>{escape(_line(one.after))}</bdi></td></tr>"
        for one in found
    )
    return f'<table class="ms-top"><caption>{title}</caption>{rows}</table>'


def microscope_json(microscope: Microscope) -> dict[str, object]:
    """Everything that is shown, as plain values for another program; texts as they are."""
    findings = find(microscope)
    return {
        **asdict(microscope.measured),
        "shares": {name: findings.share(name) for name in MEANINGS if name != "context"},
        "num_targets": findings.num_targets,
        "base_loss": findings.base,
        "tuned_loss": findings.tuned,
        "gains": [_moved_json(one) for one in findings.gains],
        "losses": [_moved_json(one) for one in findings.losses],
        "rows": [
            {
                "where": row.where,
                "notes": list(row.notes),
                "tokens": [token._asdict() | {"verdict": verdict(token)} for token in row.tokens],
            }
            for row in microscope.rows
        ],
    }


def _moved_json(one: Moved) -> dict[str, object]:
    return {"where": one.where, "before": one.before, "after": one.after, **one.token._asdict()}


def _line(text: str) -> str:
    return harmless(text).replace("\n", "\\n")

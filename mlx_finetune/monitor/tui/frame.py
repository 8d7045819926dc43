"""The lines around the panes: what the run does, which panes there are, which keys are heard; and the page of help."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from mlx_finetune.monitor.tui.blocks import Lines, bar, fit, plain, wrap
from mlx_finetune.monitor.tui.watched import Watched
from mlx_finetune.monitor.tui.words import clock, seconds_left, share_done, state_of
from mlx_finetune.units import format_seconds

PANES: Sequence[tuple[str, str]] = (
    ("overview", "Overview"),
    ("curves", "Curves"),
    ("answers", "Answers"),
    ("machine", "Machine"),
    ("events", "Events"),
    ("checkpoints", "Checkpoints"),
    ("runs", "Runs"),
)
KEYS: Sequence[tuple[str, str]] = (
    ("s", "stop"),
    ("c", "checkpoint"),
    ("y", "copy resume command"),
    ("z", "zoom"),
    ("?", "help"),
    ("q", "leave"),
)
_HELP: Sequence[tuple[str, str]] = (
    ("1 to 7, Tab, left and right", "go to a pane"),
    ("up, down, Page Up, Page Down", "scroll, or choose in the list of runs; Home and End as well"),
    ("Return", "show the run chosen in the list of runs"),
    (", and .", "the answers of the evaluation before and after"),
    ("z", "curves over all steps, the last half, the last tenth"),
    ("c", "a checkpoint after the step at hand; the training goes on and learns the same"),
    ("s", "stop safely: finish the step, save, leave; asks once"),
    ("y", "copy the command that resumes the run; it is shown as well"),
    ("Escape", "close a question or a message"),
    ("q or Ctrl-C", "leave the monitor; the training goes on"),
)


def header_line(watched: Watched, now: float, *, width: int) -> Text:
    """Name, state, how far, when it will be done. Without room the bar goes first, then one detail after the other."""
    state, share = state_of(watched), share_done(watched)
    name = fit(Text(plain(watched.run.path.name), "bold"), max(8, width // 4))
    line = Text.assemble(" ", name, "  ", (state.word, f"bold {state.style}".strip()))
    tail = next(text for text in _tails(watched, now) if line.cell_len + len(text) + 2 <= width or not text)
    room = width - line.cell_len - len(tail) - 5
    if share is not None and room >= 8:
        line.append("  ").append_text(bar(share, min(30, room), state.style or "cyan"))
    return fit(line.append(f"  {tail}" if tail else ""), width)


def _tails(watched: Watched, now: float) -> Iterator[str]:
    """What may follow the state, the longest first."""
    summary = watched.summary
    more, share, left = state_of(watched).more, share_done(watched), seconds_left(watched, now)
    step = f"step {summary.steps_done:,}/{summary.total_steps:,}" if summary.step and summary.total_steps else ""
    percent = "" if share is None else f"{share:.0%}"
    done = "" if left is None else f"done {clock(left, now=now)}"
    remaining = f"{done} ({format_seconds(left)} left)" if left is not None else ""
    for parts in (
        (step, percent, remaining, more),
        (step, percent, remaining) if left is not None else (step, percent, more),
        (step, percent, done),
        (percent, done) if done else (percent, fit(Text(more), 60).plain),
        (percent,),
        (),
    ):
        yield "  ".join(part for part in parts if part)


def tabs_line(pane: str, *, width: int) -> Text:
    """The panes by number; only the chosen one by name where not all names fit."""
    full = sum(len(label) + 4 for _, label in PANES) <= width
    line = Text()
    for number, (name, label) in enumerate(PANES, 1):
        text = f" {number} {label} " if full or name == pane else f" {number} "
        line.append(text, "reverse bold" if name == pane else "")
    return fit(line, width)


def keys_line(*, width: int, hidden_lines: int) -> Text:
    """The keys; how much there is to scroll to stands at the right end. Words give way where there is no room."""
    more = f"\u2193 {hidden_lines} more" if hidden_lines else ""
    room = width - len(more) - (1 if more else 0)
    shown = list(KEYS)
    for dropped in ("z", "y", "c", "s"):
        if sum(len(key) + len(word) + 3 for key, word in shown) <= room:
            break
        shown = [(key, word.split()[0] if key == dropped else word) for key, word in shown]
        if sum(len(key) + len(word) + 3 for key, word in shown) > room:
            shown = [(key, word) for key, word in shown if key != dropped]
    line = Text()
    for key, word in shown:
        line.append(f" {key}", "bold").append(f" {word} ", "dim")
    line = fit(line, room)
    if more:
        line.append(" " * (width - line.cell_len - len(more))).append(more, "bold")
    return line


def help_lines(*, width: int) -> Lines:
    """What every key does."""
    lines: Lines = []
    side = max(len(keys) for keys, _ in _HELP) + 3
    for keys, does in _HELP:
        if width >= side + 34:
            first, *rest = wrap(does, width - side)
            lines.append(Text.assemble((f" {keys:<{side - 1}}", "bold"), first))
            lines += [Text.assemble(" " * side, line) for line in rest]
        else:
            lines.append(Text(f" {keys}", "bold"))
            lines += [Text.assemble("   ", line) for line in wrap(does, width - 4)]
    about = "The monitor only reads: it can be left and opened again at any time, from several terminals."
    return [*lines, Text(""), *wrap(f" {about}", width, indent=" ")]

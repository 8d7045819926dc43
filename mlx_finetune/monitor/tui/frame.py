"""The lines around the panes: what the run does, which panes there are, which keys are heard; and the page of help."""

from collections.abc import Sequence

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
    ("up, down, Page Up, Page Down, Home, End", "scroll, or choose in the list of runs"),
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
    """Name, state, how far, when it will be done; the bar goes first where there is no room, then the details."""
    summary = watched.summary
    state, share, left = state_of(watched), share_done(watched), seconds_left(watched, now)
    name = fit(Text(plain(watched.run.path.name), "bold"), max(8, width // 4))
    line = Text.assemble(" ", name, "  ", (state.word, f"bold {state.style}".strip()))
    total = summary.total_steps
    ends: list[str] = []
    if summary.step is not None and total:
        ends.append(f"step {summary.steps_done:,}/{total:,}")
    if share is not None:
        ends.append(f"{share:.0%}")
    if left is not None:
        ends.append(f"done {clock(left, now=now)}")
    short = "  ".join(ends)
    tail = f"{short} ({format_seconds(left)} left)" if left is not None else short
    if state.more and (summary.step is None or not tail):
        tail = f"{state.more}  {short}".strip()
    elif state.more and line.cell_len + len(tail) + len(state.more) + 4 <= width:
        tail = f"{tail}  {state.more}"
    if line.cell_len + 2 + len(tail) > width:
        tail = short if state.more == "" or short else tail
    room = width - line.cell_len - len(tail) - 5
    if share is not None and room >= 8:
        line.append("  ").append_text(bar(share, min(30, room), state.style or "cyan"))
    return fit(line.append(f"  {tail}" if tail else ""), width)


def tabs_line(pane: str, *, width: int) -> Text:
    """The panes by number; only the chosen one by name where not all names fit."""
    full = sum(len(label) + 5 for _, label in PANES) <= width
    line = Text()
    for number, (name, label) in enumerate(PANES, 1):
        text = f" {number} {label} " if full or name == pane else f" {number} "
        line.append(text, "reverse bold" if name == pane else "").append(" " if full else "")
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
    lines: Lines = [Text(" Keys", "bold")]
    for keys, does in _HELP:
        lines.append(Text(f" {keys}", "bold"))
        lines += [Text.assemble("     ", line) for line in wrap(does, width - 6)]
    about = "The monitor only reads: it can be left and opened again at any time, from several terminals."
    return [*lines, Text(""), *wrap(f" {about}", width, indent=" ")]

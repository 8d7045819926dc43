"""The first pane: the run at a glance, as much of it as the terminal has room for.

Below 110 columns everything is in one column; from there on figures and machine stand beside the curves, from 170 on
answers and events in a third column.
"""

from rich.text import Text

from mlx_finetune.monitor.plain import number
from mlx_finetune.monitor.tui.answers import answers_lines, last_answers
from mlx_finetune.monitor.tui.blocks import Lines, beside, filled, fit, flow, most, title, wrap
from mlx_finetune.monitor.tui.curves import loss_block, loss_parts, small_charts
from mlx_finetune.monitor.tui.happened import checkpoints_lines, events_lines, last_warning
from mlx_finetune.monitor.tui.machine import memory_lines, resource_lines
from mlx_finetune.monitor.tui.watched import Watched
from mlx_finetune.monitor.tui.words import ago, machine_parts, state_of
from mlx_finetune.units import format_bytes, format_rate

TWO_COLUMNS, THREE_COLUMNS = 110, 170
SIDE_WIDTH = 46


def overview_lines(watched: Watched, now: float, *, width: int, height: int, zoom: int = 0) -> Lines:
    """Exactly what fits into ``width`` by ``height``, without scrolling."""
    if watched.summary.started is None and not watched.summary.steps:
        return _before_start(watched, width, height)
    if width < TWO_COLUMNS or height < 16:
        return _one_column(watched, now, width, height, zoom)
    if width < THREE_COLUMNS:
        return _two_columns(watched, now, width, height, zoom)
    third = max(50, (width - SIDE_WIDTH) * 2 // 5)
    left = width - SIDE_WIDTH - third - 4
    answers = answers_lines(watched.summary, width=third)
    answers = most(answers, max(4, height * 2 // 3), width=third)
    events = [title("events", third), *events_lines(watched, width=third)]
    right = most([*answers, Text(""), *events], height, width=third)
    return beside(
        [
            (_curves(watched, left, height, zoom), left),
            (_side(watched, now, SIDE_WIDTH, height, with_events=False), SIDE_WIDTH),
            (right, third),
        ]
    )


def _before_start(watched: Watched, width: int, height: int) -> Lines:
    """The phases until the run starts: what it does, and what was said so far."""
    state = state_of(watched)
    lines = wrap(f" {state.word}: {state.more}" if state.more else f" {state.word}", width, indent=" ")
    return [*lines, Text(""), *events_lines(watched, width=width)][:height]


def figures(watched: Watched, now: float, *, width: int) -> Lines:
    """The numbers of the last step and of the machine, on as many lines as they need."""
    summary = watched.summary
    step, started = summary.step, summary.started
    parts: list[str] = []
    if step is not None:
        limit = f" of {format_bytes(started.memory_limit_bytes)}" if started and started.memory_limit_bytes else ""
        parts += [
            f"lr {number(step.learning_rate, 2, scientific=True)}",
            f"norm {number(step.grad_norm, 2)}",
            f"{format_rate(step.targets_per_second)} {summary.learned.units}/s",
            f"memory {format_bytes(step.active_memory_bytes)}{limit} (peak {format_bytes(step.peak_memory_bytes)})",
            _saved(watched, now),
        ]
    groups = (loss_parts(summary), parts, machine_parts(summary.resource))
    return [Text.assemble(" ", line) for group in groups for line in flow(group, width - 1)]


def _saved(watched: Watched, now: float) -> str:
    """The last checkpoint, which is where the run would go on."""
    saved = watched.summary.checkpoints
    if not watched.checkpoints:
        return "nothing saved yet"
    last = watched.checkpoints[-1]
    times = [one.time for one in watched.records if saved and one.event == saved[-1]]
    return f"saved step {last}" + (f" {ago(times[-1], now)}" if times and saved[-1].step == last else "")


def _one_column(watched: Watched, now: float, width: int, height: int, zoom: int) -> Lines:
    """Curve, figures, last answers, last warning. What is least needed goes first where there is no room."""
    numbers = figures(watched, now, width=width)
    warning = last_warning(watched, width=width)
    room = height - len(numbers) - len(warning)
    if room < 5:
        return [*warning, *numbers][:height]
    answers = last_answers(watched.summary, width=width, height=min(6, room - 9)) if room >= 12 else []
    curve = loss_block(watched, width=width, height=room - len(answers), zoom=zoom)
    return [*filled(curve, room - len(answers)), *numbers, *answers, *warning]


def _two_columns(watched: Watched, now: float, width: int, height: int, zoom: int) -> Lines:
    left = width - SIDE_WIDTH - 2
    answers = last_answers(watched.summary, width=width, height=min(9, height // 4))
    upper = height - len(answers)
    above = beside([(_curves(watched, left, upper, zoom), left), (_side(watched, now, SIDE_WIDTH, upper), SIDE_WIDTH)])
    return [*filled(above, upper), *answers]


def _curves(watched: Watched, width: int, height: int, zoom: int) -> Lines:
    """The loss, and the four small charts below where there is room for them."""
    small = max(6, min(10, height // 4)) if height >= 24 else 0
    lines = loss_block(watched, width=width, height=height - 2 * small, zoom=zoom)
    if small:
        lines = [
            *filled(lines, height - 2 * small),
            *small_charts(watched, width=width, columns=2, height=small, zoom=zoom),
        ]
    return lines


def _side(watched: Watched, now: float, width: int, height: int, *, with_events: bool = True) -> Lines:
    """Figures, machine, checkpoints, events below each other; events give way first."""
    summary = watched.summary
    lines: Lines = [title("now", width), *figures_beside(watched, now, width=width)]
    machine = [*memory_lines(summary, width=width), *resource_lines(summary.resource, width=width)]
    lines += [title("machine", width), *most(machine, max(4, height - len(lines) - 8), width=width)]
    checkpoints = checkpoints_lines(watched, now, width=width)
    lines += [title("checkpoints", width), *most(checkpoints, max(3, (height - len(lines)) // 2), width=width)]
    if with_events and height - len(lines) >= 3:
        events = events_lines(watched, width=width)
        lines += [title("events", width), *most(events, height - len(lines) - 1, width=width)]
    return [fit(line, width) for line in lines[:height]]


def figures_beside(watched: Watched, now: float, *, width: int) -> Lines:
    """The numbers of the last step, one a line, for a column of their own."""
    summary = watched.summary
    step = summary.step
    lines = [Text.assemble(" ", part) for part in loss_parts(summary)]
    if step is not None:
        lines += [
            Text(f" learning rate {number(step.learning_rate, 2, scientific=True)}   norm {number(step.grad_norm, 2)}"),
            Text(
                f" {format_rate(step.targets_per_second)} {summary.learned.units}/s   epoch {step.epoch:.2f}"
                f"   padding {step.padding_share:.0%}"
            ),
        ]
    return [fit(line, width) for line in [*lines, Text(f" {_saved(watched, now)}")]]

"""The pane of the machine: load, memory against its limit, disk, power, temperature. What is not known says so."""

from collections.abc import Sequence

from rich.text import Text

from mlx_finetune.events import Resources
from mlx_finetune.monitor.plain import one_line
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.monitor.tui.blocks import Lines, bar, beside, title
from mlx_finetune.monitor.tui.chart import Curve, draw_chart
from mlx_finetune.monitor.tui.watched import Watched
from mlx_finetune.monitor.tui.words import NOT_AVAILABLE
from mlx_finetune.units import format_bytes, format_energy

NAME_WIDTH = 14
CHART_HEIGHT, LEAST_CHART = 8, 4
CHART_WIDTH = 24  # the least
_CURVES: Sequence[tuple[str, str, tuple[float, float] | None]] = (
    ("gpu", "GPU, %", (0.0, 100.0)),
    ("cpu", "CPU, %", (0.0, 100.0)),
    ("watts", "power, W", None),
)


def machine_lines(watched: Watched, *, width: int, height: int) -> Lines:
    """Every figure by name, and below them how busy GPU and CPU were where there is room."""
    lines = [*memory_lines(watched.summary, width=width), *resource_lines(watched.summary.resource, width=width)]
    return [*lines, *_charts(watched, width, max(LEAST_CHART, min(CHART_HEIGHT, height - len(lines) - 1)))]


def memory_lines(summary: Summary, *, width: int) -> Lines:
    """What MLX holds of its limit, and the most it ever held."""
    step, started = summary.step, summary.started
    limit = started.memory_limit_bytes if started else None
    of_limit = f" of {format_bytes(limit)}" if limit else ""
    if step is None:
        return [_row("MLX memory", "known after the first step" + (f"; limit {format_bytes(limit)}" if limit else ""))]
    share = step.active_memory_bytes / limit if limit else None
    now = f"{format_bytes(step.active_memory_bytes)}{of_limit}"
    peak = step.peak_memory_bytes / limit if limit else None
    return [
        _row("MLX memory", now, share, width),
        _row("  at its peak", f"{format_bytes(step.peak_memory_bytes)}{of_limit}", peak, width),
    ]


def resource_lines(resource: Resources | None, *, width: int) -> Lines:
    """The last reading of the machine."""
    if resource is None:
        return [Text(" no readings of the machine so far; they come every few seconds", "dim")]
    used, total = resource.memory_used_bytes, resource.memory_total_bytes
    memory = None if used is None else format_bytes(used) + (f" of {format_bytes(total)}" if total else "")
    return [
        _row("GPU", _percent(resource.gpu_percent), _share(resource.gpu_percent), width),
        _row("CPU", _percent(resource.cpu_percent), _share(resource.cpu_percent), width),
        _row("memory", memory, used / total if used is not None and total else None, width),
        _row("  this run", _bytes(resource.process_bytes)),
        _row("  of the GPU", _bytes(resource.gpu_memory_bytes)),
        _row("  pressure", resource.pressure),
        _row("  swapped out", _bytes(resource.swap_bytes)),
        _row("disk free", _bytes(resource.disk_free_bytes)),
        _row("power", _power(resource)),
        _row("energy", None if resource.energy_joules is None else f"{format_energy(resource.energy_joules)} so far"),
        _row("temperature", _celsius(resource.temperature_celsius)),
        _row("slowed down", None if resource.throttled is None else resource.throttled or "no"),
        _row("running on", _source(resource)),
    ]


def _row(name: str, value: str | None, share: float | None = None, width: int = 0) -> Text:
    """`` GPU           95%  ----``; no bar where there is no room or no share."""
    known = value is not None
    line = Text.assemble(
        " ", f"{name:<{NAME_WIDTH}}", (one_line(value, 60) if known else NOT_AVAILABLE, "" if known else "dim")
    )
    start = NAME_WIDTH + 25
    if share is not None and width - start >= 8:
        line.append(" " * max(1, start - line.cell_len))
        line.append_text(bar(share, min(40, width - start - 1), "red" if share > 0.95 else "cyan"))
    return line


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}%"


def _share(value: float | None) -> float | None:
    return None if value is None else value / 100


def _bytes(value: int | None) -> str | None:
    return None if value is None else format_bytes(value)


def _celsius(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} C"


def _power(resource: Resources) -> str | None:
    """``21.3 W (CPU 4.1 W, GPU 15.2 W)``, as far as it is known."""
    parts = [
        f"{name} {watts:.1f} W"
        for name, watts in (("CPU", resource.cpu_watts), ("GPU", resource.gpu_watts))
        if watts is not None
    ]
    if resource.watts is None:
        return ", ".join(parts) or None
    return f"{resource.watts:.1f} W" + (f" ({', '.join(parts)})" if parts else "")


def _source(resource: Resources) -> str | None:
    charge = "" if resource.battery_percent is None else f"{resource.battery_percent}%"
    if resource.on_battery is None:
        return f"battery at {charge}" if charge else None
    name = "battery" if resource.on_battery else "mains"
    return f"{name}, {charge} charged" if charge else name


def _charts(watched: Watched, width: int, height: int) -> Lines:
    """How busy GPU and CPU were, beside each other; only what there are readings of."""
    known = [(name, text, y_range) for name, text, y_range in _CURVES if len(watched.curves[name].xs) > 1]
    known = known[: (width + 2) // (CHART_WIDTH + 2)]
    if not known:
        return []
    each = (width - 2 * (len(known) - 1)) // len(known)
    blocks: list[tuple[Lines, int]] = []
    for name, text, y_range in known:
        curve = Curve(watched.curves[name].points(4 * each), "cyan")
        blocks.append(([title(text, each), *draw_chart([curve], width=each, height=height, y_range=y_range)], each))
    return beside(blocks)

"""What the machine did: shares, watts, temperature and energy, each only where something measured it."""

from collections.abc import Callable, Iterator, Sequence

from mlx_finetune.events import Resources
from mlx_finetune.monitor.report.chart import Chart, Series, draw
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, foreign, section, table, tag
from mlx_finetune.monitor.report.parts.headline import energy_joules
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.units import format_bytes, format_energy

Pick = Callable[[Resources], float | None]

_FIGURES: tuple[tuple[str, Pick, Callable[[float], str]], ...] = (
    ("processor busy", lambda one: one.cpu_percent, lambda value: f"{value:.0f} %"),
    ("GPU busy", lambda one: one.gpu_percent, lambda value: f"{value:.0f} %"),
    ("memory in use, whole machine", lambda one: one.memory_used_bytes, format_bytes),
    ("memory of the training process", lambda one: one.process_bytes, format_bytes),
    ("memory of the GPU", lambda one: one.gpu_memory_bytes, format_bytes),
    ("swapped out", lambda one: one.swap_bytes, format_bytes),
    ("free disk", lambda one: one.disk_free_bytes, format_bytes),
    ("power", lambda one: one.watts, lambda value: f"{value:.1f} W"),
    ("power of the processor", lambda one: one.cpu_watts, lambda value: f"{value:.1f} W"),
    ("power of the GPU", lambda one: one.gpu_watts, lambda value: f"{value:.1f} W"),
    ("temperature", lambda one: one.temperature_celsius, lambda value: f"{value:.0f} \u00b0C"),
)


def machine(facts: ReportFacts) -> Html:
    """The section; it says so where nothing was measured."""
    summary = facts.summary
    if not summary.resources:
        return section("machine", "Machine and energy", tag("p", "Not measured in this run."))
    return section(
        "machine",
        "Machine and energy",
        tag("p", *_energy(facts)),
        table(("", "mean", "lowest", "highest"), _rows(summary.resources), class_="figures"),
        _missing(summary.resources),
        tag("ul", *_remarks(summary.resources)),
        tag("div", *_pictures(summary), class_="charts"),
    )


def _energy(facts: ReportFacts) -> Iterator[Child]:
    joules = energy_joules(facts)
    if joules is None:
        yield "Energy was not measured: nothing on this machine told the power it draws."
        return
    yield tag("b", f"{format_energy(joules)} of energy.")
    outcome_targets = sum(one.num_targets for one in facts.summary.steps)
    if outcome_targets:
        yield f" That is {joules / outcome_targets:.2g} joules for each {facts.summary.learned.what} learned from."


def _rows(resources: Sequence[Resources]) -> Iterator[list[Child]]:
    """Mean, lowest and highest of what was measured."""
    for name, pick, write in _FIGURES:
        values = [value for one in resources if (value := pick(one)) is not None]
        if values:
            yield [name, *map(write, (sum(values) / len(values), min(values), max(values)))]


def _missing(resources: Sequence[Resources]) -> Html | None:
    """What no source told, in one line."""
    names = [name for name, pick, _ in _FIGURES if all(pick(one) is None for one in resources)]
    return tag("p", f"Not measured: {', '.join(names)}.", class_="note") if names else None


def _remarks(resources: Sequence[Resources]) -> Iterator[Html]:
    """What a reader should know beside the figures."""
    count = len(resources)
    slowed = [one.throttled for one in resources if one.throttled]
    if slowed:
        yield tag("li", f"Slowed down in {len(slowed) / count:.0%} of the measurements: ", foreign(slowed[-1]), ".")
    tight = [one.pressure for one in resources if one.pressure not in (None, "", "normal")]
    if tight:
        yield tag(
            "li", f"Memory was short in {len(tight) / count:.0%} of the measurements (", foreign(str(tight[-1])), ")."
        )
    battery = [one for one in resources if one.on_battery]
    if battery:
        yield tag("li", f"On battery in {len(battery) / count:.0%} of the measurements.")


def _pictures(summary: Summary) -> Iterator[Html]:
    """Busy shares, power and temperature over the steps."""
    charts = (
        ("Busy", "%", (("processor", "second", _FIGURES[0][1]), ("GPU", "first", _FIGURES[1][1]))),
        ("Power", "W", (("", "first", _FIGURES[7][1]),)),
        ("Temperature", "\u00b0C", (("", "third", _FIGURES[10][1]),)),
    )
    for title, unit, picks in charts:
        series = tuple(_series(summary.resources, *pick) for pick in picks)
        figure = draw(Chart(title, series, write=lambda value, unit=unit: f"{value:.0f} {unit}", unit=unit))
        if figure is not None:
            yield figure


def _series(resources: Sequence[Resources], name: str, look: str, pick: Pick) -> Series:
    points = [(float(one.step), value) for one in resources if (value := pick(one)) is not None]
    return Series(name, look, [x for x, _ in points], [float(y) for _, y in points])

"""From the measurements of the race to its tables and its last line. Arithmetic only; runs nothing.

A ratio is one repeat of ours against the same repeat of the other side, run one after the other. Over repeats: median,
lowest and highest; over cells: the median and the lowest of the cells' medians. The first step of each run is left out
of every rate and of equal wall time, on both sides: it builds kernels and traces functions once. Seconds are given as
the fastest and the median repeat.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import cast

from race_cells import OURS, RECOMPUTE, STOCK, Cell, base_arm, partner
from race_run import Run

GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Loss:
    """Neutral validation loss of one adapter. ``at`` is base, examples or time; ``step`` the checkpoint's."""

    cell: str
    arm: str
    repeat: int
    at: str
    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Lowest, median and highest of some values."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None where there are no values."""
        listed = list(values)
        return cls(min(listed), median(listed), max(listed)) if listed else None


def steady(values: Sequence[float]) -> float:
    """The sum without the first step; of a single step that step."""
    return sum(values[1:]) if len(values) > 1 else sum(values)


def targets_per_second(run: Run) -> float:
    """Learned tokens a second of training time."""
    return steady(run.targets) / steady(run.seconds)


def seconds_per_example(run: Run) -> float:
    """Training time of the whole run at that rate, over its rows."""
    return sum(run.targets) / targets_per_second(run) / run.examples


def padding_share(run: Run) -> float:
    """Share of the positions that went through the model and hold no token."""
    return 1 - sum(run.tokens) / sum(run.positions)


def beyond_weights(run: Run) -> float:
    """Peak of MLX's allocator without the base weights, in bytes."""
    return run.mlx_peak_bytes - run.weights_bytes


def process_bytes(run: Run) -> float:
    """Highest resident memory of the command, all its processes added up."""
    return run.process_peak_bytes


def ratios(runs: Sequence[Run], ours: str, theirs: str, value: Callable[[Run], float]) -> list[float]:
    """``value`` of ``ours`` over that of ``theirs``, for every repeat that has both, of the runs of one cell."""
    by_arm = {(run.arm, run.repeat): run for run in runs}
    repeats = sorted({run.repeat for run in runs})
    pairs = [(by_arm.get((ours, repeat)), by_arm.get((theirs, repeat))) for repeat in repeats]
    return [value(one) / value(other) for one, other in pairs if one and other]


def equal_time(seconds: Mapping[str, Sequence[float]], saved: Mapping[str, Iterable[int]]) -> dict[str, int]:
    """For each arm the checkpoint at the moment when the fastest arm had finished, counted from the end of step 1.

    An arm that had not finished gets its first checkpoint at or after that moment, so never less time than the other.
    """
    moment = min(steady(steps) for steps in seconds.values())
    found: dict[str, int] = {}
    for arm, steps in seconds.items():
        later = [step for step in sorted(saved[arm]) if sum(steps[1:step]) >= moment * (1 - 1e-9)]
        found[arm] = later[0] if later else max(saved[arm])
    return found


def of_cell(runs: Sequence[Run], cell: Cell) -> list[Run]:
    """The runs of one cell."""
    return [run for run in runs if run.cell == cell.key]


def others(runs: Sequence[Run]) -> list[str]:
    """The arms that are not ours, the stock first."""
    arms = {run.arm for run in runs if base_arm(run.arm) != OURS}
    return sorted(arms, key=lambda arm: (base_arm(arm) != STOCK, arm))


def speed_table(runs: Sequence[Run], cells: Sequence[Cell]) -> list[str]:
    """Seconds an example, targets a second, padding; a line for each cell and rival."""
    lines = [
        "| cell | against | rows | s/row, theirs: min, median | s/row, ours: min, median | targets/s: theirs, ours "
        "| ratio: median (lowest to highest) | padding: theirs, ours | steps: theirs, ours |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in cells:
        here = of_cell(runs, cell)
        for ours, other in pairings(here):
            mine = [run for run in here if run.arm == ours]
            theirs = [run for run in here if run.arm == other]
            ratio = Spread.of(ratios(here, ours, other, targets_per_second))
            if ratio is None:
                continue
            rate = f"{_middle(theirs, targets_per_second):.0f}, {_middle(mine, targets_per_second):.0f}"
            padding = f"{_middle(theirs, padding_share):.0%}, {_middle(mine, padding_share):.0%}"
            lines.append(
                f"| {cell.number} {cell.name} | {_against(ours, other)} | {theirs[0].examples} "
                f"| {_seconds(theirs)} | {_seconds(mine)} "
                f"| {rate} | {ratio.middle:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) | {padding} "
                f"| {len(theirs[0].seconds)}, {len(mine[0].seconds)} |"
            )
    return lines


def memory_table(runs: Sequence[Run], cells: Sequence[Cell]) -> list[str]:
    """Peaks in GB: allocator, its part beyond the weights, processes; medians over repeats, and ratios."""
    lines = [
        "| cell | against | MLX peak: theirs, ours | beyond the weights: theirs, ours, ratio "
        "| processes: theirs, ours, ratio |",
        "|---|---|--:|--:|--:|",
    ]
    for cell in cells:
        here = of_cell(runs, cell)
        for ours, theirs in pairings(here):
            mine = [run for run in here if run.arm == ours]
            other = [run for run in here if run.arm == theirs]
            if not ratios(here, ours, theirs, beyond_weights):
                continue
            peaks = f"{_giga(other, _peak)}, {_giga(mine, _peak)}"
            columns = [
                f"{_giga(other, value)}, {_giga(mine, value)}, {median(ratios(here, ours, theirs, value)):.2f}"
                for value in (beyond_weights, process_bytes)
            ]
            lines.append(f"| {cell.number} {cell.name} | {_against(ours, theirs)} | {peaks} | {' | '.join(columns)} |")
    return lines


def loss_table(losses: Sequence[Loss], cells: Sequence[Cell]) -> list[str]:
    """Neutral validation loss: before, after equal examples, after equal wall time; medians over repeats."""
    lines = [
        "| cell | before | equal examples: stock, ours | difference | equal time: stock, ours | difference |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for cell in cells:
        here = [entry for entry in losses if entry.cell == cell.key]
        cells_of: list[str] = []
        for at in ("examples", "time"):
            values = [[e.loss for e in here if e.arm == arm and e.at == at] for arm in (STOCK, OURS)]
            if not all(values):
                cells_of += ["", ""]
                continue
            stock, ours = (median(one) for one in values)
            cells_of += [f"{stock:.4f}, {ours:.4f}", f"{ours - stock:+.4f}"]
        before = [entry.loss for entry in here if entry.at == "base"]
        if any(cells_of):
            first = f"{before[0]:.4f}" if before else ""
            lines.append(f"| {cell.number} {cell.name} | {first} | {' | '.join(cells_of)} |")
    return lines


def pairings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(ours, theirs) for each rival, and ours with recomputation against the plain stock as well."""
    found = [(partner(other), other) for other in others(runs)]
    if any(run.arm == OURS + RECOMPUTE for run in runs):
        found.append((OURS + RECOMPUTE, STOCK))
    return found


def summary(runs: Sequence[Run], cells: Sequence[Cell]) -> str:
    """The last line: over cells, target tokens a second (median, lowest) and memory against the stock."""
    parts: list[str] = []
    found = dict.fromkeys(pair for cell in cells for pair in pairings(of_cell(runs, cell)))
    for ours, theirs in found:
        values = {
            value: [median(found) for cell in cells if (found := ratios(of_cell(runs, cell), ours, theirs, value))]
            for value in (targets_per_second, beyond_weights, process_bytes)
        }
        speed = values[targets_per_second]
        if not speed:
            continue
        parts.append(
            f"{ours} against {theirs}, {len(speed)} cells: target tokens/s {median(speed):.2f}x in the median, "
            f"{min(speed):.2f}x at least; MLX peak beyond the weights {median(values[beyond_weights]):.2f}x; "
            f"process memory {median(values[process_bytes]):.2f}x"
        )
    return " | ".join(parts) or "nothing to compare yet"


def conditions(runs: Sequence[Run]) -> str:
    """Dates, machines and versions, those of peers among them, in one sentence."""
    dates = sorted({run.date[:10] for run in runs}) or ["nothing measured"]
    machines = sorted({str(run.details["machine"]) for run in runs if "machine" in run.details})
    peers: dict[str, str] = {}
    for run in runs:
        if base_arm(run.arm) not in (OURS, STOCK):
            peers |= cast("dict[str, str]", run.details.get("versions", {}))
    listed = [f"{name} {version}" for name, version in sorted(peers.items()) if name not in ("mlx", "mlx-lm")]
    return "; ".join([" to ".join(dict.fromkeys((dates[0], dates[-1]))), *machines, *listed])


def warnings(runs: Sequence[Run]) -> list[str]:
    """What makes figures less than they seem."""
    found: list[str] = []
    sources = {run.source for run in runs if base_arm(run.arm) == OURS}
    if len(sources) > 1:
        found.append(f"ours was measured at {len(sources)} states of the code: start a new results file")
    slow = sorted({run.arm for run in runs if not run.has_openblas})
    if slow:
        found.append(f"without OpenBLAS: {', '.join(slow)}")
    return found


def _against(ours: str, theirs: str) -> str:
    return theirs if ours == partner(theirs) else f"{theirs} (ours recomputes)"


def _middle(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return median(value(run) for run in runs)


def _peak(run: Run) -> float:
    return run.mlx_peak_bytes


def _giga(runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    return f"{_middle(runs, value) / GIGA:.2f}"


def _seconds(runs: Sequence[Run]) -> str:
    values = [seconds_per_example(run) for run in runs]
    return f"{min(values):.2f}, {median(values):.2f}"

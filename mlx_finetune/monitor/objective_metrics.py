"""What an objective measures beside its loss, from the journal alone: names in groups, values over steps.

``rewards/chosen`` and ``rewards/rejected`` are two curves of the group ``rewards``; a name without a slash is a group
of its own. Groups and names come in the order in which they were first seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_finetune.events import Evaluated, StepDone
from mlx_finetune.monitor.summary import Summary

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number: its whole name, and what it is called inside its group."""

    name: str
    label: str


def metric_groups(summary: Summary) -> Mapping[str, Sequence[Metric]]:
    """Group -> its metrics; empty where the objective has none."""
    found: dict[str, dict[str, Metric]] = {}
    for one in (*summary.steps[:1], *summary.steps[-1:], *summary.evaluations):
        for name in one.metrics:
            group, _, label = name.partition("/")
            found.setdefault(group, {}).setdefault(name, Metric(name, label or name))
    return {group: list(metrics.values()) for group, metrics in found.items()}


def metric_points(events: Sequence[StepDone] | Sequence[Evaluated], name: str) -> Points:
    """The finite values of one metric with their steps."""
    pairs = [(float(one.step), one.metrics.get(name)) for one in events]
    return [(step, value) for step, value in pairs if value is not None]


def metrics_line(metrics: Mapping[str, float | None], *, most: int = 3) -> str:
    """``accuracy 0.75  margin 0.412``: the first of those without a group, for one line of text; "" without any."""
    chosen = [(name, value) for name, value in metrics.items() if "/" not in name and value is not None]
    return "  ".join(f"{name} {value:.3g}" for name, value in chosen[:most])

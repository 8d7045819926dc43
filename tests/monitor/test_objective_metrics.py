"""What an objective measures beside its loss is in every view of a run, whatever its names are."""

from pathlib import Path

import pytest

from mlx_finetune.app.trackers.metrics import metrics_of
from mlx_finetune.events import Evaluated, Record, RunStarted, StepDone
from mlx_finetune.monitor.objective_metrics import metric_groups, metric_points, metrics_line
from mlx_finetune.monitor.plain import evaluation_line, step_line
from mlx_finetune.monitor.summary import Summary
from mlx_finetune.monitor.tui.watched import METRIC, Curves

STARTED = RunStarted("r", "m", "dpo", 0, 4, 4, 8, 2, 10, 100, "CPU", "float32", 10**9)


def step(number, **metrics):
    return StepDone(number, 0.1, 0.5, 1e-4, 1.0, 4, 40, 0.0, 0.1, 40.0, 10**6, 10**6, metrics)


def measured(number):
    return {"rewards/chosen": 0.1 * number, "rewards/rejected": -0.2 * number, "accuracy": 0.25 * number}


def events():
    yield STARTED
    yield Evaluated(0, 0.7, 2, False, 0.1, {"rewards/chosen": 0.0, "rewards/rejected": 0.0, "accuracy": 0.0})
    for number in range(1, 5):
        yield step(number, **measured(number))
    yield Evaluated(4, 0.4, 2, True, 0.1, {"rewards/chosen": 0.5, "rewards/rejected": None, "accuracy": 1.0})


@pytest.fixture
def summary():
    found = Summary()
    for index, event in enumerate(events()):
        found.add(Record(float(index), index, event))
    return found


def test_names_before_a_slash_are_groups(summary):
    groups = metric_groups(summary)
    assert {group: [one.label for one in members] for group, members in groups.items()} == {
        "rewards": ["chosen", "rejected"],
        "accuracy": ["accuracy"],
    }
    assert metric_points(summary.steps, "accuracy") == [(1.0, 0.25), (2.0, 0.5), (3.0, 0.75), (4.0, 1.0)]
    assert metric_points(summary.evaluations, "rewards/rejected") == [(0.0, 0.0)]


def test_lines_of_text_have_those_without_a_group(summary):
    assert "accuracy 1" in step_line(summary)
    assert "accuracy 1" in evaluation_line(summary.evaluations[-1], summary)
    assert metrics_line({}) == ""


def test_trackers_are_told_all_of_them(summary):
    assert metrics_of(summary.steps[1])["train/rewards/chosen"] == pytest.approx(0.2)
    told = metrics_of(summary.evaluations[-1])
    assert told["eval/accuracy"] == 1.0
    assert "eval/rewards/rejected" not in told


def test_the_text_interface_has_a_curve_of_each(summary):
    curves = Curves()
    curves.update(summary)
    assert curves[f"{METRIC}rewards/rejected"].ys == pytest.approx([-0.2, -0.4, -0.6, -0.8])
    assert not curves.has(f"{METRIC}margin")


def test_the_page_has_columns_of_them_and_asks_for_new_ones(tmp_path: Path):
    from mlx_finetune.journal import EventWriter
    from mlx_finetune.monitor.web.course import Course
    from mlx_finetune.rundir import EVENTS, RunDir

    writer = EventWriter(tmp_path / EVENTS, clock=lambda: 0.0)
    for event in events():
        writer(event)
    course = Course(RunDir(tmp_path))
    with course.fresh() as fresh:
        curves = fresh.curves(most=100)
        before = fresh.position
    assert curves["metric:accuracy"] == ([1.0, 2.0, 3.0, 4.0], [0.25, 0.5, 0.75, 1.0])
    assert curves["valid:accuracy"] == ([0.0, 4.0], [0.0, 1.0])
    writer(step(5, accuracy=0.5, later=1.0))
    writer.close()
    with course.fresh() as fresh:
        columns, _ = fresh.since(before)
    assert columns["metric:accuracy"] == [0.5]
    assert columns["metric:later"] == [1.0]
    assert columns["metric:rewards/chosen"] == [None]


def test_the_report_draws_each_group_and_has_a_table(summary, tmp_path: Path):
    from mlx_finetune.monitor.report.chart import draw
    from mlx_finetune.monitor.report.parts.metrics import _charts, _table

    groups = metric_groups(summary)
    charts = list(_charts(summary, groups, ()))
    assert [chart.title for chart in charts] == ["Rewards", "Accuracy"]
    assert [one.name for one in charts[0].series] == ["chosen", "rejected"]
    assert all(draw(chart) is not None for chart in charts)
    table = _table(summary.evaluations, summary, [one for members in groups.values() for one in members])
    assert table is not None
    assert "lowest loss (step 4)" in table.text
    assert table.text.count("accuracy") == 1

"""One run as the page follows it: positions that stay good while the journal grows, and curves of few points."""

from pathlib import Path

from journal import STARTED, records, step, whole_run
from web_pages import add_records, write_journal, write_run

from mlx_finetune.events import Phase, Resources, RunStarted
from mlx_finetune.monitor.web.course import Course, Position, parse_position

RESUMED = RunStarted("demo", "tiny-llama", "sft", 2, 40, 20, 80, 8, 1_000, 50_000, "CPU", "float32", 8 * 10**9)


def fresh(course: Course) -> Course:
    course.refresh()
    return course


def test_what_was_added_since_a_position_is_told_and_nothing_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path, "demo", records(STARTED, step(1, 2.0), step(2, 1.5)))
    course = fresh(Course(run))
    before = course.position
    add_records(run, records(step(3, 1.25), Resources(3, cpu_percent=50.0), start=1_000_010.0))
    steps, machine = fresh(course).since(before)
    assert (steps["step"], steps["loss"]) == ([3.0], [1.25])
    assert steps["smooth"] == [course.summary.losses[-1].smooth]
    assert (machine["step"], machine["cpu_percent"], machine["watts"]) == ([3.0], [50.0], [None])
    assert course.holds(before)
    assert course.since(course.position)[0]["step"] == []


def test_a_journal_that_was_cut_back_makes_old_positions_worthless(tmp_path: Path) -> None:
    run = write_run(tmp_path, "demo", records(STARTED, *(step(number) for number in range(1, 6))))
    course = fresh(Course(run))
    before = course.position
    again = records(STARTED, step(1), step(2), Phase("load"), RESUMED, step(3, 9.0))
    write_journal(run, again)
    assert not fresh(course).holds(before)
    assert [one.step for one in course.summary.steps] == [1, 2, 3]
    assert course.curves(most=100)["loss"] == ([1.0, 2.0, 3.0], [1.0, 1.0, 9.0])
    write_journal(run, records(STARTED, step(1, 7.0)))
    assert fresh(course).curves(most=100)["loss"] == ([1.0], [7.0])
    assert course.summary.restarts == []


def test_a_resumed_run_whose_journal_was_not_cut_starts_a_new_generation_too(tmp_path: Path) -> None:
    run = write_run(tmp_path, "demo", records(STARTED, *(step(number) for number in range(1, 6))))
    course = fresh(Course(run))
    before = course.position
    add_records(run, records(RESUMED, step(3, 4.0)))
    assert not fresh(course).holds(before)
    assert course.curves(most=100)["smooth"][0] == [1.0, 2.0, 3.0]


def test_losses_that_are_not_finite_leave_a_hole_and_nothing_moves(tmp_path: Path) -> None:
    bad = step(2, float("nan"))
    run = write_run(tmp_path, "demo", records(STARTED, step(1, 2.0), bad, step(3, 2.0)))
    course = fresh(Course(run))
    steps, _ = course.since(Position("", 0, 0))
    assert steps["loss"] == [2.0, None, 2.0]
    assert steps["smooth"] == [2.0, None, 2.0]
    curves = course.curves(most=100)
    assert curves["loss"] == ([1.0, 3.0], [2.0, 2.0])
    assert curves["grad_norm"][0] == [1.0, 2.0, 3.0]


def test_long_curves_are_thinned_with_their_extremes_and_a_part_is_shown_in_full(tmp_path: Path) -> None:
    losses = [9.0 if number == 777 else 1.0 for number in range(1, 3001)]
    run = write_run(tmp_path, "demo", records(STARTED, *(step(n, loss) for n, loss in enumerate(losses, 1))))
    course = fresh(Course(run))
    xs, ys = course.curves(most=200)["loss"]
    assert len(xs) <= 200
    assert xs[ys.index(9.0)] == 777
    assert (xs[0], xs[-1]) == (1.0, 3000.0)
    assert course.curves(first=770, last=780, most=200)["loss"][0] == [float(one) for one in range(769, 782)]
    assert course.curves(first=5000, last=6000, most=200)["loss"][0] == [3000.0]


def test_curves_of_which_nothing_is_known_are_left_out(tmp_path: Path) -> None:
    course = fresh(Course(write_run(tmp_path, "demo", whole_run())))
    assert "watts" not in course.curves(most=100)
    assert fresh(Course(write_run(tmp_path, "none", []))).curves(most=100) == {}


def test_only_positions_are_read_as_positions(tmp_path: Path) -> None:
    position = fresh(Course(write_run(tmp_path, "demo", whole_run()))).position
    assert parse_position(position.text) == position
    for text in ("", "a", "a-1", "a-1-", "a-1--2", "-1-2", "a-x-1", "a-1-2" + "0" * 100, "a-\u0661-2-3"):
        assert parse_position(text) is None, text

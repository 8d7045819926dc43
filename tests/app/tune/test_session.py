"""One tuning with processes and a clock that are made up: rounds, stages, the time that is left, every failure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from mlx_finetune.app.tune.children import Report
from mlx_finetune.app.tune.session import Session
from mlx_finetune.errors import DoesNotFitError, MlxftError, RunError
from mlx_finetune.hardware.tune import ROUNDS, Case, Failure, Run
from mlx_finetune.hardware.tuned import NOTHING_TUNED, Tried, TunedSettings

CPU = Case(
    on_gpu=False,
    is_full=False,
    num_cores=2,
    compute_dtype="float32",
    batch_size=4,
    accumulation=1,
    microbatch=4,
    gradient_checkpointing=False,
    num_threads="halves",
)
STEPS = (1.0, 2.0, 1.5)


@dataclass
class Machine:
    """Processes that take ``seconds`` each; ``speed`` says how fast settings are, or how they fail."""

    speed: Callable[[TunedSettings, int], float | Failure]
    seconds: float = 10.0
    case: Case = CPU
    now: float = 0.0
    asked: list[tuple[TunedSettings, int, float]] = field(default_factory=list)

    def trial(self, settings: TunedSettings, num_steps: int, timeout: float) -> Report | Failure:
        self.asked.append((settings, num_steps, timeout))
        found = self.speed(settings, len(self.asked))
        if isinstance(found, Failure):
            self.now += timeout if found.verdict == "timed_out" else self.seconds
            return found
        if self.seconds > timeout:
            self.now += timeout
            return Failure("timed_out", "too late")
        self.now += self.seconds
        run = Run(tuple(one / found for one in STEPS), (2.0, 1.9, 1.8, 1.7), 10**8, 10**9)
        return Report(run, self.case, 0.02)


class Watched:
    """What was shown."""

    def __init__(self) -> None:
        self.begun: list[tuple[TunedSettings, int]] = []
        self.told: list[Tried] = []

    def begin(self, settings: TunedSettings, round_number: int) -> None:
        self.begun.append((settings, round_number))

    def settled(self, tried: Sequence[Tried]) -> None:
        self.told += tried


def tuned(speed: Callable[[TunedSettings, int], float | Failure], **more: object) -> tuple[Session, Machine, Watched]:
    machine = Machine(speed, **more)  # pyright: ignore[reportArgumentType]
    watched = Watched()
    session = Session(machine.trial, watched, clock=lambda: machine.now)
    session.run()
    return session, machine, watched


def verdicts(session: Session) -> list[tuple[str, str]]:
    return [(" ".join(f"{key}={value}" for key, value in one.settings.items()), one.verdict) for one in session.tried]


def test_where_nothing_is_faster_the_defaults_stay_and_everything_was_tried() -> None:
    session, machine, watched = tuned(lambda settings, _: 1.0)
    assert session.settings == NOTHING_TUNED
    assert verdicts(session) == [
        ("hardware.num_threads=1", "tie"),
        ("hardware.num_threads=2", "tie"),
        ("hardware.microbatch=1", "tie"),
        ("hardware.microbatch=2", "tie"),
        ("training.gradient_checkpointing=True", "tie"),
    ]
    assert session.ended_early == ""
    assert session.num_runs == 1 + ROUNDS * (3 + 3 + 2) == len(machine.asked)
    assert watched.told == session.tried
    assert watched.begun[0] == (NOTHING_TUNED, 0)


def test_the_first_process_decides_how_many_steps_all_others_take() -> None:
    _, machine, _ = tuned(lambda settings, _: 1.0)
    assert [num_steps for _, num_steps, _ in machine.asked] == [0, *[len(STEPS)] * (len(machine.asked) - 1)]


def test_rounds_are_interleaved_and_every_other_one_goes_backwards() -> None:
    _, machine, _ = tuned(lambda settings, _: 1.0)
    first = [settings.num_threads for settings, _, _ in machine.asked[1:10]]
    assert first == [None, 1, 2, 2, 1, None, None, 1, 2]


def test_what_is_kept_in_one_stage_is_part_of_the_next() -> None:
    def speed(settings: TunedSettings, _: int) -> float:
        return (1.3 if settings.num_threads == 2 else 1.0) * (1.2 if settings.batch_size == 1 else 1.0)

    session, machine, _ = tuned(speed)
    assert session.settings == TunedSettings(num_threads=2, batch_size=1)
    assert [one.gain for one in session.tried if one.verdict == "kept"] == pytest.approx([1.3, 1.2])
    assert all(settings.num_threads == 2 for settings, _, _ in machine.asked[-ROUNDS:])
    assert machine.asked[-1][0].batch_size == 1
    assert session.case is not None
    assert (session.case.num_threads, session.case.microbatch) == (2, 1)


def test_the_hopeless_are_run_once() -> None:
    session, machine, _ = tuned(lambda settings, _: 0.5 if settings.values() else 1.0)
    assert {verdict for _, verdict in verdicts(session)} == {"slower"}
    assert session.num_runs == 1 + 3 + 3 + 2
    assert len(machine.asked) == session.num_runs


@pytest.mark.parametrize("verdict", ["crashed", "timed_out", "no_memory", "refused"])
def test_a_candidate_that_fails_is_written_down_and_the_others_go_on(verdict: str) -> None:
    failure = Failure(verdict, "it did not work")  # pyright: ignore[reportArgumentType]
    session, _, _ = tuned(lambda settings, _: failure if settings.num_threads == 1 else 1.0, seconds=5.0)
    failed = session.tried[0]
    assert (failed.verdict, failed.message, failed.gain) == (verdict, "it did not work", None)
    assert "tie" in dict(verdicts(session)).values()


def test_one_failure_of_the_best_so_far_costs_a_round_and_two_end_it() -> None:
    def fails_at(*numbers: int) -> Callable[[TunedSettings, int], float | Failure]:
        return lambda _, number: Failure("crashed", "gone") if number in numbers else 1.0

    session, _, _ = tuned(fails_at(2))
    assert session.tried[0].verdict == "unsure"
    assert session.tried[0].rounds == ROUNDS - 1
    with pytest.raises(RunError, match="the defaults themselves cannot be measured: gone"):
        tuned(fails_at(2, 7))


@pytest.mark.parametrize(("verdict", "error"), [("crashed", RunError), ("no_memory", DoesNotFitError)])
def test_defaults_that_fail_at_once_are_an_error(verdict: str, error: type[MlxftError]) -> None:
    with pytest.raises(error, match="the defaults themselves cannot be measured") as raised:
        tuned(lambda *_: Failure(verdict, "no"))  # pyright: ignore[reportArgumentType]
    assert raised.value.hint


def test_nothing_begins_that_would_end_too_late_and_what_is_known_by_then_counts() -> None:
    session, machine, _ = tuned(lambda settings, _: 1.4 if settings.num_threads == 2 else 1.0, seconds=28.0)
    assert machine.now <= 300
    assert session.ended_early == "the 300 s for it were up"
    assert session.settings == TunedSettings(num_threads=2)
    assert verdicts(session)[0] == ("hardware.num_threads=1", "tie")


def test_with_too_few_rounds_nothing_is_kept() -> None:
    session, _, _ = tuned(lambda settings, _: 2.0 if settings.num_threads == 2 else 1.0, seconds=60.0)
    assert session.settings == NOTHING_TUNED
    assert dict(verdicts(session))["hardware.num_threads=2"] == "unsure"


def test_defaults_that_take_all_the_time_are_an_error_and_not_longer() -> None:
    machine = Machine(lambda *_: 1.0, seconds=400.0)
    session = Session(machine.trial, Watched(), clock=lambda: machine.now)
    with pytest.raises(RunError, match="not within 300 s"):
        session.run()
    assert machine.now == 300


def test_one_that_hangs_costs_a_few_times_what_the_first_took_and_one_at_the_end_is_only_out_of_time() -> None:
    hung = Failure("timed_out", "it was not done and was killed")
    session, machine, _ = tuned(lambda settings, _: hung if settings.num_threads == 1 else 1.0, seconds=5.0)
    assert session.tried[0].verdict == "timed_out"
    assert [timeout for settings, _, timeout in machine.asked if settings.num_threads == 1] == [25.0]
    late, machine, _ = tuned(lambda settings, _: hung if settings.batch_size else 1.0, seconds=20.0)
    assert machine.now <= 300
    assert late.ended_early


def test_a_process_that_takes_other_steps_than_it_was_asked_for_has_failed() -> None:
    machine = Machine(lambda *_: 1.0)

    def trial(settings: TunedSettings, num_steps: int, timeout: float) -> Report | Failure:
        found = machine.trial(settings, num_steps, timeout)
        assert isinstance(found, Report)
        return replace(found, run=replace(found.run, seconds=(1.0,))) if settings.num_threads == 1 else found

    session = Session(trial, Watched(), clock=lambda: machine.now)
    session.run()
    assert session.tried[0].verdict == "crashed"


def test_what_was_settled_before_an_interruption_is_there_after_it() -> None:
    def speed(settings: TunedSettings, number: int) -> float:
        if settings.batch_size:
            raise KeyboardInterrupt
        return 1.3 if settings.num_threads == 2 else 1.0

    machine = Machine(speed)
    session = Session(machine.trial, Watched(), clock=lambda: machine.now)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert session.settings == TunedSettings(num_threads=2)
    assert [verdict for _, verdict in verdicts(session)] == ["tie", "kept"]

"""What a watch tells of the time and when it asks for a pause; every clock and sensor is set by hand."""

import time
from dataclasses import replace

import pytest
from watched import MAINS, ROOMY, FakeMachine

from mlx_finetune.events import Continued, Event, Paused, TimeJump
from mlx_finetune.hardware.sensors import Memory, Power
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.watch import Watch, system_clocks

GIB = 2**30


class Watched(FakeMachine):
    """A machine with its watch, looked at after every ``step``."""

    def start(self, min_battery_percent: int = 20) -> "Watched":
        self.events: list[Event] = []
        self.stop = StopRequest()
        around = self.around()
        self.watch = Watch(around, min_battery_percent=min_battery_percent, emit=self.events.append, stop=self.stop)
        return self

    def step(self, seconds: float = 5.0) -> str | None:
        self.run(seconds)
        return self.watch.reason_to_pause()


def test_nothing_is_said_of_a_quiet_machine() -> None:
    machine = Watched().start()
    assert [machine.step(seconds) for seconds in (0.01, 1, 5, 400, 100_000)] == [None] * 5
    assert machine.events == []


def test_sensors_are_read_at_most_every_five_seconds() -> None:
    machine = Watched().start()
    for _ in range(100):
        machine.step(0.5)
    assert machine.num_power_readings == 10


def test_after_sleep_the_sensors_are_read_at_once() -> None:
    machine = Watched().start()
    machine.step(0)
    machine.suspend(60)
    machine.step(0)
    assert machine.num_power_readings == 2


# Time


def test_sleep_is_told_once_with_its_length() -> None:
    machine = Watched().start()
    machine.step()
    machine.suspend(3600)
    machine.step()
    machine.step()
    assert machine.events == [TimeJump(3600.0, was_asleep=True)]


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 2.5, -2.5])
def test_a_clock_that_was_set_is_told_with_its_direction(seconds: float) -> None:
    machine = Watched().start()
    machine.step()
    machine.wall += seconds
    machine.step()
    machine.step()
    assert machine.events == [TimeJump(seconds, was_asleep=False)]


def test_a_clock_that_is_corrected_on_waking_is_told_apart_from_the_sleep() -> None:
    machine = Watched().start()
    machine.suspend(100)
    machine.wall -= 10
    machine.step()
    assert machine.events == [TimeJump(100.0, was_asleep=True), TimeJump(-10.0, was_asleep=False)]


def test_drift_is_no_jump_however_far_it_gets() -> None:
    machine = Watched().start()
    for _ in range(50):
        machine.wall += 1.5
        machine.continuous += 1.9
        machine.step()
    assert machine.events == []


def test_a_process_that_was_held_between_two_clocks_reads_them_again() -> None:
    machine = Watched().start()
    around = machine.around()
    holds = [0.0, 3600.0, 0.0]  # seconds for which the process stands still after its first, second, third reading

    def wall() -> float:
        now = machine.wall
        machine.run(holds.pop(0))
        return now

    around = replace(around, clocks=replace(around.clocks, wall=wall))
    watch = Watch(around, min_battery_percent=20, emit=machine.events.append, stop=machine.stop)
    assert watch.reason_to_pause() is None
    assert holds == []
    assert machine.events == []


def test_the_clocks_of_this_machine_keep_pace() -> None:
    clocks = system_clocks()
    before = (clocks.wall(), clocks.continuous(), clocks.awake())
    time.sleep(0.05)
    after = (clocks.wall(), clocks.continuous(), clocks.awake())
    assert [round(end - start, 1) for start, end in zip(before, after, strict=True)] == pytest.approx(
        [0.05] * 3, abs=0.06
    )
    assert clocks.continuous() >= clocks.awake() - 0.01


@pytest.mark.parametrize(
    ("missing", "continuous", "awake"),
    [
        ((), "CLOCK_MONOTONIC_RAW", "CLOCK_UPTIME_RAW"),
        (("CLOCK_UPTIME_RAW",), "CLOCK_BOOTTIME", "CLOCK_MONOTONIC"),
        (("CLOCK_UPTIME_RAW", "CLOCK_BOOTTIME"), None, None),
    ],
)
def test_clocks_are_chosen_by_what_the_system_has(
    missing: tuple[str, ...], continuous: str | None, awake: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("CLOCK_MONOTONIC_RAW", "CLOCK_UPTIME_RAW", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC")
    for number, name in enumerate(names):
        monkeypatch.setattr(time, name, number, raising=False)
    for name in missing:
        monkeypatch.delattr(time, name)
    monkeypatch.setattr(time, "clock_gettime", lambda number: names[number])
    clocks = system_clocks()
    if continuous is None:
        assert clocks.continuous is clocks.awake is time.monotonic
    else:
        assert (clocks.continuous(), clocks.awake()) == (continuous, awake)


# Battery


def battery(percent: int | None) -> Power:
    return Power(on_battery=True, percent=percent)


def test_the_battery_pauses_at_the_threshold_and_not_above() -> None:
    machine = Watched(power=battery(21)).start()
    assert machine.step() is None
    machine.power = battery(20)
    assert machine.step() == "the battery is at 20% (hardware.min_battery_percent = 20)"


@pytest.mark.parametrize(
    ("power", "is_over"),
    [
        (battery(24), False),
        (battery(25), True),
        (MAINS, True),
        (Power(on_battery=False, percent=3), True),
        (Power(None, None), False),
        (battery(None), False),
    ],
)
def test_a_battery_pause_ends_on_mains_or_five_percent_above(power: Power, is_over: bool) -> None:
    machine = Watched(power=battery(19)).start()
    assert machine.step()
    machine.power = power
    assert (machine.step() is None) == is_over


@pytest.mark.parametrize("power", [Power(None, None), Power(None, 1), battery(None), Power(False, 1)])
def test_an_unknown_battery_never_begins_a_pause(power: Power) -> None:
    assert Watched(power=power).start().step() is None


def test_zero_percent_asked_for_never_pauses() -> None:
    assert Watched(power=battery(0)).start(min_battery_percent=0).step() is None


# Memory


def test_critical_pressure_pauses_at_the_third_sample_in_a_row() -> None:
    machine = Watched(memory=Memory("critical", 0)).start()
    assert [machine.step(), machine.step()] == [None, None]
    machine.memory = Memory("warning", 0)
    assert machine.step() is None
    machine.memory = Memory("critical", None)
    assert [machine.step(), machine.step()] == [None, None]
    assert machine.step() == "memory is short: macOS reports critical pressure"


def test_swap_that_grew_by_more_than_a_gibibyte_since_the_start_pauses() -> None:
    machine = Watched(memory=Memory(None, 3 * GIB)).start()
    machine.step()
    machine.memory = Memory(None, 4 * GIB)
    assert [machine.step() for _ in range(5)] == [None] * 5
    machine.memory = Memory(None, 4 * GIB + 1)
    assert [machine.step(), machine.step()] == [None, None]
    assert machine.step() == "memory is short: 1.1 GB more are swapped out"


def test_swap_that_was_not_known_at_the_start_counts_from_its_first_reading() -> None:
    machine = Watched(memory=Memory(None, None)).start()
    machine.step()
    machine.memory = Memory(None, 9 * GIB)
    assert [machine.step() for _ in range(5)] == [None] * 5


@pytest.mark.parametrize("level", ["normal", None])
def test_a_memory_pause_ends_at_the_third_sample_without_pressure(level) -> None:
    machine = Watched(memory=Memory("critical", 0)).start()
    assert [machine.step() is None for _ in range(3)] == [True, True, False]
    calm, warning = Memory(level, 5 * GIB), Memory("warning", 5 * GIB)
    seen = []
    for machine.memory in (calm, calm, warning, calm, calm):
        seen.append(machine.step() is None)
    assert seen == [False] * 5
    machine.memory = calm
    assert machine.step() is None
    # What was swapped out by then is where swap counts from now.
    assert [machine.step() for _ in range(5)] == [None] * 5
    machine.memory = Memory(level, 6 * GIB + 1)
    assert [machine.step() is None for _ in range(3)] == [True, True, False]


def test_a_memory_pause_ends_after_five_minutes_that_were_tight_but_never_critical() -> None:
    machine = Watched(memory=Memory("critical", 0)).start()
    assert [machine.step() is None for _ in range(3)] == [True, True, False]
    machine.memory = Memory("warning", 0)
    assert [machine.step() is None for _ in range(59)] == [False] * 59
    machine.memory = Memory("critical", 0)
    assert machine.step() is not None
    machine.memory = Memory("warning", 0)
    assert [machine.step() is None for _ in range(60)] == [False] * 59 + [True]


# Pauses


def test_a_pause_lasts_until_the_reason_is_gone_and_says_how_long_that_was() -> None:
    machine = Watched(power=battery(10)).start()
    reason = machine.step()
    assert reason
    machine.in_seconds(60, "power", MAINS)
    machine.watch.pause(7, reason)
    begun, ended = machine.events
    assert begun == Paused(7, reason)
    assert isinstance(ended, Continued)
    assert ended.step == 7
    assert 60 <= ended.seconds <= 66
    assert set(machine.naps) == {0.2}


def test_the_machine_is_still_looked_at_during_a_pause() -> None:
    machine, reported = Watched(power=battery(10)).start(), list[int]()
    reason = machine.step()
    machine.in_seconds(2, "power", MAINS)
    machine.watch.pause(7, reason or "", reported.append)
    assert set(reported) == {7}
    assert len(reported) == len(machine.naps)


def test_sleep_during_a_pause_is_told_and_part_of_it() -> None:
    machine = Watched(power=battery(10)).start()
    reason = machine.step()
    assert reason
    machine.later.append((machine.awake + 3, lambda: machine.suspend(1000)))
    machine.in_seconds(3, "power", MAINS)
    machine.watch.pause(7, reason)
    begun, jump, ended = machine.events
    assert (begun, jump) == (Paused(7, reason), TimeJump(1000.0, was_asleep=True))
    assert isinstance(ended, Continued)
    assert 1003 <= ended.seconds <= 1003.4


def test_a_stop_ends_a_pause_within_a_nap_and_nothing_is_said_to_continue() -> None:
    machine = Watched(power=battery(10)).start()
    reason = machine.step()
    assert reason
    machine.later.append((machine.awake + 1, lambda: machine.stop.request(15)))
    machine.watch.pause(7, reason)
    assert machine.events == [Paused(7, reason)]
    assert sum(machine.naps) <= 1.3


def test_a_pause_for_memory_outlasts_the_battery_that_joined_it() -> None:
    machine = Watched(memory=Memory("critical", 0)).start()
    reasons = [machine.step() for _ in range(3)]
    machine.power = battery(5)
    machine.in_seconds(30, "memory", ROOMY)
    machine.in_seconds(300, "power", MAINS)
    machine.watch.pause(7, reasons[-1] or "")
    (continued,) = [event for event in machine.events if isinstance(event, Continued)]
    assert 300 <= continued.seconds <= 306


def test_a_look_costs_microseconds() -> None:
    """Far below a thousandth of the shortest step; the bound leaves room for a busy machine."""
    machine = Watched().start()
    around = replace(machine.around(), clocks=system_clocks())
    watch = Watch(around, min_battery_percent=20, emit=machine.events.append, stop=machine.stop)
    watch.reason_to_pause()
    best = min(_timed(watch) for _ in range(5))
    assert best < 50e-6


def _timed(watch: Watch) -> float:
    started = time.perf_counter()
    for _ in range(200):
        watch.reason_to_pause()
    return (time.perf_counter() - started) / 200

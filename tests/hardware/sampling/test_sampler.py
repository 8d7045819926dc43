"""The sampler: every source by itself, none waits for another, samples are taken once, energy only grows."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_finetune.events import Resources
from mlx_finetune.hardware.sampling import sampler as module
from mlx_finetune.hardware.sampling.energy import MacmonLine
from mlx_finetune.hardware.sampling.sampler import MOST_SHARE, Sampler
from mlx_finetune.hardware.sampling.source import Figures, Source
from mlx_finetune.hardware.sampling.sources import system_sources

FAST: Figures = {"cpu_percent": 12.345, "gpu_percent": 0}


def broken() -> Figures:
    raise OSError("no such tool")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As patient as a test may be."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)


def test_a_source_that_fails_blanks_no_other() -> None:
    sampler = Sampler([Source("broken", broken), Source("fast", lambda: FAST), Source("none", dict)], seconds=5)
    assert sampler.look() == Resources(0, cpu_percent=12.3, gpu_percent=0)


def test_the_later_source_counts_where_it_tells() -> None:
    first = Source("first", lambda: {"watts": 3.0, "process_bytes": 7})
    sampler = Sampler([first, Source("second", lambda: {"watts": 4.0, "process_bytes": None})], seconds=5)
    assert sampler.look() == Resources(0, watts=4.0, process_bytes=7)


@pytest.mark.usefixtures("quick")
def test_a_source_that_hangs_is_left_out_alone_until_it_answers() -> None:
    released, readings = threading.Event(), list[int]()

    def hang() -> Figures:
        readings.append(1)
        released.wait(60)
        return {"watts": 5.0}

    sampler = Sampler([Source("hangs", hang), Source("fast", lambda: FAST)], seconds=5)
    assert [sampler.look(), sampler.look(), sampler.look()] == [Resources(0, cpu_percent=12.3, gpu_percent=0)] * 3
    assert len(readings) == 1, "it is not asked again while it hangs"
    released.set()
    deadline = time.monotonic() + 30
    while sampler.look().watts != 5.0:
        assert time.monotonic() < deadline


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_source_that_always_fails_is_asked_less_and_less() -> None:
    clock, asked = Clock(), list[float]()

    def fail() -> Figures:
        asked.append(clock.now)
        return {}

    sampler = Sampler([Source("fails", fail), Source("fast", lambda: FAST)], seconds=5, clock=clock)
    for _ in range(720):
        sampler.look()
        clock.now += 5
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert gaps[:6] == [5, 5, 10, 20, 40, 80]
    assert gaps[6:] == [160, *[300] * (len(gaps) - 7)]


def test_a_source_that_comes_back_is_asked_as_often_as_before() -> None:
    clock, works = Clock(), [False]

    def read() -> Figures:
        return FAST if works[0] else {}

    sampler, told = Sampler([Source("flaky", read)], seconds=5, clock=clock), list[bool]()
    for number in range(60):
        works[0] = number > 20
        told.append(sampler.look().cpu_percent is not None)
        clock.now += 5
    assert not any(told[:21])
    assert all(told[40:])


def test_a_slow_source_is_asked_seldom_and_its_figures_count_in_between() -> None:
    clock, asked = Clock(), list[float]()

    def read() -> Figures:
        asked.append(clock.now)
        return {"process_bytes": len(asked)}

    sampler = Sampler([Source("slow", read, seconds=30)], seconds=5, clock=clock)
    seen: list[int | None] = []
    for _ in range(13):
        seen.append(sampler.look().process_bytes)
        clock.now += 5
    assert asked == [0, 30, 60]
    assert seen == [1] * 6 + [2] * 6 + [3]


def joules(*values: float) -> Callable[[], Figures]:
    waiting: Iterator[float] = iter(values)
    return lambda: {"energy_joules": next(waiting, None)}


def test_energy_goes_on_from_before_and_never_falls() -> None:
    source = Source("chip", joules(10.0, 25.0, 5.0, 30.0))
    sampler = Sampler([source], seconds=5, joules=100.0)
    assert [sampler.look().energy_joules for _ in range(5)] == [110.0, 125.0, 125.0, 130.0, 130.0]
    assert Sampler([Source("fast", lambda: FAST)], seconds=5).look().energy_joules is None
    assert Sampler([Source("fast", lambda: FAST)], seconds=5, joules=7.0).look().energy_joules == 7.0


def wait_for(take: Callable[[], Resources | None]) -> Resources:
    deadline = time.monotonic() + 30
    while (found := take()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def test_a_sample_is_taken_once_and_the_next_one_follows() -> None:
    counted = iter(range(10**6))
    with Sampler([Source("counter", lambda: {"swap_bytes": next(counted)})], seconds=0.01) as sampler:
        first = wait_for(sampler.take)
        second = wait_for(sampler.take)
        assert first.swap_bytes is not None
        assert second.swap_bytes is not None
        assert 1 <= first.swap_bytes < second.swap_bytes, "the first look of all is only where differences begin"
    while sampler.take() is not None:
        pass
    before = next(counted)
    time.sleep(0.05)
    assert next(counted) == before + 1, "nobody reads any more"


def test_it_ends_at_once_although_a_source_hangs() -> None:
    released, closed = threading.Event(), list[str]()
    hang = Source("hangs", lambda: {"watts": 1.0 if released.wait(60) else None}, close=lambda: closed.append("hangs"))
    started = time.monotonic()
    with Sampler([hang], seconds=0.01):
        time.sleep(0.05)
    assert time.monotonic() - started < 30
    assert closed == ["hangs"]
    released.set()


def test_samples_that_cost_too_much_are_taken_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample of a second of processor time: on average a hundred seconds pass between two of them."""
    waits: list[float] = []
    spent = iter(range(1000))
    sampler = Sampler([Source("fast", lambda: FAST)], seconds=5)
    monkeypatch.setattr(sampler, "_spent", lambda: float(next(spent)))

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > 60

    monkeypatch.setattr(sampler._stopped, "wait", wait)
    sampler._work()
    assert waits[0] == 1.0
    assert waits[1:4] == pytest.approx([20.0, 36.0, 48.8])
    assert waits[-1] == pytest.approx(1 / MOST_SHARE, rel=1e-3)


def test_every_source_of_this_machine_gives_fields_that_a_sample_has(tmp_path: Path) -> None:
    names = set(Resources.__slots__)
    for system in ("linux", "darwin"):
        sources = system_sources(tmp_path, seconds=5, environment={}, system=system, run=lambda command: None)
        for source in sources:
            assert source.read().keys() <= names, source.name
    assert set(MacmonLine.__slots__) < names


def test_a_linux_machine_is_looked_at_without_starting_a_program(tmp_path: Path) -> None:
    def run(command: object) -> str | None:
        raise AssertionError(command)

    sources = system_sources(tmp_path, seconds=5, environment={}, system="linux", run=run)
    sampler = Sampler(sources, seconds=5)
    sampler.look()
    found = sampler.look()
    assert found.memory_used_bytes
    assert found.process_bytes
    assert found.disk_free_bytes


def test_what_a_mac_is_asked_for_at_each_look(tmp_path: Path) -> None:
    clock, asked = Clock(), list[str]()

    def run(command: list[str]) -> str | None:
        asked.append(
            f"{Path(command[0]).name} {command[-1]}" if command[0].endswith("pmset") else Path(command[0]).name
        )
        answers = {"ioreg": '"Device Utilization %"=7,', "footprint": "Footprint: 3 GB (", "vm_stat": VM_STAT}
        return answers.get(Path(command[0]).name, NOMINAL)

    sources = system_sources(tmp_path, seconds=5, environment={}, system="darwin", run=run)  # pyright: ignore[reportArgumentType]
    sampler = Sampler(sources, seconds=5, clock=clock)
    for _ in range(12):
        sampler.look()
        clock.now += 5
    counts = {name: asked.count(name) for name in asked}
    plain = counts.pop("ioreg")
    assert plain == 24, "here the property list fails each time; on a Mac that is 12"
    assert counts == {"vm_stat": 12, "pmset therm": 2, "footprint": 1}


VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages wired down: 100.
Pages purgeable: 1.
Anonymous pages: 100.
Pages occupied by compressor: 5."""
NOMINAL = "Note: No thermal warning level has been recorded\nNote: No performance warning level has been recorded"

"""What it costs to look at the machine while it trains: processor time of one sample, and its share of one core.

    python benchmarks/sensors_cost.py [--samples 50] [--seconds 5] [--stubs DIR]

Asks all sources of this machine again and again, each as often as during a training (one sample stands for
``--seconds``), and prints for each source how often it was asked, the processor time of its thread and the time that
went by; then the whole: threads here, and the programs they have started. What the watch over power and memory asks
(``train.watch``) is among them; macmon, where it is installed, is a process of its own and is not. On a Mac the
programs are the cost. ``--stubs DIR`` takes the sources of a Mac on any
machine and answers each of its tools with the recorded output in DIR through a real program (``cat``): that is the cost
of starting programs and of reading what they print, without what Apple's tools do themselves.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_finetune.hardware.sampling.sampler import Sampler
from mlx_finetune.hardware.sampling.source import Figures, Source
from mlx_finetune.hardware.sampling.sources import system_sources
from mlx_finetune.hardware.sensors import system_sensors
from mlx_finetune.hardware.system.programs import Runner, run_program

#: What answers for each tool of a Mac, below the folder of recorded outputs.
STUBS = {
    "ioreg -a": "ioreg/m4_constructed.plist",
    "ioreg": "ioreg/m1_8core.txt",
    "vm_stat": "vm_stat/m1.txt",
    "pmset": "pmset/therm_apple_silicon_nominal.txt",
    "sysctl": "sysctl/loaded_48gb_18core.txt",
    "footprint": "footprint/mlx_server_m3ultra.txt",
    "memory_pressure": "memory_pressure/q_apple_silicon_32gb.txt",
}


def answering(folder: Path) -> Runner:
    """A runner that starts ``cat`` with the recorded output in the place of each tool."""

    def run(command: Sequence[str]) -> str | None:
        name = Path(command[0]).name
        name = f"{name} -a" if f"{name} -a" in STUBS and "-a" in command else name
        return run_program(["/bin/cat", str(folder / STUBS[name])])

    return run


def timed(source: Source, cost: dict[str, list[float]], walls: dict[str, list[float]]) -> Source:
    """``source``, with the processor time of its thread and the time that went by noted at each reading."""

    def read() -> Figures:
        began = time.perf_counter()
        try:
            return source.read()
        finally:
            cost.setdefault(source.name, []).append(time.thread_time())
            walls.setdefault(source.name, []).append(time.perf_counter() - began)

    return Source(source.name, read, source.seconds, source.close)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60, help="how many are taken (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time that one stands for (%(default)s)")
    parser.add_argument("--stubs", type=Path, help="folder of recorded outputs of a Mac's tools, for any machine")
    given = parser.parse_args()
    system, run = ("darwin", answering(given.stubs)) if given.stubs else (sys.platform, run_program)
    cost: dict[str, list[float]] = {}
    walls: dict[str, list[float]] = {}
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        sources = system_sources(Path(folder), seconds=given.seconds, environment=os.environ, system=system, run=run)
        sources = (*sources, _watch(system, run))
        sampler = Sampler([timed(one, cost, walls) for one in sources], seconds=given.seconds, clock=clock)
        sampler.look()
        cost.clear()
        walls.clear()
        before, began = _spent(), time.perf_counter()
        each = [_measure(sampler.look, clock, given.seconds) for _ in range(given.samples)]
        spent, wall = _spent() - before, time.perf_counter() - began
        for source in sources:
            source.close()
    for name, found in cost.items():
        print(
            f"{name:<14} {len(found):4} times  {1000 * statistics.mean(found):7.2f} ms of the processor here  "
            f"{1000 * statistics.median(walls[name]):8.2f} ms go by"
        )
    share = spent / (given.samples * given.seconds)
    print(
        f"one sample: {1000 * spent / given.samples:.2f} ms of processor time, programs included "
        f"(largest {1000 * max(each):.2f}), {1000 * wall / given.samples:.2f} ms go by"
    )
    print(f"every {given.seconds:g} s that is {share:.3%} of one core; 1 % is the most")
    return 0 if share <= 0.01 else 1


def _watch(system: str, run: Runner) -> Source:
    """What the watch asks every five seconds, as a source."""
    sensors = system_sensors(system=system, run=run)

    def read() -> Figures:
        return {"battery_percent": sensors.read_power().percent, "swap_bytes": sensors.read_memory().swap_bytes or 0}

    return Source("watch", read, seconds=5.0)


class _Clock:
    """Time as the sampler sees it: one sample's worth at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _measure(look: Callable[[], object], clock: _Clock, seconds: float) -> float:
    before = _spent()
    clock.now += seconds
    look()
    return _spent() - before


def _spent() -> float:
    """Processor time of this process and of the programs it has started that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())

"""What a report costs: seconds and bytes for runs of 100, 10,000 and 100,000 steps, evaluated a hundred times.

`PYTHONPATH=.:tests .venv/bin/python benchmarks/report_cost.py [--rounds 5]`. Reading the journal is timed by itself, in
turns with the whole, because nothing that tells of a run can do without it. Needed: less than 3 MB, and no more than
three times as long as reading the journal. Last line: the worst of both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlx_finetune.events import Evaluated, Event, Sampled
from mlx_finetune.journal import read_events
from mlx_finetune.monitor.report.write import write_report
from mlx_finetune.monitor.summary import summarise
from mlx_finetune.rundir import EVENTS, RunDir

MAX_BYTES = 3_000_000
MAX_RATIO = 3.0
ANSWER = "a sentence of an answer, with <b>marks</b> & signs; " * 20


def long_run(num_steps: int) -> list[Event]:
    """Five prompts answered at each of a hundred evaluations."""
    from reported_runs import STARTED, step

    found: list[Event] = [STARTED]
    every = max(1, num_steps // 100)
    for number in range(1, num_steps + 1):
        found.append(step(number))
        if number % every == 0:
            found.append(Evaluated(number, 2.5 - number / num_steps, 100, is_best=True, seconds=0.1))
            found += [Sampled(number, f"prompt {place}", f"{ANSWER}{number}") for place in range(5)]
    return found


def timed(work: Callable[[], object]) -> float:
    """Seconds of processor time: others may share the machine."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(run: RunDir, rounds: int) -> list[tuple[float, float]]:
    """Seconds for the journal alone and for the report, in turns."""
    return [
        (timed(lambda: summarise(read_events(run.file(EVENTS)))), timed(lambda: write_report(run)))
        for _ in range(rounds)
    ]


def main() -> int:
    """Print the table; 1 where a bound is passed."""
    parser = argparse.ArgumentParser(description="Cost of a report.")
    parser.add_argument("--rounds", type=int, default=5, help="times each is made (%(default)s)")
    rounds = parser.parse_args().rounds
    from reported_runs import write_events

    worst_ratio, worst_bytes = 0.0, 0
    print(
        f"{'steps':>8} {'bytes':>10} {'journal, s':>11} {'report, s':>10} {'ratio':>6}   (least, and median of ratios)"
    )
    for num_steps in (100, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            run = RunDir(Path(folder))
            write_events(run, long_run(num_steps))
            pairs = measure(run, rounds)
            size = run.file("report.html").stat().st_size
        journal, report = (min(pair[place] for pair in pairs) for place in (0, 1))
        median = statistics.median(whole / part for part, whole in pairs)
        print(f"{num_steps:>8,} {size:>10,} {journal:>11.3f} {report:>10.3f} {report / journal:>6.2f}   {median:.2f}")
        if num_steps > 100:  # there is little to read in a short journal
            worst_ratio = max(worst_ratio, report / journal)
        worst_bytes = max(worst_bytes, size)
    print(f"worst: {worst_bytes:,} bytes, {worst_ratio:.2f} times the journal")
    return int(worst_bytes > MAX_BYTES or worst_ratio > MAX_RATIO)


if __name__ == "__main__":
    raise SystemExit(main())

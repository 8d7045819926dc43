"""Two ranks on this machine against the same work in one process: seconds per step, efficiency, bytes per step.

    python benchmarks/distributed.py [--repeats N] [--steps N] [--set KEY=VALUE ...] [--only NAME ...]

Every repeat runs each way once, in rotating order, on the same rows in the same steps; ratios are taken within a
repeat. The first step of a run is left out. Bytes are read from the counter of the loopback interface between the
second step and the last, and computed: a ring sends ``2 (N - 1) / N`` times the buffer from each of N ranks. Core
seconds are the processor time of all processes of a way, its launcher's too, over the same steps: they say what a way
costs also on a machine that others use, where the wall clock says little. Linux only.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "data.path=data/quickstart/train.jsonl",
    "data.val_split=0",
    "data.test_split=0",
    "training.batch_size=8",
    "training.eval_steps=100000",
    "training.save_steps=100000",
    "eval.prompts=[]",
)


Counters = tuple[float, int]  # core seconds, bytes


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the work. ``start`` comes before ``train RECIPE``; ``threads`` of the BLAS in each process."""

    name: str
    start: tuple[str, ...]
    threads: int | None
    hostfile: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """Wall seconds, core seconds and loopback bytes of a step after the first; the last loss; trainable weights."""

    step_seconds: float
    core_seconds: float
    bytes_per_step: float
    loss: float
    trainable: int


def ways() -> list[Way]:
    """One process on one core, on all, and with BLAS threads; two ranks by --hostfile, mlx.launch, and that uncured."""
    mlxft = (sys.executable, "-m", "mlx_finetune", "train")
    launch = (str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "-p", "34500", "--")
    return [
        Way("one process on one core", ("taskset", "-c", "0", *mlxft), 1),
        Way("one process, one thread", mlxft, 1),
        Way("one process, two threads", mlxft, 2),
        Way("two ranks, --hostfile", mlxft, None, hostfile=True),
        Way("two ranks, two threads each", mlxft, 2, hostfile=True),
        Way("two ranks, mlx.launch", (*launch, *mlxft), None),
        Way(
            "two ranks, bare mlx.launch", (*launch, sys.executable, "-m", "mlx_finetune.train.child", "--recipe"), None
        ),
    ]


def measure(way: Way, recipe: Path, settings: list[str], steps: int) -> Measured:
    """Train ``steps`` steps in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("OPENBLAS_NUM_THREADS", None)
        if way.threads:
            environment["OPENBLAS_NUM_THREADS"] = str(way.threads)
        options = [*settings, f"output_dir={run}", f"training.max_steps={steps}"]
        command = [*way.start, str(recipe), *(part for one in options for part in ("--set", one))]
        if way.hostfile:
            hosts = Path(folder) / "hosts.json"
            hosts.write_text(json.dumps([{"ssh": "127.0.0.1"}] * 2))
            command += ["--hostfile", str(hosts)]
        with (Path(folder) / "said").open("w+b") as said:
            # stdin stays open and silent: mlx.launch also turns round and round where its own is at its end
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT
            )
            second, last = _watch(process, run / "events.jsonl", steps)
            process.wait()
            said.seek(0)
            text = said.read().decode("utf-8", "replace")
        events = _events(run / "events.jsonl")
        done = [event for event in events if event["kind"] == "step"]
        if len(done) != steps:
            raise SystemExit(f"{way.name}: {text}")
        started = next(event for event in events if event["kind"] == "run_started")
        return Measured(
            statistics.mean(event["step_seconds"] for event in done[1:]),
            (last[0] - second[0]) / (steps - 2),
            (last[1] - second[1]) / (steps - 2),
            done[-1]["loss"],
            started["trainable_parameters"],
        )


def _watch(process: "subprocess.Popen[bytes]", journal: Path, steps: int) -> tuple[Counters, Counters]:
    """The counters when step 2 was reported, and when the last was."""
    second = last = (0.0, 0)
    while process.poll() is None and last == (0.0, 0):
        num_steps = journal.read_bytes().count(b'"kind": "step"') if journal.is_file() else 0
        if num_steps >= 2 and second == (0.0, 0):
            second = _counters(process.pid)
        if num_steps >= steps:
            last = _counters(process.pid)
        time.sleep(0.05)
    return second, last


def _counters(pid: int) -> Counters:
    """Processor seconds of a process and all that descend from it, and bytes sent over the loopback interface."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            parents[int(entry.parent.name)] = int(fields[1])
            seconds[int(entry.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(seconds.get(member, 0.0) for member in family), loopback_bytes()


def _events(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []


def loopback_bytes() -> int:
    """Bytes sent over the loopback interface since the machine started."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def computed_bytes(trainable: int, size: int) -> float:
    """What all ranks of a ring send in a step: the buffer of gradients, loss and three counts in fp32."""
    return size * 2 * (size - 1) / size * 4 * (trainable + 4)


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way (%(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="steps of a run; the first is not counted (%(default)s)")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        help="KEY=VALUE of the quickstart's recipe; may be repeated",
    )
    parser.add_argument(
        "--only", action="append", default=[], help="name of a way to run; may be repeated; without it all"
    )
    given = parser.parse_args()
    chosen = [way for way in ways() if not given.only or way.name in given.only]
    found: dict[str, list[Measured]] = {way.name: [] for way in chosen}
    for repeat in range(given.repeats):
        turn = repeat % len(chosen)
        for way in chosen[turn:] + chosen[:turn]:
            measured = measure(way, ROOT / "recipes/quickstart.toml", [*SETTINGS, *given.settings], given.steps)
            found[way.name].append(measured)
            print(f"{repeat + 1}: {way.name}: {measured}", file=sys.stderr, flush=True)
        _print(chosen, found)  # after every repeat: a busy machine takes long


def _print(chosen: list[Way], found: dict[str, list[Measured]]) -> None:
    """Seconds per step and how many times as fast as the first way; bytes of all ranks together."""
    first = found[chosen[0].name]
    print(
        f"{'way':<30} {'s/step min':>10} {'median':>8} {'speed min':>10} {'median':>8} {'core s min':>10} {'median':>8}"
        f" {'MB/step':>8} {'loss':>10}"
    )
    for way in chosen:
        seconds = [one.step_seconds for one in found[way.name]]
        ratios = [base.step_seconds / one.step_seconds for base, one in zip(first, found[way.name], strict=True)]
        cores = [one.core_seconds for one in found[way.name]]
        megabytes = statistics.median(one.bytes_per_step for one in found[way.name]) / 1e6
        print(
            f"{way.name:<30} {min(seconds):>10.2f} {statistics.median(seconds):>8.2f} {min(ratios):>9.2f}x"
            f" {statistics.median(ratios):>7.2f}x {min(cores):>10.2f} {statistics.median(cores):>8.2f}"
            f" {megabytes:>8.2f} {found[way.name][-1].loss:>10.6f}"
        )
    print(f"computed for two ranks: {computed_bytes(first[0].trainable, 2) / 1e6:.2f} MB a step, both together")


if __name__ == "__main__":
    main()

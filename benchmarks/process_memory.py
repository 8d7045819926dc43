"""What the training process holds beside MLX's arrays, and what its allocator's settings are worth in memory and time.

    python benchmarks/process_memory.py --work FOLDER [--cell 7] [--rows 24] [--repeats 5]

FOLDER is that of ``versus_mlx_lm.py``: its model, and the rows of the cell. Every line of VARIANTS trains the same rows
in a fresh process, in turns. ``process`` is the highest resident memory, ``rest`` that beyond the peak of MLX's arrays;
seconds are those of the steps behind the first, the same batches in every run. Linux.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from race_cells import CELLS, Cell, our_recipe

from mlx_finetune.app.running.launch import CHILD_MODULE, child_environment
from mlx_finetune.events import StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import EVENTS

ROOT = Path(__file__).resolve().parents[1]
NO_SETTINGS = {"MALLOC_ARENA_MAX": "16", "MALLOC_MMAP_THRESHOLD_": None, "MALLOC_TRIM_THRESHOLD_": None}
#: name -> (cache limit, changes of the child's environment)
VARIANTS: Mapping[str, tuple[str, Mapping[str, str | None]]] = {
    "cache 128 MiB, glibc as it comes": ("134217728", NO_SETTINGS),
    "cache 32 MB, glibc as it comes": ("32000000", NO_SETTINGS),
    "cache 32 MB, one arena": ("32000000", NO_SETTINGS | {"MALLOC_ARENA_MAX": "1"}),
    "cache 32 MB, large blocks mapped": (
        "32000000",
        NO_SETTINGS | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"},
    ),
    "as mlxft train starts it": ('"auto"', {}),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: highest resident bytes, peak of MLX's arrays, seconds of each step."""

    process: int
    arrays: int
    seconds: tuple[float, ...]


def measure(cell: Cell, work: Path, rows: int, cache: str, changes: Mapping[str, str | None]) -> Figures:
    """Train the first ``rows`` rows of ``cell`` in a fresh process. Raises ``SystemExit`` where it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (work / "cells" / cell.key / "train.jsonl").read_text("utf-8").splitlines()[:rows]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        recipe = folder / "recipe.toml"
        recipe.write_text(our_recipe(cell, work / "model", folder, folder / "out", seed=0, recompute=False))
        command = [sys.executable, "-m", CHILD_MODULE, "--recipe", str(recipe)]
        command += ["--set", f"hardware.cache_limit={cache}"]
        environment = {**child_environment(os.environ | {"PYTHONPATH": str(ROOT)}, sys.platform), **changes}
        told = {name: value for name, value in environment.items() if value is not None}
        process = subprocess.Popen(command, env=told, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        steps = [one.event for one in read_events(folder / "out" / EVENTS) if isinstance(one.event, StepDone)]
    return Figures(
        usage.ru_maxrss * 1024,
        max(step.peak_memory_bytes for step in steps),
        tuple(step.step_seconds for step in steps),
    )


def main() -> None:
    """Measure every variant in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="work folder of versus_mlx_lm.py")
    parser.add_argument(
        "--cell", type=int, default=7, help="number of the race's cell whose rows are trained (%(default)s)"
    )
    parser.add_argument("--rows", type=int, default=24, help="rows of it (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each variant (%(default)s)")
    parser.add_argument("--only", default="", help="variants whose name contains this, and the first")
    given = parser.parse_args()
    cell = next(one for one in CELLS if one.number == given.cell)
    first = next(iter(VARIANTS))
    chosen = [name for name in VARIANTS if name == first or given.only in name]
    runs: dict[str, list[Figures]] = {name: [] for name in chosen}
    for repeat in range(given.repeats):
        for name in chosen[::-1] if repeat % 2 else chosen:
            runs[name].append(measure(cell, given.work, given.rows, *VARIANTS[name]))
    base = _fastest(runs[first])
    print(f"{cell.name}, {given.rows} rows, {given.repeats} repeats; MB; step time: each step's fastest and median run")
    print(f"{'process':>9}{'arrays':>9}{'rest':>7}{'time, min':>11}{'median':>8}  setting")
    for name, figures in runs.items():
        process = statistics.median(one.process for one in figures)
        arrays = statistics.median(one.arrays for one in figures)
        fastest, middle = (sum(times) / sum(origin) for times, origin in zip(_fastest(figures), base, strict=True))
        memory = f"{process / 1e6:9.0f}{arrays / 1e6:9.0f}{(process - arrays) / 1e6:7.0f}"
        print(f"{memory}{fastest:11.3f}{middle:8.3f}  {name}")


def _fastest(figures: list[Figures]) -> tuple[list[float], list[float]]:
    """For each step behind the first its fastest and its median seconds over the runs."""
    steps = list(zip(*(one.seconds[1:] for one in figures), strict=True))
    return [min(step) for step in steps], [statistics.median(step) for step in steps]


if __name__ == "__main__":
    main()

"""The race: ``mlxft train`` against the stock ``mlx_lm.lora`` on the same model, rows and settings.

    python benchmarks/versus_mlx_lm.py                        # ten cells, three repeats: hours; resumable
    python benchmarks/versus_mlx_lm.py --quick                # two small cells, one repeat: minutes
    python benchmarks/versus_mlx_lm.py --cells 1,3 --repeats 5 --grad-checkpoint
    python benchmarks/versus_mlx_lm.py --peer mlx-lm-lora=/tmp/peer/bin/python
    python benchmarks/versus_mlx_lm.py --table                # only print what was measured

SmolLM2-135M-Instruct in fp32, LoRA of rank 8 on every linear layer, one pass over each cell's rows. Both sides load
OpenBLAS and flush denormals to zero. Each measurement is a process of its own, the sides take turns, and every second
repeat runs in the other order. What is measured is appended to results.jsonl in the work folder; what stands there is
not measured again, so a race that was interrupted goes on. The last line of the output holds the ratios.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import race_table
from race_cells import CELLS, OURS, QUICK_CELLS, STOCK, Cell, arms_of_repeat
from race_rows import read_json_lines
from race_run import PEERS, ROOT, Run, measure, run_folder, saved_adapters
from race_table import Loss, equal_time

RESULTS, QUICK_RESULTS = "results.jsonl", "quick.jsonl"


@dataclass(slots=True)
class Race:
    """What is to be measured, and what has been. ``results`` is only ever appended to."""

    work: Path
    data: Path
    results: Path
    cells: Sequence[Cell]
    repeats: int
    peers: Mapping[str, str]
    recompute: bool
    with_losses: bool
    source: str
    runs: list[Run] = field(default_factory=list[Run])
    losses: list[Loss] = field(default_factory=list[Loss])

    def load(self) -> None:
        """Read what was measured before."""
        for row in read_json_lines(self.results):
            if row["kind"] == "run":
                self.runs.append(Run.from_json(row))
            else:
                self.losses.append(Loss(**{key: value for key, value in row.items() if key != "kind"}))  # type: ignore[arg-type]

    def run(self) -> None:
        """Measure what is missing: every cell once, then every cell again."""
        for repeat in range(self.repeats):
            for cell in self.cells:
                self._repeat(cell, repeat)

    def _repeat(self, cell: Cell, repeat: int) -> None:
        arms = arms_of_repeat(repeat, list(self.peers), recompute=self.recompute)
        missing = [arm for arm in arms if self.find(cell, arm, repeat) is None]
        if missing or self._losses_missing(cell, repeat):
            self._start("race_rows.py", "--work", self.work, "--data", self.data, "--cell", json.dumps(asdict(cell)))
        for arm in missing:
            run = measure(cell, arm, repeat, self.work, peers=self.peers, source=self.source)
            if run.details.get("kernels_built"):
                say(f"{cell.name}, {arm}: kernels were compiled, which happens once; measured again")
                run = measure(cell, arm, repeat, self.work, peers=self.peers, source=self.source)
            run.details["machine"] = machine()
            self.runs.append(run)
            self._append(run.to_json())
            rate, pace = race_table.targets_per_second(run), race_table.seconds_per_example(run)
            say(f"{cell.name}, repeat {repeat + 1}, {arm}: {pace:.2f} s/row, {rate:.1f} targets/s")
        if self._losses_missing(cell, repeat):
            self._measure_losses(cell, repeat)
        for arm in arms:
            shutil.rmtree(run_folder(self.work, cell, arm, repeat), ignore_errors=True)

    def find(self, cell: Cell, arm: str, repeat: int) -> Run | None:
        """The run, where it was measured."""
        return next((run for run in self.runs if (run.cell, run.arm, run.repeat) == (cell.key, arm, repeat)), None)

    def _has_loss(self, cell: Cell, repeat: int | None, at: str) -> bool:
        return any(e.cell == cell.key and e.at == at and repeat in (None, e.repeat) for e in self.losses)

    def _losses_missing(self, cell: Cell, repeat: int) -> bool:
        if not self.with_losses or self._has_loss(cell, repeat, "time"):
            return False
        is_fresh = not any(self.find(cell, arm, repeat) for arm in (STOCK, OURS))
        return is_fresh or all(run_folder(self.work, cell, arm, repeat).is_dir() for arm in (STOCK, OURS))

    def _measure_losses(self, cell: Cell, repeat: int) -> None:
        """Both sides after the same rows and after the same training time, and once the base, in one process."""
        runs = {arm: found for arm in (STOCK, OURS) if (found := self.find(cell, arm, repeat))}
        saved = {
            arm: saved_adapters(arm, run_folder(self.work, cell, arm, repeat), len(run.seconds))
            for arm, run in runs.items()
        }
        steps = equal_time({arm: run.seconds for arm, run in runs.items()}, saved)
        wanted = [(arm, "examples", len(run.seconds)) for arm, run in runs.items()]
        wanted += [(arm, "time", steps[arm]) for arm in runs]
        distinct = list(dict.fromkeys((arm, step) for arm, _, step in wanted))
        with_base = not self._has_loss(cell, None, "base")
        out = self.work / "losses.json"
        arguments: list[object] = ["--model", self.work / "model", "--out", out, *(["--base"] if with_base else [])]
        arguments += ["--rows", self.work / "cells" / cell.key / "valid-tokens.jsonl"]
        for arm, step in distinct:
            arguments += ["--adapter", *saved[arm][step]]
        self._start("race_loss.py", *arguments)
        values: list[float] = json.loads(out.read_bytes())
        found = [Loss(cell.key, "", repeat, "base", 0, values.pop(0))] if with_base else []
        by_adapter = dict(zip(distinct, values, strict=True))
        found += [Loss(cell.key, arm, repeat, at, step, by_adapter[arm, step]) for arm, at, step in wanted]
        for entry in found:
            self.losses.append(entry)
            self._append({"kind": "loss", **asdict(entry)})
            say(f"{cell.name}, repeat {repeat + 1}: validation loss {entry.loss:.4f} ({entry.arm} {entry.at})")

    def _append(self, row: Mapping[str, object]) -> None:
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _start(self, script: str, *arguments: object) -> None:
        """Run one of our scripts, with one BLAS thread: its sums, and so a loss, depend on their number."""
        command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, check=False, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f"{script} ended with {done.returncode}")

    def table(self) -> str:
        """Everything that was measured, as Markdown; the last line holds the ratios."""
        known = [cell for cell in self.cells if race_table.of_cell(self.runs, cell)]
        shown = [run for run in self.runs if any(run.cell == cell.key for cell in known)]
        repeats = len({run.repeat for run in shown})
        lines = [f"{race_table.conditions(shown)}; {len(known)} cells, up to {repeats} repeats.", ""]
        lines += [*race_table.speed_table(shown, known), "", *race_table.memory_table(shown, known), ""]
        lines += [*race_table.loss_table(self.losses, known), ""] if self.losses else []
        lines += [f"Warning: {sentence}." for sentence in race_table.warnings(shown)]
        return "\n".join([*lines, race_table.summary(shown, known)])


def say(line: str) -> None:
    """Progress; the tables go to stdout."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def machine() -> str:
    """Processor and versions in one phrase."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("mlx", "mlx-lm", "mlx-finetune") if has(name))
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    return (
        f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} cores, BLAS threads: {threads}, "
        f"Python {platform.python_version()}, {versions}"
    )


def has(package: str) -> bool:
    """True where the package's metadata can be read."""
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def source_hash() -> str:
    """The state of our code, so that figures of two states are not taken for one."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "mlx_finetune").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def choose(text: str | None, cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose numbers are in ``text``, all without it. Raises ``SystemExit`` for a number there is not."""
    if text is None:
        return list(cells)
    known = {str(cell.number): cell for cell in cells}
    numbers = [part.strip() for part in text.split(",")]
    if unknown := [number for number in numbers if number not in known]:
        raise SystemExit(f"there is no cell {unknown[0]}; cells are {', '.join(known)}")
    return [known[number] for number in numbers]


def parse_peers(values: Sequence[str]) -> dict[str, str]:
    """``NAME=PYTHON`` to a mapping. Raises ``SystemExit`` for a name without a runner."""
    peers = {name: python for name, _, python in (value.partition("=") for value in values)}
    for name, python in peers.items():
        if name not in PEERS or not Path(python).is_file():
            raise SystemExit(f"--peer {name}={python}: write NAME=PYTHON with one of {', '.join(PEERS)}")
    return peers


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cells = "; ".join(f"{cell.number}: {cell.name}" for cell in CELLS)
    parser.add_argument("--cells", help=f"numbers, for instance 1,3; without it all: {cells}")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side in a cell (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two small cells, one repeat, a fresh results file")
    parser.add_argument("--grad-checkpoint", action="store_true", help="both sides with recomputation as well")
    parser.add_argument("--no-loss", action="store_true", help="measure no validation losses")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="another rival")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "race",
        help="folder for model, rows, runs and results (%(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder with the data sets of the cells (%(default)s)",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Race, and print the table."""
    given = parse()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results = work / (QUICK_RESULTS if given.quick else RESULTS)
    if given.quick and not given.table:
        results.unlink(missing_ok=True)
    race = Race(
        work=work,
        data=given.data.resolve(),
        results=results,
        cells=choose(given.cells, QUICK_CELLS if given.quick else CELLS),
        repeats=1 if given.quick else given.repeats,
        peers=parse_peers(given.peer),
        recompute=given.grad_checkpoint,
        with_losses=not given.no_loss,
        source=source_hash(),
    )
    race.load()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends what was started, too
    if not given.table:
        race.run()
    if not race.runs:
        raise SystemExit(f"nothing is measured in {results}: run it without --table first")
    table = race.table()
    results.with_suffix(".md").write_text(table + "\n", "utf-8")
    print(table)


if __name__ == "__main__":
    main()

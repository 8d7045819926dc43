"""One measurement of the race: start a side's command, watch its memory from outside, read what it did.

Seconds are those of the training steps alone, by each side's own clock around the same work: the stock's
``train_time`` (a step and its cache clear; batches are made outside it), ours ``step_seconds`` (batch, step, update).
Loading, tokenising, saving and reports are outside on both sides. Targets are counted by one rule for both: the
positions in ``train-tokens.jsonl`` of the rows that a side really put through the model.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import psutil
from race_cells import OURS, RECOMPUTE, STOCK, Cell, base_arm, our_recipe, stock_config
from race_rows import read_json_lines

from mlx_finetune.events import Restarted, StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import EVENTS, MLX_WEIGHTS, RunDir, checkpoint_step

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.2
LOOKS = 5  # polls between two searches for new processes
PEERS = ("mlx-lm-lora", "mlx-tune")  # names of arms and of distributions; race_stock.py knows how to run them


@dataclass(frozen=True, slots=True)
class Row:
    """A training row for the neutral counter: its tokens, and how many of them are targets."""

    tokens: int
    targets: int


@dataclass(slots=True)
class Run:
    """What one arm did in one repeat of one cell. Lists have one entry for each step."""

    cell: str
    arm: str
    repeat: int
    date: str
    seconds: list[float]
    targets: list[int]
    tokens: list[int]
    positions: list[int]
    examples: int
    mlx_peak_bytes: int
    weights_bytes: int
    process_peak_bytes: int
    wall_seconds: float
    has_openblas: bool
    source: str
    details: dict[str, object] = field(default_factory=dict[str, object])

    def to_json(self) -> dict[str, object]:
        """One line of the results."""
        return {"kind": "run", **asdict(self)}

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> "Run":
        """The run on one line of the results."""
        return cls(**{key: value for key, value in fields.items() if key != "kind"})  # type: ignore[arg-type]


@dataclass(slots=True)
class Processes:
    """The highest resident memory and the processor time of each Python process of a command, itself included.

    Others (the compiler that mlx's CPU backend starts for a kernel it does not have yet) are left out.
    """

    peaks: dict[int, int] = field(default_factory=dict[int, int])
    openblas: set[int] = field(default_factory=set[int])
    user_seconds: dict[int, float] = field(default_factory=dict[int, float])
    system_seconds: dict[int, float] = field(default_factory=dict[int, float])

    def look(self, pids: Sequence[int]) -> None:
        """Note the peaks so far."""
        for pid in pids:
            peak = resident_peak(pid)
            self.peaks[pid] = max(peak, self.peaks.get(pid, 0))

    def look_closely(self, pids: Sequence[int]) -> None:
        """Note processor times, and which processes have loaded OpenBLAS."""
        for pid in pids:
            try:
                times = psutil.Process(pid).cpu_times()
                self.user_seconds[pid], self.system_seconds[pid] = times.user, times.system
                if pid not in self.openblas and has_openblas(pid):
                    self.openblas.add(pid)
            except (OSError, psutil.Error):
                continue

    @property
    def largest(self) -> int:
        """The process that holds the model."""
        return max(self.peaks, key=lambda pid: self.peaks[pid])

    @property
    def total_bytes(self) -> int:
        """The sum of all peaks: an upper bound of what the command held at once."""
        return sum(self.peaks.values())


def resident_peak(pid: int) -> int:
    """Highest resident bytes of a process: VmHWM on Linux, elsewhere what is resident now; 0 when it is gone."""
    try:
        if sys.platform == "linux":
            return parse_peak(Path(f"/proc/{pid}/status").read_text())
        return int(psutil.Process(pid).memory_info().rss)
    except (OSError, psutil.Error):
        return 0


def has_openblas(pid: int) -> bool:
    """True where the process has the package's OpenBLAS in its address space; numpy's own does not count."""
    return sys.platform == "linux" and "ngsolve_openblas" in Path(f"/proc/{pid}/maps").read_text()


def built_kernels(temporary: Path) -> int:
    """Kernels that mlx's CPU backend has compiled and kept there."""
    return sum(1 for _ in temporary.glob("mlx/*/cpu/*.so"))


def parse_peak(status: str) -> int:
    """VmHWM out of ``/proc/PID/status``, in bytes; 0 for a process that has ended."""
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def run_watched(command: Sequence[str], log: Path, temporary: Path) -> tuple[float, Processes]:
    """Run to the end with output to ``log``; wall seconds and memory. Raises ``SystemExit`` where it fails.

    ``temporary`` is the command's folder for temporary files, in which mlx keeps the kernels that it compiles.
    """
    seen = Processes()
    temporary.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    started = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            pids: list[int] = []
            for poll in range(sys.maxsize):
                if poll % LOOKS == 0:
                    pids = family(process.pid)
                    seen.look_closely(pids)
                seen.look(pids)
                try:
                    process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
    return time.monotonic() - started, seen


def family(pid: int) -> list[int]:
    """A Python process and every one below it."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return [pid]
    return [pid, *(child.pid for child in children if is_python(child))]


def is_python(process: psutil.Process) -> bool:
    """True for an interpreter; False also for a process that is gone."""
    try:
        return "python" in Path(process.exe()).name.lower()
    except psutil.Error:
        return False


def measure(cell: Cell, arm: str, repeat: int, work: Path, *, peers: Mapping[str, str], source: str) -> Run:
    """Train once; the run folder stays, for its checkpoints."""
    rows = [
        Row(len(cast("list[int]", row["ids"])), len(cast("list[int]", row["targets"])))
        for row in read_json_lines(work / "cells" / cell.key / "train-tokens.jsonl")
    ]
    folder = run_folder(work, cell, arm, repeat)
    shutil.rmtree(folder, ignore_errors=True)  # of a measurement that was cut short
    folder.mkdir(parents=True)
    command = _command(cell, arm, repeat, work, folder, peers)
    temporary = work / "tmp"
    kernels = built_kernels(temporary)
    seconds, seen = run_watched(command, folder / "log.txt", temporary)
    read = read_ours if base_arm(arm) == OURS else read_stock
    run = read(folder, rows)
    run.cell, run.arm, run.repeat, run.source = cell.key, arm, repeat, source
    run.date = time.strftime("%Y-%m-%d %H:%M")
    run.weights_bytes = int(json.loads((work / "model" / "weights.json").read_bytes())["bytes"])
    run.process_peak_bytes, run.wall_seconds = seen.total_bytes, round(seconds, 2)
    run.has_openblas = sys.platform != "linux" or seen.largest in seen.openblas
    run.details["processes"] = sorted(seen.peaks.values(), reverse=True)
    run.details["cpu_seconds"] = [sum(seen.user_seconds.values()), sum(seen.system_seconds.values())]
    run.details["kernels_built"] = built_kernels(temporary) - kernels
    return run


def run_folder(work: Path, cell: Cell, arm: str, repeat: int) -> Path:
    """Where one measurement keeps its files until its losses are measured."""
    return work / "runs" / f"{cell.key}-{repeat}-{arm}"


def _command(cell: Cell, arm: str, repeat: int, work: Path, folder: Path, peers: Mapping[str, str]) -> list[str]:
    data, out = work / "cells" / cell.key, folder / "out"
    recompute = arm.endswith(RECOMPUTE)
    if base_arm(arm) == OURS:
        recipe = folder / "recipe.toml"
        recipe.write_text(our_recipe(cell, work / "model", data, out, seed=repeat, recompute=recompute))
        return [sys.executable, "-m", "mlx_finetune", "train", str(recipe)]
    config = folder / "lora.json"
    config.write_text(stock_config(cell, work / "model", data, out, seed=repeat, recompute=recompute))
    python = sys.executable if base_arm(arm) == STOCK else peers[base_arm(arm)]
    trainer = "mlx-lm" if base_arm(arm) == STOCK else base_arm(arm)
    runner = str(ROOT / "benchmarks/race_stock.py")
    return [python, runner, "--out", str(folder / "figures.json"), "--config", str(config), "--trainer", trainer]


def _run(seconds: list[float], targets: list[int], tokens: list[int], positions: list[int], examples: int) -> Run:
    return Run("", "", 0, "", seconds, targets, tokens, positions, examples, 0, 0, 0, 0.0, False, "")


def read_ours(folder: Path, rows: Sequence[Row]) -> Run:
    """Our run out of its journal. Raises ``SystemExit`` where it did not train every row exactly once."""
    events = [record.event for record in read_events(folder / "out" / EVENTS)]
    if any(isinstance(event, Restarted) for event in events):
        raise SystemExit(f"{folder}: the training process was started again; its figures do not count")
    steps = [event for event in events if isinstance(event, StepDone)]
    run = _run(
        [step.step_seconds for step in steps],
        [step.num_targets for step in steps],
        [step.num_tokens for step in steps],
        [round(step.num_tokens / (1 - step.padding_share)) for step in steps],
        len(rows),
    )
    expected = sum(row.targets for row in rows)
    if sum(run.targets) != expected:
        raise SystemExit(f"{folder}: {sum(run.targets)} targets were trained, the rows have {expected}")
    run.mlx_peak_bytes = max(step.peak_memory_bytes for step in steps)
    run.details["losses"] = [step.loss for step in steps]
    return run


def read_stock(folder: Path, rows: Sequence[Row]) -> Run:
    """A run of the stock, or of a peer like it, out of what its watcher noted."""
    figures = json.loads((folder / "figures.json").read_bytes())
    run = stock_steps(figures["seconds"], figures["shapes"], figures["rows"], rows)
    run.mlx_peak_bytes = int(figures["mlx_peak_bytes"])
    names = ("losses", "counted_targets", "blas", "flush_to_zero", "product_gflops", "versions")
    run.details |= {name: figures[name] for name in names}
    return run


def stock_steps(
    seconds: Sequence[float], shapes: Sequence[Sequence[int]], batches: Sequence[Sequence[int]], rows: Sequence[Row]
) -> Run:
    """Targets, tokens and positions of batches: ``shapes`` are ``(B, T + 1)``, ``batches`` the row numbers in each."""
    if not len(seconds) == len(shapes) == len(batches):
        raise SystemExit(
            f"{len(seconds)} reports, {len(shapes)} shapes and {len(batches)} batches do not belong together"
        )
    for shape, batch in zip(shapes, batches, strict=True):
        if shape[0] != len(batch):
            raise SystemExit(f"a batch of shape {list(shape)} was made of {len(batch)} rows")
    return _run(
        list(seconds),
        [sum(rows[index].targets for index in batch) for batch in batches],
        [
            sum(min(rows[index].tokens, shape[1] - 1) for index in batch)
            for shape, batch in zip(shapes, batches, strict=True)
        ],
        [shape[0] * (shape[1] - 1) for shape in shapes],
        sum(len(batch) for batch in batches),
    )


def saved_adapters(arm: str, folder: Path, num_steps: int) -> dict[int, tuple[Path, Path]]:
    """Step -> (adapter_config.json, weights) of every checkpoint of a run."""
    out = folder / "out"
    if base_arm(arm) == OURS:
        return {
            checkpoint_step(path): (path / "adapter_config.json", path / MLX_WEIGHTS)
            for path in RunDir(out).checkpoints()
        }
    config = out / "adapter_config.json"
    found = {int(path.name.partition("_")[0]): (config, path) for path in out.glob("[0-9]*_adapters.safetensors")}
    return found | {num_steps: (config, out / "adapters.safetensors")}

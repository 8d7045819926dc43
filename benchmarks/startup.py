"""From the command to the first step, against the bare cost of the model: last line is the ratio.

    python benchmarks/startup.py [--rounds 5] [--recipe recipes/quickstart.toml]

bare   a process that imports mlx-lm's loader (with it the module of the architecture) and loads and computes the
       weights as they are stored.
ours   the training process on the quickstart, until it says that training starts: all that is left then is the loop,
       which evaluates the untrained model where the recipe asks for that and takes the first step.

Taken in turn, caches warm (one round before them is not counted). Beside the clock stands the time of the processor,
which other work on the machine changes less. Needed: at most 1.5 by the clock.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlx_finetune.events import RunStarted
from mlx_finetune.journal import read_events
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import EVENTS

NEEDED = 1.5
BARE = """
import sys
from pathlib import Path
from mlx_finetune.hardware import blas
blas.prepare()
from mlx_lm.utils import load_model
load_model(Path(sys.argv[1]))
"""


def main() -> int:
    """Print the table; 1 where the ratio is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each side (%(default)s)")
    parser.add_argument(
        "--recipe", type=Path, default=Path("recipes/quickstart.toml"), help="recipe to start (%(default)s)"
    )
    options = parser.parse_args()
    model = fetch_model(load_recipe(options.recipe, ()).recipe.model, report=lambda phase: None).folder
    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for is_counted in [False, *[True] * options.rounds]:
        for name, taken in (("bare", measure_bare(model)), ("ours", measure_ours(options.recipe))):
            seconds[name] += [taken] if is_counted else []
    print(f"{'':<6} {'fastest':>9} {'median':>9} {'processor, least':>18}")
    for name, taken in seconds.items():
        clock, processor = zip(*taken, strict=True)
        print(f"{name:<6} {min(clock):7.2f} s {statistics.median(clock):7.2f} s {min(processor):16.2f} s")
    best = min(ours for ours, _ in seconds["ours"]) / min(bare for bare, _ in seconds["bare"])
    pairs = [ours[0] / bare[0] for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True)]
    print(f"ratio: {best:.2f} fastest, {statistics.median(pairs):.2f} median of pairs; needed: at most {NEEDED}")
    return 0 if best <= NEEDED else 1


def measure_bare(model: Path) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    return _measure([sys.executable, "-c", BARE, str(model)], None)


def measure_ours(recipe: Path) -> tuple[float, float]:
    """The same for a training process, which is ended as soon as it says that training starts."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "mlx_finetune.train.child", "--recipe", str(recipe)]
        return _measure([*command, "--set", f"output_dir={run}"], run / EVENTS)


def _measure(command: list[str], events: Path | None) -> tuple[float, float]:
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while events is not None and process.poll() is None and not _has_started(events):
            time.sleep(0.002)
        seconds = time.perf_counter() - begin
        if events is not None and process.returncode is None:
            process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        if events is None:
            seconds = time.perf_counter() - begin
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"{command} ended with {status}")
    return seconds, usage.ru_utime + usage.ru_stime


def _has_started(events: Path) -> bool:
    return events.is_file() and any(isinstance(one.event, RunStarted) for one in read_events(events))


if __name__ == "__main__":
    sys.exit(main())

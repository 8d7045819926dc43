"""What it costs that a run cannot be lost: seconds of a quickstart spent on that, as a share of its wall time.

    python benchmarks/safety_cost.py [--recipe recipes/quickstart.toml] [--set KEY=VALUE ...] [--pairs N]

One run, in which everything is timed that a trainer without promises would not do: commits (writing, flushing, reading
back, rotating), admission, the watch over the machine, the journal, publishing, and the processor time of the parent.
``--pairs N`` adds N pairs of whole runs, with the flushing, reading back and watching left out in one of each: a
coarser figure, because two runs of minutes differ by more than this costs.
"""

import argparse
import functools
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from mlx_finetune.durable import Chunk, Written

ROOT = Path(__file__).resolve().parents[1]

#: Module, name and what it is called in the table. Inside one that is timed, others are not timed again.
TIMED = (
    ("mlx_finetune.train.child", "admit", "admission"),
    ("mlx_finetune.train.run", "_restored_state", "admission"),
    ("mlx_finetune.train.run", "write_decisions", "recipe, resolved.toml, run.json"),
    ("mlx_finetune.train.run", "publish", "publishing"),
    ("mlx_finetune.train.start.prepare", "check_room", "room on the disk"),
    ("mlx_finetune.train.checkpoints.contents", "_check_finite", "commits: finite numbers"),
    ("mlx_finetune.train.checkpoints.contents", "_sync_and_hash", "commits: journal"),
    ("mlx_finetune.train.checkpoints.contents", "make_room", "commits: room"),
    ("mlx_finetune.train.checkpoints.contents", "save_checkpoint", "commits: writing, flushing, reading back"),
    ("mlx_finetune.train.checkpoints.contents", "rotate", "commits: rotation"),
    ("mlx_finetune.train.watch", "Watch.reason_to_pause", "watching power, memory and clocks"),
    ("mlx_finetune.journal", "EventWriter.__call__", "journal"),
)


def be_child(out: Path, *, bare: bool, arguments: list[str]) -> int:
    """Train in this process with the functions above timed; the figures go to ``out``."""
    from mlx_finetune.train import child

    seconds: dict[str, float] = {}
    depth = [0]

    def timed(function: Callable[..., object], name: str) -> Callable[..., object]:
        @functools.wraps(function)
        def wrapped(*args: object, **options: object) -> object:
            depth[0] += 1
            started = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

        return wrapped

    started = time.perf_counter()
    from mlx_finetune.hardware import blas

    blas.prepare()
    if bare:
        _leave_out()
    for module_name, path, label in TIMED:
        place = importlib.import_module(module_name)
        *classes, name = path.split(".")
        owner = functools.reduce(getattr, classes, place)
        setattr(owner, name, timed(getattr(owner, name), label))
    code = child.main(arguments)
    out.write_text(json.dumps({"seconds": seconds, "wall": time.perf_counter() - started}))
    return code


def _leave_out() -> None:
    """The same run without flushing, reading back and watching."""
    from mlx_finetune import durable
    from mlx_finetune.train.watch import Watch

    durable.sync_file = lambda descriptor: None
    durable.sync_folder = lambda folder: None
    durable.sync_path = lambda path: None
    durable.write_new = _write_plainly
    Watch.reason_to_pause = lambda self: None


def _write_plainly(path: Path, chunks: Iterable[Chunk]) -> Written:
    with path.open("wb") as file:
        return Written(sum(file.write(chunk) for chunk in chunks), "")


def run(recipe: Path, overrides: list[str], folder: Path, *, bare: bool = False) -> dict[str, float]:
    """One whole training; seconds by name, with ``wall`` and ``parent``."""
    from mlx_finetune.app.running.launch import TrainRequest
    from mlx_finetune.app.running.supervise import supervise
    from mlx_finetune.monitor.plain import PlainView
    from mlx_finetune.monitor.summary import Summary
    from mlx_finetune.recipe.load import load_recipe
    from mlx_finetune.rundir import RunDir

    out = folder / "figures.json"
    run_folder = folder / "run"
    request = TrainRequest(recipe, (*overrides, f"output_dir={run_folder}"))
    command = [sys.executable, __file__, "--child", str(out), *(["--bare"] if bare else [])]
    before = time.process_time()
    with open("/dev/null", "w") as nowhere:
        asked = load_recipe(recipe, request.overrides).recipe
        done = supervise(request, RunDir(run_folder), asked, PlainView(nowhere, Summary()), command=command)
    if done.exit_code:
        raise SystemExit("\n".join(done.ended.log_tail))
    figures = json.loads(out.read_text())
    return figures["seconds"] | {"wall": figures["wall"], "parent": time.process_time() - before}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", type=Path, default=ROOT / "recipes/quickstart.toml", help="recipe to train (%(default)s)"
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="KEY=VALUE of the recipe; may be repeated"
    )
    parser.add_argument("--pairs", type=int, default=0, help="pairs of whole runs, with and without (%(default)s)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.child:
        overrides = [part for value in given.overrides for part in ("--set", value)]
        return be_child(given.child, bare=given.bare, arguments=["--recipe", str(given.recipe), *overrides, *rest])
    with tempfile.TemporaryDirectory(prefix="mlxft-cost-") as folder:
        figures = run(given.recipe, given.overrides, Path(folder))
    wall = figures.pop("wall")
    parent = figures.pop("parent")
    for name, seconds in sorted(figures.items(), key=lambda item: -item[1]):
        print(f"{name:<45} {1000 * seconds:9.1f} ms  {seconds / wall:8.3%}")
    print(f"{'processor time of the parent':<45} {1000 * parent:9.1f} ms  {parent / wall:8.3%}")
    total = sum(figures.values()) + parent
    print(f"{'all of it, of ' + format(wall, '.1f') + ' s':<45} {1000 * total:9.1f} ms  {total / wall:8.3%}")
    ratios: list[float] = []
    for number in range(given.pairs):
        walls: dict[bool, float] = {}
        for bare in (False, True) if number % 2 else (True, False):
            with tempfile.TemporaryDirectory(prefix="mlxft-cost-") as folder:
                walls[bare] = run(given.recipe, given.overrides, Path(folder), bare=bare)["wall"]
        ratios.append(walls[False] / walls[True])
        print(f"pair {number + 1}: {walls[False]:.1f} s with, {walls[True]:.1f} s without, ratio {ratios[-1]:.3f}")
    if ratios:
        print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

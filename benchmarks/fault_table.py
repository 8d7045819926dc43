"""Every operation of a save, and of a whole training, fails once in every way: killed, torn, short, EINTR, EIO, ENOSPC.

    python benchmarks/fault_table.py [--every 1] [--saves-only]

Prints a table each for a save, the first process of a training and one that resumes it: operations, actions, trials,
after how many every earlier checkpoint was intact, and after how many the resumed work ended with the same bytes. Linux
with a C compiler. About 1 s a trial of a training, of which there are some 3,500; ``--every 10`` takes one in ten. Exit
code 1 where anything went wrong.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mlx_finetune.hardware import blas  # noqa: E402

blas.prepare()

from faults.saving import SaveTrials  # noqa: E402
from faults.training import TrainTrials  # noqa: E402
from faults.trials import Server, Verdict, build_shim, memory_folder, render_table  # noqa: E402
from tiny import write_tiny_model  # noqa: E402


def run_all(trials: SaveTrials | TrainTrials, every: int) -> Sequence[Verdict]:
    """One trial for each operation and action, or for one in ``every``; problems are printed at once."""
    verdicts: list[Verdict] = []
    for index, action in list(trials.pairs())[::every]:
        verdicts.append(trials.run(index, action))
        for problem in verdicts[-1].problems:
            print(f"{index} {trials.operations[index - 1]} {action}: {problem}", flush=True)
    return verdicts


def show(title: str, trials: SaveTrials | TrainTrials, every: int) -> bool:
    """Run the trials, print their table; False where one of them had a problem."""
    started = time.monotonic()
    verdicts = run_all(trials, every)
    minutes = (time.monotonic() - started) / 60
    print(f"{title}: {len(trials.operations)} operations, {len(verdicts)} trials in {minutes:.1f} minutes")
    print(render_table(verdicts), flush=True)
    return not any(verdict.problems for verdict in verdicts)


def main() -> int:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take one trial in so many (%(default)s)")
    parser.add_argument("--saves-only", action="store_true", help="only the table of a save")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}
    with memory_folder() as folder:
        shim = build_shim(folder)
        for name in ("save", "train"):
            (folder / name).mkdir()
        with Server("save", shim, folder / "save") as server:
            good = show("a save with its rotation", SaveTrials(server, folder / "save"), options.every)
        if not options.saves_only:
            model = write_tiny_model(folder / "model", "llama")
            with Server("train", shim, folder / "train") as server:
                for resumes, title in ((False, "a training of 6 steps"), (True, "a training resumed at step 2")):
                    trials = TrainTrials(server, model, folder / "train", resumes=resumes)
                    good &= show(title, trials, options.every)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

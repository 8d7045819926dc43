"""A training on a disk that fills up, in a file system of its own; run by test_full_disk.py inside ``unshare -Urm``.

    python full_disk.py FOLDER MODEL

Prints one JSON object for each thing that was tried: exit code, what was said, the checkpoints that are there.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from small_runs import write_recipe

from mlx_finetune import durable, rundir
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import read_checkpoint

SIZE = 16_000_000  # a checkpoint of the tiny model is 0.2 MB; 10 MB are kept free beside each


def main(folder: Path, model: Path) -> None:
    """Too little from the start; full in the middle, with and without a byte for the journal; room again."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)], check=True)
    recipe = write_recipe(folder, model, extra="max_steps = 4000")
    run = RunDir(disk / "run")
    command = [sys.executable, "-m", "mlx_finetune", "train", str(recipe), "--set", f"output_dir={run.path}"]
    command += ["--set", "training.eval_steps=4000", "--set", "training.save_steps=20", "--set", "eval.prompts=[]"]
    too_large = ["--set", "training.keep_checkpoints=400"]
    tell("too little from the start", run, train([*command, *too_large]))
    filler = threading.Thread(target=fill, args=(disk, run, 60, 100_000))
    filler.start()
    tell("no room for a checkpoint", run, train(command))
    filler.join()
    (disk / "filler").unlink()
    filler = threading.Thread(target=fill, args=(disk, run, 160, 0))
    filler.start()
    tell("no room for a byte", run, train([*command, "--resume"]))
    filler.join()
    (disk / "filler").unlink()
    tell("room again", run, train([*command, "--resume", "--set", "training.max_minutes=0.001"]))
    print(json.dumps({"hash": durable.hash_file(run.file(rundir.MLX_WEIGHTS))}))


def fill(disk: Path, run: RunDir, step: int, left: int) -> None:
    """Once a checkpoint of ``step`` or later is there, leave only ``left`` bytes free."""
    while not any(int(path.name.split("-")[1]) >= step for path in run.checkpoints()):
        time.sleep(0.002)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            for _ in range(max(free - left, 0) // 4096 + (1000 if left == 0 else 0)):
                file.write(bytes(4096))
        except OSError:
            pass  # full


def train(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def tell(name: str, run: RunDir, done: subprocess.CompletedProcess[str]) -> None:
    said = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: ", "Traceback"))]
    whole = [path.name for path in run.checkpoints() if read_checkpoint(path)]
    fields = {"code": done.returncode, "said": said, "whole": whole, "all": [path.name for path in run.checkpoints()]}
    print(json.dumps({"name": name, **fields}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Guards on the guards: each safety mechanism is taken out in turn, and the tests must notice.

    python benchmarks/mutations.py [--only WORD]

Works on a copy of the checkout. A mutation is a text that must stand in its file exactly once and what is put in its
place, with the tests that are to fail. Prints a table; exit code 1 where a mutation survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("mlx_finetune", "tests", "benchmarks", "recipes", "data", "docs", "launchers", "pyproject.toml", "README.md")

DURABLE = ("tests/test_durable.py", "tests/faults")
COMMIT = ("tests/train/checkpoints", "tests/faults")
RUNS = (
    "tests/train/test_run.py",
    "tests/train/test_resume.py",
    "tests/train/test_loop.py",
    "tests/train/test_child.py",
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """``old`` in ``file`` becomes ``new``; one of ``tests`` must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "files are not flushed",
        "mlx_finetune/durable.py",
        "            sync_file(descriptor)\n        finally:\n            os.close(descriptor)\n    written",
        "            pass\n        finally:\n            os.close(descriptor)\n    written",
        DURABLE,
    ),
    Mutation(
        "a folder is not flushed before it is renamed",
        "mlx_finetune/train/checkpoints/commit.py",
        "        durable.sync_folder(part)\n",
        "",
        COMMIT,
    ),
    Mutation(
        "the parent folder is not flushed after the rename",
        "mlx_finetune/train/checkpoints/commit.py",
        "        durable.sync_folder(run.path)\n",
        "",
        COMMIT,
    ),
    Mutation(
        "a replaced file's folder is not flushed",
        "mlx_finetune/durable.py",
        "        raise\n    sync_folder(path.parent)\n",
        "        raise\n",
        DURABLE,
    ),
    Mutation(
        "a checkpoint is written in place, without the rename",
        "mlx_finetune/train/checkpoints/commit.py",
        '    part = run.path / f".checkpoint-{step}.{os.getpid()}.part"\n',
        "    part = target\n",
        COMMIT,
    ),
    Mutation(
        "a file is written in place, without the rename",
        "mlx_finetune/durable.py",
        '    part = path.with_name(f".{path.name}.{os.getpid()}.part")\n',
        "    part = path\n",
        DURABLE,
    ),
    Mutation(
        "what was written is not read back",
        "mlx_finetune/durable.py",
        "    if hash_file(path) != written.sha256:\n",
        "    if False:\n",
        DURABLE,
    ),
    Mutation(
        "a short write is not finished",
        "mlx_finetune/durable.py",
        "    while done < len(octets):\n",
        "    if done < len(octets):\n",
        DURABLE,
    ),
    Mutation(
        "files are opened through links",
        "mlx_finetune/durable.py",
        '_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC\n',
        "_NO_LINKS = os.O_CLOEXEC\n",
        DURABLE,
    ),
    Mutation(
        "the manifest is written first",
        "mlx_finetune/train/checkpoints/commit.py",
        "        durable.write_new(part / rundir.MANIFEST, [durable.encode_json(manifest)])\n"
        "        durable.sync_folder(part)\n"
        "        os.rename(part, target)\n",
        "        os.rename(part, target)\n"
        "        durable.write_new(target / rundir.MANIFEST, [durable.encode_json(manifest)])\n",
        COMMIT,
    ),
    Mutation(
        "hashes are not compared with the manifest",
        "mlx_finetune/train/checkpoints/commit.py",
        '            if durable.hash_file(file) != entry["sha256"]:\n                return None\n',
        "",
        COMMIT,
    ),
    Mutation(
        "old checkpoints are removed without being renamed first",
        "mlx_finetune/train/checkpoints/commit.py",
        "    os.rename(path, trash)\n    durable.sync_folder(path.parent)\n    durable.remove_tree(trash)\n",
        "    durable.remove_tree(path)\n",
        COMMIT,
    ),
    Mutation(
        "a removed checkpoint's new name is not flushed before its files go",
        "mlx_finetune/train/checkpoints/commit.py",
        "    os.rename(path, trash)\n    durable.sync_folder(path.parent)\n",
        "    os.rename(path, trash)\n",
        COMMIT,
    ),
    Mutation(
        "a checkpoint found again is not flushed",
        "mlx_finetune/train/checkpoints/commit.py",
        "            durable.sync_folder(run.path)  # its process may",
        "            pass  # its process may",
        COMMIT,
    ),
    Mutation(
        "leftovers of a dead process are not swept",
        "mlx_finetune/train/checkpoints/commit.py",
        "                    durable.remove_tree(entry)\n",
        "                    pass\n",
        COMMIT,
    ),
    Mutation(
        "the best checkpoint may be rotated out",
        "mlx_finetune/train/checkpoints/contents.py",
        ", *([state.best_step] if state.best_step else [])}",
        "}",
        RUNS,
    ),
    Mutation(
        "old checkpoints are removed before the new one is committed",
        "mlx_finetune/train/checkpoints/contents.py",
        "        make_room(run, prepared.disk.largest, keep_newest=keep_newest, keep_steps=keep_steps)\n",
        "        rotate(run, keep_newest=0, keep_steps=keep_steps)\n",
        ("tests/faults", "tests/train/test_kill_loop.py", *RUNS),
    ),
    Mutation(
        "nobody looks for room before a save",
        "mlx_finetune/train/checkpoints/room.py",
        "    if free < needed:\n",
        "    if False:\n",
        COMMIT,
    ),
    Mutation(
        "the lock is not taken",
        "mlx_finetune/rundir.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        ("tests/app", "tests/train/test_child.py", "tests/commands"),
    ),
    Mutation(
        "weights that are not finite are committed",
        "mlx_finetune/train/checkpoints/contents.py",
        "        _check_finite(prepared, state.step)\n",
        "",
        ("tests/train/checkpoints",),
    ),
    Mutation(
        "a loss that is not finite is applied",
        "mlx_finetune/train/loop.py",
        "    if math.isfinite(result.loss) and math.isfinite(result.grad_norm):\n",
        "    if True:\n",
        RUNS,
    ),
    Mutation(
        "the journal is not cut back to the checkpoint",
        "mlx_finetune/train/start/admission.py",
        "        durable.cut(path, file.fileno(), len(kept))\n",
        "",
        RUNS,
    ),
    Mutation(
        "the optimizer's moments are forgotten on resume",
        "mlx_finetune/train/checkpoints/contents.py",
        "    prepared.trainer.restore(*saved)\n",
        "    prepared.trainer.restore(saved[0], prepared.trainer.state)\n",
        RUNS,
    ),
    Mutation(
        "noise does not depend on the step",
        "mlx_finetune/train/step.py",
        'derive_key(self._seed, "noise", step, part)',
        'derive_key(self._seed + id(self) % 97, "noise", part)',
        RUNS,
    ),
    Mutation(
        "evaluation: half a line stays in a journal",
        "mlx_finetune/app/eval/journal.py",
        "        _cut_half_line(self.path)\n",
        "",
        ("tests/app/eval/test_journal.py",),
    ),
    Mutation(
        "evaluation: lines of another identity are taken up",
        "mlx_finetune/app/eval/journal.py",
        "        if saved != json.loads(json.dumps(identity)):\n",
        "        if saved is None:\n",
        ("tests/app/eval/test_journal.py",),
    ),
    Mutation(
        "evaluation: tokens are scored again in the next window",
        "mlx_finetune/model/likelihoods.py",
        "        first = max(end, start + 1)\n",
        "        first = start + 1\n",
        ("tests/model/test_likelihoods.py",),
    ),
    Mutation(
        "evaluation: no correction for several tests",
        "mlx_finetune/app/eval/figures.py",
        "    adjusted = holm([one.change.p for one in tested if one.change is not None])\n",
        "    adjusted = [one.change.p for one in tested if one.change is not None]\n",
        ("tests/app/eval/test_figures.py", "tests/app/eval/test_verdict.py"),
    ),
    Mutation(
        "evaluation: rows of one side alone are compared",
        "mlx_finetune/app/eval/figures.py",
        "    both = [row for row in first if row in second]\n",
        "    both, second = list(first), {**first, **second}\n",
        ("tests/app/eval/test_figures.py",),
    ),
    Mutation(
        "evaluation: few rows are not said to be few",
        "mlx_finetune/app/eval/verdict.py",
        "FEW_ROWS = 30\n",
        "FEW_ROWS = 0\n",
        ("tests/app/eval/test_verdict.py",),
    ),
    Mutation(
        "evaluation: runs are ranked on other rows",
        "mlx_finetune/app/eval/between_runs.py",
        "    if differing:\n",
        "    if False:\n",
        ("tests/app/eval/test_between_runs.py",),
    ),
)


def apply(mutation: Mutation, root: Path) -> str:
    """Change the file below ``root`` and return what it was. Raises ``AssertionError`` where the text moved on."""
    path = root / mutation.file
    before = path.read_text("utf-8")
    count = before.count(mutation.old)
    assert count == 1, f"{mutation.name}: its text stands {count} times in {mutation.file}"
    path.write_text(before.replace(mutation.old, mutation.new), "utf-8")
    return before


def run_tests(root: Path, tests: tuple[str, ...]) -> tuple[bool, str, float]:
    """Whether all passed, the first that failed, and the seconds it took."""
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    _end_what_is_left(root)
    failed = [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    first = failed[0].rpartition("::")[2] if failed else ("" if done.returncode == 0 else f"pytest: {done.returncode}")
    return done.returncode == 0, first, time.monotonic() - started


def _end_what_is_left(root: Path) -> None:
    """Kill the processes of a test that failed before it could end them: they have our folder in their environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(root) in process.environ().get("PYTHONPATH", ""):
                process.kill()


def main() -> int:
    """Run the whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose name holds this word")
    chosen = [mutation for mutation in MUTATIONS if parser.parse_args().only in mutation.name]
    survived: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mlxft-mutations-") as folder:
        root = Path(folder) / "checkout"
        root.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, root / name)
        if (ROOT.parent / "shared").is_dir():
            (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        every = tuple(sorted({test for mutation in chosen for test in mutation.tests}))
        passed, first, seconds = run_tests(root, every)
        print(f"without a mutation: {'all pass' if passed else f'{first} FAILS'}, {seconds:.0f} s", flush=True)
        if not passed:
            return 1
        for mutation in chosen:
            before = apply(mutation, root)
            passed, first, seconds = run_tests(root, mutation.tests)
            (root / mutation.file).write_text(before, "utf-8")
            survived += [mutation.name] * passed
            verdict = "SURVIVED" if passed else "noticed"
            print(f"{verdict:<8}  {mutation.name:<58}  {seconds:4.0f} s  {first}", flush=True)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutations were noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs with checkpoints and held-out text, made without training."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from answering_runs import write_adapter, write_full_run, write_run
from eval_runs import change_facts

from mlx_finetune import rundir
from mlx_finetune.rundir import RunDir

SENTENCES = (
    "the sea is there",
    "and then it is not",
    "you are all in the house",
    "there is a ship on it",
    "so it ends",
)
PROMPTS = ("the sea", "and then")


def write_texts(path: Path, count: int = 40) -> Path:
    """Plain text, a document a line."""
    path.write_text("".join(f"{SENTENCES[n % 5]} {n} {SENTENCES[(n * 3 + 1) % 5]}\n" for n in range(count)))
    return path


def add_checkpoint(run: RunDir, step: int, made: Path) -> Path:
    """``made``, an adapter or a model, as the checkpoint of ``step``."""
    folder = shutil.copytree(made, run.checkpoint(step))
    (folder / rundir.MANIFEST).write_text("{}")
    return folder


def write_adapter_run(place: Path, base: Path, steps: Sequence[int] = (10, 20)) -> RunDir:
    """``place/adapters/tales``: a finished run of text whose checkpoints have adapters that differ."""
    place.mkdir(parents=True, exist_ok=True)
    write_texts(place / "texts.txt")
    run = write_run(place / "adapters" / "tales", base, chat={"temperature": 0.0, "max_tokens": 8})
    for step in steps:
        write_adapter(place / f"made-{step}", base, seed=step)
        add_checkpoint(run, step, place / f"made-{step}")
    _change(place, run)
    return run


def write_model_run(place: Path, base: Path, made: Sequence[Path]) -> RunDir:
    """The same of full fine-tuning: ``base`` became each of ``made``, at steps 10, 20 and so on."""
    place.mkdir(parents=True, exist_ok=True)
    write_texts(place / "texts.txt")
    run = write_full_run(place / "adapters" / "tales", base, made[-1])
    for number, folder in enumerate(made, 1):
        add_checkpoint(run, 10 * number, folder)
    _change(place, run)
    return run


def _change(place: Path, run: RunDir) -> None:
    data = {"path": "texts.txt", "format": "text", "val_split": 0.0, "test_split": 0.5}
    change_facts(place, {"data": data, "eval": {"prompts": PROMPTS, "max_new_tokens": 5}}, run.path)
    path = run.file(rundir.RUN_INFO)
    facts = json.loads(path.read_text())
    facts["resolved"]["task"] = "pretrain"
    path.write_text(json.dumps(facts))

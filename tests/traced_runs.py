"""Small runs with a series: rows with categories and wrong answers, checkpoints at 0, 50 and 100 %."""

import json
from pathlib import Path

from small_runs import train, write_recipe

from mlx_finetune.rundir import RunDir

COLOURS = ("red", "blue", "green", "pink")
SETTINGS = (
    "data.packing=false",
    "data.val_split=0.0",
    "training.save_at=[0, 0.5, 1.0]",
    "training.save_steps=6",
    "training.eval_steps=6",
    "training.keep_best=false",
    "training.learning_rate=0.02",
    "eval.prompts=[]",
)


def write_data(folder: Path) -> Path:
    """24 trained, 4 validation and 12 test rows of two kinds."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(40):
        right = COLOURS[number % 4]
        wrong = [colour for colour in COLOURS if colour != right]
        row = {"category": "colour", "prompt": f"What colour is {number}?", "completion": right, "wrong": wrong}
        if number % 2:
            row = {"category": "sum", "prompt": f"{number} and 1?", "completion": str(number + 1)}
        rows.append(row)
    for name, part in (("train", rows[:24]), ("valid", rows[24:28]), ("test", rows[28:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def train_series(folder: Path, model: Path, *overrides: str, is_full: bool = False) -> RunDir:
    """A run in ``folder`` of ``model``, LoRA or with every weight trained."""
    data = write_data(folder / "data")
    recipe = write_recipe(folder, model)
    if is_full:
        text = recipe.read_text()
        recipe.write_text(text[: text.index("[lora]")] + text[text.index("[data]") :])
    return train(recipe, overrides=(f"data.path={data}", *SETTINGS, *overrides))

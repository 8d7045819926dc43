"""Small real runs of tasks that train a score head, with rows whose answer is in their words."""

import json
from pathlib import Path

RECIPE = """
model = "{model}"
output_dir = "{output}"
task = "{task}"
seed = 11
{lora}
[data]
path = "{data}"
max_seq_length = 64
val_split = 0.2
test_split = 0.2
[training]
max_steps = 6
batch_size = 4
gradient_accumulation_steps = 2
learning_rate = 1e-2
eval_steps = 2
save_steps = 2
keep_best = false
"""
LORA = "[lora]\nrank = 4\nalpha = 8\ndropout = 0.2\n"
LABELS = ("10", "2", "ok")


def write_labels(path: Path, num_rows: int = 40) -> Path:
    """Texts of differing lengths whose label is told by a letter in them."""
    lines = ["sentence\tlabel"]
    for number in range(num_rows):
        kind = number % len(LABELS)
        lines.append(f"{'so ' * (number % 5)}it is {'xyz'[kind] * 3} {number}\t{LABELS[kind]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_verdicts(path: Path, num_rows: int = 40) -> Path:
    """Sums with an answer that is right or one too many, after a number of steps."""
    with path.open("w") as file:
        for number in range(num_rows):
            is_right = number % 2 == 0
            row = {
                "prompt": f"{number} + 2 =",
                "completion": f"{'so ' * (number % 4)}{number + 2 + (not is_right)}",
                "label": is_right,
            }
            file.write(json.dumps(row) + "\n")
    return path


def write_pairs(path: Path, num_rows: int = 40) -> Path:
    """Questions with an answer of x and a worse one of y, of differing lengths."""
    with path.open("w") as file:
        for number in range(num_rows):
            row = {
                "prompt": f"Say {number}.",
                "chosen": f"{'so ' * (number % 3)}xx {number}",
                "rejected": f"{'so ' * (number % 4)}yy {number}",
            }
            file.write(json.dumps(row) + "\n")
    return path


WRITERS = {
    "reward": ("rows.jsonl", write_pairs),
    "classify": ("rows.tsv", write_labels),
    "verifier": ("rows.jsonl", write_verdicts),
}


def write_scored_recipe(folder: Path, model: Path, task: str, *, name: str = "run", is_full: bool = False) -> Path:
    """A recipe beside its rows; the run goes to ``folder/NAME``."""
    file, write = WRITERS[task]
    data = folder / file
    if not data.exists():
        write(data)
    path = folder / f"{name}.toml"
    lora = "" if is_full else LORA
    path.write_text(RECIPE.format(model=model, output=folder / name, data=data, task=task, lora=lora))
    return path

"""What is trained while settings are measured: a recipe of the user's, or a small model on rows of usual lengths.

The small model is SmolLM2-135M where it is on this machine, else a random one of its shape; nothing is downloaded.
"""

import json
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_finetune.app.planning.plan import find_local
from mlx_finetune.errors import ModelError
from mlx_finetune.hardware.tuned import GENERAL, recipe_key
from mlx_finetune.model.random_model import RANDOM_135M, RandomShape, write_random_model
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.values import toml_value

SMALL_MODEL = "smollm2-135m"
NUM_ROWS = 120
#: Tokens of the rows: half of them fewer than the median, many near it as instructions are, none long, to save time.
MEDIAN_TOKENS, SPREAD, LONGEST = 100, 0.6, 256
TEXT = "the light on the rock is lit when the sun goes down and the boats come home"

RECIPE = """model = {model}
output_dir = {output}
seed = 7
[lora]
rank = 16
[data]
path = {data}
max_seq_length = 512
val_split = 0.0
test_split = 0.0
packing = false
[training]
learning_rate = 1e-4
max_steps = 30
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured. ``key`` is that of the profile (``tuned.GENERAL`` for all recipes), ``name`` is for people,
    ``recipe`` is the file that a user named, "" where none was; ``hardware`` is its section."""

    path: Path
    overrides: tuple[str, ...]
    key: str
    name: str
    recipe: str = ""
    hardware: HardwareRecipe | None = None


def of_recipe(loaded: LoadedRecipe) -> Subject:
    """The recipe's own model and rows. Raises ``ModelError`` where the model is not on this machine."""
    if find_local(loaded.recipe, Path()) is None:
        name = loaded.recipe.model
        raise ModelError(
            f"{name} is not on this machine yet, so there is nothing to measure", f"mlxft models get {name}"
        )
    key = recipe_key(loaded.recipe)
    return Subject(loaded.path, loaded.overrides, key, loaded.recipe.model, str(loaded.path), loaded.recipe.hardware)


@contextmanager
def small_subject(model: str = SMALL_MODEL, shape: RandomShape = RANDOM_135M) -> Generator[Subject]:
    """``model``, or a random one of ``shape`` where it is not on this machine; its files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mlxft-tune-") as name:
        folder = Path(name)
        path = folder / "recipe.toml"
        _write_recipe(path, model, tokens_per_word=1.1)
        shown = model
        if find_local(load_recipe(path).recipe, Path()) is None:
            (folder / "model").mkdir()
            write_random_model(folder / "model", shape)
            _write_recipe(path, str(folder / "model"), tokens_per_word=(len(TEXT) + 1) / len(TEXT.split()))
            shown = f"{shape.name}, random weights"
        yield Subject(path, (), GENERAL, shown)


def _write_recipe(path: Path, model: str, *, tokens_per_word: float) -> None:
    rows = path.with_name("rows.jsonl")
    lines = [json.dumps(row) for row in _rows(tokens_per_word)]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = path.with_name("run")
    values = {name: toml_value(str(value)) for name, value in (("model", model), ("output", output), ("data", rows))}
    path.write_text(RECIPE.format(**values), encoding="utf-8")


def _rows(tokens_per_word: float) -> Sequence[dict[str, object]]:
    """Questions with answers, each another number of words long; the same rows every time."""
    generator, all_words = np.random.default_rng(7), TEXT.split()
    tokens = np.minimum(LONGEST, MEDIAN_TOKENS * np.exp(SPREAD * generator.standard_normal(NUM_ROWS)))
    rows: list[dict[str, object]] = []
    for number, count in enumerate(tokens):
        words = max(6, round(float(count) / tokens_per_word) - 10)
        text = [all_words[(number + at) % len(all_words)] for at in range(words)]
        question, answer = " ".join(text[: words // 3]), " ".join(text[words // 3 :])
        turns = [("user", f"{number}: {question}?"), ("assistant", f"{answer}.")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows

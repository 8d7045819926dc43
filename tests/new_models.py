"""Small recipes with [scratch], and the folders that they become."""

from pathlib import Path

from mlx_finetune.model.scratch.begin import recipe_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import Recipe

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n\n" * 40
SMALL = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "context_length": 32, "vocab_size": 300}


def make_recipe(folder: Path, *, seed: int = 3, data: dict[str, object] | None = None, **scratch: object) -> Recipe:
    """A recipe over ``folder/text.txt``, which is written where it is not there yet."""
    rows = folder / "text.txt"
    if not rows.exists():
        rows.write_text("".join(f"{number} {TEXT}" for number in range(9)))
    section = {"path": str(rows), **(data or {})}
    return Recipe.model_validate({"output_dir": "o", "seed": seed, "scratch": SMALL | scratch, "data": section})


def made(folder: Path, *, seed: int = 3, **scratch: object) -> LocalModel:
    """The model folder of ``make_recipe``."""
    return recipe_model(make_recipe(folder, seed=seed, **scratch), base=folder, report=lambda _: None)  # pyright: ignore[reportArgumentType]

"""What would make a training fit, cheapest first: each change is planned, and only those that work are named."""

from collections.abc import Iterator, Mapping

import numpy as np

from mlx_finetune.dataset.stream import round_up
from mlx_finetune.hardware.auto import Facts, resolve_auto
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import format_bytes

NUM_FIXES = 3


def find_fixes(recipe: Recipe, facts: Facts) -> tuple[str, ...]:
    """Up to three ways, each as ``--set`` options, what it costs and what it then needs. Empty where nothing helps.

    Single changes are tried from the cheapest on; where fewer than three of them are enough, all changes up to one
    are tried together.
    """
    found: list[str] = []
    together: dict[str, str] = {}
    joint = ""
    for settings, price, changed, rows in _changes(recipe, facts):
        alone = _needed(changed, rows)
        if alone is not None:
            found.append(_sentence(settings, price, alone))
        together |= settings
        combined = _needed(_apply(recipe, together), rows)
        if not joint and len(together) > len(settings) and combined is not None:
            joint = _sentence(together, "all of these together", combined)
    if joint and len(found) < NUM_FIXES:
        found.append(joint)
    return tuple(found[:NUM_FIXES])


def _changes(recipe: Recipe, facts: Facts) -> Iterator[tuple[dict[str, str], str, Recipe, Facts]]:
    """Settings, what they cost, the recipe and the facts with them."""
    options: list[tuple[dict[str, str], str]] = []
    training = recipe.training
    if training.gradient_checkpointing is False:
        options.append(({"training.gradient_checkpointing": "true"}, "the same result, about a third slower"))
    if training.batch_size != "auto" and training.batch_size > 1:
        half = max(1, training.batch_size // 2)
        steps = training.gradient_accumulation_steps * (training.batch_size // half)
        settings = {"training.batch_size": str(half), "training.gradient_accumulation_steps": str(steps)}
        options.append((settings, "the same result, a little slower"))
    if recipe.quantize is None and recipe.lora is not None and facts.machine.on_gpu and facts.stored_bits is None:
        options.append(({"quantize": "4"}, "a slightly less exact base"))
    for share in (0.99, 0.95, 0.8):
        limit = round_up(int(np.quantile(facts.lengths, share)), 32)
        if limit < int(facts.lengths.max()):
            lost = int(np.count_nonzero(facts.lengths > limit))
            options.append(({"data.max_seq_length": str(limit)}, f"{lost} longer rows are left out"))
    if recipe.lora is not None and facts.shape.num_layers >= 4:
        layers = facts.shape.num_layers // 2
        if recipe.lora.num_layers == "all" or recipe.lora.num_layers > layers:
            options.append(({"lora.num_layers": str(layers)}, "only the upper half of the model learns"))
    for settings, price in options:
        yield settings, price, _apply(recipe, settings), _shortened(facts, settings)


def _apply(recipe: Recipe, settings: Mapping[str, str]) -> Recipe:
    """``recipe`` with the settings, which are numbers and booleans."""
    for name, text in settings.items():
        section, _, key = name.rpartition(".")
        value = True if text == "true" else int(text)
        if not section:
            recipe = recipe.model_copy(update={key: value})
            continue
        table = {"training": recipe.training, "data": recipe.data, "lora": recipe.lora}[section]
        assert table is not None, f"no section {section} to change"
        recipe = recipe.model_copy(update={section: table.model_copy(update={key: value})})
    return recipe


def _shortened(facts: Facts, settings: Mapping[str, str]) -> Facts:
    limit = settings.get("data.max_seq_length")
    if limit is None:
        return facts
    kept = facts.lengths[facts.lengths <= int(limit)]
    return Facts(kept, facts.shape, facts.machine, facts.unpackable, facts.stored_bits)


def _needed(recipe: Recipe, facts: Facts) -> int | None:
    """The peak with these changes where it fits, else None."""
    resolved = resolve_auto(recipe, facts)
    total = resolved.memory.total
    return total if total <= resolved.limits.memory_bytes else None


def _sentence(settings: Mapping[str, str], price: str, num_bytes: int) -> str:
    options = " ".join(f"--set {name}={value}" for name, value in settings.items())
    return f"{options}  ({price}; {format_bytes(num_bytes)})"

"""An adapter that training starts from must have the shape of [lora]; what differs is named by keys of the recipe."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved_adapters import save_adapter

from mlx_finetune.errors import RunError
from mlx_finetune.events import Event
from mlx_finetune.model.adapters.lora import attach_adapter, detach_adapter
from mlx_finetune.model.load import LoadedModel, load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe, Recipe
from mlx_finetune.train.start.trainable import attach

SAVED: dict[str, Any] = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(name="base")
def base_fixture(tiny_model: Callable[..., Path]) -> LoadedModel:
    folder = tiny_model("llama")
    local = LocalModel("tiny", folder, f"folder:{folder}", None, "0" * 64, None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False)


@pytest.fixture(name="saved")
def saved_fixture(base: LoadedModel, tmp_path: Path) -> Path:
    """The adapter of ``SAVED`` as a folder."""
    spec = attach_adapter(base.model, LoraRecipe.model_validate(SAVED), seed=1)
    folder = tmp_path / "saved"
    folder.mkdir()
    save_adapter(folder, base.model, spec, base.info)
    return folder


def start(base: LoadedModel, saved: Path, **lora: Any) -> list[Event]:
    """Attach what [lora] asks for, which is ``SAVED`` but for ``lora``, and start from the adapter in ``saved``."""
    detach_adapter(base.model)
    values = {"model": "m", "output_dir": "o", "data": {"path": "x"}, "adapter": str(saved), "lora": SAVED | lora}
    events: list[Event] = []
    attach(base, Recipe.model_validate(values), saved.parent, events.append)
    return events


@pytest.mark.parametrize(
    ("lora", "told", "hint"),
    [
        ({"rank": 8}, "lora.rank is 8, its own is 4", "rank = 4"),
        ({"alpha": 4}, "lora.alpha is 4, its own is 8", "alpha = 8"),
        ({"alpha": 2.5}, "lora.alpha is 2.5, its own is 8", "alpha = 8"),
        ({"rank": 8, "alpha": 4}, "lora.rank is 8, its own is 4; lora.alpha is 4, its own is 8", "rank = 4, alpha = 8"),
        (
            {"rank": 8, "alpha": 16},
            "lora.rank is 8, its own is 4; lora.alpha is 16, its own is 8",
            "rank = 4, alpha = 8",
        ),
        ({"use_rslora": True}, "lora.use_rslora is true, its own is false", "use_rslora = false"),
        ({"use_dora": True}, "lora.use_dora is true, its own is false", "use_dora = false"),
        (
            {"target_modules": ["k_proj"]},
            'lora.target_modules is ["k_proj"], its own is ["q_proj", "v_proj"]',
            'target_modules = ["q_proj", "v_proj"]',
        ),
        ({"num_layers": 1}, "lora.num_layers is 1, its own is 2", "num_layers = 2"),
    ],
)
def test_an_adapter_of_another_shape_is_refused_in_keys_of_the_recipe_that_mend_it(
    base: LoadedModel, saved: Path, lora: dict[str, Any], told: str, hint: str
) -> None:
    with pytest.raises(RunError) as caught:
        start(base, saved, **lora)
    assert caught.value.message == f"the adapter in {saved} is not what [lora] describes: {told}"
    assert caught.value.hint == f"write in [lora]: {hint}"
    start(base, saved, **lora | tomllib.loads(hint.replace(", alpha", "\nalpha")))


def test_other_keys_that_make_the_same_factor_are_no_difference(base: LoadedModel, saved: Path) -> None:
    assert start(base, saved, alpha=4, use_rslora=True)

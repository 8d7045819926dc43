"""What is trained while settings are measured: the small model where it is, a random one elsewhere, nothing left."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import write_recipe

from mlx_finetune.app.planning.plan import make_plan
from mlx_finetune.app.tune.subject import of_recipe, small_subject
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.tuned import GENERAL, recipe_key
from mlx_finetune.model.random_model import RANDOM_135M, RandomShape, write_random_model
from mlx_finetune.recipe.load import load_recipe

TINY = RandomShape("random-tiny", 64, 128, 2, 4, 2, 300)
CPU = Machine(on_gpu=False, memory_bytes=16 * 10**9, working_set_bytes=0, chip="x86_64")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))


def test_a_recipe_is_measured_with_its_own_rows_and_kept_under_its_own_key(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_recipe(write_recipe(tmp_path, tiny_model("llama")), ["seed=3"])
    found = of_recipe(loaded)
    assert (found.path, found.overrides, found.key) == (loaded.path, ("seed=3",), recipe_key(loaded.recipe))
    assert found.recipe == str(loaded.path)


def test_a_model_that_is_here_is_used(tiny_model: Callable[..., Path]) -> None:
    with small_subject(str(tiny_model("llama")), TINY) as found:
        assert load_recipe(found.path).recipe.model == str(tiny_model("llama"))
        assert (found.key, found.recipe) == (GENERAL, "")
    assert not found.path.exists()


def test_where_it_is_not_a_random_one_of_a_named_size_is_built_and_gone_afterwards() -> None:
    with small_subject("smollm2-360m", TINY) as found:
        recipe = load_recipe(found.path).recipe
        plan = make_plan(recipe, base=found.path.parent, machine=CPU)
        assert found.name == "random-tiny, random weights"
        assert (plan.shape.num_layers, plan.rows["train"]) == (2, 120)
        assert plan.tokens.num_cut == 0
        assert 60 < plan.tokens.lengths.median < 180
        assert 200 < plan.tokens.lengths.longest <= 300
        assert recipe.training.batch_size == recipe.hardware.microbatch == "auto"
    assert not found.path.parent.exists()


def test_the_random_model_is_the_same_every_time_and_has_the_shape_it_is_named_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_random_model(tmp_path / name, TINY)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    shape = RANDOM_135M
    block = 2 * shape.hidden_size**2 * (1 + shape.num_kv_heads / shape.num_heads)
    block += 3 * shape.hidden_size * shape.intermediate_size
    total = shape.num_layers * (block + 2 * shape.hidden_size) + (shape.vocab_size + 1) * shape.hidden_size
    assert total == 134_515_008  # SmolLM2-135M

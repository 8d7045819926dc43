"""Muon, Adafactor and Lion by their formulas (ALGORITHMS.md section 4)."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from t5_adapter import load_t5
from tiny import write_tiny_model

from mlx_finetune.errors import RecipeError
from mlx_finetune.hardware.planning.moments import moment_bytes
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.model.files.config import read_config
from mlx_finetune.model.inside.parts import flat_arrays
from mlx_finetune.model.load import load_model
from mlx_finetune.model.scratch.architecture import Model, ModelArgs
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.training import TrainingRecipe
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.optimizers.adafactor import Adafactor
from mlx_finetune.train.optimizers.choose import choose_optimizer
from mlx_finetune.train.optimizers.lion import Lion
from mlx_finetune.train.optimizers.muon import Muon, hidden_matrices, newton_schulz

Array = np.ndarray
RATE = 0.01


def run(optimizer, parameters: dict[str, Array], gradients: list[dict[str, Array]]) -> tuple[dict, dict]:
    arrays = {name: mx.array(value.astype(np.float32)) for name, value in parameters.items()}
    state = optimizer.init(arrays)
    for step, one in enumerate(gradients):
        values = optimizer.hyperparameters(RATE, step)
        given = {name: mx.array(value.astype(np.float32)) for name, value in one.items()}
        arrays, state = optimizer.update(arrays, given, state, values)
    return arrays, state


def drawn(*shape: int, steps: int = 5, seed: int = 0) -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), list(rng.normal(size=(steps, *shape)))


def test_an_update_of_lion_is_the_rate_exactly() -> None:
    weight, gradients = drawn(4, 3, steps=1)
    after, _ = run(Lion(0.9, 0.99, 0.0, frozenset()), {"w": weight * 0}, [{"w": gradients[0]}])
    assert np.array_equal(np.array(after["w"]), -np.float32(RATE) * np.sign(gradients[0]).astype(np.float32))


def test_lion_follows_its_formula_in_float64() -> None:
    weight, gradients = drawn(4, 3, steps=20)
    expected, m = weight.copy(), np.zeros((4, 3))
    for g in gradients:
        expected -= RATE * (np.sign(0.9 * m + 0.1 * g) + 0.3 * expected)
        m = 0.99 * m + 0.01 * g
    after, state = run(Lion(0.9, 0.99, 0.3, frozenset({"w"})), {"w": weight}, [{"w": g} for g in gradients])
    assert np.abs(np.array(after["w"]) - expected).max() < 1e-6
    assert sorted(state) == ["w.m"]


def adafactor_step(weight: Array, g: Array, row: Array, column: Array, step: int) -> tuple[Array, Array, Array]:
    beta = 1 - step**-0.8
    square = g**2 + 1e-30
    row = beta * row + (1 - beta) * square.mean(1)
    column = beta * column + (1 - beta) * square.mean(0)
    u = g / np.sqrt(np.outer(row, column) / row.mean())
    u /= max(1.0, np.sqrt((u**2).mean()))
    return weight - RATE * u, row, column


def test_adafactor_follows_its_formula_in_float64() -> None:
    weight, gradients = drawn(6, 4, steps=8)
    expected, row, column = weight.copy(), np.zeros(6), np.zeros(4)
    for step, g in enumerate(gradients, start=1):
        expected, row, column = adafactor_step(expected, g, row, column, step)
    after, _ = run(Adafactor(0.0, frozenset()), {"w": weight}, [{"w": g} for g in gradients])
    assert np.abs(np.array(after["w"]) - expected).max() < 1e-5


def test_adafactor_keeps_rows_and_columns_and_takes_stacks_matrix_by_matrix() -> None:
    weight, gradients = drawn(2, 6, 4, steps=3)
    vector, more = drawn(5, steps=3, seed=1)
    given = [{"w": g, "v": h} for g, h in zip(gradients, more, strict=True)]
    after, state = run(Adafactor(0.0, frozenset()), {"w": weight, "v": vector}, given)
    assert {name: value.shape for name, value in state.items()} == {"w.row": (2, 6), "w.column": (2, 4), "v.v": (5,)}
    _, alone = run(Adafactor(0.0, frozenset()), {"w": weight[1]}, [{"w": g[1]} for g in gradients])
    assert mx.allclose(state["w.row"][1], alone["w.row"])
    assert mx.allclose(state["w.column"][1], alone["w.column"])
    assert after["v"].shape == (5,)


@pytest.mark.parametrize("shape", [(48, 176), (176, 48)])  # of a square one the smallest may be anything
def test_the_singular_values_of_an_update_of_muon_are_near_one(shape: tuple[int, int]) -> None:
    matrix = mx.array(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    values = np.linalg.svd(np.array(newton_schulz(matrix)), compute_uv=False)
    assert values.min() > 0.65
    assert values.max() < 1.2
    assert mx.allclose(newton_schulz(mx.stack([matrix, 3 * matrix]))[1], newton_schulz(matrix), atol=1e-4)


def test_muon_decays_beside_the_update_and_gives_it_the_size_of_adamw() -> None:
    weight, gradients = drawn(8, 24, steps=3)
    rest = AdamW(0.9, 0.95, 1e-8, 0.1, frozenset())
    expected, m = weight.astype(np.float32), np.zeros((8, 24), np.float32)
    for g in gradients:
        m = np.float32(0.95) * m + np.float32(0.05) * g.astype(np.float32)
        u = np.array(newton_schulz(mx.array(0.95 * m + 0.05 * g.astype(np.float32))))
        expected = expected - RATE * (0.2 * 24**0.5 * u + 0.1 * expected)
    after, state = run(Muon(frozenset({"w"}), 0.1, rest), {"w": weight}, [{"w": g} for g in gradients])
    assert np.abs(np.array(after["w"]) - expected).max() < 1e-5
    assert sorted(state) == ["w.momentum"]
    root_mean_square = float(np.sqrt((np.array(0.2 * 24**0.5 * newton_schulz(mx.array(gradients[0]))) ** 2).mean()))
    assert 0.15 < root_mean_square < 0.25  # AdamW's is 0.2 to 0.4


def test_muon_is_for_hidden_matrices_and_adamw_for_the_rest(tmp_path) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama")
    local = fetch_model(str(folder), report=lambda _: None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    parameters = flat_arrays(model)
    optimizer = choose_optimizer(TrainingRecipe.model_validate({"optimizer": "muon"}), model, parameters, [])
    assert isinstance(optimizer, Muon)
    names = {name.rpartition(".layers.")[2].partition(".")[2] for name in optimizer.hidden}
    assert names == {
        *(f"self_attn.{one}_proj.weight" for one in "qkvo"),
        *(f"mlp.{one}_proj.weight" for one in ("gate", "up", "down")),
    }
    state = optimizer.init(parameters)
    assert {name for name in state if "embed" in name} == {f"model.embed_tokens.weight.{m}" for m in "mv"}


def test_muon_takes_experts_and_leaves_their_router() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "head_dim": 8,
    }
    args = ModelArgs("own", **sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=4)
    model = Model(args)
    experts = {name for name in hidden_matrices(model, flat_arrays(model)) if ".mlp." in name}
    assert experts == {f"model.layers.0.mlp.switch_mlp.{one}_proj.weight" for one in ("gate", "up", "down")}


def test_muon_leaves_tables_inside_blocks_to_adamw(tiny_t5) -> None:
    model = load_t5(tiny_t5(is_tied=True)).model
    hidden = hidden_matrices(model, flat_arrays(model))
    assert {name.split(".")[-2] for name in hidden} == {"q", "k", "v", "o", "wi", "wo"}


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "lion"])
def test_the_plan_knows_what_an_optimizer_keeps(tmp_path, name: str) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama")
    local = fetch_model(str(folder), report=lambda _: None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    parameters = flat_arrays(model)
    state = choose_optimizer(TrainingRecipe.model_validate({"optimizer": name}), model, parameters, []).init(parameters)
    planned = moment_bytes(read_shape(read_config(folder)), None, name)  # pyright: ignore[reportArgumentType]
    assert planned == sum(value.nbytes for value in state.values())


def test_defaults_follow_the_optimizer() -> None:
    lion = TrainingRecipe.model_validate({"optimizer": "lion"})
    assert (lion.adam_beta2, lion.weight_decay) == (0.99, 0.03)
    assert TrainingRecipe.model_validate({"optimizer": "adafactor"}).weight_decay == 0.0
    assert TrainingRecipe.model_validate({"optimizer": "lion", "weight_decay": 0.5}).weight_decay == 0.5
    assert TrainingRecipe.model_validate({}).adam_beta2 == 0.999


def test_muon_is_refused_for_an_adapter(tmp_path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('model = "m"\noutput_dir = "o"\n[lora]\n[data]\npath = "d"\n[training]\noptimizer = "muon"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "`training.optimizer` = 'muon' with a [lora] section" in caught.value.problems[0].message

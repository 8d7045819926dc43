"""A recipe with [scratch] becomes an ordinary model folder: the same for the same seed, read by mlx-lm too."""

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from new_models import SMALL, TEXT, made, make_recipe

from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.model.load import load_model
from mlx_finetune.model.scratch.begin import about_tokenizer, recipe_model
from mlx_finetune.model.scratch.weights import num_parameters, random_weights
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.scratch import ScratchRecipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))


def test_the_weights_are_a_function_of_the_seed_and_the_shape(tmp_path: Path) -> None:
    scratch = ScratchRecipe.model_validate(SMALL)
    first, again, other = (dict(random_weights(scratch, 300, seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    matrices = [name for name, value in first.items() if value.ndim == 2]
    assert all(not np.array_equal(first[name], other[name]) for name in matrices)
    assert sum(value.size for value in first.values()) == num_parameters(scratch, 300)
    spreads = {name: float(first[name].std()) for name in matrices}
    assert spreads["model.layers.0.mlp.gate_proj.weight"] == pytest.approx(0.02, rel=0.03)
    assert spreads["model.layers.0.mlp.down_proj.weight"] == pytest.approx(0.02 / 4**0.5, rel=0.03)  # 2 blocks


def test_the_folder_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("made a second time")

    monkeypatch.setattr("mlx_finetune.model.scratch.begin.train_bpe", refuse)
    again = made(tmp_path, z_loss=1e-4)  # how it is trained is not what it is
    assert (again.folder, again.sha256) == (first.folder, first.sha256)
    monkeypatch.undo()
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "elsewhere"))
    anew = made(tmp_path)
    assert anew.folder != first.folder
    assert anew.sha256 == first.sha256
    assert (anew.folder / "tokenizer.json").read_bytes() == (first.folder / "tokenizer.json").read_bytes()
    assert made(tmp_path, seed=4).sha256 != first.sha256
    assert made(tmp_path, num_layers=1).folder != first.folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 32),
        ("num_layers", 1),
        ("num_heads", 2),
        ("num_kv_heads", 4),
        ("intermediate_size", 64),
        ("context_length", 16),
        ("vocab_size", 290),
        ("tie_embeddings", False),
        ("rope_theta", 1e5),
        ("attention_sinks", True),
        ("num_experts", 4),
    ],
)
def test_every_key_of_its_shape_makes_another_model(tmp_path: Path, key: str, value: object) -> None:
    changed = made(tmp_path, **{key: value})  # pyright: ignore[reportArgumentType]
    assert changed.sha256 != made(tmp_path).sha256


def test_how_many_experts_a_token_gets_is_part_of_the_model(tmp_path: Path) -> None:
    assert made(tmp_path, num_experts=4).sha256 != made(tmp_path, num_experts=4, experts_per_token=1).sha256


def test_other_training_text_makes_another_tokenizer(tmp_path: Path) -> None:
    first = made(tmp_path)
    (tmp_path / "text.txt").write_text("Entirely other words stand here.\n\n" * 200 + "one more\n\n")
    assert made(tmp_path).folder != first.folder


def test_mlx_lm_loads_what_was_made_and_gives_the_same_logits(tmp_path: Path) -> None:
    local = made(tmp_path)
    ours = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    theirs, tokenizer = mlx_lm.load(str(local.folder))[:2]
    ids = mx.array([tokenizer.encode("To be, or not")])
    assert mx.array_equal(ours(ids), theirs(ids))
    assert tokenizer.eos_token_ids == {0, 2}


def test_the_first_loss_is_that_of_a_uniform_guess(tmp_path: Path) -> None:
    local = made(tmp_path)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    vocab_size = json.loads((local.folder / "config.json").read_bytes())["vocab_size"]
    ids = mx.array([load_tokenizer(local.folder).encode(TEXT).ids[:33]])
    losses = mx.fast.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
    assert float(mx.mean(losses)) == pytest.approx(np.log(vocab_size), rel=0.05)


def test_a_tokenizer_that_exists_is_taken_as_it_is(tmp_path: Path, tiny_model) -> None:
    folder = tiny_model("llama")
    local = made(tmp_path, tokenizer=str(folder))
    assert load_tokenizer(local.folder).encode(TEXT).ids == load_tokenizer(folder).encode(TEXT).ids
    assert about_tokenizer(local.folder) == ""
    alone = tmp_path / "alone"  # a folder that has nothing but a tokenizer
    alone.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (alone / name).write_bytes((folder / name).read_bytes())
    assert made(tmp_path, tokenizer="alone").sha256 == local.sha256
    with pytest.raises(ModelError, match="there is no"):
        made(tmp_path, tokenizer="./nowhere")


def test_it_says_how_many_bytes_a_token_stands_for(tmp_path: Path) -> None:
    assert about_tokenizer(made(tmp_path).folder).startswith("tokenizer made from the training rows: 300 tokens, ")


def test_data_without_text_makes_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n")
    with pytest.raises(DataError):
        made(tmp_path)


def grown(heads: Sequence[int]) -> ScratchRecipe:
    query, keys = heads
    return ScratchRecipe.model_validate(SMALL | {"num_heads": query, "num_kv_heads": keys})


def test_grouped_queries_with_a_group_of_one_are_attention_with_every_head(tmp_path: Path) -> None:
    """GQA whose heads of keys and values are repeated gives what multi-head attention gives."""
    grouped = made(tmp_path, num_kv_heads=2)
    full = made(tmp_path, num_kv_heads=4)
    models = [load_model(one, quantize=None, compute_dtype="float32", on_gpu=False).model for one in (grouped, full)]
    few, many = (dict(mlx_flat(model)) for model in models)
    for name, value in few.items():
        if "k_proj" in name or "v_proj" in name:
            value = mx.repeat(value.reshape(2, 16, 64), 2, axis=0).reshape(64, 64)
        many[name] = value
    models[1].load_weights(list(many.items()))
    ids = mx.array([[5, 9, 200, 31, 77]])
    assert mx.allclose(models[0](ids), models[1](ids), atol=1e-5)


def mlx_flat(model: object) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())  # pyright: ignore[reportAttributeAccessIssue,reportReturnType]


def test_tokens_to_come_change_nothing_before_them(tmp_path: Path) -> None:
    model = load_model(made(tmp_path), quantize=None, compute_dtype="float32", on_gpu=False).model
    first, second = mx.array([[5, 9, 200, 31, 77]]), mx.array([[5, 9, 200, 8, 6]])
    before, after = model(first), model(second)
    assert mx.array_equal(before[:, :3], after[:, :3])
    assert not mx.allclose(before[:, 3:], after[:, 3:])


def test_text_that_is_not_there_is_one_error_with_near_names(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, data={"path": str(tmp_path / "txt.txt")})
    with pytest.raises(DataError, match=r"txt\.txt: no such file") as refused:
        recipe_model(recipe, base=tmp_path, report=lambda _: None)
    assert "text.txt" in refused.value.hint


def test_rows_of_another_task_are_refused_with_the_tasks_own_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    recipe = make_recipe(tmp_path, data={"path": "rows.jsonl"})
    with pytest.raises(DataError, match="task pretrain learns from"):
        recipe_model(recipe, base=tmp_path, report=lambda _: None)

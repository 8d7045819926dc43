"""Noise is a function of the key and the order of requests, and recomputation draws the same noise again."""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama
from random_models import make_model

from mlx_finetune.model.adapters.lora import adapter_layers, adapter_parameters, attach_adapter, full_parameters
from mlx_finetune.model.inside.noise import (
    add_neftune,
    checkpoint_blocks,
    derive_key,
    dropout,
    next_key,
    remove_neftune,
    uncheckpoint_blocks,
    use_noise,
)
from mlx_finetune.model.inside.override import override_call
from mlx_finetune.model.inside.segments import segment_caches
from mlx_finetune.recipe.schema import LoraRecipe

TOKENS = mx.array([[3, 14, 15, 92, 65, 35, 89], [9, 7, 9, 3, 2, 0, 0]])


def make_llama(rate: float) -> Any:
    model = make_model("llama")
    lora = LoraRecipe.model_validate({"rank": 4, "dropout": rate})
    attach_adapter(model, lora, seed=1)
    for number, layer in enumerate(adapter_layers(model).values()):
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(number))
    model.train()
    return model


def draw_key() -> tuple[int, ...]:
    key = next_key()
    assert key is not None
    return tuple(np.array(key).tolist())


def loss(model: Any, tokens: mx.array, key: mx.array | None) -> mx.array:
    with use_noise(key, lengths=mx.array([7, 5])):
        logits = model(tokens[:, :-1])
    return nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="sum")


def gradients(model: Any, key: mx.array | None) -> tuple[float, dict[str, np.ndarray]]:
    value, grads = nn.value_and_grad(model, partial(loss, model))(TOKENS, key)
    return value.item(), {name: np.array(grad) for name, grad in tree_flatten(grads)}


def test_the_same_key_gives_the_same_subkeys_in_order_and_all_differ() -> None:
    def draw(key: mx.array) -> list[tuple[int, ...]]:
        with use_noise(key):
            return [draw_key() for _ in range(100)]

    first, again, other = draw(derive_key(7, 1)), draw(derive_key(7, 1)), draw(derive_key(7, 2))
    assert first == again
    assert len({*first, *other}) == 200


def test_neighbouring_keys_share_no_subkey() -> None:
    drawn: set[tuple[int, ...]] = set()
    for number in range(50):
        with use_noise(mx.random.key(number)):
            drawn |= {draw_key() for _ in range(50)}
    assert len(drawn) == 2500


def test_derived_keys_depend_on_every_label_and_nothing_else() -> None:
    keys = [derive_key(1), derive_key(1, 0), derive_key(1, "0"), derive_key(1, 0, 0), derive_key(11), derive_key(1, 1)]
    assert len({tuple(np.array(key).tolist()) for key in keys}) == len(keys)
    assert np.array(derive_key(1, "a", 2)).tolist() == np.array(derive_key(1, "a", 2)).tolist()
    assert derive_key(0).shape == (2,)
    assert derive_key(0).dtype == mx.uint32


def test_without_a_key_nothing_changes() -> None:
    x = mx.arange(6.0)
    assert next_key() is None
    assert mx.array_equal(dropout(x, 0.5), x)
    with use_noise(None):
        assert mx.array_equal(dropout(x, 0.5), x)
    with use_noise(derive_key(1)):
        assert mx.array_equal(dropout(x, 0.0), x)
    assert next_key() is None


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    with use_noise(derive_key(2)):
        dropped = np.array(dropout(mx.ones((200, 500)), 0.2))
    assert set(np.unique(dropped).tolist()) == {0.0, 1.25}
    assert abs((dropped == 0).mean() - 0.2) < 0.005
    assert abs(dropped.mean() - 1) < 0.007


def test_dropout_keeps_half_precision() -> None:
    with use_noise(derive_key(2)):
        assert dropout(mx.ones((4, 4), mx.bfloat16), 0.5).dtype == mx.bfloat16


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_recomputation_gives_the_same_gradients_with_the_same_dropout(rate: float) -> None:
    model, key = make_llama(rate), derive_key(5, 0)
    plain_loss, plain = gradients(model, key)
    checkpoint_blocks(model)
    again_loss, again = gradients(model, key)
    assert again_loss == plain_loss
    assert set(again) == set(plain)
    for name, grad in plain.items():
        np.testing.assert_array_equal(again[name], grad, err_msg=name)
    if rate:
        assert gradients(model, derive_key(5, 1))[0] != plain_loss
        assert gradients(model, None)[0] != plain_loss


@pytest.mark.slow
def test_recomputation_serves_full_fine_tuning_and_a_compiled_step() -> None:
    model = make_model("gemma")
    full_parameters(model)
    add_neftune(model.model.embed_tokens, 5.0)
    model.train()
    plain_loss, plain = gradients(model, derive_key(1))
    checkpoint_blocks(model)
    step = mx.compile(nn.value_and_grad(model, partial(loss, model)), inputs=model.state, outputs=model.state)
    for _ in range(2):
        value, grads = step(TOKENS, derive_key(1))
        assert value.item() == pytest.approx(plain_loss, rel=1e-6)
        for name, grad in tree_flatten(grads):
            np.testing.assert_allclose(np.array(grad), plain[name], rtol=0, atol=2e-5, err_msg=name)
    assert abs(step(TOKENS, derive_key(2))[0].item() - plain_loss) > 1e-4


def test_recomputation_asks_a_mask_for_no_gradient() -> None:
    """A GPU's fused attention has none, and refuses: rows were packed and recomputed there in vain."""
    asked: list[object] = []

    @mx.custom_function
    def as_scores(mask: mx.array) -> mx.array:
        return mx.where(mask, 0.0, -1e9)

    @as_scores.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
    def as_scores_vjp(primals: Any, cotangent: Any, output: object) -> mx.array:
        asked.append(output)
        return mx.zeros_like(primals)

    def watched(module: nn.Module, call: Any, x: mx.array, mask: mx.array, cache: object) -> mx.array:
        return call(module, x, as_scores(mask), cache)

    model = make_llama(0.0)
    for block in model.layers:
        override_call(block.self_attn, watched)
    checkpoint_blocks(model)
    caches = segment_caches(model, mx.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]]))

    def total(model: Any) -> mx.array:
        return mx.sum(model(TOKENS[:, :-1], cache=caches))

    _, grads = nn.value_and_grad(model, total)(model)
    mx.eval(grads)
    assert not asked


def test_a_recomputed_block_keeps_little_more_than_its_input() -> None:
    """Peaks of 12 blocks and of 4: the gradients of a block are formed before the block below it begins.

    Left to the end, as MLX does by itself, six vectors of the hidden size would stay for each block and position.
    """
    wide = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 3}
    tokens = mx.zeros((2, 129), mx.int32)
    peaks: list[int] = []
    for num_layers in (4, 12):
        model = make_model("llama", num_hidden_layers=num_layers, **wide)
        attach_adapter(model, LoraRecipe.model_validate({"rank": 8}), seed=0)
        checkpoint_blocks(model)
        model.train()

        def of_parameters(parameters: dict[str, mx.array], model: Any = model) -> mx.array:
            model.update(tree_unflatten(list(parameters.items())))
            return loss(model, tokens, None)

        parameters = adapter_parameters(model)
        mx.eval(parameters)
        start = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.value_and_grad(of_parameters)(parameters))
        peaks.append(mx.get_peak_memory() - start)
    assert (peaks[1] - peaks[0]) / 8 / (2 * 128 * 192 * 4) < 2.5


def test_recomputation_leaves_names_and_types_as_they_were() -> None:
    model = make_llama(0.1)
    names = [name for name, _ in tree_flatten(model.parameters())]
    before = dict(tree_flatten(model.trainable_parameters()))
    checkpoint_blocks(model)
    checkpoint_blocks(model)
    gradients(model, derive_key(1))
    after = dict(tree_flatten(model.trainable_parameters()))
    assert [name for name, _ in tree_flatten(model.parameters())] == names
    assert all(mx.array_equal(after[name], value) for name, value in before.items())
    uncheckpoint_blocks(model)
    assert type(model.layers[0]) is llama.TransformerBlock


def test_neftune_stays_within_its_bound_and_reaches_it() -> None:
    embedding = nn.Embedding(50, 64)
    tokens = mx.zeros((4, 128), mx.int32)
    plain = np.array(embedding(tokens))
    add_neftune(embedding, 5.0)
    embedding.train()
    with use_noise(derive_key(4)):
        noise = np.abs(np.array(embedding(tokens)) - plain)
    bound = 5 / np.sqrt(128 * 64)
    assert bound == pytest.approx(0.05524, abs=1e-5)
    assert 0.99 * bound < noise.max() <= bound + 1e-6
    assert noise.mean() == pytest.approx(bound / 2, rel=0.02)


def test_neftune_takes_the_length_without_padding_of_each_row() -> None:
    embedding = nn.Embedding(50, 64)
    tokens = mx.zeros((2, 128), mx.int32)
    plain = np.array(embedding(tokens))
    add_neftune(embedding, 5.0)
    with use_noise(derive_key(4), lengths=mx.array([128, 32])):
        noise = np.abs(np.array(embedding(tokens)) - plain).max(axis=(1, 2))
    np.testing.assert_allclose(noise, [5 / np.sqrt(128 * 64), 5 / np.sqrt(32 * 64)], rtol=0.01)


def test_neftune_is_silent_in_evaluation_without_a_key_and_in_a_tied_head() -> None:
    model = make_model("gpt2")
    plain, hidden = model(TOKENS), mx.random.normal((2, 64))
    head = model.model.wte.as_linear(hidden)
    add_neftune(model.model.wte, 5.0)
    with use_noise(derive_key(1)):
        assert mx.array_equal(model(TOKENS), plain)
    model.train()
    assert mx.array_equal(model(TOKENS), plain)
    with use_noise(derive_key(1)):
        assert not mx.array_equal(model(TOKENS), plain)
        assert mx.array_equal(model.model.wte.as_linear(hidden), head)
    remove_neftune(model.model.wte)
    assert type(model.model.wte) is nn.Embedding


def test_recomputation_traces_every_block_a_second_time_in_training_only() -> None:
    model = make_llama(0.0)
    calls: list[int] = []
    original = llama.MLP.__call__

    class Counted(llama.MLP):
        def __call__(self, x: mx.array) -> mx.array:
            calls.append(1)
            return original(self, x)

    for block in model.layers:
        block.mlp.__class__ = Counted
    gradients(model, None)
    assert len(calls) == 2
    checkpoint_blocks(model)
    calls.clear()
    gradients(model, None)
    assert len(calls) == 4
    model.eval()
    calls.clear()
    gradients(model, None)
    assert len(calls) == 2

"""Attention sinks (ALGORITHMS.md section 12): chunks as token by token, turned sinks as if recomputed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import llama, rope_utils
from mlx_lm.models.cache import RotatingKVCache
from tiny_t5 import write_tiny_t5

from mlx_finetune.errors import ModelError
from mlx_finetune.model.load import load_model
from mlx_finetune.model.long_text import reading
from mlx_finetune.model.long_text.reading import FULL, METHODS, SINKS, TURNED, WINDOW, LongReader, chunks
from mlx_finetune.model.long_text.rotations import rotations
from mlx_finetune.model.long_text.sink_cache import SinkCache
from mlx_finetune.model.scratch.weights import write_weights
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.recipe.scratch import ScratchRecipe
from mlx_finetune.train.losses import chunk_rows

TinyModel = Callable[..., Path]
W, KEEP = 16, 4


def load(folder: Path) -> nn.Module:
    local = fetch_model(str(folder), report=lambda _: None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    model.eval()
    return model


def tokens(rows: int, count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(3, 200, (rows, count)).astype(np.int32)


def layer(**more: Any) -> llama.Attention:
    mx.random.seed(3)
    args = llama.ModelArgs("llama", 64, 1, 128, 4, 1e-5, 100, num_key_value_heads=2, rope_theta=10_000.0, **more)
    made = llama.Attention(args)
    mx.eval(made.parameters())
    return made


def by_token(attention: llama.Attention, x: mx.array, cache: Any) -> mx.array:
    outputs = [attention(x[:, t : t + 1], cache.make_mask(1), cache) for t in range(x.shape[1])]
    return mx.concatenate(outputs, axis=1)


def in_chunks(attention: llama.Attention, x: mx.array, cache: Any, sizes: list[int]) -> mx.array:
    outputs, start = [], 0
    for size in sizes:
        outputs.append(attention(x[:, start : start + size], cache.make_mask(size), cache))
        start += size
    assert start == x.shape[1]
    return mx.concatenate(outputs, axis=1)


def recomputed(attention: llama.Attention, x: mx.array, t: int) -> mx.array:
    """The output at ``t`` when the kept tokens alone are read, at positions from 0 on."""
    kept = list(range(t + 1)) if t < W else [*range(KEEP), *range(t + 1 - (W - KEEP), t + 1)]
    causal = mx.tril(mx.ones((len(kept), len(kept)), mx.bool_))
    return attention(x[:, mx.array(kept)], causal)[:, -1]


def largest_difference(one: mx.array, other: mx.array) -> float:
    return float(mx.abs(one - other).max())


@pytest.mark.parametrize("traditional", [False, True])
def test_turned_sinks_are_the_kept_tokens_recomputed_at_their_cache_positions(traditional: bool) -> None:
    attention = layer(rope_traditional=traditional)
    x = mx.random.normal((2, 5 * W, 64), key=mx.random.key(5))
    found = by_token(attention, x, SinkCache(W, KEEP, rotations_of(attention)))
    wanted = mx.stack([recomputed(attention, x, t) for t in range(5 * W)], axis=1)
    assert largest_difference(found, wanted) < 7e-7
    stock = by_token(attention, x, RotatingKVCache(W, keep=KEEP))
    assert largest_difference(stock, wanted) > 1e-2  # what turning is for


def rotations_of(attention: llama.Attention) -> Callable[[mx.array, int], mx.array]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = attention

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Block()]

    return rotations(Model())[0]


@pytest.mark.parametrize("keep", [0, KEEP])
def test_a_window_is_that_of_the_stock_cache(keep: int) -> None:
    attention = layer()
    x = mx.random.normal((2, 4 * W + 3, 64), key=mx.random.key(6))
    found = by_token(attention, x, SinkCache(W, keep))
    assert largest_difference(found, by_token(attention, x, RotatingKVCache(W, keep=keep))) < 1e-6


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("sizes", [[16, 8, 8, 8, 13], [3, 1, 30, 19], [53], [1, 2, 20, 30]])
def test_chunks_of_any_size_are_the_same_as_token_by_token(turns: bool, sizes: list[int]) -> None:
    attention = layer()
    x = mx.random.normal((2, 53, 64), key=mx.random.key(7))
    turn = rotations_of(attention) if turns else None
    found = in_chunks(attention, x, SinkCache(W, KEEP, turn), sizes)
    assert largest_difference(found, by_token(attention, x, SinkCache(W, KEEP, turn))) < 1e-6


def test_the_stock_cache_shows_long_chunks_a_window_without_sinks() -> None:
    """Why the chunks here have a mask of their own; mlx-lm 0.32.2."""
    attention = layer()
    x = mx.random.normal((1, 3 * W, 64), key=mx.random.key(9))
    stock = RotatingKVCache(W, keep=KEEP)
    found = in_chunks(attention, x, stock, [W, W, W])
    wanted = by_token(attention, x, RotatingKVCache(W, keep=KEEP))
    assert largest_difference(found, wanted) > 1e-2
    ours = in_chunks(attention, x, SinkCache(W, KEEP), [W, W, W])
    assert largest_difference(ours, wanted) < 1e-6


def test_the_cache_keeps_a_window_and_no_more() -> None:
    attention, cache = layer(), SinkCache(W, KEEP)
    in_chunks(attention, mx.zeros((1, 200, 64)), cache, [100, 100])
    assert cache.state[0].shape[2] == W - 1  # the next token is the last of the window
    assert cache.offset == 200


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_all_four_agree_up_to_the_window_and_differ_behind_it(kind: str, tiny_model: TinyModel) -> None:
    reader, ids = LongReader(load(tiny_model(kind)), chunk_rows), tokens(2, 3 * W + 1)
    found = {method: reader.losses(ids, method, W) for method in METHODS}
    for method in METHODS:
        assert found[method].shape == (2, 3 * W)
        np.testing.assert_allclose(found[method][:, :W], found[FULL][:, :W], atol=1e-5)
    for method in (WINDOW, SINKS, TURNED):
        assert np.abs(found[method][:, W:] - found[FULL][:, W:]).max() > 1e-3
    assert np.abs(found[SINKS][:, W + 1 :] - found[TURNED][:, W + 1 :]).max() > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_a_whole_model_are_the_same_as_token_by_token(
    method: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = load(tiny_model("llama")), tokens(2, 3 * W + 1)
    in_chunks = LongReader(model, chunk_rows).losses(ids, method, W)
    monkeypatch.setattr(reading, "chunks", lambda length, _: [(t, t + 1) for t in range(length)])
    np.testing.assert_allclose(in_chunks, LongReader(model, chunk_rows).losses(ids, method, W), atol=2e-5)


def test_the_full_cache_gives_the_losses_of_the_whole_text(tiny_model: TinyModel) -> None:
    model, ids = load(tiny_model("llama")), tokens(2, 50)
    logits = np.array(model(mx.array(ids))).astype(np.float64)[:, :-1]
    logits -= logits.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(logits).sum(axis=-1))
    wanted = normaliser - np.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(LongReader(model, chunk_rows).losses(ids, FULL, W), wanted, rtol=2e-5, atol=2e-5)


def test_chunks_cover_every_token_once() -> None:
    assert chunks(10, 16) == [(0, 10)]
    assert chunks(30, 16) == [(0, 16), (16, 20), (20, 24), (24, 28), (28, 30)]


def test_models_without_rotary_embeddings_are_refused_by_name(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a gpt2 model has learned positions \(model.wpe\)"):
        rotations(load(tiny_model("gpt2")))
    with pytest.raises(ModelError) as refused:
        rotations(load(write_tiny_t5(tmp_path, is_tied=True)))
    assert refused.value.message == "not every layer of a t5 model has full attention and keys and values of its own"


def test_a_rotation_that_depends_on_the_length_is_refused() -> None:
    attention = layer(rope_scaling={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=64)
    with pytest.raises(ModelError, match="DynamicNTKScalingRoPE"):
        rotations_of(attention)


def test_every_scaled_rotation_is_known() -> None:
    """Two turns are one turn by their sum, without the factor that some embeddings put on what they rotate."""
    kinds = [
        rope_utils.YarnRoPE(16, scaling_factor=4.0),
        rope_utils.SuScaledRoPE(16, short_factor=1.0, long_factor=[1.5] * 8),
        rope_utils.Llama3RoPE(16, scaling_config={"factor": 8.0}),
        rope_utils.ProportionalRoPE(16, 8),
        nn.RoPE(16, scale=0.5),
    ]
    x = mx.random.normal((1, 2, 3, 16), key=mx.random.key(8))
    for kind in kinds:
        attention = layer()
        attention.rope = kind
        turned = rotations_of(attention)(kind(x, offset=5), 0)
        # rotate() turns the key at place t by first + t: of places 5, 6, 7 it makes 5, 7, 9
        wanted = mx.concatenate([kind(x[:, :, t : t + 1], offset=5 + 2 * t) for t in range(3)], axis=2)
        assert largest_difference(turned, wanted) < 1e-5, type(kind).__name__


@pytest.mark.parametrize("more", [{}, {"attention_sinks": True, "num_experts": 4}])
def test_models_made_here_are_read_in_chunks_as_by_token(
    more: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ScratchRecipe.model_validate({"hidden_size": 64, "num_layers": 2, "context_length": W} | more)
    write_weights(tmp_path, shape, 300, 1, [0])
    reader, ids = LongReader(load(tmp_path), chunk_rows), tokens(2, 3 * W + 1)
    found = {method: reader.losses(ids, method, W) for method in METHODS}
    monkeypatch.setattr(reading, "chunks", lambda length, _: [(t, t + 1) for t in range(length)])
    for method in METHODS:
        np.testing.assert_allclose(found[method][:, :W], found[FULL][:, :W], atol=1e-5)
        np.testing.assert_allclose(found[method], reader.losses(ids, method, W), atol=2e-5)

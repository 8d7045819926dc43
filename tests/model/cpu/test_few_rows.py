"""A few rows by blocks of the weight: the same numbers, and nothing left behind."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from random_models import make_model

from mlx_finetune.model.answers.generate import PromptCache
from mlx_finetune.model.cpu.few_rows import LAYERS_AT_ONCE, few_row_products


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (1, 1, 24), (1, 3, 24), (3, 1, 24)])
def test_it_is_the_product_of_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(24, 16, bias=bias)
    x = mx.random.normal(shape, key=mx.random.key(0))
    expected = np.array(layer(x))
    with few_row_products():
        for _ in range(LAYERS_AT_ONCE + 1):
            np.testing.assert_allclose(np.array(layer(x)), expected, rtol=0, atol=1e-6)
        layer.set_dtype(mx.bfloat16)
        assert layer(x.astype(mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 17])
@pytest.mark.parametrize(("out", "width"), [(1536, 576), (2000, 640), (1031, 1024), (8, 70_000), (40, 40_000)])
def test_large_weights_are_taken_by_blocks_with_the_same_sums(rows: int, out: int, width: int) -> None:
    layer, tied = nn.Linear(width, out), nn.Embedding(out, width)
    x = mx.random.normal((rows, 1, width), key=mx.random.key(0))
    expected, logits = np.array(layer(x)), np.array(tied.as_linear(x))
    with few_row_products():
        np.testing.assert_allclose(np.array(layer(x)), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.array(tied.as_linear(x)), logits, rtol=0, atol=1e-4)


def test_the_class_is_as_before_after_it_also_after_an_error() -> None:
    before, tied = nn.Linear.__call__, nn.Embedding.as_linear
    with few_row_products():
        assert nn.Linear.__call__ is not before
    assert nn.Linear.__call__ is before
    with pytest.raises(ValueError, match="second to last dimension"), few_row_products():
        nn.Linear(24, 16)(mx.zeros((1, 23)))
    assert (nn.Linear.__call__, nn.Embedding.as_linear) == (before, tied)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("lengths", [(40,), (1,) * 6, (33, 1, 1, 5, 1)])
def test_the_cache_gives_the_logits_of_the_plain_model(family: str, lengths: tuple[int, ...]) -> None:
    model = make_model(family)
    ids = np.random.default_rng(0).integers(3, 96, sum(lengths)).tolist()
    before = mx.fast.scaled_dot_product_attention
    expected = np.array(model(mx.array([ids]))[0])
    cache = PromptCache(model)
    for length in lengths:
        start = len(cache.ids)
        logits = np.array(cache.advance(ids[start : start + length]))
        np.testing.assert_allclose(logits, expected[len(cache.ids) - 1], rtol=0, atol=2e-5)
    assert mx.fast.scaled_dot_product_attention is before


def test_a_few_tokens_go_through_blocks_and_a_prompt_through_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr("mlx_finetune.model.answers.generate.few_row_products", lambda: _noting("few", used))
    monkeypatch.setattr("mlx_finetune.model.answers.generate.numpy_math", lambda _: _noting("numpy", used))
    cache = PromptCache(make_model("llama"))
    for count in (40, 1, 8, 20):
        cache.advance([5] * count)
    assert used == (["numpy", "few", "few"] if mx.default_device() == mx.Device(mx.cpu) else [])


def _noting(name: str, used: list[str]):
    from contextlib import nullcontext

    used.append(name)
    return nullcontext()

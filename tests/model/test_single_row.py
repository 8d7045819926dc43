"""One row as a column: the same numbers, and nothing left behind."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from random_models import make_model

from mlx_finetune.model.generate import PromptCache
from mlx_finetune.model.single_row import LAYERS_AT_ONCE, column_products


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (1, 1, 24), (1, 3, 24), (3, 1, 24)])
def test_it_is_the_product_of_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(24, 16, bias=bias)
    x = mx.random.normal(shape, key=mx.random.key(0))
    expected = np.array(layer(x))
    with column_products():
        for _ in range(LAYERS_AT_ONCE + 1):
            np.testing.assert_allclose(np.array(layer(x)), expected, rtol=0, atol=1e-6)
        layer.set_dtype(mx.bfloat16)
        assert layer(x.astype(mx.bfloat16)).dtype == mx.bfloat16


def test_the_class_is_as_before_after_it_also_after_an_error() -> None:
    before = nn.Linear.__call__
    with column_products():
        assert nn.Linear.__call__ is not before
    assert nn.Linear.__call__ is before
    with pytest.raises(ValueError, match="matmul"), column_products():
        nn.Linear(24, 16)(mx.zeros((1, 23)))
    assert nn.Linear.__call__ is before


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


def test_one_token_goes_through_columns_and_a_prompt_through_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr("mlx_finetune.model.generate.column_products", lambda: _noting("column", used))
    monkeypatch.setattr("mlx_finetune.model.generate.numpy_math", lambda _: _noting("numpy", used))
    cache = PromptCache(make_model("llama"))
    for count in (40, 1, 8):
        cache.advance([5] * count)
    assert used == (["numpy", "column"] if mx.default_device() == mx.Device(mx.cpu) else [])


def _noting(name: str, used: list[str]):
    from contextlib import nullcontext

    used.append(name)
    return nullcontext()

"""Numpy's exponentials against MLX's own, values and gradients."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_finetune.model.cpu import cpu_math
from mlx_finetune.model.cpu.cpu_math import numpy_math


class Gated(nn.Module):
    """Uses what the models use: ``nn.silu``, ``nn.gelu_approx``, and attention."""

    def __call__(self, kind, *arrays):
        return getattr(nn, kind)(*arrays)


def both(function, *arrays):
    """Values and all gradients of ``sum(function * slope)``, by MLX alone and under ``numpy_math``."""

    def loss(*given):
        out = function(*given)
        return (out * mx.cos(mx.arange(out.size)).reshape(out.shape)).sum()

    numbers = list(range(len(arrays)))
    results = []
    for inside in (False, True):
        if inside:
            with numpy_math(Gated()):
                _, slopes = mx.value_and_grad(loss, argnums=numbers)(*arrays)
                out = function(*arrays)
        else:
            _, slopes = mx.value_and_grad(loss, argnums=numbers)(*arrays)
            out = function(*arrays)
        results.append([np.array(one) for one in (out, *slopes)])
    return zip(*results, strict=True)


def random(*shape, seed=0, scale=3.0):
    return scale * mx.random.normal(shape, key=mx.random.key(seed))


@pytest.mark.parametrize("kind", ["silu", "gelu_approx"])
def test_activations_and_their_gradients(kind):
    extremes = mx.array([-200.0, -100.0, -1e-30, 0.0, 1e-30, 100.0, 200.0])
    x = mx.concatenate([random(3, 50).reshape(-1), extremes])
    for expected, ours in both(lambda x: getattr(nn, kind)(x), x):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, expected, atol=3e-6, rtol=3e-6)


def test_swiglu_of_a_models_own_module_and_its_gradients(monkeypatch):
    import sys

    from mlx_lm.models.activations import swiglu

    monkeypatch.setattr(sys.modules[__name__], "swiglu", swiglu, raising=False)
    this = sys.modules[__name__]
    for expected, ours in both(lambda g, x: this.swiglu(g, x), random(4, 33), random(4, 33, seed=1)):
        np.testing.assert_allclose(ours, expected, atol=3e-6, rtol=3e-6)
    assert this.swiglu is swiglu  # put back


def block_diagonal(length, documents):
    ids = mx.array(documents)
    return ((ids[:, :, None] == ids[:, None, :]) & (mx.arange(length)[:, None] >= mx.arange(length)[None]))[:, None]


@pytest.mark.parametrize("strip", [4, 7, 64])
@pytest.mark.parametrize(
    "mask",
    ["causal", None, mx.tril(mx.ones((13, 13), mx.bool_)), block_diagonal(13, [[1] * 5 + [2] * 6 + [0] * 2, [1] * 13])],
    ids=["causal", "none", "array", "documents"],
)
def test_attention_and_its_gradients(strip, mask, monkeypatch):
    monkeypatch.setattr(cpu_math, "STRIP", strip)
    q, k, v = random(2, 6, 13, 8, scale=1), random(2, 2, 13, 8, seed=1, scale=1), random(2, 2, 13, 5, seed=2, scale=1)

    def attention(q, k, v):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(8), mask=mask)

    for expected, ours in both(attention, q, k, v):
        np.testing.assert_allclose(ours, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize(
    "changed",
    [{"dtype": mx.bfloat16}, {"mask": mx.zeros((5, 5))}, {"sinks": mx.zeros((2,))}, {"queries": 1}],
    ids=["bfloat16", "additive mask", "sinks", "one query"],
)
def test_what_it_does_not_know_goes_to_mlx_unchanged(changed):
    dtype = changed.get("dtype", mx.float32)
    q, k = (random(1, 2, length, 8).astype(dtype) for length in (changed.get("queries", 5), 5))
    options = {name: changed[name] for name in ("mask", "sinks") if name in changed}
    expected = mx.fast.scaled_dot_product_attention(q, k, k, scale=0.3, **options)
    with numpy_math(Gated()):
        ours = mx.fast.scaled_dot_product_attention(q, k, k, scale=0.3, **options)
        gate = nn.silu(q.astype(mx.bfloat16))
    assert mx.array_equal(ours, expected)
    assert gate.dtype == mx.bfloat16


def test_everything_is_put_back_also_after_an_error():
    names = (mx.fast.scaled_dot_product_attention, nn.silu, nn.gelu_approx)
    with pytest.raises(KeyError), numpy_math(Gated()):
        raise KeyError
    assert (mx.fast.scaled_dot_product_attention, nn.silu, nn.gelu_approx) == names


def test_attention_keeps_no_matrix_of_scores():
    T = 1024
    q = random(1, 4, T, 8, scale=1)
    mx.eval(q)

    def loss(q):
        return mx.fast.scaled_dot_product_attention(q, q, q, scale=0.3, mask="causal").sum()

    with numpy_math(Gated()):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.grad(loss)(q))
    assert mx.get_peak_memory() - before < 4 * T * T * 4 * 0.7  # less than one such matrix; MLX keeps several

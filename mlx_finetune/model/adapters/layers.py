"""The layers an adapter consists of: LoRA and DoRA around a linear layer that stays as it is.

Adapter weights are float32 whatever the base is, and so is their product with the input; the sum has the base's type.
The base may be ``nn.Linear`` or ``nn.QuantizedLinear`` of any width. Parameter names are mlx-lm's: ``linear.*`` below
the layer, ``lora_a`` (in, r), ``lora_b`` (r, out), ``m`` (out,).
"""

import math
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.inside.noise import dropout

Linear = nn.Linear | nn.QuantizedLinear


class LoRALinear(nn.Module):
    """``y = x W^T + b + scale * drop(x) A B`` (Hu et al. 2021, 2106.09685; B A there is (A B)^T here)."""

    def __init__(self, linear: Linear, *, rank: int, scale: float, dropout: float, key: mx.array) -> None:
        super().__init__()
        self.linear = linear
        self.scale = scale
        self.dropout = dropout
        self.lora_a, self.lora_b = _initial_weights(linear, rank, key)

    def __call__(self, x: mx.array) -> mx.array:
        """``x`` (..., in) to (..., out), in the type of the base's output."""
        y = self.linear(x)  # (B, T, out)
        if _is_plain(self, x, y):
            return _add_low_rank(self, x, y)
        return y + _low_rank(self, x).astype(y.dtype)

    def delta(self) -> mx.array:
        """What the adapter adds to the weight: (out, in), fp32."""
        return self.scale * (self.lora_a @ self.lora_b).T


class DoRALinear(nn.Module):
    """``y = g * (x W^T + scale * drop(x) A B) + b``, ``g = m / ||W + scale (A B)^T||`` (Liu et al. 2024, 2402.09353).

    The norm is that of each output row and carries no gradient (section 4.3 of the paper); ``m`` starts as the norm
    of W, so the layer starts as its base. Dropout acts on the low-rank path only; PEFT drops the base's input too.
    """

    def __init__(self, linear: Linear, *, rank: int, scale: float, dropout: float, key: mx.array) -> None:
        super().__init__()
        self.linear = linear
        self.scale = scale
        self.dropout = dropout
        self.lora_a, self.lora_b = _initial_weights(linear, rank, key)
        self._base_norm_squared = mx.sum(mx.square(dense_weight(linear)), axis=1)  # (out,)
        self.m = mx.sqrt(self._base_norm_squared)
        mx.eval(self._base_norm_squared, self.m)

    def __call__(self, x: mx.array) -> mx.array:
        """``x`` (..., in) to (..., out), in the type of the base's output."""
        is_fixed = "_gain" in self and not self.training
        has_bias = "bias" in self.linear
        y = self.linear(x) if is_fixed and not has_bias else _without_bias(self.linear, x)  # (B, T, out)
        gain = self._gain if is_fixed else self.m / mx.stop_gradient(self.row_norms())  # (out,)
        adapted = _add_low_rank(self, x, y) if _is_plain(self, x, y) else y + _low_rank(self, x)
        y = (gain * adapted).astype(y.dtype)
        return y + self.linear.bias if has_bias else y

    def fix_norms(self) -> None:
        """Compute the norms once instead of at every call in eval mode; the weights must not change after it."""
        self._gain = self.m / self.row_norms()
        mx.eval(self._gain)

    def row_norms(self) -> mx.array:
        """``||W + s (A B)^T||`` of each output row, (out,) fp32, without forming the sum.

        ``||W||^2 + 2 s W A . B^T + s^2 (B^T A^T A) . B^T``, row by row: r times fewer numbers than W in memory.
        """
        a, b = self.lora_a, self.lora_b.T  # (in, r), (out, r)
        cross = mx.sum(_without_bias(self.linear, a.T).T * b, axis=1)
        square = mx.sum((b @ (a.T @ a)) * b, axis=1)
        return mx.sqrt(mx.maximum(self._base_norm_squared + 2 * self.scale * cross + self.scale**2 * square, 1e-30))

    def delta(self) -> mx.array:
        """What the adapter adds to the weight: (out, in), fp32."""
        weight = dense_weight(self.linear)
        adapted = weight + self.scale * (self.lora_a @ self.lora_b).T
        return (self.m / self.row_norms())[:, None] * adapted - weight


AdapterLayer = LoRALinear | DoRALinear


def is_linear(module: object) -> bool:
    """True for the layers an adapter can wrap."""
    return isinstance(module, nn.Linear | nn.QuantizedLinear)


def linear_shape(linear: Linear) -> tuple[int, int]:
    """(out, in) of a linear layer, quantised or not."""
    out_dims, columns = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear):
        return out_dims, columns * 32 // linear.bits  # packed into uint32; exact for 3, 5 and 6 bits as well
    return out_dims, columns


def dense_weight(linear: Linear) -> mx.array:
    """The weight as (out, in) fp32; dequantised where it is quantised."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight.astype(mx.float32)
    dense = mx.dequantize(
        linear.weight,
        linear.scales,
        cast(Any, linear).get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )
    return dense.astype(mx.float32)


def _initial_weights(linear: Linear, rank: int, key: mx.array) -> tuple[mx.array, mx.array]:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)) (in, r) and B = 0 (r, out), fp32."""
    out_dims, in_dims = linear_shape(linear)
    bound = 1 / math.sqrt(in_dims)
    return mx.random.uniform(-bound, bound, (in_dims, rank), key=key), mx.zeros((rank, out_dims))


def _low_rank(layer: AdapterLayer, x: mx.array) -> mx.array:
    """``scale * drop(x) A B`` in fp32."""
    x = _dropped(layer, x).astype(mx.float32)
    return layer.scale * ((x @ layer.lora_a) @ layer.lora_b)  # in mlx-lm's order: 3e-7 apart


def _add_low_rank(layer: AdapterLayer, x: mx.array, y: mx.array) -> mx.array:
    """``y + scale * drop(x) A B`` where all is fp32: two operations instead of four (1e-7 apart), one array of the size
    of ``y`` instead of three. With rank 16 on every layer the others take a tenth of a token's time."""
    narrow = _dropped(layer, x) @ layer.lora_a  # (..., r)
    rows = (-1, y.shape[-1]), (-1, narrow.shape[-1])  # or the gradient of B would exist once for each sequence
    return mx.addmm(y.reshape(rows[0]), narrow.reshape(rows[1]), layer.lora_b, alpha=layer.scale).reshape(y.shape)


def _dropped(layer: AdapterLayer, x: mx.array) -> mx.array:
    """``x`` with dropout, in training mode and under a noise key only."""
    return dropout(x, layer.dropout) if layer.training else x


def _is_plain(layer: AdapterLayer, x: mx.array, y: mx.array) -> bool:
    """True where everything is float32, so that nothing has to be cast."""
    return x.dtype == y.dtype == layer.lora_b.dtype == mx.float32


def _without_bias(linear: Linear, x: mx.array) -> mx.array:
    """``x W^T``."""
    if not isinstance(linear, nn.QuantizedLinear):
        return x @ linear.weight.T
    return mx.quantized_matmul(
        x,
        linear.weight,
        linear.scales,
        cast(Any, linear).get("biases"),
        transpose=True,
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )

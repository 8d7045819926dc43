"""The loss that spreads tokens evenly over experts, measured at the routers while a model is computed.

Fedus et al. (2101.03961, equation 4): ``c E sum_e f_e P_e`` with f_e the share of assignments that expert e gets and
P_e its mean probability; 1 times c where tokens are spread evenly. It is formed row by row over the positions that have
a target and averaged over blocks, so that rows may be computed in any division and padding is nothing; each row counts
as many times as it has targets.

Its gradient enters at the routers, where the block's own goes through, so that blocks can be taken one at a time; the
loss adds its value as a constant. Both together are the gradient of the sum.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.inside.override import Override, overridden


class Balance:
    """The routers of one model, and the balance loss of the forward pass at hand."""

    def __init__(self, routers: list[tuple[nn.Module, int]], weight: float, is_target: mx.array) -> None:
        """``routers`` with the experts that each token gets; ``is_target`` (B, T) is 1 where a token is predicted."""
        self._routers = routers
        self._weight = weight
        self._is_target = is_target.astype(mx.float32)
        self._found: list[mx.array] | None = []

    def value(self) -> mx.array:
        """The balance loss summed over targets, a scalar without a gradient. Nothing is collected after it."""
        found, self._found = self._found or [], None
        return mx.stop_gradient(sum(found, start=mx.array(0.0)))

    def overrides(self) -> list[tuple[nn.Module, Override]]:
        """What the routers do meanwhile."""
        return [(router, self._at_router(num_chosen)) for router, num_chosen in self._routers]

    def _at_router(self, num_chosen: int) -> Override:
        def call(router: nn.Module, original: Any, x: mx.array) -> mx.array:
            logits: mx.array = original(router, x)
            value, slope = balance_of(mx.stop_gradient(logits), self._is_target, num_chosen)
            share = self._weight / len(self._routers)
            if self._found is not None:
                self._found.append(share * value)
            return cast("mx.array", _with_slope(logits, (share * slope).astype(logits.dtype)))

        return call


def balance_of(logits: mx.array, is_target: mx.array, num_chosen: int) -> tuple[mx.array, mx.array]:
    """``sum_b n_b E sum_e f_be P_be`` over logits (B, T, E), n_b targets of row b; and its gradient, f held fixed."""
    num_experts = logits.shape[-1]
    shares = mx.softmax(logits.astype(mx.float32), axis=-1)
    smallest = mx.sort(shares, axis=-1)[..., -num_chosen, None]
    is_chosen = (shares >= smallest).astype(mx.float32)
    is_chosen = is_chosen / mx.sum(is_chosen, axis=-1, keepdims=True)  # equal shares count together
    weight = is_target[..., None]  # (B, T, 1)
    num_targets = mx.maximum(mx.sum(weight, axis=1), 1.0)  # (B, 1)
    assigned = mx.sum(is_chosen * weight, axis=1) / num_targets  # f, (B, E)
    value = num_experts * mx.sum(assigned * mx.sum(shares * weight, axis=1))  # P is the last sum over n
    pull = assigned[:, None, :]
    slope = num_experts * weight * shares * (pull - mx.sum(pull * shares, axis=-1, keepdims=True))
    return value, slope


@mx.custom_function
def _with_slope(logits: mx.array, slope: mx.array) -> mx.array:
    """``logits``, to whose gradient ``slope`` is added."""
    del slope
    return logits


@_with_slope.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
def _with_slope_vjp(primals: Any, cotangent: Any, output: Any) -> tuple[mx.array, mx.array]:
    del output
    return cotangent + primals[1], mx.zeros_like(primals[1])


def routers_of(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """The routers of a model with experts, and how many experts each token gets; none without experts."""
    experts = [one for one in model.modules() if "switch_mlp" in one and "gate" in one]
    return [(cast("nn.Module", one["gate"]), int(cast(Any, one).num_chosen)) for one in experts]


@contextmanager
def balanced(balance: Balance) -> Generator[None]:
    """Inside, the routers of the model measure and spread."""
    with overridden(balance.overrides()):
        yield

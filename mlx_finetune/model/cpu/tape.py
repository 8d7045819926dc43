"""Products that the backward pass would only compute again: kept in the order in which they were made, handed out once.

A block that goes backward is computed a second time, for its graph. What its frozen linear layers and its attention
gave the first time is the same, and is most of that work. While a tape records, each of them puts its result there;
while it replays, the result is taken from it, and only the gradient goes through the layer. Recomputation without a
tape keeps one vector of the hidden size a block and position; with one, nine more in SmolLM2-135M.
"""

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_finetune.model.adapters.layers import is_linear
from mlx_finetune.model.inside.override import Override

_T = TypeVar("_T")


class Tape:
    """The results of one call of a block. Record once, then replay once: what was taken is let go."""

    def __init__(self) -> None:
        self._kept: list[object] = []
        self.is_replaying = False

    def take(self, compute: Callable[[], _T]) -> _T:
        """What ``compute`` gives while recording; what it gave then while replaying."""
        if self.is_replaying:
            return cast(_T, self._kept.pop(0))
        result = compute()
        self._kept.append(result)
        return result


class _Tapes(threading.local):
    """The tape of one thread."""

    def __init__(self) -> None:
        self.current: Tape | None = None


_tapes = _Tapes()


@contextmanager
def use_tape(tape: Tape | None) -> Generator[None]:
    """Inside, results go to ``tape``, or nowhere."""
    before, _tapes.current = _tapes.current, tape
    try:
        yield
    finally:
        _tapes.current = before


def current_tape() -> Tape | None:
    """The tape in use, if any."""
    return _tapes.current


def keeping_linears(blocks: Iterable[nn.Module]) -> list[tuple[nn.Module, Override]]:
    """Overrides (``model.inside.override.overridden``) for the linear layers of ``blocks`` that learn nothing."""
    return [
        (module, _kept)
        for block in blocks
        for module in block.modules()
        if is_linear(module) and not tree_flatten(module.trainable_parameters())
    ]


def _kept(module: nn.Module, call: Any, x: mx.array) -> mx.array:
    """The layer's output; while replaying the kept one, with the layer's gradient."""
    tape = current_tape()
    if tape is None:
        return call(module, x)
    kept = tape.take(lambda: call(module, x))
    if not tape.is_replaying:
        return kept

    @mx.custom_function
    def replayed(_: mx.array) -> mx.array:
        return kept

    @replayed.vjp  # pyright: ignore[reportUntypedFunctionDecorator]
    def replayed_vjp(x: mx.array, slope: mx.array, _: mx.array) -> mx.array:
        return mx.vjp(lambda x: call(module, x), [x], [slope])[1][0]

    return cast("mx.array", replayed(x))

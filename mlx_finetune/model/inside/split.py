"""A causal model of mlx-lm in two parts: tokens to hidden states, hidden states to logits.

Logits are wanted only where there is a target, and a few rows at a time; mlx-lm's models form all of them, after
whatever each does to its head's output (a soft cap, a scale). So the model is called as it is, with its body (the
module that owns the blocks) overridden: to catch the body's output, whose logits nobody evaluates and MLX therefore
never computes, or to put rows of hidden states in its place. A head inside the body is overridden itself. The parts
are compared with the whole on two tokens; a model that is not their sum is not split. T5 says itself what its parts
are, and is not split either: its blocks are no chain.
"""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.cpu.twin import twin
from mlx_finetune.model.inside.override import overridden
from mlx_finetune.model.inside.parts import blocks, head
from mlx_finetune.model.seq2seq.t5 import Model as T5


class SplitModel:
    """``model`` as ``hidden`` and ``logits``. Where it cannot be split, its logits are taken for hidden states."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._body = find_body(model)
        self._inner_head = _head_inside(model, self._body)
        if self._body is not None and not self._is_exact():
            self._body = None
        hidden = self.hidden(_two_tokens(), None)[0]
        self.hidden_size: int = hidden.shape[-1]
        self.vocab_size: int = self.logits(hidden).shape[-1]

    def twin(self) -> "SplitModel":
        """A twin of the model (``model.cpu.twin``), split alike without another check."""
        other = SplitModel.__new__(SplitModel)
        other.model = twin(self.model)
        other._body = None if self._body is None else find_body(other.model)
        other._inner_head = _head_inside(other.model, other._body)
        other.hidden_size, other.vocab_size = self.hidden_size, self.vocab_size
        return other

    @property
    def is_split(self) -> bool:
        """True where the hidden states are those before the head."""
        return self._body is not None

    def hidden(self, tokens: mx.array, caches: Sequence[object] | None) -> mx.array:
        """What the head is applied to, (B, T, H), for ``tokens`` (B, T) and what stands in for KV caches."""
        if isinstance(self.model, T5):
            assert caches is None, "rows of an encoder-decoder model cannot be packed"
            return self.model.hidden(tokens)
        if self._body is None:
            return cast(Any, self.model)(tokens, cache=caches)
        caught: list[mx.array] = []

        def catch_output(module: nn.Module, call: Any, *args: object, **kwargs: object) -> Any:
            caught.append(call(module, *args, **kwargs))
            return caught[-1]

        def catch_input(module: nn.Module, call: Any, x: mx.array) -> Any:
            caught.append(x)
            return call(module, x)

        override = (self._body, catch_output) if self._inner_head is None else (self._inner_head, catch_input)
        with overridden([override]):
            cast(Any, self.model)(tokens, cache=caches)
        return caught[-1]

    def logits(self, hidden: mx.array) -> mx.array:
        """The logits of rows of hidden states: (N, H) to (N, V)."""
        if isinstance(self.model, T5):
            return self.model.logits(hidden)
        if self._body is None:
            return hidden
        if self._inner_head is not None:
            return cast(Any, self._inner_head)(hidden)

        def put(*_: object, **__: object) -> mx.array:
            return hidden[None]

        with overridden([(self._body, put)]):
            logits: mx.array = cast(Any, self.model)(mx.zeros((1, hidden.shape[0]), mx.int32))
        return logits.reshape(hidden.shape[0], -1)  # an index would copy every gradient twice

    def _is_exact(self) -> bool:
        """Compare with the whole model on two tokens; a model that does not take it that way is not split."""
        try:
            hidden = self.hidden(_two_tokens(), None)
            parts = self.logits(hidden[0])
        except (AttributeError, IndexError, TypeError, ValueError):
            return False
        return hidden.ndim == 3 and bool(mx.array_equal(parts, cast(Any, self.model)(_two_tokens())[0]))


def _two_tokens() -> mx.array:
    return mx.array([[0, 1]])


def _head_inside(model: nn.Module, body: nn.Module | None) -> nn.Module | None:
    """The head where it is a part of the body, as in mlx-lm's GPT-NeoX."""
    found = head(model)
    return found if body is not None and found is not None and any(one is found for one in body.modules()) else None


def find_body(model: nn.Module) -> nn.Module | None:
    """The module below ``model`` that owns the list of blocks, None where that is ``model`` itself or nobody."""
    if not isinstance(getattr(model, "layers", None), list) or isinstance(model, T5):
        return None
    first = blocks(model)[0]
    for path, module in cast("list[tuple[str, nn.Module]]", model.named_modules()):
        if path and any(isinstance(value, list) and value and value[0] is first for value in module.values()):
            return module
    return None

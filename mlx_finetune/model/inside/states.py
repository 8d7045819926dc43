"""What leaves each block of a model, and the norm between the last block and the head."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.model.inside.override import overridden
from mlx_finetune.model.inside.parts import blocks
from mlx_finetune.model.inside.split import SplitModel

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm")


@contextmanager
def caught_states(model: nn.Module) -> Generator[list[mx.array]]:
    """Inside, each call of ``model`` adds the output (B, T, H) of every block, first to last, to the list."""
    caught: list[mx.array] = []

    def catch(module: nn.Module, call: Any, *args: object, **kwargs: object) -> Any:
        output = call(module, *args, **kwargs)
        caught.append(cast(mx.array, output[0] if isinstance(output, tuple) else output))
        return output

    with overridden([(block, catch) for block in blocks(model)]):
        yield caught


def final_norm(split: SplitModel) -> nn.Module | None:
    """The module that turns the last block's output into what the head is applied to; None where none does exactly."""
    if not split.is_split:
        return None
    with caught_states(split.model) as caught:
        hidden = split.hidden(mx.array([[0, 1]]), None)
    named = cast("list[tuple[str, nn.Module]]", split.model.named_modules())
    inside = {id(module) for block in blocks(split.model) for module in block.modules()}
    for path, module in named:
        is_candidate = path.rpartition(".")[2] in _NORMS and id(module) not in inside
        if is_candidate and bool(mx.array_equal(cast(Any, module)(caught[-1]), hidden)):
            return module
    return None

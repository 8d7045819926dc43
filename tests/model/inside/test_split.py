"""A model in two parts against the whole."""

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel


def load(folder):
    return load_model(
        LocalModel("tiny", folder, "folder", None, "", None), quantize=None, compute_dtype="float32", on_gpu=False
    ).model


@pytest.mark.parametrize("model_type", ["llama", "gemma", "qwen3", "gpt2", "gpt_neox"])
def test_rows_of_hidden_states_give_the_logits_of_the_whole(tiny_model, model_type):
    model = load(tiny_model(model_type))
    split = SplitModel(model)
    tokens = mx.array([[5, 6, 7, 8], [9, 10, 11, 12]])
    expected = cast(Any, model)(tokens)  # (B, T, V)
    hidden = split.hidden(tokens, None)
    assert split.is_split
    assert hidden.shape == (2, 4, 64)  # before the head, in every family
    assert split.vocab_size == expected.shape[-1]
    rows = hidden.reshape(8, -1)[mx.array([6, 1])]
    chosen = expected.reshape(8, -1)[mx.array([6, 1])]
    assert mx.allclose(split.logits(rows), chosen, atol=1e-5)


def test_nothing_stays_overridden(tiny_model):
    model = load(tiny_model("llama"))
    classes = [type(module) for module in model.modules()]
    split = SplitModel(model)
    split.logits(split.hidden(mx.array([[5, 6]]), None)[0])
    assert [type(module) for module in model.modules()] == classes


class Doubled(nn.Module):
    """Its logits depend on the tokens as well as on the hidden states, so the two parts are not the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = [nn.Linear(4, 4)]

    @property
    def layers(self):
        return self.model.layers

    def __call__(self, tokens, cache=None):
        hidden = cast(Any, self.model.layers)[0](mx.ones((*tokens.shape, 4)))
        return hidden * (1 + tokens[..., None])


def test_a_model_that_is_not_the_sum_of_its_parts_is_not_split():
    model = Doubled()
    split = SplitModel(model)
    assert not split.is_split
    tokens = mx.array([[1, 2]])
    hidden = split.hidden(tokens, None)
    assert mx.array_equal(split.logits(hidden[0]), model(tokens)[0])

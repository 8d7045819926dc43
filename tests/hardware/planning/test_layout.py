"""What an epoch costs in packs and in batches, against a walk over the batches one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes_of_models import SMOLLM2_135M

from mlx_finetune.dataset.stream import OrderedBatches
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.hardware.planning.layout import choose_layout, epoch_cost, epoch_positions, relative_cost
from mlx_finetune.hardware.planning.shapes import read_shape

SMOLLM2 = read_shape(SMOLLM2_135M)
LENGTHS = st.lists(st.integers(2, 300), min_size=1, max_size=40)


def batches(lengths: list[int], batch_size: int) -> OrderedBatches:
    rows = [Tokens(np.ones(n, np.int32), np.ones(n, np.bool_), "x", line) for line, n in enumerate(lengths, 1)]
    return OrderedBatches(rows, batch_size)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9))
def test_positions_are_those_of_the_batches(lengths: list[int], batch_size: int) -> None:
    made = batches(lengths, batch_size)
    assert epoch_positions(np.array(lengths), None, batch_size) == sum(batch.num_positions for batch in made)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9))
def test_every_padded_position_costs(lengths: list[int], batch_size: int) -> None:
    expected = 0.0
    for batch in batches(lengths, batch_size):
        length = batch.tokens.shape[1] - 1
        expected += batch.num_positions * relative_cost(SMOLLM2, length)
    assert epoch_cost(np.array(lengths), SMOLLM2, None, batch_size) == pytest.approx(expected)


def test_a_cpu_does_not_pack_to_save_padding_that_it_cuts_off() -> None:
    """Rows of 129 inputs beside one of 1,999 are padded to 256 on a GPU."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
    shape = read_shape({"model_type": "llama", "num_hidden_layers": 16, "vocab_size": 32000, **sizes})
    lengths = np.array([130] * 399 + [2000])

    def packed_length(*, on_gpu: bool) -> int | None:
        return choose_layout(
            lengths, shape, batch_size=4, max_length=2048, on_gpu=on_gpu, wanted="auto", unpackable=""
        ).packed_length

    assert packed_length(on_gpu=True) is not None
    assert packed_length(on_gpu=False) is None

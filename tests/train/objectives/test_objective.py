"""What an objective may be beside the next token: sums with metrics, counts of its own, numbers that rows have."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from mlx_finetune.dataset.stream import Batch, Stream, ordered_batches
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.objectives.next_token import next_token
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.step import Trainer

LENGTHS = (9, 6, 12, 7)


def row(number: int) -> Tokens:
    length = LENGTHS[number]
    mask = np.arange(length) > 0
    return Tokens(np.arange(1, length + 1, dtype=np.int32), mask, "rows", number + 1, values=(float(number), 0.5))


ROWS = [row(number) for number in range(len(LENGTHS))]


def row_arrays(batch: Batch, parts: int) -> tuple[mx.array, ...]:
    """The position before each row's last token, which is no input where it fills its sequence, and its number."""
    ends = np.count_nonzero(batch.segment_ids, axis=1) - 2
    return mx.array(ends.astype(np.int32)), mx.array(batch.values[:, 0].astype(np.float32))


def row_loss(head: Head, hidden: mx.array, ends: mx.array, numbers: mx.array) -> mx.array:
    """The squared mean of each row's last state, weighted by its number; and the sum of the numbers."""
    last = hidden[mx.arange(hidden.shape[0]), ends]  # (B, H)
    losses = mx.square(mx.mean(last.astype(mx.float32), axis=1) - 1) * (1 + numbers)
    return mx.stack([mx.sum(losses), mx.sum(numbers)])


PER_ROW = Objective(
    "per row",
    next_token("sft").read_rows,
    row_arrays,
    row_loss,
    metrics=("number",),
    count=lambda batch: len(batch.rows),
    unpackable="rows are counted",
    is_per_position=False,
)


def trainer_of(model, *, is_blockwise: bool, is_compiled: bool = False) -> Trainer:
    attach_adapter(model, LoraRecipe.model_validate({"rank": 4}), seed=3)
    parameters = {name: value + 0.01 for name, value in adapter_parameters(model).items()}
    optimizer = AdamW(0.9, 0.999, 1e-8, 0.0, frozenset())
    return Trainer(
        model,
        PER_ROW,
        optimizer,
        parameters,
        seed=1,
        max_grad_norm=0.0,
        is_packed=False,
        is_compiled=is_compiled,
        is_blockwise=is_blockwise,
    )


@pytest.fixture
def load_tiny(tiny_model):
    """A fresh tiny model of a family."""

    def load(model_type: str):
        local = LocalModel("tiny", tiny_model(model_type), "folder", None, "", None)
        return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model

    return load


def batches_of(size: int) -> Sequence[Batch]:
    return list(ordered_batches(ROWS, size))


@pytest.mark.some(4)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("how", ["graph", "block by block", "compiled"])
def test_sums_are_divided_by_what_the_objective_counts(load_tiny, how, size):
    """However the rows are cut into microbatches and halves; a row alone is not divided."""
    trainer = trainer_of(load_tiny("llama"), is_blockwise=how == "block by block", is_compiled=how == "compiled")
    whole = trainer_of(load_tiny("llama"), is_blockwise=False)
    expected_gradients, expected = whole.compute(batches_of(4), 0)
    gradients, result = trainer.compute(batches_of(size), 0)
    trainer.close()
    assert result.num_targets == len(ROWS)
    assert result.metrics == {"number": pytest.approx(1.5)}
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    for name, value in expected_gradients.items():
        assert mx.allclose(gradients[name], value, rtol=1e-4, atol=1e-5), name


def test_evaluation_returns_every_sum_and_the_count(load_tiny):
    trainer = trainer_of(load_tiny("llama"), is_blockwise=False)
    sums, count = trainer.loss(batches_of(4)[0])
    assert (len(sums), count) == (2, 4)
    loss, metrics = trainer.means(sums, count)
    assert loss == pytest.approx(sums[0] / 4)
    assert metrics == {"number": pytest.approx(1.5)}


def test_rows_bring_their_values_and_a_stream_adds_its_own():
    stream = Stream(ROWS, batch_size=2, accumulation=1, packed_length=None, seed=5)
    stream.values = np.arange(4.0)[:, None] * 10
    for step in range(stream.steps_in_epoch(0)):
        for batch in stream.microbatches(step):
            assert batch.values.tolist() == [[number, 0.5, 10.0 * number] for number in batch.rows]
    valid = ordered_batches(ROWS, 3)
    valid.values = stream.values
    assert [one.values.shape for one in valid] == [(3, 3), (1, 3)]
    assert valid[0].values[:, 0].tolist() == list(valid[0].rows)

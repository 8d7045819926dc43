"""The score head learns beside the adapter, alike in one graph, block by block and compiled."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from scored_trainers import load_tiny, scored_trainer

from mlx_finetune.dataset.stream import Batch, ordered_batches
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.heads.score import WEIGHT
from mlx_finetune.model.inside.parts import num_frozen_below
from mlx_finetune.train.losses import Head
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.objectives.next_token import next_token, next_token_loss, target_arrays

LENGTHS = (9, 6, 12, 7)
HOWS = ["graph", "block by block", pytest.param("compiled", marks=pytest.mark.slow)]


def row(number: int) -> Tokens:
    ids = np.arange(1, LENGTHS[number] + 1, dtype=np.int32)
    return Tokens(ids, ids > 1, "rows", number + 1, values=(float(number),))


def batches_of(size: int) -> Sequence[Batch]:
    return list(ordered_batches([row(number) for number in range(len(LENGTHS))], size))


def row_arrays(batch: Batch, parts: int) -> tuple[mx.array, ...]:
    """The position before each row's last token, and the row's number."""
    ends = np.count_nonzero(batch.segment_ids, axis=1) - 2
    return mx.array(ends.astype(np.int32)), mx.array(batch.values[:, 0].astype(np.float32))


def score_loss(head: Head, hidden: mx.array, ends: mx.array, numbers: mx.array) -> mx.array:
    """The squared distance of the last state's two scores from the row's number and 1."""
    scores = head.scores(hidden[mx.arange(hidden.shape[0]), ends])  # (B, 2)
    return mx.sum(mx.square(scores - mx.stack([numbers, mx.ones_like(numbers)], axis=1)))


SCORED = Objective(
    "scored",
    next_token("sft").read_rows,
    row_arrays,
    score_loss,
    count=lambda batch: len(batch.rows),
    unpackable="rows are counted",
    num_outputs=2,
    is_per_position=False,
)


def both_arrays(batch: Batch, parts: int) -> tuple[mx.array, ...]:
    return *row_arrays(batch, parts), *target_arrays(batch, 0)


def both_loss(
    head: Head, hidden: mx.array, ends: mx.array, numbers: mx.array, positions: mx.array, targets: mx.array
) -> mx.array:
    return score_loss(head, hidden, ends, numbers) + next_token_loss(head, hidden, positions, targets)


BOTH = Objective("both", SCORED.read_rows, both_arrays, both_loss, num_outputs=2, is_per_position=False)


@pytest.mark.parametrize("objective", [SCORED, BOTH], ids=lambda one: one.name)
@pytest.mark.parametrize("is_full", [False, True], ids=["adapter", "full"])
@pytest.mark.parametrize("how", HOWS)
def test_the_head_learns_beside_an_adapter_or_all_weights(tiny_model, how, is_full, objective):
    """In microbatches of two rows, whatever the path, as in one graph of all four."""
    whole = scored_trainer(load_tiny(tiny_model("llama")), objective, "graph", is_full=is_full)
    expected, first = whole.compute(batches_of(4), 0)
    trainer = scored_trainer(load_tiny(tiny_model("llama")), objective, how, is_full=is_full)
    gradients, result = trainer.compute(batches_of(2), 0)
    assert result.loss == pytest.approx(first.loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    assert float(mx.abs(gradients[WEIGHT]).max()) > 1e-3
    for name, value in expected.items():
        assert mx.allclose(gradients[name], value, rtol=1e-4, atol=1e-5), name
    sums, count = trainer.loss(batches_of(4)[0])
    assert sums[0] / count == pytest.approx(result.loss, rel=1e-5)
    trainer.apply(gradients, learning_rate=1e-2, step=0)
    after, _ = trainer.loss(batches_of(4)[0])
    trainer.close()
    assert after[0] < sums[0]


@pytest.mark.parametrize("how", HOWS)
def test_blocks_below_the_adapter_stay_frozen_beside_a_head(tiny_model, how):
    model = load_tiny(tiny_model("llama"))
    trainer = scored_trainer(model, SCORED, how, num_layers=1)
    assert trainer.num_frozen == 1
    assert num_frozen_below(model, [WEIGHT]) == 0
    gradients, result = trainer.compute(batches_of(4), 0)
    whole, expected = scored_trainer(load_tiny(tiny_model("llama")), SCORED, num_layers=1).compute(batches_of(1), 0)
    trainer.close()
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert all(mx.allclose(gradients[name], value, rtol=1e-4, atol=1e-5) for name, value in whole.items())


def test_the_head_of_tokens_has_no_part_in_it(tiny_model):
    """gpt_neox has its head inside its body: the score head takes what enters that one."""
    losses: list[float] = []
    for factor in (1, 3):
        model = load_tiny(tiny_model("gpt_neox"))
        model.model.embed_out.weight = model.model.embed_out.weight * factor
        trainer = scored_trainer(model, SCORED)
        losses += trainer.loss(batches_of(4)[0])[0]
    assert losses[0] == losses[1]

"""z-loss and balance loss: the formulas, and the same numbers in one graph, block by block and compiled."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from mlx_finetune.dataset.stream import Batch, ordered_batches
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.inside.override import overridden
from mlx_finetune.model.inside.parts import flat_arrays
from mlx_finetune.model.load import load_model
from mlx_finetune.model.scratch.balance import balance_of, routers_of
from mlx_finetune.model.scratch.weights import write_weights
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.scratch import ScratchRecipe
from mlx_finetune.train.objectives.scratch import pretrain
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.step import Trainer

LENGTHS = (9, 6, 12, 7)
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "context_length": 16, "intermediate_size": 48}


def row(number: int) -> Tokens:
    length = LENGTHS[number]
    ids = (np.arange(length, dtype=np.int32) * (number + 3)) % 300
    return Tokens(ids, np.arange(length) > number, "rows", number + 1)


ROWS = [row(number) for number in range(len(LENGTHS))]


def scratch(**changes: object) -> ScratchRecipe:
    return ScratchRecipe.model_validate(SIZES | changes)


def new_model(folder: Path, wanted: ScratchRecipe) -> nn.Module:
    folder.mkdir(exist_ok=True)
    write_weights(folder, wanted, 300, 5, [0])
    local = LocalModel("new", folder, "folder", None, "", None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    for router, _ in routers_of(model):
        router["weight"] = 40 * router["weight"]  # so that experts differ
    model.unfreeze()
    return model


def trainer_of(folder: Path, wanted: ScratchRecipe, how: str) -> Trainer:
    model = new_model(folder, wanted)
    parameters = dict(sorted(flat_arrays(model).items()))
    return Trainer(
        model,
        pretrain(wanted),
        AdamW(0.9, 0.95, 1e-8, 0.1, frozenset()),
        parameters,
        seed=1,
        max_grad_norm=0.0,
        is_packed=False,
        is_compiled=how == "compiled",
        is_blockwise=how == "block by block",
    )


def batches_of(size: int) -> Sequence[Batch]:
    return list(ordered_batches(ROWS, size))


def reference(folder: Path, wanted: ScratchRecipe) -> tuple[float, float, dict[str, mx.array]]:
    """Loss, balance and gradients by one plain graph over every row alone, each a mean over all targets."""
    model = new_model(folder, wanted)
    num_targets = sum(int(one.loss_mask[1:].sum()) for one in ROWS)

    def total(parameters: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
        model.update(tree_unflatten(list(parameters.items())))
        learned = balance = mx.array(0.0)
        for one in ROWS:
            seen: list[mx.array] = []

            def watch(router: nn.Module, call, x: mx.array, seen: list[mx.array] = seen) -> mx.array:
                seen.append(call(router, x))
                return seen[-1]

            with ExitStack() as stack:
                stack.enter_context(overridden((router, watch) for router, _ in routers_of(model)))
                logits = model(mx.array(one.ids[None, :-1]))[0].astype(mx.float32)
            is_target = mx.array(one.loss_mask[1:].astype(np.float32))
            logs = mx.logsumexp(logits, axis=-1)
            picked = mx.take_along_axis(logits, mx.array(one.ids[1:, None]), axis=-1)[:, 0]
            learned = learned + mx.sum((logs - picked + wanted.z_loss * logs**2) * is_target)
            for scores in seen:
                shares = mx.softmax(scores[0], axis=-1)
                chosen = mx.argpartition(mx.stop_gradient(-shares), kth=1, axis=-1)[:, :2]
                assigned = mx.sum(chosen[..., None] == mx.arange(shares.shape[-1]), axis=1) / 2  # (T, E)
                f, p = (mx.sum(one * is_target[:, None], axis=0) / mx.sum(is_target) for one in (assigned, shares))
                spread = shares.shape[-1] * mx.sum(f * p)
                balance = balance + wanted.balance_loss / len(seen) * spread * mx.sum(is_target)
        return (learned + balance) / num_targets, balance / num_targets

    parameters = dict(sorted(flat_arrays(model).items()))
    (loss, balance), gradients = mx.value_and_grad(total)(parameters)
    return float(loss), float(balance), gradients


@pytest.mark.parametrize("how", ["graph", "block by block", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{"num_experts": 4, "z_loss": 0.01}, {"z_loss": 0.01, "attention_sinks": True}])
def test_every_way_to_compute_gives_the_gradients_of_the_formula(tmp_path: Path, how: str, options) -> None:
    wanted = scratch(**options, balance_loss=0.5)
    loss, balance, expected = reference(tmp_path / "m", wanted)
    for size in (4, 1):
        trainer = trainer_of(tmp_path / "m", wanted, how)
        gradients, result = trainer.compute(batches_of(size), 0)
        trainer.close()
        assert result.loss == pytest.approx(loss, rel=1e-5)
        if wanted.num_experts:
            assert result.metrics["balance_loss"] == pytest.approx(balance, rel=1e-4)
        for name, value in expected.items():
            assert mx.allclose(gradients[name], value, rtol=1e-3, atol=2e-5), name


@pytest.mark.parametrize("how", ["graph", "block by block"])
def test_an_evaluation_is_the_loss_of_the_text_alone(tmp_path: Path, how: str) -> None:
    plain = scratch(num_experts=4, balance_loss=0.0)
    options = scratch(num_experts=4, z_loss=0.1)
    found = []
    for wanted in (plain, options):
        trainer = trainer_of(tmp_path / "m", wanted, how)
        sums, count = trainer.loss(batches_of(4)[0])
        trainer.close()
        found.append(sums[0] / count)
    assert found[0] == found[1]
    assert sums[1] / count == pytest.approx(0.01, rel=0.5)


def test_tokens_spread_evenly_have_a_balance_loss_of_its_weight_exactly() -> None:
    logits = mx.zeros((2, 5, 8))
    is_target = mx.array([[1.0] * 5, [1.0, 1.0, 0.0, 0.0, 0.0]])
    value, slope = balance_of(logits, is_target, 2)
    assert 0.01 * value.item() / 7 == pytest.approx(0.01, abs=1e-9)
    assert mx.all(mx.abs(slope) < 1e-7)


def test_one_busy_expert_costs_more_and_is_pushed_down() -> None:
    logits = mx.broadcast_to(mx.array([5.0, 4.0, 0.0, 0.0]), (1, 6, 4))
    value, slope = balance_of(logits, mx.ones((1, 6)), 2)
    assert float(value) / 6 > 1.9  # two of four do everything: 2 at most
    assert mx.all(slope[..., :2].sum(axis=-1) > 0)


def test_without_options_it_is_the_plain_objective() -> None:
    assert pretrain(None).metrics == ()
    assert pretrain(scratch()).around is pretrain(None).around


def test_a_few_tokens_are_learned_by_heart(tmp_path: Path) -> None:
    """64 tokens to below 0.05 nats: the whole chain learns."""
    trainer = trainer_of(tmp_path / "m", scratch(context_length=64), "block by block")
    ids = np.random.default_rng(0).integers(0, 300, 65).astype(np.int32)
    (batch,) = ordered_batches([Tokens(ids, np.arange(65) > 0, "rows", 1)], 1)
    result = None
    for step in range(120):
        gradients, result = trainer.compute([batch], step)
        trainer.apply(gradients, learning_rate=1e-2, step=step)
    trainer.close()
    assert result is not None
    assert result.num_targets == 64
    assert result.loss < 0.05

"""One optimizer step: what must not change its gradients, and what must."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_finetune.dataset.stream import make_batch
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter, full_parameters
from mlx_finetune.model.cpu.blockwise import Blockwise
from mlx_finetune.model.cpu.twin import twin
from mlx_finetune.model.inside.noise import add_neftune, checkpoint_blocks
from mlx_finetune.model.inside.parts import embedding
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.train.both_cores import half_of_targets, halves
from mlx_finetune.train.objectives.next_token import next_token
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.step import Trainer, as_float


@pytest.fixture
def make_trainer(tiny_model):
    def make(
        model_type="llama",
        *,
        dropout=0.0,
        seed=3,
        recompute=False,
        blockwise=False,
        full=False,
        lora=None,
        neftune=0.0,
        packed=False,
        max_norm=0.0,
        compiled=False,
    ):
        local = LocalModel("tiny", tiny_model(model_type), "folder", None, "", None)
        model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
        if full:
            full_parameters(model)
            named = cast("list[tuple[str, mx.array]]", tree_flatten(model.trainable_parameters()))
            parameters = dict(sorted(named))
        else:
            fields = {"rank": 4, "alpha": 8, "dropout": dropout} | (lora or {})
            attach_adapter(model, LoraRecipe.model_validate(fields), seed=seed)
            parameters = adapter_parameters(model)
        for name, value in parameters.items():  # with B = 0 half of the gradients would be 0
            if name.endswith("lora_b"):
                parameters[name] = 0.1 * mx.random.normal(value.shape, key=mx.random.key(len(name)))
        if neftune:
            add_neftune(embedding(model), neftune)
        if recompute:
            checkpoint_blocks(model)
        optimizer = AdamW(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, decayed=frozenset())
        trainer = Trainer(
            model,
            next_token("sft"),
            optimizer,
            parameters,
            seed=seed,
            max_grad_norm=max_norm,
            is_packed=packed,
            is_compiled=compiled,
            is_blockwise=bool(blockwise),
            keeps_products=blockwise == "kept",
        )
        trainer.load_into_model()
        return trainer

    return make


def make_rows(lengths, *, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for line, length in enumerate(lengths, start=1):
        mask = rng.random(length) < 0.6
        mask[0], mask[-1] = False, True
        rows.append(Tokens(rng.integers(3, 250, length).astype(np.int32), mask, "rows.jsonl", line))
    return rows


def separate(rows, *, length=32, num_sequences=1):
    return [make_batch(rows, [[index]], num_sequences=num_sequences, length=length) for index in range(len(rows))]


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(as_float(mx.abs(one[name] - other[name]).max()) for name in one)


ROWS = make_rows([20, 5, 31, 12])


@pytest.mark.parametrize("model_type", ["llama", "gemma", "gpt2", "gpt_neox"])
def test_any_split_into_microbatches_gives_the_same_gradients(make_trainer, model_type):
    trainer = make_trainer(model_type)
    together = [make_batch(ROWS, [[0], [1], [2], [3]], num_sequences=4, length=32)]
    pairs = [make_batch(ROWS, group, num_sequences=2, length=32) for group in ([[0], [1]], [[2], [3]])]
    expected, result = trainer.compute(together, 0)
    assert result.num_targets == sum(int(row.loss_mask.sum()) for row in ROWS)
    assert result.num_tokens == sum(len(row.ids) for row in ROWS)
    for batches in (separate(ROWS), pairs):
        gradients, other = trainer.compute(batches, 0)
        assert largest_difference(expected, gradients) < 1e-6
        assert other.loss == pytest.approx(result.loss, abs=1e-6)
    assert max(as_float(mx.abs(value).max()) for value in expected.values()) > 1e-3


@pytest.mark.parametrize("model_type", ["llama", "gemma", "gpt_neox"])
def test_packed_rows_give_the_gradients_of_separate_rows(make_trainer, model_type):
    expected, result = make_trainer(model_type).compute(separate(ROWS), 0)
    pack = [make_batch(ROWS, [[0, 1], [2], [3]], num_sequences=3, length=40, is_packed=True)]
    gradients, other = make_trainer(model_type, packed=True).compute(pack, 0)
    assert other.num_targets == result.num_targets
    assert other.loss == pytest.approx(result.loss, abs=1e-5)
    assert largest_difference(expected, gradients) < 1e-5


def test_padding_changes_nothing(make_trainer):
    trainer = make_trainer()
    expected, _ = trainer.compute(separate(ROWS, length=32), 0)
    gradients, _ = trainer.compute(separate(ROWS, length=48, num_sequences=3), 0)
    assert largest_difference(expected, gradients) < 1e-6


def test_recomputation_gives_the_same_gradients_with_dropout_and_noise(make_trainer):
    settings = {"dropout": 0.3, "neftune": 5.0}
    plain, _ = make_trainer(**settings).compute(separate(ROWS), 7)
    recomputed, _ = make_trainer(**settings, recompute=True).compute(separate(ROWS), 7)
    assert largest_difference(plain, recomputed) < 1e-6


@pytest.mark.parametrize("settings", [{"dropout": 0.3}, {"neftune": 5.0}])
def test_noise_depends_on_the_step_and_on_nothing_else(make_trainer, settings):
    first, _ = make_trainer(**settings).compute(separate(ROWS), 7)
    mx.random.seed(123)
    again, _ = make_trainer(**settings).compute(separate(ROWS), 7)
    other, _ = make_trainer(**settings).compute(separate(ROWS), 8)
    assert largest_difference(first, again) == 0
    assert largest_difference(first, other) > 1e-4


def test_evaluation_has_no_noise(make_trainer):
    batch = separate(ROWS)[0]
    assert make_trainer(dropout=0.5, neftune=5.0).loss(batch) == make_trainer().loss(batch)


@pytest.mark.some(1)
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_and_uncompiled_steps_agree(make_trainer, recompute):
    settings = {"dropout": 0.2, "neftune": 5.0, "recompute": recompute}
    plain, compiled = make_trainer(**settings), make_trainer(**settings, compiled=True)
    for step in range(2):
        expected, _ = plain.compute(separate(ROWS), step)
        gradients, _ = compiled.compute(separate(ROWS), step)
        assert largest_difference(expected, gradients) < 1e-6
        for trainer in (plain, compiled):
            trainer.apply(expected, learning_rate=1e-2, step=step)
    assert compiled.loss(separate(ROWS)[0])[0] == pytest.approx(plain.loss(separate(ROWS)[0])[0], abs=1e-5)


def test_clipping_bounds_the_norm_and_reports_the_one_before(make_trainer):
    free, result = make_trainer().compute(separate(ROWS), 0)
    clipped, same = make_trainer(max_norm=result.grad_norm / 2).compute(separate(ROWS), 0)
    assert same.grad_norm == pytest.approx(result.grad_norm, rel=1e-6)
    assert largest_difference({k: v * 0.5 for k, v in free.items()}, clipped) < 1e-6


def test_a_step_without_targets_is_a_bug_of_ours(make_trainer):
    row = Tokens(np.array([5, 6, 7], np.int32), np.zeros(3, np.bool_), "rows.jsonl", 1)
    for blockwise in (False, "kept"):
        with pytest.raises(AssertionError, match="no target"):
            make_trainer(blockwise=blockwise).compute(separate([row]), 0)


def test_gradients_of_a_small_model_match_finite_differences(make_trainer):
    trainer = make_trainer()
    batches = separate(ROWS)
    gradients, _ = trainer.compute(batches, 0)
    name = next(iter(gradients))
    direction = gradients[name] / mx.sqrt(mx.sum(mx.square(gradients[name])))
    losses = []
    for sign in (1, -1):
        moved = trainer.parameters | {name: trainer.parameters[name] + sign * 0.02 * direction}
        trainer.restore(moved, trainer.state)
        sums = [trainer.loss(batch) for batch in batches]
        losses.append(sum(loss for (loss,), _ in sums) / sum(count for _, count in sums))
        trainer.restore(moved | {name: moved[name] - sign * 0.02 * direction}, trainer.state)
    slope = (losses[0] - losses[1]) / 0.04
    assert slope == pytest.approx(as_float(mx.sum(gradients[name] * direction)), rel=2e-2)


def test_full_fine_tuning_reaches_every_weight(tiny_model):
    from mlx_finetune.model.adapters.lora import full_parameters

    local = LocalModel("tiny", tiny_model("llama"), "folder", None, "", None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    optimizer = AdamW(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, decayed=frozenset())
    trainer = Trainer(
        model,
        next_token("sft"),
        optimizer,
        full_parameters(model),
        seed=0,
        max_grad_norm=1.0,
        is_packed=False,
        is_compiled=False,
    )
    before = dict(trainer.parameters)
    gradients, _ = trainer.compute(separate(ROWS), 0)
    trainer.apply(gradients, learning_rate=1e-2, step=0)
    unchanged = [name for name, value in trainer.parameters.items() if mx.array_equal(value, before[name])]
    assert unchanged == []


FAMILIES = ["llama", "gemma", "qwen3", "gpt2", "gpt_neox"]


@pytest.mark.some(20)
@pytest.mark.parametrize("how", ["kept", "recomputed"])
@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packed": True},
        {"dropout": 0.3, "neftune": 5.0},
        {"lora": {"num_layers": 1}},
        {"lora": {"use_dora": True}},
        {"full": True},
        {"full": True, "neftune": 5.0},
    ],
    ids=["plain", "packed", "noise", "last block", "dora", "full", "full noise"],
)
def test_block_by_block_gives_the_gradients_of_one_graph(make_trainer, model_type, options, how):
    is_packed = options.get("packed", False)
    if is_packed and model_type == "gpt2":
        pytest.skip("learned positions cannot be packed")
    groups = [[0, 1], [2], [3]] if is_packed else [[0], [1], [2], [3]]
    batches = [make_batch(ROWS, groups, num_sequences=len(groups), length=40, is_packed=is_packed)]
    if "neftune" in options:  # noise is drawn for shapes: a row that nothing is cut from, and no halves
        batches = [make_batch(ROWS, [[2]], num_sequences=1, length=len(ROWS[2].ids) - 1)]
    plain, ours = (make_trainer(model_type, blockwise=blockwise, **options) for blockwise in (False, how))
    (expected, whole), (gradients, result) = plain.compute(batches, 5), ours.compute(batches, 5)
    assert result.loss == pytest.approx(whole.loss, rel=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(gradients[name], value, atol=1e-5 * as_float(mx.abs(value).max()) + 1e-7)
    again, _ = ours.compute(batches, 5)
    assert all(mx.array_equal(gradients[name], again[name]) for name in gradients)


@pytest.mark.parametrize("blockwise", [False, "kept"])
def test_a_pack_costs_without_a_gradient_what_it_costs_in_a_step(make_trainer, blockwise):
    pack = make_batch(ROWS, [[0, 1], [2], [3]], num_sequences=3, length=40, is_packed=True)
    trainer = make_trainer("llama", blockwise=blockwise, packed=True)
    sums, count = trainer.loss(pack)
    assert sums[0] / count == pytest.approx(trainer.compute([pack], 0)[1].loss, rel=1e-6)


@pytest.mark.some(10)
@pytest.mark.parametrize("how", ["kept", "recomputed"])
@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"lora": {"num_layers": 1}}, {"lora": {"use_dora": True}}, {"full": True}],
    ids=["plain", "last block", "dora", "full"],
)
def test_a_single_row_in_two_parts_gives_the_gradients_of_one_graph(make_trainer, model_type, options, how):
    batch = make_batch(make_rows([101]), [[0]], num_sequences=1, length=128)
    plain, ours = (make_trainer(model_type, blockwise=blockwise, **options) for blockwise in (False, how))
    (expected, whole), (gradients, result) = plain.compute([batch], 5), ours.compute([batch], 5)
    assert ours._cores._divides
    assert result.loss == pytest.approx(whole.loss, rel=1e-6)
    assert result.num_positions == 100
    for name, value in expected.items():
        np.testing.assert_allclose(gradients[name], value, atol=1e-5 * as_float(mx.abs(value).max()) + 1e-7)
    again, _ = ours.compute([batch], 5)
    assert all(mx.array_equal(gradients[name], again[name]) for name in gradients)
    assert ours.loss(batch)[0] == pytest.approx(plain.loss(batch)[0], rel=1e-6)


def test_a_row_with_one_target_can_be_cut(make_trainer):
    row = make_rows([101])[0]
    mask = np.zeros(len(row.ids), np.bool_)
    mask[-1] = True
    batch = make_batch([Tokens(row.ids, mask, "rows.jsonl", 1)], [[0]], num_sequences=1, length=100)
    assert batch.num_targets == 1
    results = [make_trainer(blockwise=blockwise).compute([batch], 0)[1] for blockwise in (False, "kept")]
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-6)


def test_halves_of_targets_hold_each_target_once():
    batch = make_batch(make_rows([101]), [[0]], num_sequences=1, length=100)
    first, second = (half_of_targets(batch, number) for number in (0, 1))
    both = np.concatenate([first.target_positions, second.target_positions])
    assert np.array_equal(both, batch.target_positions)
    assert abs(first.num_targets - second.num_targets) <= 1


def test_a_part_that_fails_ends_the_step_with_its_error(make_trainer, monkeypatch):
    trainer = make_trainer(blockwise="kept")
    batch = make_batch(make_rows([101]), [[0]], num_sequences=1, length=100)
    trainer.compute([batch], 0)
    backward = Blockwise._backward

    def failing(self, index, visit, *args, **kwargs):
        if visit.cache is not None and visit.cache.offset == 0:
            raise MemoryError("no room")
        return backward(self, index, visit, *args, **kwargs)

    monkeypatch.setattr(Blockwise, "_backward", failing)
    with pytest.raises(MemoryError, match="no room"):
        trainer.compute([batch], 0)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_block_by_block_evaluates_the_same_loss(make_trainer, model_type):
    batch = make_batch(ROWS, [[0], [2]], num_sequences=2, length=40)
    plain, ours = (make_trainer(model_type, blockwise=blockwise) for blockwise in (False, True))
    assert ours.loss(batch) == (pytest.approx(plain.loss(batch)[0], rel=1e-6), plain.loss(batch)[1])


@pytest.mark.some(1)
@pytest.mark.parametrize("packed", [False, True])
def test_compiled_steps_take_padded_targets(make_trainer, packed):
    groups = [[0, 1], [2], [3]] if packed else [[0], [1], [2], [3]]
    batches = [make_batch(ROWS, groups, num_sequences=len(groups), length=40, is_packed=packed)]
    expected, whole = make_trainer(packed=packed).compute(batches, 0)
    gradients, result = make_trainer(packed=packed, compiled=True).compute(batches, 0)
    assert result.loss == pytest.approx(whole.loss, rel=1e-6)
    assert largest_difference(expected, gradients) < 1e-6


def test_nothing_goes_backward_below_the_lowest_block_that_learns(make_trainer, monkeypatch):
    from mlx_finetune.model.cpu.blockwise import Blockwise

    visited = []
    backward = Blockwise._backward

    def watched(self, index, *args, **kwargs):
        visited.append((index, kwargs["wants_input"]))
        return backward(self, index, *args, **kwargs)

    monkeypatch.setattr(Blockwise, "_backward", watched)
    batches = [make_batch(ROWS, [[0]], num_sequences=1, length=40)]
    make_trainer(blockwise=True, lora={"num_layers": 1}).compute(batches, 0)
    assert visited == [(1, False)]


def test_halves_hold_every_sequence_once_and_no_padding_behind_the_longest():
    lengths = [20, 5, 31, 12, 30]
    batch = make_batch(make_rows(lengths), [[index] for index in range(5)], num_sequences=7, length=63)
    one, two = halves(batch)
    assert [np.count_nonzero(half.segment_ids, axis=1).tolist() for half in (one, two)] == [[31, 30], [20, 5, 12]]
    assert (one.tokens.shape, two.tokens.shape) == ((2, 31), (3, 20))
    assert one.num_targets + two.num_targets == batch.num_targets
    for half in (one, two):
        for tokens, segments in zip(half.tokens, half.segment_ids, strict=True):
            kept = tokens[segments > 0]
            assert any(np.array_equal(kept, whole[: len(kept)]) for whole in batch.tokens)


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"full": True}], ids=["dropout", "full"])
def test_two_threads_give_the_same_bits_every_time(make_trainer, options):
    batch = make_batch(make_rows([150, 140, 160, 155]), [[0], [1], [2], [3]], num_sequences=4, length=160)
    trainer = make_trainer(blockwise="kept", **options)
    first, result = trainer.compute([batch, batch], 0)
    for _ in range(10):
        again, other = trainer.compute([batch, batch], 0)
        assert other.loss == result.loss
        assert all(mx.array_equal(first[name], again[name]) for name in first)


def test_a_closed_trainer_has_no_threads_and_starts_new_ones_when_it_is_used(make_trainer):
    trainer = make_trainer("gemma", blockwise="kept")
    before = set(threading.enumerate())  # those of trainers that other tests left may end at any time
    batch = make_batch(ROWS, [[0], [2]], num_sequences=2, length=40)
    first, _ = trainer.compute([batch], 0)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    ids = [thread.native_id for thread in started]
    trainer.close()
    assert not any(thread.is_alive() for thread in started)
    if sys.platform == "linux":
        assert not [one for one in ids if Path(f"/proc/self/task/{one}").exists()]
    again, _ = trainer.compute([batch], 0)
    assert largest_difference(first, again) == 0
    trainer.close()


@pytest.mark.slow
def test_a_training_of_a_compiled_activation_ends_with_its_own_exit_code(tmp_path, tiny_model):
    """Of processes that left the threads to the interpreter a half was aborted."""
    text = "".join(json.dumps({"text": f"row {number} about {number * 7}"}) + "\n" for number in range(8))
    (tmp_path / "rows.jsonl").write_text(text)
    recipe = f'''
task = "pretrain"
model = "{tiny_model("gemma")}"
[data]
path = "rows.jsonl"
val_split = 0
[training]
max_steps = 2
batch_size = 2
'''
    codes = []
    for number in range(8):
        (tmp_path / "recipe.toml").write_text(f'output_dir = "out{number}"\n{recipe}')
        command = [sys.executable, "-m", "mlx_finetune.train.child", "--recipe", "recipe.toml"]
        codes.append(subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode)
    assert codes == [0] * 8


def test_a_twin_shares_arrays_and_nothing_else(make_trainer):
    model = make_trainer("gpt2")._model
    other = twin(model)
    ours, theirs = (dict(cast("list[tuple[str, mx.array]]", tree_flatten(one.parameters()))) for one in (model, other))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.modules()}
    tokens = mx.array([[5, 6, 7]])
    before = cast("mx.array", cast("Any", model)(tokens))
    assert mx.array_equal(cast("Any", other)(tokens), before)
    other.update({"model": {"wte": {"weight": mx.zeros_like(ours["model.wte.weight"])}}})
    assert mx.array_equal(cast("Any", model)(tokens), before)

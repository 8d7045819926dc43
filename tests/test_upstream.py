"""What mlx-lm and MLX still do that must not be inherited (ALGORITHMS.md section 0): one test a row, it and ours.

Each test fails when upstream changes, so that the detour here can go. Rows that are tested beside the code:

    default_loss counts a padding token    tests/train/test_losses.py
    AdamW without bias correction          tests/train/test_optim.py
    GPT-2's prefix, GPT-NeoX's config      tests/model/files/test_repairs.py
    gelu of GPT-NeoX and of Gemma          tests/model/files/test_repairs.py

Muon's weight decay and fusing into a quantised base come with their features.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.datasets import CacheDataset, ChatDataset, TextDataset
from mlx_lm.tuner.dora import DoRALinear as UpstreamDoRA
from mlx_lm.tuner.lora import LoRALinear as UpstreamLoRA
from mlx_lm.tuner.lora import LoRASwitchLinear
from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches
from mlx_lm.tuner.trainer import train as upstream_train
from mlx_lm.tuner.utils import remove_lora_layers
from random_models import make_model
from small_runs import train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.dataset.formats import Messages
from mlx_finetune.dataset.stream import Batch, Stream, make_batch
from mlx_finetune.dataset.template import render_prompt, tokenize
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.adapters.layers import DoRALinear, dense_weight
from mlx_finetune.model.adapters.lora import adapter_layers, attach_adapter, detach_adapter
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.train.objective import Objective
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.step import Trainer

TinyModel = Callable[..., Path]
TURNS = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]
UNEVEN = ((1, 2.0), (100, 1.0))  # targets of a microbatch, and the mean loss of them at w = 1


class Scalar(nn.Module):
    """A model of one weight: its loss is ``w`` times a number."""

    def __init__(self) -> None:
        super().__init__()
        self.w = mx.array([1.0])

    def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
        return self.w * mx.ones((*tokens.shape, 1))  # what it says of every token: its weight


def run_upstream(folder: Path, microbatches: Sequence[tuple[int, float]], *, accumulation: int) -> float:
    """The weight after one pass of mlx-lm's own training loop with plain gradient descent at rate 1."""
    model: Any = Scalar()

    def batches(**_: object) -> Any:
        yield from microbatches

    def loss(model: Any, num_targets: int, mean: float) -> tuple[mx.array, mx.array]:
        return model.w.sum() * mean, mx.array(num_targets)

    args = TrainingArgs(
        iters=len(microbatches), grad_accumulation_steps=accumulation, adapter_file=str(folder / "adapters.safetensors")
    )
    upstream_train(model, mlx.optimizers.SGD(1.0), [], None, args, loss, batches)  # pyright: ignore[reportArgumentType]
    return model.w.item()


def run_ours(microbatches: Sequence[tuple[int, float]], *, max_norm: float) -> float:
    """The gradient of the same weight over the same microbatches."""
    model = Scalar()
    rows = [Tokens(np.ones(n + 1, np.int32), np.ones(n + 1, np.bool_), "r", 1) for n, _ in microbatches]
    batches = [make_batch(rows, [[k]], num_sequences=1, length=len(row.ids)) for k, row in enumerate(rows)]

    def arrays(batch: Batch, parts: int) -> tuple[mx.array, ...]:
        return (mx.array(batch.num_targets * microbatches[batch.rows[0]][1]),)

    def loss(head: Any, hidden: mx.array, total: mx.array) -> mx.array:
        return hidden[0, 0, 0] * total

    objective = Objective("scalar", None, arrays, loss)  # pyright: ignore[reportArgumentType]
    optimizer = AdamW(0.9, 0.999, 1e-8, 0.0, frozenset())
    trainer = Trainer(
        model, objective, optimizer, {"w": model.w}, seed=0, max_grad_norm=max_norm, is_packed=False, is_compiled=False
    )
    return trainer.compute(batches, 0)[0]["w"].item()  # pyright: ignore[reportReturnType]


def test_accumulation_still_averages_means_and_ours_weights_by_targets(tmp_path: Path) -> None:
    """Targets 1 and 100, losses 2 and 1: 102 / 101, not 3 / 2."""
    assert run_upstream(tmp_path, UNEVEN, accumulation=2) == pytest.approx(1 - 1.5, abs=1e-6)
    assert run_ours(UNEVEN, max_norm=0.0) == pytest.approx(102 / 101, abs=1e-6)


def test_the_loop_still_never_clips_and_ours_does(tmp_path: Path) -> None:
    steep = ((4, 150.0),)
    assert run_upstream(tmp_path, steep, accumulation=1) == pytest.approx(1 - 150.0, rel=1e-6)
    assert run_ours(steep, max_norm=1.0) == pytest.approx(1.0, rel=1e-5)


def test_the_loop_still_saves_weights_only_and_ours_all_that_a_resume_needs(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    run_upstream(tmp_path, UNEVEN, accumulation=1)
    assert [path.name for path in tmp_path.iterdir()] == ["adapters.safetensors"]
    assert list(mx.load(str(tmp_path / "adapters.safetensors"))) == ["w"]
    run = train(write_recipe(tmp_path, tiny_model("llama")), stop_after=1)
    checkpoint = run.checkpoint(1)
    moments = mx.load(str(checkpoint / rundir.OPTIMIZER))
    adapter = mx.load(str(checkpoint / rundir.MLX_WEIGHTS))
    assert set(moments) == {f"{name}.{moment}" for name in adapter for moment in "mv"}
    state = json.loads((checkpoint / rundir.TRAINER_STATE).read_text())
    assert (state["step"], state["seed"], state["total_steps"]) == (1, 11, 6)


def test_lengths_are_still_numbers_of_keys_and_the_tail_is_dropped_but_not_here(tiny_model: TinyModel) -> None:
    lengths = (50, 2, 30, 49, 3)
    rows = [{"text": "x" * length, "id": "1"} for length in lengths]
    theirs = CacheDataset(TextDataset(rows, Characters()))  # pyright: ignore[reportArgumentType]
    assert [theirs.itemlen(index) for index in range(5)] == [2] * 5
    assert len(list(iterate_batches(theirs, 2, 64))) == 2  # of 5 rows, one is never seen
    tokens = [Tokens(np.ones(n, np.int32), np.ones(n, np.bool_), "r", line) for line, n in enumerate(lengths)]
    stream = Stream(tokens, batch_size=2, accumulation=1, packed_length=None, seed=0)
    groups = [set(batch.rows) for step in range(stream.steps_in_epoch(0)) for batch in stream.microbatches(step)]
    assert sorted(row for group in groups for row in group) == [0, 1, 2, 3, 4]
    assert {1, 4} in groups  # the two short ones side by side


class Characters:
    """One token a character, for mlx-lm's data sets."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_mask_prompt_still_learns_the_last_turn_only_and_ours_every_one(tiny_model: TinyModel) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny_model("llama"))
    ids, offset = ChatDataset([], theirs, mask_prompt=True).process({"messages": TURNS})
    assert theirs.decode(ids[offset:]) == "Second.<|im_end|>\n"
    ours = load_tokenizer(tiny_model("llama"))
    example = Messages(tuple(TURNS), None, "r", 1)
    row = tokenize([example], ours, DataRecipe.model_validate({"path": "r"}), task="sft").rows[0]
    assert row.ids.tolist() == ids
    assert ours.decode(row.ids[row.loss_mask].tolist()) == "First.<|im_end|>Second.<|im_end|>"


def test_apply_chat_template_still_returns_a_mapping_and_ours_a_list(tiny_model: TinyModel) -> None:
    from transformers import AutoTokenizer, BatchEncoding

    theirs = AutoTokenizer.from_pretrained(tiny_model("llama"))
    found = theirs.apply_chat_template(TURNS[:1], add_generation_prompt=True)
    assert isinstance(found, BatchEncoding)
    assert len(found) == 2  # its keys, where a list has its tokens
    data = DataRecipe.model_validate({"path": "r"})
    ids = render_prompt(TURNS[:1], load_tokenizer(tiny_model("llama")), data)
    assert ids == theirs.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_dora_on_odd_widths_still_fails_and_ours_is_the_formula(bits: int) -> None:
    linear = nn.Linear(64, 32, bias=False)
    linear.weight = mx.random.normal((32, 64), key=mx.random.key(1))
    base: Any = nn.QuantizedLinear.from_linear(linear, 32, bits)
    x = mx.random.normal((5, 64), key=mx.random.key(2))
    with pytest.raises(ValueError, match="matmul"):
        mx.eval(UpstreamDoRA.from_base(base, r=4)(x))
    layer = DoRALinear(base, rank=4, scale=2.0, dropout=0.0, key=mx.random.key(3))
    layer.lora_b = mx.random.normal((4, 32), key=mx.random.key(4))
    dense = np.array(dense_weight(base))
    summed = dense + 2.0 * (np.array(layer.lora_a) @ np.array(layer.lora_b)).T
    directed = summed * (np.linalg.norm(dense, axis=1) / np.linalg.norm(summed, axis=1))[:, None]
    np.testing.assert_allclose(np.array(layer(x)), np.array(x) @ directed.T, rtol=0, atol=1e-4)


def test_remove_lora_layers_still_leaves_dora_and_experts_and_ours_leaves_no_adapter() -> None:
    theirs: Any = nn.Sequential(
        UpstreamLoRA.from_base(nn.Linear(4, 4)),
        UpstreamDoRA.from_base(nn.Linear(4, 4)),
        LoRASwitchLinear.from_base(SwitchLinear(4, 4, 2)),
    )
    remove_lora_layers(theirs)
    names = [type(layer).__name__ for layer in theirs.layers]
    assert names == ["Linear", "DoRALinear", "LoRASwitchLinear"]
    model = make_model("llama")
    before = [type(module) for _, module in model.named_modules()]
    for use_dora in (False, True):
        attach_adapter(model, LoraRecipe.model_validate({"rank": 2, "use_dora": use_dora}), seed=0)
        assert len(adapter_layers(model)) == 14
        detach_adapter(model)
        assert [type(module) for _, module in model.named_modules()] == before


def test_max_kv_size_is_still_ignored_where_a_model_makes_its_cache_and_is_not_relied_on() -> None:
    caches = make_prompt_cache(make_model("llama"), max_kv_size=4)
    assert {type(cache) for cache in caches} == {KVCache}  # unbounded
    package = Path(rundir.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "max_kv_size" in path.read_text()] == []


def test_compiled_functions_still_keep_python_floats_and_our_rates_are_arrays() -> None:
    layer = UpstreamLoRA.from_base(nn.Linear(4, 4), r=2, scale=1.0)
    layer.lora_b = mx.ones((2, 4))
    compiled = mx.compile(layer)
    x = mx.ones((1, 4))
    before = compiled(x)
    layer.scale = 0.0
    assert mx.array_equal(compiled(x), before)
    assert not mx.array_equal(layer(x), before)
    optimizer = AdamW(0.9, 0.999, 1e-8, 0.0, frozenset())
    parameters = {"w": mx.array([1.0])}
    update = mx.compile(optimizer.update)
    for rate in (0.1, 0.25):
        values = optimizer.hyperparameters(rate, 0)
        after, _ = update(parameters, {"w": mx.array([0.5])}, optimizer.init(parameters), values)
        assert after["w"].item() == pytest.approx(1 - rate, rel=1e-5)

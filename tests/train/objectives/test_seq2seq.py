"""The objective of encoder-decoder models: its arrays, gradients whatever the padding, torch, whole runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import course, train
from t5_adapter import our_losses, trainer_of, with_adapter
from t5_reference import their_losses

from mlx_finetune import rundir
from mlx_finetune.dataset.stream import Batch, make_batch
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters.files import load_adapter
from mlx_finetune.model.adapters.lora import adapter_parameters, full_parameters
from mlx_finetune.model.inside.noise import checkpoint_blocks
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.train.objectives.seq2seq import sides, size_for
from mlx_finetune.train.step import as_float

TinyT5 = Callable[..., Path]
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "t5.json").read_text())
KINDS = {"tied": True, "untied": False}

RECIPE = """
model = "{model}"
output_dir = "{output}"
task = "seq2seq"
seed = 11
{lora}
[data]
path = "{data}"
columns = {{ prompt = "dialogue", completion = "summary" }}
prompt_template = "summarize: {{instruction}}"
val_split = 0.2
test_split = 0.0
[training]
max_steps = 6
batch_size = 2
gradient_accumulation_steps = 2
learning_rate = 1e-2
eval_steps = 2
save_steps = 2
[eval]
prompts = ["the person is on"]
max_new_tokens = 4
microscope_rows = 1
"""
LORA = "[lora]\nrank = 4\nalpha = 8\ndropout = 0.2"


def a_row(prompt: list[int], answer: list[int]) -> Tokens:
    ids = np.array([*prompt, 1, 0, *answer, 1], np.int32)
    return Tokens(ids, np.arange(len(ids)) >= len(prompt) + 2, "rows", 1)


def of_rows(rows: list[Tokens], length: int) -> Batch:
    return make_batch(rows, [[number] for number in range(len(rows))], num_sequences=len(rows), length=length)


def test_a_batch_is_divided_into_what_each_side_reads() -> None:
    batch = of_rows([a_row([5, 6, 7], [20]), a_row([8], [30, 31, 32])], 16)
    prompts, lengths, said, positions, targets = (np.array(one).tolist() for one in sides(batch, 0))
    assert prompts == [[5, 6, 7, 1], [8, 1, 0, 0]]
    assert lengths == [4, 2]
    assert said == [[0, 20, 0, 0], [0, 30, 31, 32]]
    assert positions == [0, 1, 4, 5, 6, 7]
    assert targets == [20, 1, 30, 31, 32, 1]
    assert batch.target_tokens.tolist() == targets


def test_compiled_functions_see_few_shapes() -> None:
    batch = of_rows([a_row([5, 6, 7], [20]), a_row([8], [30, 31, 32])], 16)
    prompts, lengths, said, positions, targets = (np.array(one) for one in sides(batch, 1))
    assert (prompts.shape, said.shape, positions.shape) == ((2, 8), (2, 8), (16,))
    assert lengths.tolist() == [4, 2]
    assert targets[targets >= 0].tolist() == [20, 1, 30, 31, 32, 1]
    assert [size_for(one) for one in (1, 8, 9, 64, 65, 100, 129, 512, 513)] == [8, 8, 16, 64, 80, 112, 160, 512, 640]


def gradients_of(folder: Path, batches: list[Batch], *, how: str = "graph") -> tuple[dict[str, mx.array], float]:
    model = with_adapter(folder).model
    if how == "recomputed":
        checkpoint_blocks(model)
    trainer = trainer_of(model, adapter_parameters(model), is_compiled=how == "compiled")
    gradients, result = trainer.compute(batches, 0)
    return gradients, result.loss


def assert_same(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert as_float(mx.abs(ours[name] - value).max()) <= 1e-4 * as_float(mx.abs(value).max()), name


@pytest.mark.parametrize("how", ["graph", "compiled", "recomputed"])
def test_gradients_depend_on_no_padding_and_no_cut_into_microbatches(tiny_t5: TinyT5, how: str) -> None:
    rng = np.random.default_rng(1)
    rows = [
        a_row(rng.integers(3, 60, a).tolist(), rng.integers(3, 60, b).tolist()) for a, b in ((9, 3), (30, 1), (4, 8))
    ]
    expected, loss = gradients_of(tiny_t5(is_tied=False), [of_rows(rows, 40)])
    alone = [of_rows([row], length) for row, length in zip(rows, (16, 40, 64), strict=True)]
    cuts = ([of_rows(rows, 64)], alone, [of_rows(rows[1:], 40), alone[0]])
    for batches in cuts[:1] if how == "compiled" else cuts:  # 3 s for each shape that is compiled
        gradients, again = gradients_of(tiny_t5(is_tied=False), batches, how=how)
        assert again == pytest.approx(loss, rel=1e-5)
        assert_same(gradients, expected)


def test_every_weight_of_a_fully_trained_model_has_its_gradient(tiny_t5: TinyT5) -> None:
    """Compared with differences of the loss: tables of positions, shared embedding and head among them."""
    local = LocalModel("tiny", tiny_t5(is_tied=True), "folder", None, "", None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    trainer = trainer_of(model, full_parameters(model))
    batch = of_rows([a_row([9, 10, 11], [20, 21]), a_row([8], [30])], 16)
    gradients, _ = trainer.compute([batch], 0)
    names = [
        "shared.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.1.layer.1.EncDecAttention.k.weight",
        "encoder.final_layer_norm.weight",
    ]
    for name in names:
        assert as_float(mx.abs(gradients[name]).max()) > 0, name
        direction = gradients[name] / mx.sqrt(mx.sum(mx.square(gradients[name])))
        losses = []
        for step in (2e-3, -2e-3):
            trainer.parameters[name] = trainer.parameters[name] + step * direction
            trainer.load_into_model()
            sums, count = trainer.loss(batch)
            losses.append(sums[0] / count)
            trainer.parameters[name] = trainer.parameters[name] - step * direction
        slope = (losses[0] - losses[1]) / 4e-3
        assert slope == pytest.approx(mx.sum(direction * gradients[name]).item(), rel=0.05), name


@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_are_those_recorded_from_torch(tiny_t5: TinyT5, kind: str) -> None:
    losses, _ = our_losses(tiny_t5(is_tied=KINDS[kind]))
    np.testing.assert_allclose(losses, GOLDEN[kind]["losses"], rtol=1e-5)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_are_those_of_torch_and_peft(tiny_t5: TinyT5, tmp_path: Path, kind: str) -> None:
    """PEFT reads the adapter from our files; every gradient has the name that it gives it."""
    pytest.importorskip("torch", reason="needs torch and peft: pip install 'mlx-finetune[parity]'")
    pytest.importorskip("peft", reason="needs torch and peft: pip install 'mlx-finetune[parity]'")
    losses, gradients = our_losses(tiny_t5(is_tied=KINDS[kind]), tmp_path)
    expected, expected_gradients = their_losses(tiny_t5(is_tied=KINDS[kind]), tmp_path)
    print(f"{kind}: losses {expected}, ratio off by {np.abs(np.divide(losses, expected) - 1).max():.1e}")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_same(gradients, {name: mx.array(value) for name, value in expected_gradients.items()})


def write_recipe(folder: Path, model: Path, *, name: str = "run", lora: str = LORA) -> Path:
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for number in range(24):
            row = {"dialogue": "he is on the a " * (1 + number % 4) + str(number), "summary": f"he is {number}"}
            file.write(json.dumps(row) + "\n")
    path = folder / f"{name}.toml"
    path.write_text(RECIPE.format(model=model, output=folder / name, data=rows, lora=lora))
    return path


@pytest.mark.some(1)
@pytest.mark.parametrize("lora", [LORA, ""], ids=["adapter", "every weight"])
def test_a_run_that_is_killed_goes_on_bit_for_bit(tiny_t5: TinyT5, tmp_path: Path, lora: str) -> None:
    straight = train(write_recipe(tmp_path, tiny_t5(is_tied=False), name="straight", lora=lora))
    killed = write_recipe(tmp_path, tiny_t5(is_tied=False), name="killed", lora=lora)
    train(killed, kill_after=3)
    resumed = train(killed, resume=True)
    assert course(resumed)[-5:] == course(straight)[-5:]
    for folder in (rundir.PEFT_WEIGHTS,) if lora else ("model/model.safetensors",):
        ours, theirs = load_file(resumed.path / folder), load_file(straight.path / folder)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_result_has_the_names_of_peft_and_is_read_again(tiny_t5: TinyT5, tmp_path: Path) -> None:
    run = train(write_recipe(tmp_path, tiny_t5(is_tied=False)))
    weights = load_file(run.file(rundir.PEFT_WEIGHTS))
    assert "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight" in weights
    names = {key.split(".")[-3] for key in weights}
    assert names == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
    config: dict[str, Any] = json.loads(run.file(rundir.ADAPTER_CONFIG).read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert config["target_modules"] == sorted(names)
    local = LocalModel("tiny", tiny_t5(is_tied=False), "folder", None, "", None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    load_adapter(model, run.path)
    assert len(adapter_parameters(model)) == len(weights)


@pytest.mark.parametrize(("task", "kind"), [("sft", "t5"), ("seq2seq", "llama")])
def test_task_and_model_must_go_together(tiny_t5: TinyT5, tiny_model, tmp_path: Path, task: str, kind: str) -> None:
    model = tiny_t5(is_tied=True) if kind == "t5" else tiny_model(kind)
    with pytest.raises(ModelError, match="encoder"):
        train(write_recipe(tmp_path, model), overrides=(f"task={task}",))

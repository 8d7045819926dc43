"""Five steps beside mlx-lm's own pieces and beside torch with PEFT: logits, losses, every gradient, weights copied.

What differs on purpose is in tests/test_upstream.py. Tolerances are for fp32 on a CPU: losses 1e-5, gradients 1e-4 of
the largest one of the same tensor.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model as upstream_load
from safetensors.numpy import load_file, save_file
from saved_adapters import save_adapter
from tiny import write_tiny_model

from mlx_finetune.dataset.stream import Batch, make_batch
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.adapters.lora import AdapterSpec, adapter_parameters, attach_adapter, full_parameters
from mlx_finetune.model.adapters.peft_names import PREFIX, to_theirs
from mlx_finetune.model.load import LoadedModel, load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe
from mlx_finetune.train.objectives.next_token import next_token
from mlx_finetune.train.optim import AdamW, FlatArrays, decayed_names, global_norm
from mlx_finetune.train.step import Trainer

TinyModel = Callable[..., Path]
STEPS, RATE, DECAY, MAX_NORM = 5, 1e-2, 0.01, 0.5
LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0}

#: Losses of the five steps, recorded from torch 2.13.0, peft 0.21.2 and transformers 5.23.0 on a CPU.
TORCH_LOSSES = {
    "llama": [6.1461468, 5.2582440, 4.6328712, 4.1306591, 3.7276175],
    "gemma": [6.1496806, 5.5865650, 5.0887403, 4.6444240, 4.2419462],
    "gpt2": [6.3663335, 5.7033548, 5.2100801, 4.7617259, 4.3554158],
    "gpt_neox": [6.0146451, 5.4313765, 4.9057341, 4.4162745, 3.9648871],
}


def make_batches() -> list[Batch]:
    """Three microbatches of differing shapes and numbers of targets, with padding."""
    rng = np.random.default_rng(5)
    rows: list[Tokens] = []
    for line, length in enumerate((20, 9, 31, 12, 4), start=1):
        mask = rng.random(length) < 0.6
        mask[-1] = True
        rows.append(Tokens(rng.integers(3, 290, length).astype(np.int32), mask, "rows.jsonl", line))
    return [
        make_batch(rows, [[0], [1]], num_sequences=2, length=24),
        make_batch(rows, [[2], [3]], num_sequences=2, length=32),
        make_batch(rows, [[4]], num_sequences=1, length=8),
    ]


def load(folder: Path) -> LoadedModel:
    local = LocalModel("tiny", folder, "folder", None, "0" * 64, None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False)


def attach(loaded: LoadedModel, fields: dict[str, Any]) -> AdapterSpec:
    """Attach an adapter whose B is not 0, or the gradients of A would be."""
    spec = attach_adapter(loaded.model, LoraRecipe.model_validate(LORA | fields), seed=3)
    rng = np.random.default_rng(7)
    values = adapter_parameters(loaded.model)
    moved = {
        name: mx.array(rng.normal(0, 0.1, value.shape).astype(np.float32))
        for name, value in values.items()
        if name.endswith("lora_b")
    }
    loaded.model.update(tree_unflatten(list(moved.items())))
    return spec


def make_trainer(model: nn.Module, parameters: FlatArrays, *, weight_decay: float, max_norm: float) -> Trainer:
    optimizer = AdamW(0.9, 0.999, 1e-8, weight_decay, decayed_names(parameters))
    return Trainer(
        model,
        next_token("sft"),
        optimizer,
        parameters,
        seed=0,
        max_grad_norm=max_norm,
        is_packed=False,
        is_compiled=False,
    )


def run_ours(trainer: Trainer, batches: list[Batch]) -> tuple[list[float], FlatArrays]:
    """Losses of five steps and the gradients of the first."""
    losses, first = [], {}
    for step in range(STEPS):
        gradients, result = trainer.compute(batches, step)
        first = first or gradients
        trainer.apply(gradients, learning_rate=RATE, step=step)
        losses.append(result.loss)
    return losses, first


def assert_close(ours: FlatArrays, theirs: dict[str, np.ndarray]) -> None:
    """Every gradient within 1e-4 of the largest number of its tensor."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        largest = np.abs(expected).max()
        assert largest > 1e-6, f"{name} has no gradient, so nothing was compared"
        np.testing.assert_allclose(np.array(ours[name]), expected, rtol=0, atol=1e-4 * largest, err_msg=name)


def run_upstream(model: Any, batches: list[Batch], weight_decay: float) -> tuple[list[float], dict[str, np.ndarray]]:
    """The same five steps with nothing of ours: one masked mean over all rows, ``mlx.optimizers.AdamW``."""
    optimizer = mlx.optimizers.AdamW(RATE, weight_decay=weight_decay, bias_correction=True)
    width = max(batch.tokens.shape[1] for batch in batches)
    padded = [(np.pad(b.tokens, pad), np.pad(b.loss_mask, pad)) for b in batches for pad in [_right(b, width)]]
    tokens = mx.array(np.concatenate([tokens for tokens, _ in padded]))
    mask = mx.array(np.concatenate([mask for _, mask in padded])[:, 1:].astype(np.float32))

    def loss(model: Any) -> mx.array:
        losses = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
        return (losses * mask).sum() / mask.sum()

    losses, first = [], {}
    step = nn.value_and_grad(model, loss)
    for _ in range(STEPS):
        value, gradients = step(model)
        first = first or {name: np.array(gradient) for name, gradient in tree_flatten(gradients)}
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(value.item())
    return losses, first


def _right(batch: Batch, width: int) -> list[tuple[int, int]]:
    return [(0, 0), (0, width - batch.tokens.shape[1])]


@pytest.mark.parametrize("use_dora", [False, True])
def test_five_steps_of_an_adapter_are_those_of_mlx_lm(tiny_model: TinyModel, use_dora: bool) -> None:
    """Weight decay only without DoRA: there, mlx decays the magnitudes too."""
    loaded, decay = load(tiny_model("llama")), 0.0 if use_dora else DECAY
    attach(loaded, {"use_dora": use_dora})
    parameters = adapter_parameters(loaded.model)
    theirs = upstream_load(tiny_model("llama"))[0]
    theirs.freeze()
    keys = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
    keys |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    config = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(theirs, 2, config, use_dora=use_dora)
    theirs.update(tree_unflatten(list(parameters.items())))
    assert sorted(name for name, _ in tree_flatten(theirs.trainable_parameters())) == sorted(parameters)
    expected, expected_gradients = run_upstream(theirs, make_batches(), decay)
    trainer = make_trainer(loaded.model, parameters, weight_decay=decay, max_norm=0.0)
    losses, gradients = run_ours(trainer, make_batches())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_close(gradients, expected_gradients)
    assert expected[0] - expected[-1] > 0.1  # the steps did something


def test_five_steps_of_every_weight_are_those_of_mlx_lm(tiny_model: TinyModel) -> None:
    loaded = load(tiny_model("llama"))
    theirs = upstream_load(tiny_model("llama"))[0]
    expected, expected_gradients = run_upstream(theirs, make_batches(), 0.0)
    trainer = make_trainer(loaded.model, full_parameters(loaded.model), weight_decay=0.0, max_norm=0.0)
    losses, gradients = run_ours(trainer, make_batches())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_close(gradients, expected_gradients)


def as_upstream_reads(folder: Path, model_type: str) -> Path:
    """The tiny model without what mlx-lm stumbles over: GPT-2's prefix and tied head, NeoX's newer rotary keys."""
    write_tiny_model(folder, model_type)
    weights, path = load_file(folder / "model.safetensors"), folder / "config.json"
    config = json.loads(path.read_text())
    if model_type == "gpt2":
        weights = {n.removeprefix("transformer."): w for n, w in weights.items() if n != "lm_head.weight"}
        weights = {n: w for n, w in weights.items() if not n.endswith("masked_bias")}
    elif model_type == "gpt_neox":
        config |= {"rotary_emb_base": 10000, "rotary_pct": 0.25, "hidden_act": "gelu_fast"}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma"])
def test_logits_are_those_of_mlx_lm(tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit. Gemma is the declared difference: its gelu is the tanh one, mlx-lm's the exact one."""
    folder = as_upstream_reads(tmp_path / model_type, model_type)
    tokens = mx.array(make_batches()[1].tokens)
    ours, theirs = load(folder).model(tokens), upstream_load(folder)[0](tokens)
    if model_type == "gemma":
        assert np.abs(np.array(ours) - np.array(theirs)).max() > 1e-5
        monkeypatch.setattr(nn, "gelu", nn.gelu_approx)
        theirs = upstream_load(folder)[0](tokens)
    assert mx.array_equal(ours, theirs).item()


def our_losses(folder: Path, model_type: str, adapter: Path | None = None) -> tuple[list[float], FlatArrays]:
    """Five clipped steps of LoRA over every linear layer, and the first gradients under PEFT's names."""
    loaded = load(folder)
    spec = attach(loaded, {})
    if adapter is not None:
        save_adapter(adapter, loaded.model, spec, loaded.info)
    parameters = adapter_parameters(loaded.model)
    trainer = make_trainer(loaded.model, parameters, weight_decay=DECAY, max_norm=MAX_NORM)
    losses, gradients = run_ours(trainer, make_batches())
    named: FlatArrays = {}
    for name, value in gradients.items():
        path, _, matrix = name.rpartition(".")
        letter = matrix[-1].upper()
        named[f"{PREFIX}{to_theirs(path, model_type)}.lora_{letter}.default.weight"] = value.T
    return losses, named


def torch_losses(folder: Path, adapter: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """The same steps by torch, transformers and PEFT, which reads the adapter that was saved."""
    import peft  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model: Any = peft.PeftModel.from_pretrained(base, str(adapter), is_trainable=True).eval()  # eval: no dropout
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE, weight_decay=DECAY)
    losses, first = [], {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        total, num_targets = torch.tensor(0.0), 0
        for batch in make_batches():
            tokens, mask = torch.tensor(batch.tokens).long(), torch.tensor(batch.loss_mask[:, 1:])
            logits = model(input_ids=tokens[:, :-1]).logits
            nats = torch.nn.functional.cross_entropy(logits[mask], tokens[:, 1:][mask], reduction="sum")
            total, num_targets = total + nats, num_targets + int(mask.sum())
        loss = total / num_targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), MAX_NORM)
        first = first or {name: value.grad.numpy().copy() for name, value in weights.items()}
        optimizer.step()
        losses.append(loss.item())
    return losses, first


@pytest.mark.parametrize("model_type", sorted(TORCH_LOSSES))
def test_five_steps_are_those_recorded_from_torch(tiny_model: TinyModel, model_type: str) -> None:
    losses, gradients = our_losses(tiny_model(model_type), model_type)
    np.testing.assert_allclose(losses, TORCH_LOSSES[model_type], rtol=1e-5)
    assert global_norm(gradients).item() == pytest.approx(MAX_NORM, rel=1e-5)  # so clipping is part of it


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Unexpected keyword arguments")  # theirs; ours: mlx-lm keys
@pytest.mark.parametrize("model_type", sorted(TORCH_LOSSES))
def test_five_steps_are_those_of_torch_and_peft(tiny_model: TinyModel, tmp_path: Path, model_type: str) -> None:
    pytest.importorskip("torch", reason="needs torch and peft: pip install 'mlx-finetune[parity]'")
    pytest.importorskip("peft", reason="needs torch and peft: pip install 'mlx-finetune[parity]'")
    losses, gradients = our_losses(tiny_model(model_type), model_type, tmp_path)
    expected, expected_gradients = torch_losses(tiny_model(model_type), tmp_path)
    worst = max(np.abs(np.array(gradients[n]) - g).max() / np.abs(g).max() for n, g in expected_gradients.items())
    print(f"{model_type}: losses {expected}, ratio off by {np.abs(np.divide(losses, expected) - 1).max():.1e}")
    print(f"{model_type}: {len(expected_gradients)} gradients, off by {worst:.1e} of the largest number")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_close(gradients, expected_gradients)
    np.testing.assert_allclose(expected, TORCH_LOSSES[model_type], rtol=1e-6)

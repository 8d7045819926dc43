"""Each repair twice: upstream still fails as it did, and here the numbers are those of the formulas in numpy."""

import json
from collections.abc import Callable
from math import erf
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import gemma2, llama
from mlx_lm.utils import load_model as upstream_load
from safetensors.numpy import load_file, save_file
from tiny import write_tiny_model

from mlx_finetune.errors import ModelError
from mlx_finetune.events import Phase
from mlx_finetune.model.files.repairs import repair_attention, repair_config
from mlx_finetune.model.inside.segments import segment_caches
from mlx_finetune.model.load import LoadedModel, load_model
from mlx_finetune.model.sources.fetch import fetch_model

TinyModel = Callable[..., Path]
TOKENS = [5, 70, 261, 9, 12, 80, 3, 44]


def ignore(_: Phase) -> None:
    pass


def loaded(folder: Path) -> LoadedModel:
    local = fetch_model(str(folder), report=ignore)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False)


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(mx.array([TOKENS]))[0])


def with_config(folder: Path, model_type: str, **changed: object) -> Path:
    write_tiny_model(folder, model_type)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def layer_norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: np.ndarray, *, exact: bool) -> np.ndarray:
    if exact:
        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention; arguments and result are (heads, T, D)."""
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def gpt2_logits(folder: Path, *, exact: bool = False) -> np.ndarray:
    """GPT-2 in float64 numpy; Conv1D weights are (in, out)."""
    w = {
        name.removeprefix("transformer."): a.astype(np.float64)
        for name, a in load_file(folder / "model.safetensors").items()
    }
    x = w["wte.weight"][TOKENS] + w["wpe.weight"][: len(TOKENS)]
    for layer in ("h.0", "h.1"):
        h = layer_norm(x, w, f"{layer}.ln_1")
        qkv = h @ w[f"{layer}.attn.c_attn.weight"] + w[f"{layer}.attn.c_attn.bias"]
        q, k, v = (part.reshape(len(TOKENS), 4, 16).swapaxes(0, 1) for part in np.split(qkv, 3, -1))
        mixed = attend(q, k, v).swapaxes(0, 1).reshape(len(TOKENS), 64)
        x = x + mixed @ w[f"{layer}.attn.c_proj.weight"] + w[f"{layer}.attn.c_proj.bias"]
        h = layer_norm(x, w, f"{layer}.ln_2")
        h = gelu(h @ w[f"{layer}.mlp.c_fc.weight"] + w[f"{layer}.mlp.c_fc.bias"], exact=exact)
        x = x + h @ w[f"{layer}.mlp.c_proj.weight"] + w[f"{layer}.mlp.c_proj.bias"]
    return layer_norm(x, w, "ln_f") @ w["wte.weight"].T


def rotate(x: np.ndarray, dims: int, base: float = 10000.0) -> np.ndarray:
    """Rotary embedding over the first ``dims`` of (heads, T, D), half-split pairs."""
    angles = np.arange(x.shape[1])[:, None] * base ** (-np.arange(0, dims, 2) / dims)
    first, second, rest = x[..., : dims // 2], x[..., dims // 2 : dims], x[..., dims:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), -1)


def neox_logits(folder: Path, *, exact: bool) -> np.ndarray:
    """GPT-NeoX with parallel residual in float64 numpy; the rows of q, k and v lie together for each head."""
    w = {
        name.removeprefix("gpt_neox."): a.astype(np.float64)
        for name, a in load_file(folder / "model.safetensors").items()
    }
    x = w["embed_in.weight"][TOKENS]
    for layer in ("layers.0", "layers.1"):

        def linear(h: np.ndarray, name: str, layer: str = layer) -> np.ndarray:
            return h @ w[f"{layer}.{name}.weight"].T + w[f"{layer}.{name}.bias"]

        qkv = linear(layer_norm(x, w, f"{layer}.input_layernorm"), "attention.query_key_value")
        q, k, v = np.split(qkv.reshape(len(TOKENS), 4, 48).swapaxes(0, 1), 3, -1)
        mixed = attend(rotate(q, 4), rotate(k, 4), v).swapaxes(0, 1).reshape(len(TOKENS), 64)
        h = linear(layer_norm(x, w, f"{layer}.post_attention_layernorm"), "mlp.dense_h_to_4h")
        x = x + linear(mixed, "attention.dense") + linear(gelu(h, exact=exact), "mlp.dense_4h_to_h")
    return layer_norm(x, w, "final_layer_norm") @ w["embed_out.weight"].T


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + weight)


def gemma_logits(folder: Path, *, exact: bool) -> np.ndarray:
    """Gemma 1 in float64 numpy: one key-value head, norms with 1 + w, embeddings times sqrt(64)."""
    w = {n.removeprefix("model."): a.astype(np.float64) for n, a in load_file(folder / "model.safetensors").items()}
    x = w["embed_tokens.weight"][TOKENS] * 8
    for layer in ("layers.0", "layers.1"):
        h = rms_norm(x, w[f"{layer}.input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"{layer}.self_attn.{name}_proj.weight"].T).reshape(len(TOKENS), -1, 16).swapaxes(0, 1)
            for name in "qkv"
        )
        mixed = attend(rotate(q, 16), rotate(k, 16), v).swapaxes(0, 1).reshape(len(TOKENS), 64)
        x = x + mixed @ w[f"{layer}.self_attn.o_proj.weight"].T
        h = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"])
        gate = gelu(h @ w[f"{layer}.mlp.gate_proj.weight"].T, exact=exact)
        x = x + (gate * (h @ w[f"{layer}.mlp.up_proj.weight"].T)) @ w[f"{layer}.mlp.down_proj.weight"].T
    return rms_norm(x, w["norm.weight"]) @ w["embed_tokens.weight"].T


def test_upstream_still_uses_the_exact_gelu_for_gemma_and_here_it_is_the_tanh(tiny_model: TinyModel) -> None:
    folder = tiny_model("gemma")
    right, wrong = gemma_logits(folder, exact=False), gemma_logits(folder, exact=True)
    assert np.abs(right - wrong).max() > 1e-4
    np.testing.assert_allclose(logits(upstream_load(folder)[0]), wrong, atol=5e-6)
    np.testing.assert_allclose(logits(loaded(folder).model), right, atol=5e-6)


def test_upstream_still_refuses_gpt2_as_transformers_saves_it(tiny_model: TinyModel) -> None:
    with pytest.raises(ValueError, match="parameters not in model"):
        upstream_load(tiny_model("gpt2"))


def test_gpt2_as_transformers_saves_it_gives_the_logits_of_the_formulas(tiny_model: TinyModel) -> None:
    np.testing.assert_allclose(logits(loaded(tiny_model("gpt2")).model), gpt2_logits(tiny_model("gpt2")), atol=5e-6)


def test_upstream_still_needs_n_ctx_and_here_n_positions_serves(tmp_path: Path) -> None:
    folder = with_config(tmp_path / "m", "gpt2", n_ctx=None)
    with pytest.raises(TypeError, match="n_ctx"):
        upstream_load(folder)
    np.testing.assert_allclose(logits(loaded(folder).model), gpt2_logits(folder), atol=5e-6)
    assert loaded(folder).info.context_length == 512


def test_gpt2_with_exact_gelu_gets_it(tmp_path: Path) -> None:
    folder = with_config(tmp_path / "m", "gpt2", activation_function="gelu")
    found = logits(loaded(folder).model)
    np.testing.assert_allclose(found, gpt2_logits(folder, exact=True), atol=5e-6)
    assert np.abs(gpt2_logits(folder, exact=True) - gpt2_logits(folder)).max() > 5e-5  # so the line above can fail


def test_gpt2_with_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "gpt2")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match="head of its own"):
        loaded(folder)


@pytest.mark.parametrize("name", ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"])
def test_gpt2_variants_that_upstream_would_compute_wrongly_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=name):
        loaded(with_config(tmp_path / "m", "gpt2", **{name: True}))


def test_upstream_still_refuses_gpt_neox_of_transformers_5(tiny_model: TinyModel) -> None:
    with pytest.raises(TypeError, match="rotary_emb_base"):
        upstream_load(tiny_model("gpt_neox"))


def test_gpt_neox_of_transformers_5_gives_the_logits_of_the_formulas(tiny_model: TinyModel) -> None:
    folder = tiny_model("gpt_neox")
    found = loaded(folder)
    np.testing.assert_allclose(logits(found.model), neox_logits(folder, exact=True), atol=5e-6)
    assert any("exact gelu" in notice.message for notice in found.notices)


def test_upstream_still_uses_the_tanh_gelu_for_gpt_neox(tmp_path: Path) -> None:
    folder = with_config(tmp_path / "m", "gpt_neox", rotary_emb_base=10000, rotary_pct=0.25)
    upstream, _ = upstream_load(folder)
    np.testing.assert_allclose(logits(upstream), neox_logits(folder, exact=False), atol=5e-6)
    assert np.abs(neox_logits(folder, exact=False) - neox_logits(folder, exact=True)).max() > 5e-5


def test_gpt_neox_that_asks_for_the_tanh_gelu_keeps_it(tmp_path: Path) -> None:
    folder = with_config(tmp_path / "m", "gpt_neox", hidden_act="gelu_fast")
    found = loaded(folder)
    np.testing.assert_allclose(logits(found.model), neox_logits(folder, exact=False), atol=5e-6)
    assert not any("exact gelu" in notice.message for notice in found.notices)


def test_another_activation_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the activation 'relu' is not supported for 'gpt_neox'"):
        loaded(with_config(tmp_path / "m", "gpt_neox", hidden_act="relu"))


def test_upstream_still_ignores_rope_parameters_and_here_they_count(tmp_path: Path) -> None:
    rope = {"rope_theta": 500_000.0, "rope_type": "default"}
    folder = with_config(tmp_path / "m", "llama", rope_theta=None, rope_parameters=rope)
    told = with_config(tmp_path / "told", "llama", rope_theta=500_000.0)
    upstream, right = logits(upstream_load(folder)[0]), logits(upstream_load(told)[0])
    assert np.abs(upstream - right).max() > 1e-3
    np.testing.assert_array_equal(logits(loaded(folder).model), right)


def test_rotary_scaling_in_rope_parameters_is_handed_on() -> None:
    rope = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}
    names = frozenset(llama.ModelArgs.__dataclass_fields__)
    repaired = repair_config({"model_type": "llama", "rope_parameters": rope}, names)
    assert repaired.config["rope_theta"] == 5e5
    assert repaired.config["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    assert repaired.changes == ("rope_theta, rope_scaling taken from rope_parameters",)


def test_rotary_scaling_that_an_architecture_does_not_know_is_refused() -> None:
    rope = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}
    with pytest.raises(ModelError, match="'yarn' is not supported for 'gemma'"):
        repair_config({"model_type": "gemma", "rope_parameters": rope}, frozenset({"rope_theta"}))


def test_a_config_that_says_it_itself_is_not_changed() -> None:
    config = {"model_type": "llama", "rope_theta": 7.0, "rope_parameters": {"rope_theta": 9.0}}
    repaired = repair_config(config, frozenset({"rope_theta"}))
    assert (repaired.config, repaired.changes) == (config, ())


@pytest.mark.parametrize("num_rows", [2, 3])
def test_a_mask_for_each_row_is_that_rows_own_in_gemma2(num_rows: int) -> None:
    mx.random.seed(0)
    arguments = gemma2.ModelArgs("gemma2", 64, 2, 96, 4, 16, 1e-5, 96, 2)  # two key heads
    model = gemma2.Model(arguments)
    mx.eval(model.parameters())
    tokens = mx.random.randint(0, 96, (num_rows, 12))
    cuts = [3 + 2 * row for row in range(num_rows)]  # every row begins its second document elsewhere
    segments = mx.array([[1] * cut + [2] * (12 - cut) for cut in cuts])
    documents = [(row[None, :cut], row[None, cut:]) for row, cut in zip(tokens, cuts, strict=True)]
    alone = np.stack([np.array(mx.concatenate([model(first), model(second)], 1)[0]) for first, second in documents])

    def packed() -> np.ndarray:
        return np.array(model(tokens, cache=segment_caches(model, segments)))

    if num_rows == 2:  # as many as key heads: upstream gives each head the mask of a row
        assert np.abs(packed() - alone).max() > 1e-3
    else:
        with pytest.raises(ValueError, match="broadcast"):
            packed()
    parameters = model.parameters()
    repair_attention(model, {"model_type": "gemma2"})
    model.update(parameters)
    np.testing.assert_allclose(packed(), alone, rtol=0, atol=1e-5)

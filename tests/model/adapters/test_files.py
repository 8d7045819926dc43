"""Adapters on disk: PEFT's numbers (recorded by tests/golden/record_peft.py), mlx-lm's, ours, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from random_models import make_model
from safetensors.numpy import load_file, save_file
from saved_adapters import save_adapter

from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters.files import adapter_config, load_adapter
from mlx_finetune.model.adapters.layers import DoRALinear
from mlx_finetune.model.adapters.lora import (
    AdapterSpec,
    adapter_layers,
    adapter_parameters,
    attach_adapter,
    detach_adapter,
)
from mlx_finetune.model.adapters.peft_names import PREFIX, to_theirs
from mlx_finetune.model.load import LoadedModel, ModelInfo, load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.recipe.schema import LoraRecipe

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "peft"
CASES = sorted(path.name for path in GOLDEN.iterdir())
TOKENS = mx.array([[40, 77, 5, 130, 201, 66, 9, 250]])
SHORT = mx.array([[3, 14, 15, 92, 65]])
PEFT, MLX, CONFIG = "adapter_model.safetensors", "adapters.safetensors", "adapter_config.json"
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"target_modules": ["q_proj", "mlp.down_proj"], "num_layers": 1}),
    ("llama", {"use_dora": True}),
    ("gemma", {"target_modules": "attention", "use_rslora": True}),
    ("gpt2", {"target_modules": ["attn.c_proj"]}),
    ("gpt2", {"num_layers": 1}),
    ("gpt_neox", {"target_modules": ["query_key_value"]}),
    ("gpt_neox", {"target_modules": ["dense"], "use_dora": True, "num_layers": 1}),
]


def load_base(tiny_model: Callable[..., Path], family: str) -> LoadedModel:
    folder = tiny_model(family)
    local = LocalModel(f"tiny-{family}", folder, f"folder:{folder}", None, "0" * 64, None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False)


def info_of(family: str) -> ModelInfo:
    return ModelInfo(f"tiny-{family}", Path(), family, 0, 2, 64, 96, None, None, "", None, None)


def attach_random(model: Any, fields: dict[str, Any], seed: int = 1) -> AdapterSpec:
    spec = attach_adapter(model, LoraRecipe.model_validate({"rank": 4, "alpha": 6.0, **fields}), seed=seed)
    for number, layer in enumerate(adapter_layers(model).values()):
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(number))
        if isinstance(layer, DoRALinear):
            layer.m = layer.m * 1.1
    return spec


@pytest.mark.parametrize(
    ("name", "written"), [("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("./my-model", "./my-model")]
)
def test_a_short_name_of_ours_is_written_as_the_hub_id_that_peft_understands(name: str, written: str) -> None:
    model = make_model("llama")
    config = adapter_config(model, attach_random(model, {}), replace(info_of("llama"), name=name))
    assert config["base_model_name_or_path"] == written


def saved(folder: Path, family: str = "llama", **fields: Any) -> tuple[Any, Path]:
    """A model with a random adapter, and the folder it was saved to."""
    model = make_model(family)
    folder.mkdir(exist_ok=True)
    save_adapter(folder, model, attach_random(model, fields), info_of(family))
    return model, folder


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_made_by_peft_gives_the_logits_torch_computed(case: str, tiny_model: Callable[..., Path]) -> None:
    model = load_base(tiny_model, case.partition("-")[0]).model
    golden = np.load(GOLDEN / case / "logits.npz")
    np.testing.assert_allclose(np.array(model(TOKENS))[0, :, ::5], golden["base"], rtol=0, atol=1e-5)
    load_adapter(model, GOLDEN / case)
    np.testing.assert_allclose(np.array(model(TOKENS))[0, :, ::5], golden["adapted"], rtol=0, atol=1e-5)
    assert np.abs(golden["adapted"] - golden["base"]).max() > 0.1


@pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("patterns")])
def test_every_gradient_is_the_one_torch_computed(case: str, tiny_model: Callable[..., Path]) -> None:
    family = case.partition("-")[0]
    model = load_base(tiny_model, family).model
    load_adapter(model, GOLDEN / case)

    def loss() -> mx.array:
        return nn.losses.cross_entropy(model(TOKENS)[:, :-1], TOKENS[:, 1:], reduction="sum")

    _, grads = nn.value_and_grad(model, loss)()
    golden = np.load(GOLDEN / case / "logits.npz")
    ours = dict(tree_flatten(grads))
    assert len(ours) == len([key for key in golden if key.startswith("grad.")])
    for name, grad in ours.items():
        path, _, part = name.rpartition(".")
        ending = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}[part]
        expected = golden[f"grad.{PREFIX}{to_theirs(path, family)}.{ending}"]
        found = np.array(grad if part == "m" else grad.T).ravel()[::5]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("patterns")])
def test_what_peft_made_is_written_again_bit_for_bit(
    case: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = load_base(tiny_model, case.partition("-")[0])
    spec = load_adapter(base.model, GOLDEN / case)
    save_adapter(tmp_path, base.model, spec, base.info)
    theirs, ours = load_file(GOLDEN / case / PEFT), load_file(tmp_path / PEFT)
    assert sorted(ours) == sorted(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
    made, written = (json.loads((folder / CONFIG).read_text()) for folder in (GOLDEN / case, tmp_path))
    for field in ("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "task_type", "layers_to_transform"):
        assert written.get(field) == made[field], field


def test_ranks_and_scales_of_their_own_become_one_rank_and_one_scale(tiny_model: Callable[..., Path]) -> None:
    model = load_base(tiny_model, "llama").model
    spec = load_adapter(model, GOLDEN / "llama-patterns")
    assert (spec.rank, spec.scale, spec.alpha) == (3, 3.5, 10.5)
    layer = adapter_layers(model)["model.layers.0.self_attn.q_proj"]
    assert layer.lora_a.shape == (64, 3)
    assert not np.array(layer.lora_a)[:, 2].any()


@pytest.mark.parametrize(("family", "fields"), KINDS)
@pytest.mark.parametrize("reader", ["peft", "mlx-lm"])
def test_a_saved_adapter_loads_with_the_same_logits(
    family: str, fields: dict[str, Any], reader: str, tmp_path: Path
) -> None:
    model, folder = saved(tmp_path / "a", family, **fields)
    expected, weights = np.array(model(SHORT)), adapter_parameters(model)
    (folder / (MLX if reader == "peft" else PEFT)).unlink()
    fresh = make_model(family)
    spec = load_adapter(fresh, folder)
    np.testing.assert_array_equal(np.array(fresh(SHORT)), expected)
    assert list(adapter_parameters(fresh)) == list(weights)
    assert [name for name, _ in sorted(tree_flatten(fresh.trainable_parameters()))] == list(weights)
    again = attach_random(make_model(family), fields)
    if reader == "peft":
        assert spec == again
    assert (spec.rank, spec.scale, spec.module_paths) == (again.rank, again.scale, again.module_paths)


@pytest.mark.parametrize(("family", "fields"), KINDS)
def test_mlx_lm_reads_what_was_saved(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a", family, **fields)
    stock: Any = load_adapters(make_model(family), str(folder))
    stock.eval()
    np.testing.assert_allclose(np.array(stock(SHORT)), np.array(model(SHORT)), rtol=0, atol=3e-6)
    assert np.abs(np.array(stock(SHORT)) - np.array(make_model(family)(SHORT))).max() > 0.1


def test_mlx_lm_load_with_an_adapter_path_gives_our_logits(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    import mlx_lm

    base = load_base(tiny_model, "llama")
    save_adapter(tmp_path, base.model, attach_random(base.model, {}), base.info)
    stock: Any = mlx_lm.load(str(tiny_model("llama")), adapter_path=str(tmp_path))[0]
    np.testing.assert_allclose(np.array(stock(TOKENS)), np.array(base.model(TOKENS)), rtol=0, atol=3e-7)


def test_single_modules_of_single_blocks_are_named_one_by_one(tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a", target_modules=["q_proj"])
    theirs = load_file(folder / PEFT)
    save_file({key: value for key, value in theirs.items() if ".0." in key}, folder / PEFT, {"format": "pt"})
    change_config(folder, target_modules=["model.layers.0.self_attn.q_proj"])
    spec = load_adapter(model, folder)
    assert spec.module_paths == ("model.layers.0.self_attn.q_proj",)
    expected = np.array(model(SHORT))
    save_adapter(folder, model, spec, info_of("llama"))
    assert json.loads((folder / CONFIG).read_text())["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    stock: Any = load_adapters(make_model("llama"), str(folder))
    np.testing.assert_allclose(np.array(stock(SHORT)), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("num_layers", [-1, 2])
def test_a_folder_that_mlx_lm_made_loads(num_layers: int, tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a", target_modules=["q_proj", "v_proj"])
    parameters: dict[str, Any] = {"rank": 4, "scale": 20.0, "dropout": 0.1}
    config = {"fine_tune_type": "lora", "num_layers": num_layers, "lora_parameters": parameters, "seed": 0}
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / PEFT).unlink()
    stock: Any = load_adapters(make_model("llama"), str(folder)) if num_layers > 0 else None
    spec = load_adapter(model, folder)
    assert (spec.scale, spec.alpha, spec.dropout, spec.use_rslora) == (20.0, 80.0, 0.1, False)
    if stock is not None:
        stock.eval()
        np.testing.assert_allclose(np.array(stock(SHORT)), np.array(model(SHORT)), rtol=0, atol=3e-6)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a")[1], saved(tmp_path / "b")[1]
    assert sorted(path.name for path in first.iterdir()) == [CONFIG, PEFT, MLX]
    for name in (PEFT, MLX, CONFIG):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    spec = load_adapter(model, folder)
    layer = next(iter(adapter_layers(model).values()))
    layer.lora_b = layer.lora_b * float("nan")
    with pytest.raises(ModelError, match="1 of its tensors have numbers that are not finite"):
        save_adapter(folder, model, spec, info_of("llama"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"bias": "all"}, r"trains biases of the base \(bias = 'all'\)"),
    ({"lora_bias": True}, "uses lora_bias"),
    ({"layer_replication": [[0, 1], [0, 1]]}, "uses layer_replication"),
    ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
    ({"peft_type": "VERA"}, "this is a VERA adapter"),
    ({"peft_type": "IA3"}, "this is a IA3 adapter"),
    ({"peft_type": "PROMPT_TUNING"}, "this is a PROMPT_TUNING adapter"),
    ({"init_lora_weights": "pissa"}, "started with pissa"),
    ({"r": 10**6}, "rank is 1000000, not a number from 1 to 4096"),
    ({"r": 0}, "rank is 0"),
    ({"r": 8}, "the configuration says rank 8"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a finite number"),
    ({"lora_alpha": 1e30}, r"scale is 2.5e\+29, not a number between 0 and 65536"),
    ({"lora_alpha": "16"}, "lora_alpha is '16'"),
    ({"target_modules": "(("}, "no regular expression"),
    ({"target_modules": 3}, "neither a pattern nor a list"),
    ({"target_modules": ["q_proj"]}, "which its configuration does not adapt"),
    ({"layers_to_transform": [1]}, "which its configuration does not adapt"),
    ({"use_dora": True}, r"do not go with the configuration \(m\)"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_cannot_be_reproduced_is_refused_by_name(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a")
    expected = np.array(model(SHORT))
    change_config(folder, **fields)
    with pytest.raises(ModelError, match=message) as caught:
        load_adapter(model, folder)
    assert "\n" not in caught.value.message
    np.testing.assert_array_equal(np.array(model(SHORT)), expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"scale": 1e30}, r"scale is 1e\+30"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 0}, "scale is 0"),
        ({"rank": 10**6}, "rank is 1000000"),
        ({"rank": 5}, "says rank 5"),
    ],
)
def test_mlx_lm_folders_are_checked_alike(parameters: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a")
    config = json.loads((folder / CONFIG).read_text())
    kept: dict[str, Any] = {"fine_tune_type": "lora", "num_layers": 2}
    (folder / CONFIG).write_text(json.dumps(kept | {"lora_parameters": config["lora_parameters"] | parameters}))
    with pytest.raises(ModelError, match=message):
        load_adapter(model, folder)
    (folder / CONFIG).write_text(json.dumps(kept | {"fine_tune_type": "full"}))
    with pytest.raises(ModelError, match="fine_tune_type = 'full'"):
        load_adapter(model, folder)


def edit(folder: Path, name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), r"do not go with the configuration \(lora_a\)"),
        (lambda t: [t.pop(key) for key in list(t) if "q_proj" in key], "lacks the weights of 2 of 14 adapted layers"),
        (lambda t: t.update({KEY: t[KEY] * np.nan}), "not finite"),
        (lambda t: t.update({KEY: t[KEY][:, :32].copy()}), r"shape \(32, 4\), the model needs \(64, 4\)"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": np.ones((96, 64), np.float32)}),
            "a weight of the base",
        ),
        (lambda t: t.update({KEY: t[KEY].astype(np.float64)}), "numbers of type F64; an adapter has BF16, F16, F32"),
        (
            lambda t: t.update({KEY.replace("layers.0", "layers.7"): t[KEY]}),
            r"adapts model\.layers\.7\.self_attn\.q_proj, which are not linear layers",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a")
    expected = np.array(model(SHORT))
    edit(folder, PEFT, change)
    with pytest.raises(ModelError, match=message):
        load_adapter(model, folder)
    np.testing.assert_array_equal(np.array(model(SHORT)), expected)


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "a", "llama")
    for other in ("gpt2", "gpt_neox"):
        with pytest.raises(ModelError, match="not linear layers in the blocks of this model") as caught:
            load_adapter(make_model(other), folder)
        assert "another base model" in caught.value.hint
    wider = make_model("llama", intermediate_size=128)
    with pytest.raises(ModelError, match="the model needs"):
        load_adapter(wider, folder)
    assert not adapter_layers(wider)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "a")
    content = (folder / PEFT).read_bytes()
    (folder / PEFT).write_bytes(content[:-100])
    with pytest.raises(ModelError, match=PEFT):
        load_adapter(model, folder)
    (folder / PEFT).unlink()
    (folder / MLX).unlink()
    with pytest.raises(ModelError, match=r"has no adapters\.safetensors"):
        load_adapter(model, folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=r"has its weights in adapter_model\.bin, a format that can run code"):
        load_adapter(model, folder)
    for text in ("[1]", "{", '{"a": 1}', "[" * 100_000):
        (folder / CONFIG).write_text(text)
        with pytest.raises(ModelError):
            load_adapter(model, folder)
    with pytest.raises(ModelError, match=r"is not an adapter: it has no adapter_config\.json"):
        load_adapter(model, tmp_path / "nowhere")


def test_an_attached_adapter_is_replaced_and_the_base_stays(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "a", target_modules=["q_proj"])
    model = make_model("llama")
    plain = np.array(model(SHORT))
    attach_random(model, {"use_dora": True}, seed=9)
    spec = load_adapter(model, folder)
    assert tuple(adapter_layers(model)) == spec.module_paths
    detach_adapter(model)
    np.testing.assert_array_equal(np.array(model(SHORT)), plain)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Unexpected keyword arguments")  # theirs; ours: mlx-lm keys
@pytest.mark.parametrize(("family", "fields"), KINDS)
def test_peft_reads_what_was_saved(
    family: str, fields: dict[str, Any], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="needs torch and peft: pip install 'mlx-finetune[parity]'")
    peft = pytest.importorskip("peft", reason="needs torch and peft: pip install 'mlx-finetune[parity]'")
    from transformers import AutoModelForCausalLM

    base = load_base(tiny_model, family)
    plain = np.array(base.model(TOKENS))
    save_adapter(tmp_path, base.model, attach_random(base.model, fields), base.info)
    shutil.copytree(tiny_model(family), tmp_path / "base")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path)).eval()
    with torch.no_grad():
        logits = theirs(torch.tensor(np.array(TOKENS))).logits.numpy()
    ours = np.array(base.model(TOKENS))
    print(f"largest difference {np.abs(logits - ours).max():.2e}, change {np.abs(ours - plain).max():.2f}")
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5)
    assert np.abs(ours - plain).max() > 0.1

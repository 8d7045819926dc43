import pytest

from mlx_finetune.recipe.describe import keys_of, property_schema
from mlx_finetune.recipe.foreign import known_names, recognise
from mlx_finetune.recipe.schema import section_names


@pytest.mark.parametrize(
    ("key", "value", "siblings", "tool", "ours", "fix"),
    [
        ("train_on_inputs", True, {}, "Axolotl's", "data.mask_prompt", "write mask_prompt = false in [data]"),
        ("train_on_inputs", False, {}, "Axolotl's", "data.mask_prompt", "write mask_prompt = true in [data]"),
        ("scale", 20.0, {"rank": 4}, "mlx-lm's", "lora.alpha", "write alpha = 80.0 in [lora]"),
        ("scale", 20.0, {}, "mlx-lm's", "lora.alpha", "write alpha = 160.0 in [lora]"),
        ("iters", 600, {}, "mlx-lm's", "training.max_steps", "write max_steps = 600 in [training]"),
        ("lora_layers", -1, {}, "mlx-lm's", "lora.num_layers", 'write num_layers = "all" in [lora]'),
        (
            "keys",
            ["self_attn.q_proj", "mlp.up_proj"],
            {},
            "mlx-lm's",
            "lora.target_modules",
            'write target_modules = ["q_proj", "up_proj"] in [lora]',
        ),
        (
            "lora_parameters",
            {"rank": 8, "scale": 2.0, "dropout": 0.1},
            {},
            "mlx-lm's",
            "lora",
            "write a [lora] section with rank = 8, alpha = 16.0, dropout = 0.1",
        ),
        ("lora_target", "q_proj, v_proj", {}, "LLaMA-Factory's", "lora.target_modules", None),
        (
            "lora_target",
            "all",
            {},
            "LLaMA-Factory's",
            "lora.target_modules",
            'write target_modules = "all-linear" in [lora]',
        ),
        ("r", 8, {}, "PEFT's", "lora.rank", "write rank = 8 in [lora]"),
        ("load_in_4bit", True, {}, "Axolotl's, TRL's and Unsloth's", "quantize", "write quantize = 4 at the top"),
        (
            "load_in_4bit",
            False,
            {},
            "Axolotl's, TRL's and Unsloth's",
            "quantize",
            "remove it; `quantize` left out is the same",
        ),
        ("max_seq_len", 512, {}, "torchtune's", "data.max_seq_length", "write max_seq_length = 512 in [data]"),
        ("out_dir", "x", {}, "LitGPT's", "output_dir", 'write output_dir = "x" at the top'),
        ("llm_backbone", "x", {}, "H2O LLM Studio's", "model", 'write model = "x" at the top'),
        ("block_size", 64, {}, "AutoTrain's", "data.max_seq_length", "write max_seq_length = 64 in [data]"),
        ("datasets", [{"path": "a.jsonl"}], {}, "Axolotl's", "data.path", 'write path = "a.jsonl" in [data]'),
        ("lr-schedule", {"name": "cosine_decay"}, {}, "mlx-lm's", "training.lr_scheduler", None),
        ("optim", "adamw_torch_fused", {}, "TRL's and LLaMA-Factory's", "training.optimizer", None),
        ("bf16", True, {}, "Axolotl's, TRL's and LLaMA-Factory's", "hardware.compute_dtype", None),
        ("use_gradient_checkpointing", "unsloth", {}, "Unsloth's", "training.gradient_checkpointing", None),
        ("trust_remote_code", True, {}, "transformers'", "", "remove it; code from a model repository is never run"),
    ],
)
def test_a_name_of_another_tool_is_recognised_and_its_value_converted(
    key: str, value: object, siblings: dict[str, object], tool: str, ours: str, fix: str | None
):
    found = recognise(key, value, siblings)
    assert found is not None
    assert (found.tool, found.ours) == (tool, ours)
    assert fix is None or found.fix == fix


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("lora_target", "q_proj, v_proj", 'write target_modules = ["q_proj", "v_proj"] in [lora]'),
        ("lr_schedule", {"name": "cosine_decay"}, 'write lr_scheduler = "cosine" in [training]'),
        ("optim", "adamw_torch_fused", 'write optimizer = "adamw" in [training]'),
        ("bf16", True, 'write compute_dtype = "bfloat16" in [hardware]'),
        ("use_gradient_checkpointing", "unsloth", "write gradient_checkpointing = true in [training]"),
    ],
)
def test_values_become_our_words(key: str, value: object, fix: str):
    found = recognise(key, value, {})
    assert found is not None
    assert found.fix == fix


@pytest.mark.parametrize("value", [None, True, -1, 0.5, "x", "", [], [1, "a.b"], {}, {"rank": "x", "scale": None}])
def test_no_value_of_a_foreign_key_breaks_its_translation(value: object):
    for name in known_names():
        found = recognise(name, value, {"rank": "not a number"})
        assert found is not None, name
        assert found.fix, name


def test_every_translation_leads_to_a_key_of_ours():
    for ours in filter(None, known_names().values()):
        assert property_schema(ours.split("."))


def test_no_name_of_ours_is_foreign():
    ours = {key for section in ((), *((name,) for name in section_names())) for key in keys_of(section)}
    assert ours.isdisjoint(known_names())


def test_an_unknown_name_is_nobodys():
    assert recognise("bogus", 1, {}) is None

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from mlx_finetune.errors import UsageError
from mlx_finetune.recipe import gallery
from mlx_finetune.recipe.describe import SCHEMA_NAME, schema_text
from mlx_finetune.recipe.gallery import copy_data, copy_recipe, find_named, find_recipe, list_recipes
from mlx_finetune.recipe.load import load_recipe

PIPELINES = ["pipeline-scratch"]
NAMES = [path.stem for path in sorted((ROOT / "recipes").glob("*.toml")) if path.stem not in PIPELINES]
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: The settings that the documents give for each system (DESIGN.md section 8).
DOCUMENTED: dict[str, dict[str, Any]] = {
    "constraints-smollm2": {
        "lora.rank": 8,
        "lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "training.save_at": (0, 0.25, 0.5, 0.75, 1.0),
        "training.keep_best": False,
    },
    "constraints-gemma-2b": {
        "model": "google/gemma-2b",
        "lora.rank": 8,
        "lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "training.save_at": (0, 0.25, 0.5, 0.75, 1.0),
    },
    "timeline-dialogpt": {
        "model": "microsoft/DialoGPT-medium",
        "lora.rank": 8,
        "lora.alpha": 16.0,
        "lora.target_modules": ("c_attn", "c_proj", "c_fc"),
        "training.learning_rate": 5e-4,
        "training.batch_size": 1,
        "training.gradient_accumulation_steps": 4,
        "training.max_steps": 100,
        "data.path": "data/timeline",
    },
    "dpo-rules": {"model": "smollm2-135m", "task": "dpo", "data.path": "data/rules", "preference.beta": 0.1},
    "classify-sst2": {
        "model": "smollm2-135m",
        "task": "classify",
        "data.test": "data/sst2/dev.tsv",
        "eval.label_words": {"0": "negative", "1": "positive"},
    },
    "timeline-smollm2": {"model": "smollm2-135m", "task": "sft", "data.path": "data/timeline", "chat.temperature": 0.0},
    "llama-3.1-8b-alpaca": {
        "model": "meta-llama/Llama-3.1-8B",
        "quantize": 4,
        "lora.rank": 16,
        "lora.alpha": 32.0,
        "lora.dropout": 0.1,
        "lora.target_modules": LLAMA,
        "data.format": "alpaca",
        "data.val_split": 0.1,
        "data.test_split": 0.1,
        "data.max_seq_length": 2048,
        "training.batch_size": 6,
        "training.gradient_accumulation_steps": 3,
        "training.lr_scheduler": "cosine",
        "training.warmup_steps": 100,
        "training.learning_rate": 2e-4,
        "training.weight_decay": 0.01,
        "training.max_grad_norm": 1.0,
        "training.gradient_checkpointing": True,
        "training.eval_steps": 500,
        "training.save_steps": 500,
        "training.keep_checkpoints": 3,
        "training.keep_best": True,
        "chat.repetition_penalty": 1.1,
    },
    "voice-pythia-1.4b": {
        "model": "EleutherAI/pythia-1.4b",
        "lora.rank": 16,
        "lora.alpha": 32.0,
        "lora.dropout": 0.05,
        "lora.target_modules": ("query_key_value",),
        "data.path": "data/voice",
        "training.batch_size": 1,
        "training.gradient_accumulation_steps": 16,
        "training.max_steps": 2000,
    },
    "voice-smollm2": {"model": "smollm2-135m", "task": "sft", "data.path": "data/voice", "lora.rank": 16},
    "quickstart": {"model": "smollm2-135m", "task": "sft", "data.path": "data/quickstart", "lora.rank": 16},
    "pretrain-text": {"model": "smollm2-135m", "task": "pretrain", "data.format": "text", "data.truncation": "split"},
    "full-smollm2": {"model": "smollm2-135m", "lora": None, "quantize": None},
    "scratch-shakespeare": {
        "model": "scratch",
        "task": "pretrain",
        "lora": None,
        "training.optimizer": "muon",
        "training.lr_scheduler": "wsd",
        "data.documents": "file",
    },
    "scratch-tinystories": {"model": "scratch", "data.path": "roneneldan/TinyStories", "scratch.z_loss": 1e-4},
    "summary-flan-t5": {
        "model": "google/flan-t5-base",
        "task": "seq2seq",
        "data.prompt_template": "summarize: {instruction}",
        "data.max_target_length": 128,
    },
    "questions-t5": {"model": "./tiny-t5", "task": "seq2seq", "lora": None, "training.optimizer": "muon"},
    "sums-scratch": {"task": "pretrain", "data.path": "data/sums", "scratch.num_layers": 3},
    "sums-generator": {"task": "sft", "lora": None, "data.path": "data/sums", "training.epochs": 2.0},
    "sums-verifier": {"task": "verifier", "model": "adapters/sums-generator", "lora": None},
    "sums-grpo": {"task": "grpo", "lora": None, "grpo.group_size": 8, "grpo.divide_by_sd": False},
}


def test_every_recipe_has_its_documented_settings_listed_here():
    assert sorted(DOCUMENTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_has_the_settings_of_the_documents(name: str):
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml").recipe
    for key, value in DOCUMENTED[name].items():
        found: Any = recipe
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value, key


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_says_what_it_is_for_how_to_run_it_and_how_to_change_it(name: str):
    recipe = find_recipe(name, ROOT)
    head = recipe.path.read_text(encoding="utf-8").split("\n\n")[0]
    assert head.startswith(f"#:schema {SCHEMA_NAME}\n# ")
    assert (recipe.path.parent / SCHEMA_NAME).is_file()
    assert 40 < len(recipe.purpose) < 130
    assert f"mlxft train recipes/{name}.toml" in head
    assert "--set " in head


def test_recipes_are_found_from_any_folder(tmp_path: Path):
    assert {recipe.name for recipe in list_recipes(tmp_path)} == {*NAMES, *PIPELINES}
    assert find_recipe("quickstart.toml", tmp_path).model == "smollm2-135m"


def test_a_recipe_of_the_user_hides_ours_of_that_name(tmp_path: Path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.toml").write_text('# mine\nmodel = "other"\n')
    (tmp_path / "recipes" / "broken.toml").write_text("no toml")
    found = find_recipe("quickstart", tmp_path)
    assert (found.model, found.purpose, found.task) == ("other", "mine", "sft")
    assert find_recipe("broken", tmp_path).model == ""


def test_an_unknown_name_has_a_near_one(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        find_recipe("quikstart", tmp_path)
    assert (caught.value.message, caught.value.hint) == ("there is no recipe `quikstart`", "did you mean `quickstart`?")


def test_a_copy_has_its_schema_beside_it_and_nothing_is_overwritten(tmp_path: Path):
    recipe = find_recipe("quickstart", ROOT)
    target = tmp_path / "mine.toml"
    assert copy_recipe(recipe, target) == [target, tmp_path / SCHEMA_NAME]
    its = recipe.path.read_text().replace("mlxft train recipes/quickstart.toml", f"mlxft train {target}")
    assert target.read_text() == its != recipe.path.read_text()
    assert (tmp_path / SCHEMA_NAME).read_text() == schema_text()
    target.write_text("changed")
    with pytest.raises(UsageError, match="exists and is not overwritten"):
        copy_recipe(recipe, target)
    assert target.read_text() == "changed"
    assert copy_recipe(recipe, tmp_path) == [tmp_path / "quickstart.toml"]


def test_a_schema_of_somebody_else_is_left_alone(tmp_path: Path):
    (tmp_path / SCHEMA_NAME).write_text('{"title": "theirs"}')
    copy_recipe(find_recipe("quickstart", ROOT), tmp_path)
    assert (tmp_path / SCHEMA_NAME).read_text() == '{"title": "theirs"}'


@pytest.mark.parametrize("name", ["mine.yaml", "missing/mine.toml"])
def test_a_copy_to_nowhere_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UsageError):
        copy_recipe(find_recipe("quickstart", ROOT), tmp_path / name)


def test_an_installed_package_brings_the_data_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package, here = tmp_path / "package", tmp_path / "here"
    (package / "recipes").mkdir(parents=True)
    (package / "data" / "quickstart").mkdir(parents=True)
    (package / "data" / "quickstart" / "train.jsonl").write_text("{}")
    (package / "recipes" / "quickstart.toml").write_bytes((ROOT / "recipes" / "quickstart.toml").read_bytes())
    here.mkdir()
    monkeypatch.setattr(gallery, "_PACKAGE", package)
    recipe = find_recipe("quickstart", here)
    assert recipe.path.parent == package / "recipes"
    assert copy_data(recipe, here) == here / "data" / "quickstart"
    assert (here / "data" / "quickstart" / "train.jsonl").read_text() == "{}"
    assert copy_data(recipe, here) is None


def test_a_pipeline_is_copied_with_its_own_schema_and_its_stages_have_names(tmp_path: Path) -> None:
    pipeline = find_recipe("pipeline-scratch", tmp_path)
    assert (pipeline.task, pipeline.model) == ("pipeline", "")
    written = copy_recipe(pipeline, tmp_path / "mine.toml")
    assert [path.name for path in written] == ["mine.toml", "pipeline.schema.json"]
    assert f"mlxft pipeline {tmp_path / 'mine.toml'} --dry-run" in written[0].read_text()
    stage = ROOT / "recipes" / "pipeline-scratch" / "sft.toml"
    assert find_recipe("pipeline-scratch/sft", tmp_path).path == stage
    assert find_named("pipeline-scratch/sft", tmp_path, tmp_path) == stage


def test_the_rows_of_an_installed_pipeline_are_copied_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    (package / "recipes").mkdir(parents=True)
    (package / "recipes" / "p.toml").write_text('output_dir = "o"\n[[stages]]\nname = "a"\n')
    (package / "data" / "pipeline" / "sft").mkdir(parents=True)
    (package / "data" / "pipeline" / "sft" / "train.jsonl").write_text("{}")
    monkeypatch.setattr(gallery, "_PACKAGE", package)
    copied = copy_data(find_recipe("p", tmp_path), tmp_path)
    assert copied is not None
    assert copied == tmp_path / "data" / "pipeline"
    assert (copied / "sft" / "train.jsonl").is_file()

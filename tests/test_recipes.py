"""Every recipe in recipes/ from its file to a finished run, on a tiny random model of its architecture.

Only what a small machine cannot have is replaced: model, data, folder and length. All other keys are the file's own.
Parameter counts are worked out by hand: the tiny models have 2 blocks, width 64, 4 heads of 16, MLP 128 (GPT: 256);
Gemma has 1 key/value head, Llama 2. An adapter on a layer has ``rank * (inputs + outputs)`` weights.
"""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from small_runs import train
from tiny import SPECIAL_TOKENS
from tiny_t5 import write_tiny_t5
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mlx_finetune import rundir
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.events import Evaluated, RunStarted, Sampled
from mlx_finetune.journal import read_events
from mlx_finetune.model.adapters.files import load_adapter
from mlx_finetune.model.adapters.lora import adapter_parameters
from mlx_finetune.model.answers.generate import generate_tokens
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.load import load_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
T5_LAYERS = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")
#: recipe -> architecture, names of adapted layers, trainable weights, rows
CASES = {
    "constraints-gemma-2b": ("gemma", ATTENTION, 8 * 2 * (128 + 80 + 80 + 128), "messages"),
    "constraints-smollm2": ("llama", ATTENTION, 8 * 2 * (128 + 96 + 96 + 128), "messages"),
    "timeline-dialogpt": ("gpt2", ("c_attn", "c_proj", "c_fc"), 8 * 2 * (256 + 128 + 320 + 320), "messages"),
    "timeline-smollm2": ("llama", (*ATTENTION, *MLP), 16 * 2 * (128 + 96 + 96 + 128 + 3 * 192), "messages"),
    "llama-3.1-8b-alpaca": ("llama", (*ATTENTION, *MLP), 16 * 2 * (128 + 96 + 96 + 128 + 3 * 192), "alpaca"),
    "voice-pythia-1.4b": ("gpt_neox", ("query_key_value",), 16 * 2 * 256, "alpaca"),
    "voice-smollm2": ("llama", (*ATTENTION, *MLP), 16 * 1 * (128 + 96 + 96 + 128 + 3 * 192), "alpaca"),
    "quickstart": ("llama", (*ATTENTION, *MLP), 16 * 2 * (128 + 96 + 96 + 128 + 3 * 192), "messages"),
    "pretrain-text": ("llama", (*ATTENTION, *MLP), 64 * 2 * (128 + 96 + 96 + 128 + 3 * 192), "text"),
    "full-smollm2": ("llama", (), None, "messages"),
    "sums-generator": ("llama", (), None, "sums"),
    "sums-verifier": ("llama", (), None, "verdicts"),
    "sums-grpo": ("llama", (), None, "sums"),
    "dpo-rules": ("llama", (*ATTENTION, *MLP), 16 * 1 * (128 + 96 + 96 + 128 + 3 * 192), "pairs"),
    "summary-flan-t5": ("t5", T5_LAYERS, 16 * 2 * (4 * 128 + 3 * 192 + 8 * 128 + 3 * 192), "dialogues"),
}
#: Recipes that begin with random weights, and what makes them small.
NEW_MODELS = {
    "scratch-shakespeare": ("scratch.hidden_size=64", "scratch.vocab_size=300", "scratch.num_layers=2"),
    "sums-scratch": ("scratch.hidden_size=64", "scratch.num_layers=2"),
    "scratch-tinystories": ("scratch.hidden_size=64", "scratch.vocab_size=300", "scratch.num_layers=2"),
}
#: Recipes with a test of their own.
OTHERS = ("classify-sst2", "questions-t5")
BASE_MODELS = ("timeline-dialogpt", "llama-3.1-8b-alpaca", "voice-pythia-1.4b")


def write_data(path: Path, layout: str, num_rows: int = 40) -> Path:
    """Rows of one layout, all different."""
    makers = {
        "messages": lambda n: {
            "messages": [
                {"role": "user", "content": f"Box {n}?"},
                {"role": "assistant", "content": f"Left of {n + 1}."},
            ]
        },
        "alpaca": lambda n: {"instruction": f"Add {n}.", "input": f"{n}" * (n % 2), "output": f"It is {2 * n}."},
        "sums": lambda n: {"prompt": f"{n}+7=", "completion": str(n + 7)},
        "verdicts": lambda n: {"prompt": f"{n}+7=", "completion": str(n + 7 + n % 2), "label": n % 2 == 0},
        "pairs": lambda n: {"prompt": f"Count to {n}.", "chosen": f"It is {n}.", "rejected": f"It is {n + 1}."},
        "dialogues": lambda n: {"dialogue": f"Ann: Box {n}?\nBen: Yes.", "summary": f"It is box {n}."},
        "text": lambda n: {"text": f"Chapter {n}. " + "And then it rained. " * (n % 7)},
    }
    path.write_text("".join(json.dumps(makers[layout](number)) + "\n" for number in range(num_rows)))
    return path


@pytest.fixture
def run_recipe(tmp_path):
    def run(name, *, steps=4, model=None):
        architecture, _, _, layout = CASES[name]
        if architecture == "t5":
            model = write_tiny_t5(tmp_path / "model", is_tied=False)
        model = model or tiny.write_tiny_model(tmp_path / "model", architecture, chat_template=name not in BASE_MODELS)
        data = write_data(tmp_path / "rows.jsonl", layout)
        recipe = load_recipe(RECIPES / f"{name}.toml").recipe
        files = [f"data.path={data}"] if recipe.data.path else [f"data.train={data}", f"data.valid={data}"]
        overrides = [*files, f"output_dir={tmp_path / 'run'}"]
        overrides += [] if recipe.scratch else [f"model={model}"]
        if recipe.task == "grpo":
            overrides.append('grpo.rewards=["max_length:8"]')  # a random model solves nothing, and would learn nothing
        if recipe.lora and recipe.lora.num_layers != "all":
            overrides.append("lora.num_layers=1")  # half of the tiny model's blocks, as of the real one's
        if recipe.training.max_steps or recipe.training.epochs:
            overrides.append(f"training.max_steps={steps}")
        return train(RECIPES / f"{name}.toml", overrides=tuple(overrides)), model

    return run


def test_every_recipe_has_a_case():
    there = [path.stem for path in RECIPES.glob("*.toml") if "[[stages]]" not in path.read_text()]
    assert sorted([*CASES, *NEW_MODELS, *OTHERS]) == sorted(there)


@pytest.mark.some(4)
@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_the_layers_it_names_and_no_others(run_recipe, name):
    run, _ = run_recipe(name)
    _, modules, expected, _ = CASES[name]
    started = next(r.event for r in read_events(run.file(rundir.EVENTS)) if isinstance(r.event, RunStarted))
    head = tiny.HIDDEN if load_recipe(RECIPES / f"{name}.toml").recipe.task == "verifier" else 0
    if expected is None:
        assert started.trainable_parameters in (started.total_parameters, started.total_parameters + head)
        assert (run.path / "model" / "model.safetensors").is_file()
        return
    assert started.trainable_parameters == expected
    weights = load_file(run.file(rundir.MLX_WEIGHTS))
    assert {key.split(".")[-2] for key in weights} == set(modules)
    assert sum(value.size for value in weights.values()) == expected
    assert any(np.abs(value).max() > 0 for key, value in weights.items() if key.endswith("lora_b"))


def test_a_t5_that_the_example_of_the_documents_writes_is_trained(tmp_path: Path) -> None:
    model = tmp_path / "tiny-t5"
    example = [sys.executable, str(RECIPES.parent / "docs" / "tiny_t5.py"), str(model)]
    subprocess.run(example, check=True)
    overrides = (f"model={model}", f"output_dir={tmp_path / 'run'}", "training.max_steps=4", "training.eval_steps=2")
    run = train(
        RECIPES / "questions-t5.toml", overrides=(*overrides, f"data.path={RECIPES.parent / 'data/pipeline/sft'}")
    )
    losses = [
        record.event.loss for record in read_events(run.file(rundir.EVENTS)) if isinstance(record.event, Evaluated)
    ]
    assert losses[0] == pytest.approx(np.log(99), abs=0.6)  # 99 tokens, all alike
    assert losses[-1] < losses[0] - 0.5
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("It is red.\n").ids) == "It is red.\n"


@pytest.mark.parametrize("name", NEW_MODELS)
def test_a_recipe_from_random_weights_makes_a_model_with_a_tokenizer(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    data = write_data(tmp_path / "rows.jsonl", "text")
    small = (*NEW_MODELS[name], "scratch.num_heads=2", "scratch.num_kv_heads=2", "training.batch_size=4")
    lengths = ("training.max_steps=4", "training.eval_steps=4", "training.save_steps=4")
    overrides = (*small, *lengths, f"data.path={data}", f"output_dir={tmp_path / 'run'}")
    run = train(RECIPES / f"{name}.toml", overrides=overrides)
    started = next(r.event for r in read_events(run.file(rundir.EVENTS)) if isinstance(r.event, RunStarted))
    assert started.trainable_parameters == started.total_parameters
    made = run.path / rundir.MODEL_FOLDER
    assert {path.name for path in made.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    losses = [r.event.loss for r in read_events(run.file(rundir.EVENTS)) if isinstance(r.event, Evaluated)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("architecture", "modules"), [("llama", (*ATTENTION, *MLP)), ("gpt2", ("c_attn", "c_proj"))])
def test_the_classifier_recipe_trains_its_head_on_llama_and_on_gpt2(tmp_path, architecture, modules):
    model = tiny.write_tiny_model(tmp_path / "model", architecture)
    rows = [f"It is {'good' if n % 2 else 'bad'} {n}.\t{n % 2}" for n in range(60)]
    for name, part in (("train", rows[:40]), ("dev", rows[40:])):
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *part, ""]))
    overrides = [f"model={model}", f"output_dir={tmp_path / 'run'}", f"data.train={tmp_path / 'train.tsv'}"]
    overrides += [f"data.test={tmp_path / 'dev.tsv'}", "data.val_split=0.2", "lora.num_layers=1", "training.epochs=1"]
    if architecture == "gpt2":
        overrides.append(f"lora.target_modules={list(modules)}")
    run = train(RECIPES / "classify-sst2.toml", overrides=tuple(overrides))
    weights = load_file(run.file(rundir.MLX_WEIGHTS))
    assert {key.split(".")[-2] for key in weights} == set(modules)
    assert load_file(run.file(rundir.HEAD_WEIGHTS))["score.weight"].shape == (2, 64)
    started = next(r.event for r in read_events(run.file(rundir.EVENTS)) if isinstance(r.event, RunStarted))
    assert started.trainable_parameters == sum(value.size for value in weights.values()) + 2 * 64


def test_checkpoints_at_the_quarters_each_load_by_themselves_and_generate(run_recipe):
    run, folder = run_recipe("constraints-gemma-2b", steps=8)
    recipe = load_recipe(RECIPES / "constraints-gemma-2b.toml").recipe
    assert {0, 2, 4, 6, 8} <= {int(path.name.split("-")[1]) for path in run.checkpoints()}
    seen = []
    for step in (0, 2, 4, 6, 8):
        checkpoint = run.checkpoint(step)
        state = json.loads((checkpoint / rundir.TRAINER_STATE).read_text())
        assert (state["step"], state["progress"]) == (step, step / 8)
        assert {"epoch", "loss", "learning_rate", "timestamp", "best_loss", "log_history"} <= state.keys()
        model = load_model(
            LocalModel("tiny", folder, "folder", None, "", None), quantize=None, compute_dtype="float32", on_gpu=False
        ).model
        spec = load_adapter(model, checkpoint)
        assert (spec.rank, spec.scale) == (8, 2.0)
        tokenizer = load_tokenizer(checkpoint)
        prompt = render_prompt([{"role": "user", "content": "Box 3?"}], tokenizer, recipe.data)
        pieces = list(generate_tokens(model, tokenizer, prompt, Sampling(max_tokens=3, temperature=0.0)))
        assert pieces[-1].finish in ("stop", "length")
        seen.append({name: value.tolist() for name, value in adapter_parameters(model).items()})
    assert all(one != other for one, other in pairwise(seen))


def tokenizer_of(rows: Path) -> Tokenizer:
    """A byte-level BPE of 1,000 pieces learned from ``rows``, so that they are about as long as with GPT-2's own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        rows.read_text("utf-8").splitlines(),
        trainers.BpeTrainer(
            vocab_size=1000, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


@pytest.mark.slow
def test_the_timeline_recipe_runs_unchanged_on_a_tiny_gpt2(tmp_path, monkeypatch):
    """All of its 100 steps on its own rows: only the weights are small and random."""
    rows = shutil.copytree(RECIPES.parent / "data" / "timeline", tmp_path / "data" / "timeline")
    recipe = shutil.copy(RECIPES / "timeline-dialogpt.toml", tmp_path)
    monkeypatch.setattr(tiny, "CONTEXT", 1024)
    monkeypatch.setattr(tiny, "make_tokenizer", lambda: tokenizer_of(rows / "train.jsonl"))
    model = tiny.write_tiny_model(tmp_path / "model", "gpt2", chat_template=False)
    run = train(Path(recipe), overrides=(f"model={model}", f"output_dir={tmp_path / 'run'}"))
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    started = next(event for event in events if isinstance(event, RunStarted))
    assert (started.train_rows, started.valid_rows, started.total_steps) == (395, 16, 100)
    losses = {event.step: event.loss for event in events if isinstance(event, Evaluated)}
    assert list(losses) == [0, 25, 50, 75, 100]
    assert losses[100] < losses[0] - 1
    assert [event.step for event in events if isinstance(event, Sampled)] == [0, 25, 50, 75, 100]
    assert run.checkpoint(100).is_dir()


def test_the_voice_recipe_trains_on_its_own_data_with_a_gpt_neox(tmp_path):
    from tiny import write_tiny_model

    model = write_tiny_model(tmp_path / "model", "gpt_neox", chat_template=False)
    changes = {"model": model, "data.path": RECIPES.parent / "data" / "voice", "output_dir": tmp_path / "run"}
    changes |= {"training.max_steps": 2, "eval.max_new_tokens": 4}
    run = train(RECIPES / "voice-pythia-1.4b.toml", overrides=tuple(f"{key}={value}" for key, value in changes.items()))
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    assert {type(event).__name__ for event in events} >= {"RunStarted", "Evaluated", "Sampled", "RunFinished"}
    assert any(
        np.abs(weight).max() > 0 for key, weight in load_file(run.file(rundir.MLX_WEIGHTS)).items() if "lora_b" in key
    )

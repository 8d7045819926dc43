"""Whole runs from random weights: any interruption changes nothing, with every optimizer; longer, and on other data."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import course, train, write_rows

from mlx_finetune import rundir
from mlx_finetune.app.generate import prompt_ids, question
from mlx_finetune.app.open import open_name
from mlx_finetune.dataset.prompts import ALPACA
from mlx_finetune.errors import RecipeError, RunError
from mlx_finetune.events import Evaluated, StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.model.sources.catalogue import cache_folder
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train import samples

RECIPE = """
output_dir = "{output}"
seed = 11
[scratch]
hidden_size = 32
num_layers = 2
num_heads = 2
context_length = 24
vocab_size = 300
[data]
path = "{data}"
val_split = 0.2
[training]
max_steps = 4
batch_size = 4
learning_rate = 1e-2
eval_steps = 2
save_steps = 1
"""
SFT = "max_seq_length = 24\ntruncation = 'split'\n[training]\nmax_steps = 1\nbatch_size = 2\n"
TEXT = "".join(f"The {word} number {n} is {n * 7} and not {n * 3}.\n" for n in range(300) for word in ("one", "two"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))


def write(folder: Path, name: str = "run", *lines: str) -> Path:
    """A recipe beside its text; ``lines`` go into [training]."""
    data = folder / "text.txt"
    if not data.exists():
        data.write_text(TEXT)
    path = folder / f"{name}.toml"
    path.write_text(RECIPE.format(output=folder / name, data=data) + "\n".join(lines) + "\n")
    return path


def result(run: RunDir) -> str:
    return hashlib.sha256((run.path / rundir.MODEL_FOLDER / "model.safetensors").read_bytes()).hexdigest()


def evaluations(run: RunDir) -> list[float]:
    return [one.event.loss for one in read_events(run.file(rundir.EVENTS)) if isinstance(one.event, Evaluated)]


def steps(run: RunDir) -> list[StepDone]:
    return [one.event for one in read_events(run.file(rundir.EVENTS)) if isinstance(one.event, StepDone)]


@pytest.mark.parametrize(
    "optimizer", ["adamw", "muon", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adafactor", "lion"))]
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    """Also where the cache, with the folder of its first weights, was removed meanwhile."""
    line = f'optimizer = "{optimizer}"'
    straight = train(write(tmp_path, "straight", line))
    recipe = write(tmp_path, "killed", line)
    killed = train(recipe, kill_after=3)
    shutil.rmtree(cache_folder())
    train(recipe, resume=True)
    assert course(killed) == course(straight)
    assert result(killed) == result(straight)


def test_experts_and_sinks_resume_to_the_same_bits(tmp_path: Path) -> None:
    more = ("scratch.num_experts=4", "scratch.attention_sinks=true", "scratch.z_loss=1e-4", "training.eval_steps=4")
    straight = train(write(tmp_path, "straight"), overrides=more)
    recipe = write(tmp_path, "killed")
    killed = train(recipe, overrides=more, kill_after=2)
    train(recipe, overrides=more, resume=True)
    assert course(killed) == course(straight)
    assert result(killed) == result(straight)
    card = killed.file(rundir.CARD).read_text()
    assert "trained from random weights" in card
    assert "trust_remote_code=True" in card
    balance = [event.metrics["balance_loss"] for event in steps(killed)]
    assert all(one is not None and 0.009 < one < 0.02 for one in balance)


def test_a_run_that_was_flat_is_extended_and_decays_at_its_new_end(tmp_path: Path) -> None:
    recipe = write(tmp_path, "run", "warmup_steps = 1")
    run = train(recipe, overrides=("training.max_steps=10",), stop_after=6)
    train(recipe, overrides=("training.max_steps=10",), extend=5)
    rates = [event.learning_rate for event in steps(run)]
    assert len(rates) == 15
    assert rates[:12] == [0.01] * 12  # the last fifth of 15, not of 10
    assert rates[12] == 0.01 > rates[13] > rates[14]


def test_other_data_under_the_trained_weights_are_refused(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    train(recipe, stop_after=2)
    (tmp_path / "text.txt").write_text(TEXT.replace("number", "quantity"))
    for is_fork in (False, True):
        with pytest.raises(RunError, match="another tokenizer") as caught:
            train(recipe, resume=not is_fork, fork=is_fork)
        assert "undo the change and go on with --resume" in caught.value.hint
        assert "task = 'pretrain'" in caught.value.hint


def test_the_next_recipe_names_the_run_as_its_model(tmp_path: Path) -> None:
    first = train(write(tmp_path))
    text = write(tmp_path, "second").read_text()
    start, end = text.index("[scratch]"), text.index("[data]")
    second = tmp_path / "second.toml"
    second.write_text(f'model = "{first.path}"\ntask = "pretrain"\n' + text[:start] + text[end:])
    overrides = ("training.max_steps=1", "data.max_seq_length=24", "data.truncation=split", "data.documents=file")
    losses, ended = evaluations(train(second, overrides=overrides)), evaluations(first)
    assert losses[0] == pytest.approx(min(ended), rel=0.02)  # its rows are one token shorter


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=smollm2-135m", "`model` = 'smollm2-135m' and [scratch] both say what is trained"),
        ("task=sft", "`task` = 'sft' does not go with [scratch]"),
        ("lora.rank=4", "[lora] does not go with [scratch]"),
        ("quantize=4", "`quantize` = 4 does not go with [scratch]"),
        ("data.max_seq_length=512", "`data.max_seq_length` = 512 is more than the 24 tokens"),
        ("scratch.hidden_size=30", "`hidden_size` = 30 and `num_heads` = 2 make no heads of an even width"),
        ("scratch.num_kv_heads=3", "is no multiple of `num_kv_heads` = 3"),
        ("scratch.num_experts=1", "`num_experts` = 1 leaves nothing to choose"),
        ("scratch.vocab_size=100", "`scratch.vocab_size` = 100 must be a whole number from 259"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path), (override,))
    assert any(message in problem.message and problem.hint for problem in caught.value.problems)


def test_what_is_left_out_has_the_defaults_of_pretraining(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path)).recipe
    assert (recipe.model, recipe.task, recipe.training.lr_scheduler) == ("scratch", "pretrain", "wsd")
    assert (recipe.training.adam_beta2, recipe.training.weight_decay) == (0.95, 0.1)
    assert (recipe.data.max_seq_length, recipe.data.truncation, recipe.data.documents) == (25, "split", "file")
    lion = load_recipe(write(tmp_path, "lion", 'optimizer = "lion"')).recipe
    assert (lion.training.adam_beta2, lion.training.weight_decay) == (0.99, 0.3)


def asked(name: str, folder: Path, prompt: str) -> str:
    """What the model of a run is given for a prompt, as text."""
    opened = open_name(name, base=folder, report=lambda _: None)
    return opened.tokenizer.decode(prompt_ids(question(prompt, opened.chat), opened.tokenizer, opened.data))


PROMPT = "The one number"


def test_a_prompt_is_text_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In samples of [eval] as in ``generate``; also for a run of a version that left the form open, resumed too."""
    seen: list[str] = []

    def spy(model: object, tokenizer: Any, ids: list[int], *rest: object, **more: object) -> list[object]:
        seen.append(tokenizer.decode(ids))
        return []

    monkeypatch.setattr(samples, "generate_tokens", spy)
    path = write(tmp_path)
    ask = (f'eval.prompts=["{PROMPT}"]',)
    run = train(path, overrides=ask, stop_after=2)
    info = json.loads(run.file(rundir.RUN_INFO).read_text())
    assert (info["resolved"]["data"]["prompt_template"], info["identity"]["recipe"]["data.prompt_template"]) == (
        "none",
        "auto",
    )
    assert asked(str(run.path), tmp_path, PROMPT) == PROMPT
    info["resolved"]["data"]["prompt_template"] = "auto"
    run.file(rundir.RUN_INFO).write_text(json.dumps(info))
    assert asked(str(run.path), tmp_path, PROMPT) == PROMPT
    train(path, overrides=ask, resume=True)
    assert set(seen) == {PROMPT}
    assert len(seen) > 2


def test_a_form_that_is_named_stays_and_what_starts_from_the_model_has_its_own(tmp_path: Path) -> None:
    named = train(write(tmp_path, "named"), overrides=("data.prompt_template=alpaca",))
    assert asked(str(named.path), tmp_path, PROMPT) == ALPACA.prompt(PROMPT, "")
    chats = write_rows(tmp_path / "chats.jsonl")
    sft = tmp_path / "sft.toml"
    sft.write_text(f'model = "{named.path}"\noutput_dir = "{tmp_path}/sft"\n[data]\npath = "{chats}"\n{SFT}')
    train(sft)
    assert asked(f"{tmp_path}/sft", tmp_path, PROMPT) == ALPACA.prompt(PROMPT, "")


def test_instructions_that_are_pretrained_on_are_asked_in_the_form_they_had(tmp_path: Path) -> None:
    rows = [{"instruction": f"Add {n} to it.", "output": f"It is {n * 7}."} for n in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(write(tmp_path), overrides=(f"data.path={tmp_path}/rows.jsonl", "scratch.context_length=300"))
    assert asked(str(run.path), tmp_path, PROMPT) == ALPACA.prompt(PROMPT, "")

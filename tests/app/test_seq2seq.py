"""What commands make of a run of an encoder-decoder model: answers, evaluation and plan, or one sentence why not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_runs import train

from mlx_finetune.app.open import open_name
from mlx_finetune.app.planning.plan import make_plan
from mlx_finetune.app.serve.models import open_rack
from mlx_finetune.commands import chat, generate, runs
from mlx_finetune.commands import eval as evaluate
from mlx_finetune.errors import MlxftError, RecipeError, UsageError
from mlx_finetune.hardware.limits import compute_dtype, read_machine
from mlx_finetune.model.adapters.lora import adapter_layers
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import RunDir

RECIPE = """
model = "{model}"
output_dir = "run"
task = "seq2seq"
[lora]
rank = 4
[data]
path = "rows.jsonl"
columns = {{ prompt = "dialogue", completion = "summary" }}
prompt_template = "summarize: {{instruction}}"
max_seq_length = 64
max_target_length = 16
[training]
max_steps = 2
[chat]
temperature = 0
max_tokens = 6
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Callable[..., Path]) -> RunDir:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("seq2seq")
    rows = [{"dialogue": f"the person {n} is here. " * (1 + n % 3), "summary": f"person {n} is"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.toml").write_text(RECIPE.format(model=tiny_t5(is_tied=False)))
    return train(folder / "recipe.toml", overrides=(f"output_dir={folder / 'run'}",))


COMMANDS = {"generate": generate.command, "chat": chat.command, "eval": evaluate.command, "runs": runs.command}


def say(name: str, *arguments: str) -> Result:
    result = CliRunner().invoke(COMMANDS[name], list(arguments))
    assert result.exception is None, result.exception
    return result


def refused(name: str, *arguments: str) -> MlxftError:
    """The error of a command that must not go well."""
    result = CliRunner().invoke(COMMANDS[name], list(arguments))
    assert isinstance(result.exception, MlxftError), result.exception
    return result.exception


def test_it_answers_a_prompt_and_a_file_of_prompts_alike(run: RunDir, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the person is here.\nyou\nthis is for the person that was on the a\n")
    alone = say("generate", str(run.path), "--file", str(prompts))
    batch = say("generate", str(run.path), "--file", str(prompts), "--batch", "3")
    rows = [[json.loads(line) for line in one.stdout.splitlines()] for one in (alone, batch)]
    kept = [[{key: row[key] for key in ("prompt", "answer", "finish")} for row in one] for one in rows]
    assert kept[0] == kept[1]
    assert [row["prompt_tokens"] for row in rows[0]] == [row["prompt_tokens"] for row in rows[1]]
    one = say("generate", str(run.path), "--prompt", "you")
    assert one.stdout.rstrip("\n") == rows[0][1]["answer"]
    assert f"next: mlxft eval {run.path}" in one.stderr


def test_draws_are_fixed_by_the_seed(run: RunDir) -> None:
    command = ("generate", str(run.path), "--prompt", "you", "--temperature", "2", "--seed")
    assert say(*command, "3").stdout == say(*command, "3").stdout != say(*command, "4").stdout


def test_what_keeps_a_conversation_is_refused_with_what_to_type(run: RunDir) -> None:
    error = refused("chat", str(run.path))
    assert "answers one prompt and keeps no conversation" in error.message
    assert error.hint == f"mlxft generate {run.path} --prompt TEXT"
    with pytest.raises(UsageError, match="which is not served: clients send conversations"):
        open_rack([str(run.path)], base=Path(), report=lambda _: None, max_rows=1, change=lambda chat: chat)


def test_an_evaluation_has_losses_and_rouge_and_no_plain_text(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent)
    result = json.loads(say("eval", "run", "--tasks", "loss,rouge", "--json").stdout)
    text = json.dumps(result)
    assert "rougeL" in text
    assert "general" not in text
    error = refused("eval", "run", "--tasks", "loss,general")
    assert "predicts answers to prompts only" in error.message
    assert error.hint == "leave it out: --tasks loss"


def test_the_plan_knows_both_stacks(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent)
    loaded = load_recipe(Path("recipe.toml"))
    plan = make_plan(loaded.recipe, base=Path(), machine=read_machine(on_gpu=False, working_set_bytes=None))
    opened = open_name("run", base=run.path.parent, report=lambda _: None)
    assert plan.shape.num_parameters == opened.info.num_parameters
    assert plan.trainable == sum(
        layer.lora_a.size + layer.lora_b.size for layer in adapter_layers(opened.model).values()
    )
    assert plan.resolved.recipe.data.packing is False
    assert plan.resolved.memory.activations > 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.packing=true", "two sequences"),
        ("data.truncation=split", "keep-end"),
        ("data.mask_prompt=false", "are not predicted"),
        ("training.neftune_alpha=5", "share an embedding"),
        ("lora.num_layers=1", "two stacks"),
        ("hardware.compute_dtype=float16", "bfloat16"),
    ],
)
def test_settings_that_do_not_go_with_the_task_are_refused(run: RunDir, override: str, said: str) -> None:
    recipe = run.path.parent / "recipe.toml"
    with pytest.raises(RecipeError, match="seq2seq") as error:
        load_recipe(recipe, (override,))
    assert said in str(error.value.problems)


@pytest.mark.parametrize("chip", ["Apple M1 Pro", "Apple M2", "Apple M4 Max"])
def test_no_mac_computes_it_in_float16(chip: str) -> None:
    machine = replace(read_machine(on_gpu=False, working_set_bytes=None), chip=chip, on_gpu=True)
    assert compute_dtype(machine, is_full=False, needs_range=True)[0] in ("float32", "bfloat16")
    assert (compute_dtype(machine, is_full=False)[0] == "float16") == (chip != "Apple M4 Max")


def test_the_report_and_the_card_say_how_to_use_it(run: RunDir) -> None:
    card = (run.path / "README.md").read_text()
    assert "mlxft generate run" in card
    assert "mlxft chat" not in card
    shown = say("runs", "show", str(run.path))
    assert f"next: mlxft generate {run.path} --prompt TEXT" in shown.stderr

"""The plan of a recipe: counts from the real tokenizer, arithmetic that agrees with loaded models, ways to fit."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mlx_finetune.app.planning.characters import num_characters
from mlx_finetune.app.planning.fitting import find_fixes
from mlx_finetune.app.planning.plan import Plan, find_local, make_plan
from mlx_finetune.app.planning.plan_report import plan_json, plan_lines
from mlx_finetune.cli import root
from mlx_finetune.dataset.formats import Instruction, Messages, Text
from mlx_finetune.errors import DataError, DoesNotFitError, ModelError, UsageError
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.auto import refuse_too_large, resolve_auto
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.shapes import read_shape
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RUN_INFO

CPU = Machine(on_gpu=False, memory_bytes=16 * 10**9, working_set_bytes=0, chip="x86_64")
FAMILIES = ("llama", "gemma", "gpt2", "gpt_neox", "qwen3")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(100, 140)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(model: Path | str, **more: object) -> Recipe:
    values: dict[str, object] = {
        "model": str(model),
        "output_dir": "adapters/x",
        "lora": {"rank": 4},
        "data": {"path": "rows.jsonl", "test_split": 0.0},
    }
    return Recipe.model_validate(values | more)


def plan(model: Path | str, **more: object) -> Plan:
    return make_plan(recipe(model, **more), base=Path.cwd(), machine=CPU)


def test_rows_and_tokens_are_counted_with_the_models_own_tokenizer(tiny_model: Callable[..., Path]) -> None:
    from mlx_finetune.model.tokens.tokenizer import load_tokenizer

    made = plan(tiny_model("llama"), data={"path": "rows.jsonl", "val_split": 0.0, "test_split": 0.0})
    tokenizer = load_tokenizer(tiny_model("llama"))
    texts = [json.loads(line)["messages"] for line in Path("rows.jsonl").read_text().splitlines()]
    expected = [len(tokenizer.encode(tokenizer.render(text)).ids) for text in texts]
    assert made.rows == {"train": 40, "valid": 0, "test": 0}
    assert made.tokens.lengths.total == sum(expected)
    assert made.tokens.lengths.longest == max(expected)
    assert made.tokens.target_share is not None
    assert 0 < made.tokens.target_share < 1
    assert any("no validation rows" in warning for warning in made.warnings)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("lora", [{"rank": 4}, {"rank": 3, "target_modules": "attention", "use_dora": True}])
def test_trainable_parameters_are_those_of_an_attached_adapter(
    tiny_model: Callable[..., Path], model_type: str, lora: dict[str, object]
) -> None:
    from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
    from mlx_finetune.model.load import load_model
    from mlx_finetune.model.sources.fetch import fetch_model

    folder = tiny_model(model_type)
    made = plan(folder, lora=lora)
    local = fetch_model(str(folder), report=lambda _: None)
    loaded = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False)
    assert made.shape.num_parameters == loaded.info.num_parameters
    assert made.recipe.lora is not None
    attach_adapter(loaded.model, made.recipe.lora, seed=0)
    assert made.trainable == sum(array.size for array in adapter_parameters(loaded.model).values())


def test_the_page_says_everything_a_person_decides_by(tiny_model: Callable[..., Path]) -> None:
    text = "\n".join(plan_lines(plan(tiny_model("llama")), name="demo.toml"))
    for part in (
        "plan of demo.toml",
        "llama, 2 blocks",
        "rows to train on",
        "no row is longer than max_seq_length = 2048",
        "steps",
        "rank 4 on 7 layers in each of 2 blocks; the adapter's output is multiplied by 8",
        "frozen weights",
        "of 12.8 GB: fits",
        "a checkpoint",
        "training.learning_rate = 0.0002  # for adapters",
    ):
        assert part in text, part


def test_a_model_that_is_not_here_is_estimated_and_never_downloaded() -> None:
    made = plan("pythia-1.4b")
    assert made.source == ""
    assert made.shape.num_parameters == 1_414_647_808
    characters = [len(f"userWhat is {n}?assistantIt is {n}.") for n in range(100, 140)]
    assert made.tokens.lengths.longest == max(characters) // 4
    assert "mlxft models get pythia-1.4b" in "\n".join(plan_lines(made, name="x"))


def test_an_unknown_model_that_is_not_here_names_the_command_that_fetches_it() -> None:
    with pytest.raises(ModelError) as caught:
        plan("somebody/something")
    assert caught.value.hint == "fetch it first: mlxft models get somebody/something"


def test_a_folder_counts_as_here(tiny_model: Callable[..., Path]) -> None:
    local = find_local(recipe(tiny_model("gpt2")), Path())
    assert local is not None
    assert local.folder == tiny_model("gpt2").resolve()


def test_a_name_that_matches_no_layer_is_warned_about(tiny_model: Callable[..., Path]) -> None:
    made = plan(tiny_model("gpt2"), lora={"target_modules": ["q_proj"]})
    assert "lora.target_modules names no layer of this model; it has c_attn, c_fc, c_proj" in made.warnings


def test_an_adapter_on_more_blocks_than_there_are_is_refused_as_in_a_training(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="num_layers = 3, but the model has 2 blocks"):
        plan(tiny_model("llama"), lora={"rank": 4, "num_layers": 3})


def test_no_training_row_is_an_error() -> None:
    Path("rows.jsonl").write_text("")
    with pytest.raises(DataError):
        plan("pythia-1.4b")


def write_rows(path: str, num_short: int, num_long: int) -> None:
    """Rows of about 35 tokens, then rows of several hundred."""
    rows = [{"prompt": f"What is {n}?", "completion": "Much. " * (1 if n < num_short else 120)} for n in range(99)]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows[: num_short + num_long]))


def test_rows_that_are_left_out_are_not_counted_as_rows_to_train_on(tiny_model: Callable[..., Path]) -> None:
    write_rows("train.jsonl", 12, 1)
    write_rows("valid.jsonl", 2, 3)
    data = {"train": "train.jsonl", "valid": "valid.jsonl", "max_seq_length": 128}
    for model in (tiny_model("llama"), "pythia-1.4b"):
        lines = list(plan_lines(plan(model, data=data), name="x"))
        assert any("12 rows to train on, 2 to validate, 0 to test" in line for line in lines)
        limit = "1 of 13 training rows (7.7%) is longer than max_seq_length = 128 and left out"
        assert any(line.strip() == limit for line in lines)
    made = plan(tiny_model("llama"), data=data)
    assert "validation data: 3 rows longer than max_seq_length and left out" in made.warnings
    cut = list(plan_lines(plan(tiny_model("llama"), data={**data, "truncation": "keep-end"}), name="x"))
    assert any(
        line.strip() == "1 of 13 training rows (7.7%) is longer than max_seq_length = 128 and cut" for line in cut
    )


def test_rows_stay_rows_where_several_sequences_are_made_of_one(tiny_model: Callable[..., Path]) -> None:
    Path("text.txt").write_text("Short.\n\n" + "A long one. " * 100)
    data = {"train": "text.txt", "max_seq_length": 128, "truncation": "split", "val_split": 0, "test_split": 0}
    made = plan(tiny_model("llama"), task="pretrain", data=data)
    count = made.tokens.lengths.count
    assert (made.rows["train"], made.tokens.num_read, count > 4) == (2, 2, True)
    text = "\n".join(plan_lines(made, name="x"))
    assert "data     2 rows to train on, 0 to validate, 0 to test" in text
    assert f"{count} sequences made of them: " in text
    assert "a sequence has " in text
    assert "1 of 2 training rows (50.0%) is longer than max_seq_length = 128 and split" in text


def test_validation_rows_that_cannot_be_used_are_refused_as_in_a_training(tiny_model: Callable[..., Path]) -> None:
    write_rows("train.jsonl", 9, 0)
    write_rows("valid.jsonl", 0, 1)
    data = {"train": "train.jsonl", "valid": "valid.jsonl", "max_seq_length": 128}
    with pytest.raises(DataError, match="the only validation row cannot be used") as caught:
        plan(tiny_model("llama"), data=data)
    assert caught.value.hint == (
        'raise data.max_seq_length, to 512 at most, or keep the end of long rows with data.truncation = "keep-end"'
    )
    assert caught.value.problems[0].where == "valid.jsonl:1"
    with pytest.raises(DataError, match="every validation row seems longer"):
        plan("pythia-1.4b", data=data)


def test_the_way_out_names_the_recipe_that_was_planned() -> None:
    Path("rows.jsonl").write_text('{"text": 1}\n{"text": 2}\n')  # one problem alone brings its own way out
    Path("my recipe.toml").write_text(
        'model = "pythia-1.4b"\noutput_dir = "o"\n[lora]\n[data]\npath = "rows.jsonl"\nformat = "text"\n'
    )
    error = call("plan", "my recipe.toml", "--no-measure", "--set", "seed=3").exception
    assert isinstance(error, DataError)
    assert error.hint == "mlxft data check 'my recipe.toml' --set seed=3"


BIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def test_every_way_to_fit_that_is_named_makes_it_fit() -> None:
    mac = Machine(on_gpu=True, memory_bytes=24 * 10**9, working_set_bytes=16 * 10**9, chip="Apple M4")
    facts = Facts(np.array([500] * 90 + [2000] * 10), read_shape(BIG), mac)
    tight = recipe("x", training={"batch_size": 4}, data={"path": "r", "packing": False})
    resolved = resolve_auto(tight, facts)
    assert resolved.memory.total > resolved.limits.memory_bytes
    fixes = find_fixes(tight, facts)
    assert 1 <= len(fixes) <= 3
    assert all(fix.options.startswith("--set ") for fix in fixes)
    assert any("quantize=8" in fix.options for fix in fixes)


def test_what_does_not_fit_is_refused_with_the_numbers_and_a_command_that_can_be_typed() -> None:
    facts = Facts(np.array([500] * 9), read_shape(BIG), CPU)
    with pytest.raises(DoesNotFitError) as caught:
        refuse_too_large(resolve_auto(recipe("x"), facts), recipe("x").hardware, CPU, plan="mlxft plan x.toml")
    assert re.fullmatch(r"the training needs about 3\d\.\d GB, and the memory limit is 12\.8 GB", caught.value.message)
    assert "mlxft plan x.toml" in caught.value.hint


def test_a_limit_that_was_set_lower_than_the_machines_is_said_where_training_refuses(written: str) -> None:
    loaded = load_recipe(Path(written), ["hardware.memory_limit=1MB"])
    facts = Facts(np.array([500] * 9), read_shape(BIG), CPU)
    resolved = resolve_auto(loaded.recipe, facts)
    with pytest.raises(DoesNotFitError) as caught:
        refuse_too_large(resolved, loaded.recipe.hardware, CPU, plan=loaded.command("plan"))
    assert caught.value.hint == (
        "what would make it fit is listed by: mlxft plan demo.toml --set hardware.memory_limit=1MB, and "
        "hardware.memory_limit, which was set, may be left out: 12.8 GB here"
    )


def test_characters_are_those_of_what_is_said() -> None:
    turns = ({"role": "user", "content": "abc"},)
    assert num_characters(Text("abcd", "f", 1)) == 4
    assert num_characters(Instruction("ab", "c", "def", "f", 1)) == 6
    assert num_characters(Messages(turns, None, "f", 1)) == 7


def call(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments), standalone_mode=False)


@pytest.fixture
def written(tiny_model: Callable[..., Path]) -> str:
    text = f'model = "{tiny_model("llama")}"\noutput_dir = "adapters/x"\n[lora]\n[data]\npath = "rows.jsonl"\n'
    Path("demo.toml").write_text(text)
    return "demo.toml"


def test_dry_run_prints_the_plan_and_makes_nothing(written: str, here: Path) -> None:
    before = sorted(path.name for path in here.iterdir())
    planned, dry = call("plan", written, "--no-measure"), call("train", written, "--dry-run")
    assert planned.return_value == dry.return_value == 0
    assert planned.stdout == dry.stdout
    assert planned.stdout.startswith("plan of demo.toml")
    assert "next: mlxft train demo.toml" in planned.stderr
    assert sorted(path.name for path in here.iterdir()) == before


def test_a_command_that_trains_leads_beside_the_run_that_is_there(written: str) -> None:
    for folder in (Path("adapters/x"), Path("adapters/x-2")):
        folder.mkdir(parents=True)
    (Path("adapters/x") / RUN_INFO).write_text("{}")
    command = f"mlxft train {written} --set lora.rank=2 --set output_dir=adapters/x-3"
    options = ("--set", "lora.rank=2")
    assert call("plan", written, *options, "--no-measure").stderr.endswith(f"next: {command}\n")
    assert json.loads(call("plan", written, *options, "--no-measure", "--json").stdout)["command"] == command
    for asked in ("preview", "check"):
        assert call("data", asked, written, *options).stderr.endswith(f"next: {command}\n")
    there = call("plan", written, "--predict", "M4 Max 64 GB")
    assert there.stderr.endswith(f"there: mlxft train {written}\n")


def test_dry_run_with_a_hostfile_plans_for_all_its_processes_and_keeps_it_in_the_command(written: str) -> None:
    Path("two.json").write_text('[{"ssh": "127.0.0.1"}, {"ssh": "127.0.0.1"}]')
    options = ("--set", "lora.num_layers=1", "--set", "training.epochs=9", "--dry-run")
    alone, both = call("train", written, *options), call("train", written, *options, "--hostfile", "two.json")
    assert alone.return_value == both.return_value == 0
    assert "reuse_frozen_layers = true" in alone.stdout
    assert "reuse_frozen_layers = false  # 2 processes share the rows" in both.stdout
    assert "2 processes train together: the memory is that of each, the time that of one alone" in both.stderr
    assert both.stderr.endswith("--set training.epochs=9 --hostfile two.json\n")
    as_json = call("train", written, *options, "--json", "--hostfile", "two.json")
    assert json.loads(as_json.stdout)["command"].endswith("--hostfile two.json")


@pytest.mark.parametrize("way", [("--resume",), ("--fork",), ("--extend", "10")])
def test_a_dry_run_proposes_the_command_that_was_typed(written: str, way: tuple[str, ...]) -> None:
    planned = call("train", written, "--set", "training.epochs=2", *way, "--dry-run")
    assert planned.stderr.endswith(f"next: mlxft train demo.toml --set training.epochs=2 {' '.join(way)}\n")


def test_a_hostfile_is_checked_by_a_dry_run_as_by_a_training(written: str) -> None:
    Path("rdma.json").write_text('{"backend": "jaccl", "hosts": [{"ssh": "127.0.0.1"}, {"ssh": "127.0.0.1"}]}')
    for more in ((), ("--dry-run",)):
        result = call("train", written, "--hostfile", "rdma.json", *more)
        assert isinstance(result.exception, UsageError)
        assert "jaccl" in result.exception.message or '"rdma"' in result.exception.message


def test_a_hostfile_with_one_host_is_said_to_be_no_company(written: str) -> None:
    Path("one.json").write_text('[{"ssh": "127.0.0.1"}]')
    result = call("train", written, "--hostfile", "one.json", "--dry-run")
    assert result.return_value == 0
    assert "warning: one.json lists one host: this machine trains alone" in result.stderr


def test_a_plan_that_does_not_fit_exits_with_three(written: str) -> None:
    result = call("plan", written, "--set", 'hardware.memory_limit="1 MB"')
    assert result.return_value == 3
    assert "error: this training needs about" in result.stderr
    assert "hint: " in result.stderr


def test_the_plan_as_json_has_its_numbers_and_reasons(written: str) -> None:
    values = json.loads(call("plan", written, "--no-measure", "--json", "--set", "training.max_steps=30").stdout)
    assert values["fits"] is True
    assert values["steps"]["total"] == 30
    assert values["recipe"]["training"]["warmup_steps"] == 1
    assert values["reasons"]["training.warmup_steps"] == "3 % of 30 steps, at most 100"
    assert values["memory_bytes"]["total"] > values["memory_bytes"]["weights"] > 0


def test_disk_is_checked_against_what_is_free(tiny_model: Callable[..., Path]) -> None:
    made = plan(tiny_model("llama"))
    full = dataclasses.replace(made, disk=dataclasses.replace(made.disk, free=made.disk.needed - 1))
    assert made.fits
    assert not full.fits
    assert plan_json(full)["fits_disk"] is False


def test_corrections_are_counted_among_the_rows_to_train_on(tiny_model: Callable[..., Path]) -> None:
    path = Path("adapters/old/corrections.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text(Path("rows.jsonl").read_text().replace("What is", "Say").replace("It is", "Aye,"))
    data = {"path": "rows.jsonl", "val_split": 0.0, "test_split": 0.0}
    without = plan(tiny_model("llama"), data=data)
    made = plan(tiny_model("llama"), data=data | {"corrections": "old"})
    assert made.rows == {"train": 80, "valid": 0, "test": 0, "corrections": 40}
    assert made.tokens.lengths.count == 80
    assert made.resolved.steps_per_epoch > without.resolved.steps_per_epoch
    assert "80 rows to train on (40 of them corrections), 0 to" in "\n".join(plan_lines(made, name="x"))
    assert plan_json(made)["rows"] == made.rows
    none = plan(tiny_model("llama"), data=data | {"corrections": True})
    assert none.rows["corrections"] == 0
    with pytest.raises(DataError, match=r"data.corrections = 'missing'"):
        plan(tiny_model("llama"), data=data | {"corrections": "missing"})

"""``mlxft data``: what is printed, where, and the exit codes."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_runs import train
from tiny import write_tiny_model

from mlx_finetune.commands.data import command
from mlx_finetune.dataset.problems import SHOWN_PER_KIND
from mlx_finetune.errors import DataError, MlxftError, UsageError


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, MlxftError):
        raise result.exception
    return result


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"question {number}", "completion": f"answer {number}"}) for number in range(60)]
    (tmp_path / "good.jsonl").write_text("\n".join(rows))
    (tmp_path / "bad.jsonl").write_text("\n".join([*rows[:3], "{bad", rows[0], '{"prompt": "p", "completion": ""}']))
    return tmp_path


def recipe(folder: Path, model: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text(
        f'model = "{model}"\noutput_dir = "out"\n[lora]\n[data]\npath = "good.jsonl"\nmax_seq_length = 31\n'
        "[training]\nmax_steps = 1\n"
    )
    return path


def test_check_of_good_data_ends_with_the_next_command(folder: Path) -> None:
    result = run("check", "good.jsonl")
    assert result.return_value == 0
    assert result.stdout.splitlines()[0] == "good.jsonl: 60 rows, format prompt-completion"
    assert result.stderr == "no errors, 0 warnings; next: mlxft data stats good.jsonl\n"


def test_check_of_few_rows_says_how_a_training_divides_them(folder: Path, tiny_model: Callable[..., Path]) -> None:
    path = recipe(folder, tiny_model("llama"))
    path.write_text(path.read_text().replace("max_seq_length = 31", "val_split = 0.0"))
    sides = re.compile(
        r"^few rows: (\d+) to train on, (\d+) for validation, (\d+) kept for a test; data.val_split", re.M
    )
    found = [sides.search(run("check", target).stdout) for target in ("good.jsonl", path)]
    assert all(one is not None and sum(map(int, one.groups())) == 60 for one in found)
    assert found[1] is not None
    assert found[1][2] == "0"
    many = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(100))
    (folder / "many.jsonl").write_text(many)
    assert "few rows" not in run("check", "many.jsonl").stdout
    assert "few rows" not in run("check", path, "--set", "data.test_split=0").stdout


def test_check_of_bad_data_lists_everything_and_returns_1(folder: Path) -> None:
    result = run("check", "bad.jsonl")
    assert result.return_value == 1
    lines = result.stderr.splitlines()
    assert "error: bad.jsonl:4: not JSON: expecting property name enclosed in double quotes (column 2)" in lines
    assert "warning: bad.jsonl:6: the answer is empty" in lines
    assert 'warning: bad.jsonl:5: the row repeats "bad.jsonl:1"' in lines
    assert lines[-1] == "1 error, 2 warnings: a training would refuse this data"


def test_check_as_json_has_the_same_numbers(folder: Path) -> None:
    result = run("check", "bad.jsonl", "--json")
    report = json.loads(result.stdout)
    assert result.return_value == 1
    assert (report["num_errors"], report["num_warnings"], report["num_duplicates"]) == (1, 2, 1)
    assert report["errors"][0]["where"] == "bad.jsonl:4"
    assert report["rows"] == {"train": 5}


def test_check_with_a_recipe_counts_tokens_targets_and_rows_that_are_cut(
    folder: Path, tiny_model: Callable[..., Path]
) -> None:
    result = run("check", recipe(folder, tiny_model("llama")), "--json")
    report = json.loads(result.stdout)
    tokens = report["tokens"]
    assert (tokens["unit"], tokens["count"]) == ("tokens", 60)
    beyond = sum(bucket["count"] for bucket in tokens["histogram"] if bucket["low"] >= 32)
    assert 0 < tokens["num_cut"] == beyond < 60
    assert 0 < tokens["target_share"] < 1
    told = run("check", folder / "recipe.toml", "--set", "data.max_seq_length=4096")
    assert "no row is longer than max_seq_length = 4096 (truncation = drop)" in told.stdout
    assert told.stderr.endswith(f"next: mlxft train {folder / 'recipe.toml'} --set data.max_seq_length=4096\n")


def test_rows_that_are_too_long_are_listed_with_file_and_line_and_counted_alike_in_json(
    folder: Path, tiny_model: Callable[..., Path]
) -> None:
    path = recipe(folder, tiny_model("llama"))
    told = run("check", path)
    report = json.loads(run("check", path, "--json").stdout)
    tokens = report["tokens"]
    long = [one for one in report["warnings"] if "are more than max_seq_length = 31: dropped" in one["message"]]
    assert tokens["outcomes"]["too_long"] == tokens["num_cut"] == report["num_warnings"]
    assert len(long) == SHOWN_PER_KIND < tokens["num_cut"]
    assert f"no errors, {report['num_warnings']} warnings" in told.stderr
    lines = told.stderr.splitlines()
    assert all(f"warning: {one['where']}: {one['message']}" in lines for one in long)
    assert long[-1]["message"].endswith(f"dropped (and {tokens['num_cut'] - SHOWN_PER_KIND} more like it)")
    assert sum("max_seq_length = 31: dropped" in line for line in lines) == SHOWN_PER_KIND


@pytest.mark.parametrize(("truncation", "outcome"), [("keep-end", "cut"), ("split", "split")])
def test_rows_that_a_training_cuts_or_splits_are_listed_as_such(
    folder: Path, tiny_model: Callable[..., Path], truncation: str, outcome: str
) -> None:
    found = run("check", recipe(folder, tiny_model("llama")), "--set", f"data.truncation={truncation}", "--json")
    report = json.loads(found.stdout)
    assert report["tokens"]["outcomes"][outcome] == report["tokens"]["num_cut"] > 0
    assert report["num_errors"] == 0


def test_a_validation_set_without_a_row_that_can_be_used_is_an_error(
    folder: Path, tiny_model: Callable[..., Path]
) -> None:
    path = recipe(folder, tiny_model("llama"))
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "question " * 9, "completion": "answer " * 40}))
    named = ("--set", "data.train=good.jsonl", "--set", "data.valid=long.jsonl")
    path.write_text(path.read_text().replace('path = "good.jsonl"\n', ""))
    told = run("check", path, *named)
    assert told.return_value == 1
    lines = told.stderr.splitlines()
    assert lines[0] == "error: the only validation row cannot be used"
    assert lines[1].startswith("hint: raise data.max_seq_length, to 512 at most, or keep the end of long rows with ")
    assert any(line.startswith("warning: long.jsonl:1: ") and line.endswith(": dropped") for line in lines)
    assert lines[-1].startswith("1 error, ")
    report = json.loads(run("check", path, *named, "--json").stdout)
    assert (report["num_errors"], report["errors"][0]["message"]) == (1, "the only validation row cannot be used")


def short_model(folder: Path, tiny_model: Callable[..., Path], context: int) -> Path:
    """A model in ``folder/short`` that reads ``context`` tokens."""
    model = shutil.copytree(tiny_model("llama"), folder / "short", dirs_exist_ok=True)
    config = json.loads((tiny_model("llama") / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    return model


def test_rows_longer_than_the_model_reads_are_the_error_that_a_training_ends_with(
    folder: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(folder, short_model(folder, tiny_model, 20))
    monkeypatch.setenv("MLXFT_CACHE", str(folder / "cache"))
    found = run("check", path)
    assert found.return_value == 1
    said = next(line for line in found.stderr.splitlines() if "reads at most 20" in line)
    whole = [run("check", path, "--set", "data.max_seq_length=99", *more) for more in ((), ("--json",))]
    longest = json.loads(whole[1].stdout)["tokens"]["longest"]
    assert f" has {longest} tokens, but " in whole[0].stderr
    assert "hint: set data.max_seq_length = 20 or less" in found.stderr
    with pytest.raises(DataError) as refused:
        train(path)
    assert said == f"error: {refused.value.message}"
    assert "reads at most" not in run("check", path, "--set", "data.max_seq_length=20").stderr


def test_a_reward_model_reads_the_last_token_of_an_answer_too(
    folder: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(folder / "cache"))
    rows = [{"prompt": f"Why {number}?", "chosen": "Because.", "rejected": "No."} for number in range(10, 20)]
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe(folder, tiny_model("llama"))
    path.write_text('task = "reward"\n' + path.read_text().replace("= 31", "= 99"))
    longest = json.loads(run("check", path, "--json").stdout)["tokens"]["longest"]
    for context, words in ((longest, ""), (longest - 1, f" has {longest} tokens, but short reads at most ")):
        named = ("--set", f"model={short_model(folder, tiny_model, context)}")
        found = run("check", path, *named)
        assert found.return_value == bool(words)
        assert words in found.stderr
    with pytest.raises(DataError, match=f"has {longest} tokens, but .* reads at most {longest - 1}"):
        train(path, overrides=named[1:])


def test_a_longer_limit_is_no_way_out_where_the_model_reads_no_more(
    folder: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(folder, short_model(folder, tiny_model, 20))
    monkeypatch.setenv("MLXFT_CACHE", str(folder / "cache"))
    (folder / "good.jsonl").write_text(json.dumps({"prompt": "question " * 9, "completion": "answer " * 40}))
    keep_end = 'keep the end of long rows with data.truncation = "keep-end"'
    for limit, hint in ((10, f"raise data.max_seq_length, to 20 at most, or {keep_end}"), (20, keep_end)):
        given = ("--set", "data.val_split=0", "--set", f"data.max_seq_length={limit}")
        assert run("check", path, *given).stderr.splitlines()[1] == f"hint: {hint}"
        with pytest.raises(DataError) as refused:
            train(path, overrides=given[1::2])
        assert refused.value.hint == hint


def test_every_row_that_is_left_out_is_counted_with_its_reason_and_the_way_out(
    folder: Path,
) -> None:
    """The model has no chat template, and five conversations are more than one question and one answer."""
    turns = [{"role": role, "content": "word"} for role in ("user", "assistant", "user", "assistant")]
    rows = [{"messages": turns[: 2 if number < 20 else 4]} for number in range(25)]
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = write_tiny_model(folder / "base", "llama", chat_template=False)
    found = run("check", recipe(folder, model), "--set", "data.max_seq_length=900")
    assert "5 of 25 rows could not be rendered and are left out" in found.stdout
    assert "hint: use an instruction-tuned model, or set data.chat_template to a Jinja file" in found.stderr


def test_check_with_a_recipe_lists_errors_before_any_model_is_looked_for(folder: Path) -> None:
    result = run("check", recipe(folder, folder / "no-model"), "--set", "data.path=bad.jsonl")
    assert result.return_value == 1
    assert "error: bad.jsonl:4: " in result.stderr


def test_set_needs_a_recipe(folder: Path) -> None:
    result = run("check", "good.jsonl", "--set", "seed=1")
    assert isinstance(result.exception, UsageError)


def test_stats_are_data_on_stdout(folder: Path) -> None:
    (folder / "talk.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    )
    result = run("stats", "talk.jsonl")
    assert result.return_value == 0
    assert "turns by role: user 1, assistant 1" in result.stdout
    assert "turns in a row: 2 in 1 row" in result.stdout
    assert result.stderr == ""


def test_check_and_stats_list_the_labels_with_their_rows(folder: Path) -> None:
    (folder / "labels.csv").write_text("text,label\nfine,good\nwell,good\nno,bad\nbest,good\n")
    for asked in ("check", "stats"):
        assert '\n2 labels, rows of each: "good" 3 (75%), "bad" 1 (25%)\n' in run(asked, folder / "labels.csv").stdout
    assert json.loads(run("stats", folder / "labels.csv", "--json").stdout)["labels"] == {"good": 3, "bad": 1}


def test_split_writes_the_files_beside_the_data_and_says_how_to_use_them(folder: Path) -> None:
    result = run("split", "good.jsonl", "--val", "0.2", "--test", "0")
    counts = {line.split(":")[0]: int(line.split()[1]) for line in result.stdout.splitlines()}
    assert list(counts) == ["good/train.jsonl", "good/valid.jsonl"]
    assert sum(counts.values()) == 60
    assert result.stderr == 'use it in a recipe: [data] path = "good"\n'
    again = run("split", "good.jsonl", "--val", "0.2", "--test", "0")
    assert isinstance(again.exception, DataError)
    assert "exists already" in again.exception.message


def test_split_refuses_shares_that_leave_nothing_and_data_that_is_split(folder: Path) -> None:
    assert isinstance(run("split", "good.jsonl", "--val", "0.6", "--test", "0.4").exception, UsageError)
    run("split", "good.jsonl")
    refused = run("split", "good").exception
    assert isinstance(refused, DataError)
    assert refused.message == "good is split already: train, valid, test"


def test_checking_a_bare_path_imports_no_mlx_and_no_transformers(folder: Path) -> None:
    code = (
        "import sys; from mlx_finetune.cli import main\n"
        "try: main(['data', 'check', 'good.jsonl'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'datasets', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        0,
        "no errors, 0 warnings; next: mlxft data stats good.jsonl",
    )


def test_check_of_a_recipe_counts_its_corrections_and_finds_what_is_wrong_with_them(
    folder: Path, tiny_model: Callable[..., Path]
) -> None:
    path = folder / "adapters" / "old" / "corrections.jsonl"
    path.parent.mkdir(parents=True)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path.write_text(json.dumps({"messages": turns, "origin": {}}) + "\n")
    made = recipe(folder, tiny_model("llama"))
    result = run("check", made, "--set", "data.corrections=old")
    assert result.return_value == 0
    assert "adapters/old/corrections.jsonl: 1 row, format corrections" in result.stdout.splitlines()
    report = json.loads(run("check", made, "--set", "data.corrections=old", "--json").stdout)
    assert (report["rows"], report["tokens"]["count"]) == ({"train": 61}, 61)
    with path.open("a") as file:
        file.write('{"messages": []}\n{\n')
    bad = run("check", made, "--set", "data.corrections=old")
    assert bad.return_value == 1
    assert "error: adapters/old/corrections.jsonl:2: `messages` is empty" in bad.stderr
    assert "error: adapters/old/corrections.jsonl:3: not JSON: " in bad.stderr
    missing = run("check", made, "--set", "data.corrections=none").exception
    assert isinstance(missing, DataError)

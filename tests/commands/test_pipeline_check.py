"""What would end a stage of a pipeline hours later is found by the check, with its line: nothing is run here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_runs import write_rows

from mlx_finetune.commands.recipe import command
from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.row import Row
from mlx_finetune.errors import RecipeError

TOP = """
output_dir = "adapters/p"
[[stages]]
name = "text"
recipe = "text.toml"
[[stages]]
name = "sft"
recipe = "sft.toml"
[[stages]]
name = "judge"
recipe = "judge.toml"
"""
BODY = 'model = "m"\noutput_dir = "adapters/x"\n[data]\npath = "{rows}"\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("rows.jsonl"))
    Path("text.jsonl").write_text('{"text": "Only text."}\n' * 3)
    Path("text.toml").write_text('task = "pretrain"\n' + BODY.format(rows="text.jsonl"))
    Path("sft.toml").write_text(BODY.format(rows="rows.jsonl"))
    marked = [{"prompt": f"1+{number}=", "completion": "2", "label": number == 1} for number in range(30)]
    Path("marked.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in marked))
    Path("judge.toml").write_text('task = "verifier"\n' + BODY.format(rows="marked.jsonl") + "[lora]\n")
    return tmp_path


def check(more: str) -> list[str]:
    """Every problem that ``mlxft recipe check`` finds."""
    Path("p.toml").write_text(TOP + more)
    result = CliRunner().invoke(command, ["check", "p.toml"], standalone_mode=False)
    if result.exception is None:
        assert result.stdout.startswith("ok: p.toml: pipeline text -> sft -> judge")
        return []
    assert isinstance(result.exception, RecipeError)
    return [f"{one.where}: {one.message} / {one.hint}" for one in result.exception.problems]


def assert_told(found: list[str], *expected: str) -> None:
    """Each is the beginning of one problem, and there are no others."""
    for words in expected:
        assert sum(one.startswith(words) for one in found) == 1, (words, found)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "sample {sft} --data rows.jsonl --out {folder} --anwers 8",
            "No such option '--anwers'. Did you mean '--answers'? / ",
        ),
        ("sample {sft} --data rows.jsonl", "Missing option '--out'. / mlxft sample --help"),
        ("sample {sft} --data rows.jsonl --out {folder} -k no", "Invalid value for '-k' / '--answers': 'no' is not a"),
        ("eval {sft} --help", "its command only asks for help / "),
        ("eval {sft} --tasks nmber", "there is no task `nmber` / did you mean number?"),
        ("eval {sft} --gate 'number >= 7'", "the gate `number >= 7` can never be met"),
        ("eval {sft} --json --csv", "--json and --csv are two forms of the same report / "),
        ("eval {judge} --samples rows.jsonl --tasks loss", "--samples and --tasks do not go together"),
        ("eval {sft} --checkpoints --sinks", "--checkpoints and --sinks are two evaluations"),
        ("eval {judge} --tasks number", "this run scores rows and writes no answers, so it is measured by labels"),
        ("eval {sft} --data text.jsonl --tasks number", "the task `number` needs questions with answers, and the rows"),
        ("generate {sft}", "give either --prompt or --file / "),
        ("generate {sft} --prompt a --temperature hot", "temperature"),
        ("generate {sft} --prompt a --schema no.json", "reads no.json, and there is no such file"),
        ("trace {sft} --dense", "--dense belongs to --export FOLDER / "),
        ("trace adapters/lost", "'adapters/lost' is not a run folder and no run under adapters/ has that name"),
        ("sample adapters/lost --data rows.jsonl --out {folder}", "there is no run, folder or model 'adapters/lost'"),
    ],
)
def test_a_command_is_read_before_its_turn_comes(words: str, expected: str) -> None:
    found = check(f'[[stages]]\nname = "command"\ncommand = "{words}"\n')
    assert found
    assert expected in found[0]
    assert found[0].startswith(("p.toml:14: stage command: ", "p.toml: stage command "))


def test_one_mistake_hides_no_other() -> None:
    wrong = '[[stages]]\nname = "more"\nrecipe = "sft.toml"\nstart_from = "textx"\nset = ["training.max_steps=no"]\n'
    drawn = '[[stages]]\nname = "drawn"\ncommand = "sample {sftx} --data lost.jsonl --out {folder}"\n'
    asked = '[[evaluations]]\nname = "e"\nstages = ["txt"]\ndata = "gone.jsonl"\ntasks = ["exact"]\nmax_rows = 0\n'
    assert_told(
        check(wrong + drawn + asked),
        'p.toml:15: there is no stage "textx" / did you mean text?',
        'p.toml:16: `training.max_steps` = "no"',
        'p.toml:19: there is no stage "sftx" / did you mean sft?',
        'p.toml:22: there is no stage "txt" / did you mean text?',
        "p.toml:24: [[evaluations]] e `tasks`: there is no task `exact`",
        "p.toml:25: `max_rows` = 0",
        "p.toml: stage drawn reads lost.jsonl, and there is no such file",
        "p.toml: evaluation e reads gone.jsonl, and there is no such file",
    )


def test_tasks_that_do_not_fit_are_told_beside_what_is_wrong_in_the_file() -> None:
    wrong = '[[stages]]\nname = "more"\nrecipe = "sft.toml"\nstart_from = "textx"\n'
    drawn = '[[stages]]\nname = "drawn"\ncommand = "eval {sft} --tasks nmber"\n'
    asked = '[[evaluations]]\nname = "e"\nstages = ["judge"]\ntasks = ["number"]\n'
    asked += '[[evaluations]]\nname = "f"\nstages = ["sft"]\ndata = "{no}/rows.jsonl"\n'
    odd = '[[stages]]\nname = "odd"\ncommand = "train sft.toml"\n'
    assert_told(
        check(wrong + drawn + odd + asked),
        'p.toml:15: there is no stage "textx" / did you mean text?',
        "p.toml:18: stage drawn: there is no task `nmber` / did you mean number?",
        'p.toml:21: "train" is no command of mlxft that a stage can run',
        "p.toml:25: evaluation e of stage judge: this run scores rows and writes no answers",
        'p.toml:29: there is no stage "no"',
    )


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ('[[evaluations]]\nname = "e"\nstages = ["sft"]\ndata = "{drawn}/sft"\ntasks = ["perplexity"]\n',
         ": evaluation e of stage sft: the task `perplexity` is of plain text"),
        ('[[evaluations]]\nname = "e"\nstages = ["sft"]\ndata = "{drawn}/verifier"\ntasks = ["number"]\n',
         ": evaluation e of stage sft: the rows are answers marked good or bad"),
        ('[[evaluations]]\nname = "e"\nstages = ["judge"]\ndata = "{drawn}/verifier"\ntasks = ["number"]\n',
         ": evaluation e of stage judge: this run scores rows and writes no answers"),
        ('[[evaluations]]\nname = "e"\nstages = ["sft"]\ndata = "{drawn}/verifier"\ntasks = ["preference"]\n', ""),
        ('[[stages]]\nname = "again"\nrecipe = "sft.toml"\nset = ["data.path={drawn}/verifier"]\n',
         "p.toml:15: stage again: adapters/p/drawn/verifier: the rows are answers marked good or bad"),
        ('[[stages]]\nname = "again"\nrecipe = "judge.toml"\nset = ["data.path={drawn}/sft"]\n',
         "p.toml:15: stage again: adapters/p/drawn/sft: the rows are prompt-completion; task verifier learns from"),
        ('[[stages]]\nname = "again"\nrecipe = "judge.toml"\nset = ["data.path={drawn}/verifier"]\n', ""),
    ],
)  # fmt: skip
def test_rows_that_a_stage_will_sample_are_known_before(rest: str, expected: str) -> None:
    drawn = '[[stages]]\nname = "drawn"\ncommand = "sample {sft} --data rows.jsonl --out {folder}"\n'
    found = check(drawn + rest)
    assert len(found) == bool(expected), found
    assert not found or expected in found[0], found


def test_good_commands_and_what_stages_will_make_are_no_problem() -> None:
    drawn = '[[stages]]\nname = "drawn"\ncommand = "sample {sft} --data rows.jsonl --out {folder}"\n'
    best = '[[stages]]\nname = "best"\ncommand = "eval {judge} --samples {drawn} --out {folder}"\n'
    base = '[[stages]]\nname = "base"\ncommand = "eval smollm2-135m --data rows.jsonl --out {folder}"\n'
    asked = '[[evaluations]]\nname = "e"\nstages = ["text", "sft"]\ndata = "{drawn}/sft"\ntasks = ["number"]\n'
    assert check(drawn + best + base + asked) == []
    assert check(drawn + best.replace("{judge}", "{drawn}"))[0].endswith(
        "stage best: drawn trains nothing that eval could load / name a stage that has a recipe"
    )


@pytest.mark.parametrize(
    ("stage", "rest", "expected"),
    [
        ("judge", 'tasks = ["number"]', "this run scores rows and writes no answers"),
        ("text", 'tasks = ["number"]', "the task `number` needs questions with answers, and the rows are plain text"),
        ("sft", 'data = "rows.jsonl"\ntasks = ["perplexity"]', "the task `perplexity` is of plain text"),
        ("sft", 'data = "rows.jsonl"\ntasks = ["preference"]', "the task `preference` needs rows with chosen"),
        ("sft", 'data = "rows.jsonl"\ntasks = ["labels"]', "these are no classes"),
    ],
)
def test_tasks_that_do_not_fit_a_stage_are_refused_with_their_line(stage: str, rest: str, expected: str) -> None:
    found = check(f'[[evaluations]]\nname = "e"\nstages = ["{stage}"]\n{rest}\n')
    assert len(found) == 1
    line = 15 + rest.count("\n")
    assert found[0].startswith(f"p.toml:{line}: evaluation e of stage {stage}: ")
    assert expected in found[0]


def test_rows_that_are_there_are_read_and_those_that_a_stage_makes_are_not() -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write('{"messages": \n')
    with Path("marked.jsonl").open("a") as file:
        file.write('{"prompt": "1+1=", "completion": "2", "label": "maybe"}\n')
    made = Path("adapters/p/drawn/sft/train.jsonl")
    made.parent.mkdir(parents=True)
    made.write_text("of an earlier start\n")
    later = '[[stages]]\nname = "later"\nrecipe = "sft.toml"\nset = ["data.path={drawn}/sft"]\n'
    drawn = '[[stages]]\nname = "drawn"\ncommand = "generate {sft} --prompt a"\n'
    first, second = check(drawn + later)
    assert first.startswith("rows.jsonl:25: not JSON: expecting value (column 14) / ")
    assert second.startswith("marked.jsonl:31: ")


def test_the_rows_of_an_evaluation_are_read_once_for_all_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(path: Path, **options: Any) -> Iterator[Row]:
        read.append(path.name)
        return read_rows(path, **options)

    monkeypatch.setattr("mlx_finetune.dataset.examples.read_rows", count)
    Path("test.jsonl").write_text(Path("rows.jsonl").read_text())
    stages = "".join(f'[[stages]]\nname = "s{number}"\nrecipe = "sft.toml"\n' for number in range(3))
    drawn = '[[stages]]\nname = "drawn"\ncommand = "sample {sft} --data test.jsonl --out {folder}"\n'
    evaluation = '[[evaluations]]\nname = "e"\nstages = ["s0", "s1", "s2"]\ndata = "test.jsonl"\ntasks = ["loss"]\n'
    assert check(stages + drawn + evaluation) == []
    assert read.count("test.jsonl") == 1


def test_rows_that_a_command_draws_from_are_read() -> None:
    Path("test.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    (found,) = check('[[stages]]\nname = "drawn"\ncommand = "sample {sft} --data test.jsonl --out {folder}"\n')
    assert found.startswith("p.toml:14: stage drawn: test.jsonl:2: one problem in the data: not JSON: expecting value")


def test_problems_of_recipes_and_commands_and_evaluations_come_at_once() -> None:
    Path("sft.toml").write_text(BODY.format(rows="rows.jsonl") + '[eval]\ntasks = ["loss"]\ngates = ["number > 0.5"]\n')
    command_stage = '[[stages]]\nname = "c"\ncommand = "eval {sft} --task loss"\n'
    evaluation = '[[evaluations]]\nname = "e"\nstages = ["judge"]\ntasks = ["loss"]\n'
    assert [one.partition(": ")[0] for one in check(command_stage + evaluation)] == [
        "sft.toml:7",
        "p.toml:14",
        "p.toml:18",
    ]

"""Corrections: which files are meant, what a row must be, and that they are training rows and nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_finetune.dataset.corpus import Splits, load_splits
from mlx_finetune.dataset.corrections import as_at_start, correction_of, find_corrections, note_sizes
from mlx_finetune.dataset.formats import Instruction, Messages
from mlx_finetune.dataset.problems import RowError
from mlx_finetune.dataset.row import DataFile, Row
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.errors import DataError
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import Recipe


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def line(*texts: str) -> str:
    return json.dumps({"messages": turns(*texts), "origin": {"answer": "wrong"}}) + "\n"


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def recipe(**fields: object) -> Recipe:
    data = {"path": "rows.jsonl", **{key: fields.pop(key) for key in ("corrections",) if key in fields}}
    values = {"model": "m", "output_dir": "adapters/new", "lora": {}, "data": data, **fields}
    return Recipe.model_validate(values)


def sources(made: Recipe, base: Path) -> list[str]:
    return [file.source for file in find_corrections(made, base=base)]


def test_true_means_the_run_in_output_dir_and_the_one_that_training_starts_from(tmp_path: Path) -> None:
    assert sources(recipe(corrections=True), tmp_path) == []
    write(tmp_path / "adapters" / "new" / "corrections.jsonl", line("q", "a"))
    write(tmp_path / "adapters" / "old" / "corrections.jsonl", line("q", "b"))
    write(tmp_path / "adapters" / "empty" / "corrections.jsonl")
    (tmp_path / "adapters" / "old" / "checkpoint-5").mkdir()
    new, old = "adapters/new/corrections.jsonl", "adapters/old/corrections.jsonl"
    assert sources(recipe(), tmp_path) == []
    assert sources(recipe(corrections=True), tmp_path) == [new]
    for adapter in ("adapters/old", "old", "adapters/old/checkpoint-5", "old/checkpoint-5", "adapters/old/"):
        assert sources(recipe(corrections=True, adapter=adapter), tmp_path) == [old, new]
    assert sources(recipe(corrections=True, adapter="adapters/empty", output_dir="elsewhere"), tmp_path) == []


def test_a_run_a_folder_or_a_file_may_be_named_and_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "adapters" / "old" / "corrections.jsonl", line("q", "a"))
    write(tmp_path / "mine.jsonl", line("q", "b"))
    (tmp_path / "adapters" / "none").mkdir()
    for name in ("old", "adapters/old", str(tmp_path / "adapters" / "old"), "adapters/old/corrections.jsonl"):
        assert [file.path for file in find_corrections(recipe(corrections=name), base=tmp_path)] == [
            tmp_path / "adapters" / "old" / "corrections.jsonl"
        ]
    assert sources(recipe(corrections=["mine.jsonl", "old", "adapters/old"]), tmp_path) == [
        "mine.jsonl",
        "adapters/old/corrections.jsonl",
    ], "a file that is named twice counts once"
    with pytest.raises(DataError, match=r"data.corrections = 'none' holds no corrections.jsonl"):
        find_corrections(recipe(corrections="none"), base=tmp_path)
    with pytest.raises(DataError, match=r"data.corrections = 'nope' is neither a run nor a file"):
        find_corrections(recipe(corrections="nope"), base=tmp_path)
    with pytest.raises(DataError, match=r"'adapters/none' holds no corrections.jsonl"):
        find_corrections(recipe(corrections=["old", "adapters/none"]), base=tmp_path)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{bad\n", "not JSON: expecting property name enclosed in double quotes (column 2)"),
        ('{"prompt": "q", "completion": "a"}\n', "a correction needs `messages`; the row has `prompt`, `completion`"),
        ('{"messages": []}\n', "`messages` is empty"),
        ('{"messages": [{"role": "cook", "content": "a"}]}\n', '`messages` turn 1 has the unknown role "cook"'),
        (line("q"), 'a correction ends with the right answer; this one ends with a turn of "user"'),
        (line("q", ""), "the right answer of this correction is empty"),
        (json.dumps({"messages": turns("q", "a")[1:]}) + "\n", "a correction needs the question that was answered"),
        ('{"messages": [{"role": "user", "content": "q"}], "mess', "not JSON: "),
    ],
)
def test_a_malformed_correction_stops_the_training_with_its_line(tmp_path: Path, bad: str, says: str) -> None:
    write(tmp_path / "rows.jsonl", line("q", "a"))
    write(tmp_path / "adapters" / "new" / "corrections.jsonl", line("q", "a"), "\n", bad)
    made = recipe(corrections=True)
    with pytest.raises(DataError) as caught:
        load_splits(made.data, base=tmp_path, corrections=find_corrections(made, base=tmp_path))
    (problem,) = caught.value.problems
    assert problem.where == "adapters/new/corrections.jsonl:3"
    assert problem.message.startswith(says)
    assert problem.hint


def split(tmp_path: Path, *, kept_rows: int = 50_000, corrected: bool = True, **data: object) -> Splits:
    made = recipe(corrections=corrected)
    data_recipe = DataRecipe.model_validate({**made.data.model_dump(), **data})
    return load_splits(
        data_recipe, base=tmp_path, corrections=find_corrections(made, base=tmp_path), kept_rows=kept_rows
    )


@pytest.mark.parametrize("kept_rows", [50_000, 5], ids=["kept", "read again"])
def test_corrections_are_training_rows_and_move_no_other_row(tmp_path: Path, kept_rows: int) -> None:
    write(tmp_path / "rows.jsonl", *(f'{{"prompt": "q {n}", "completion": "a {n}"}}\n' for n in range(60)))
    write(tmp_path / "adapters" / "new" / "corrections.jsonl", *(line(f"c {n}", "x") for n in range(40)))
    without = split(tmp_path, corrected=False)
    found = split(tmp_path, kept_rows=kept_rows, corrections_weight=3.0)
    assert list(found.valid) == list(without.valid)
    assert list(found.test) == list(without.test)
    assert list(found.train)[: len(without.train)] == list(without.train)
    rest = list(found.train)[len(without.train) :]
    assert found.num_corrections == len(rest) == 40
    assert [(row.weight, row.line) for row in rest] == [(3.0, number) for number in range(1, 41)]
    assert all(isinstance(row, Messages) and row.only_last for row in rest)
    assert len(found.train) == len(list(found.train))
    assert found.content_hash != without.content_hash
    assert found.format == "prompt-completion"


@pytest.mark.parametrize("kept_rows", [50_000, 0], ids=["kept", "read again"])
def test_the_last_correction_of_a_question_counts(tmp_path: Path, kept_rows: int) -> None:
    write(tmp_path / "rows.jsonl", *(line(f"q {n}", "a") for n in range(10)))
    first, other, second = line("q", "x"), line("q", "x", "again?", "y"), line(" q", "z")
    write(tmp_path / "adapters" / "new" / "corrections.jsonl", first, other, second)
    found = split(tmp_path, kept_rows=kept_rows)
    assert found.num_corrections == 2
    assert [row.line for row in list(found.train)[-2:]] == [2, 3]


def test_the_columns_and_the_format_of_data_are_not_those_of_corrections(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", *(f'{{"frage": "q {n}", "antwort": "a"}}\n' for n in range(10)))
    write(tmp_path / "adapters" / "new" / "corrections.jsonl", line("q", "x"))
    columns = {"prompt": "frage", "completion": "antwort"}
    found = split(tmp_path, columns=columns, format="prompt-completion")
    assert (found.num_corrections, found.format) == (1, "prompt-completion")


def test_a_correction_that_is_held_out_word_for_word_is_said(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", *(line(f"q {n}", "a") for n in range(30)))
    held_out = split(tmp_path, corrected=False).valid[0]
    assert isinstance(held_out, Messages)
    text = json.dumps({"messages": list(held_out.messages)}) + "\n"
    write(tmp_path / "adapters" / "new" / "corrections.jsonl", text)
    (problem,) = split(tmp_path).problems
    assert "validation or test row too" in problem.message
    for name in ("train", "valid"):
        write(tmp_path / "given" / f"{name}.jsonl", *(line(f"{name} {n}", "a") for n in range(3)))
    write(tmp_path / "adapters" / "new" / "corrections.jsonl", line("valid 1", "a"))
    assert any("1 of 3 validation rows" in one.message for one in split(tmp_path, path="given").problems)


def test_rows_that_answer_the_question_of_a_correction_otherwise_are_said(tmp_path: Path) -> None:
    pairs = [f'{{"prompt": "q {n}", "completion": "a {n}"}}\n' for n in range(30)]
    write(tmp_path / "rows.jsonl", *pairs)
    made = split(tmp_path, corrected=False)
    taught = made.train[3]
    assert isinstance(taught, Instruction)
    path = tmp_path / "adapters" / "new" / "corrections.jsonl"
    write(path, line(taught.instruction, taught.output), line("another", "x"))
    assert split(tmp_path).problems == (), "the same answer, and a question of nobody"
    write(path, line(taught.instruction, "right"))
    (problem,) = split(tmp_path).problems
    assert problem.where == f"rows.jsonl:{taught.line}"
    assert problem.message == "a training row answers the question of a correction otherwise"


def test_what_counts_of_a_file_is_what_it_had_when_it_was_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", *(line(f"q {n}", "a") for n in range(10)))
    path = write(tmp_path / "adapters" / "new" / "corrections.jsonl", line("c 1", "x"), line("c 2", "x").rstrip("\n"))
    made = recipe(corrections=True)
    before = find_corrections(made, base=tmp_path)
    first = load_splits(made.data, base=tmp_path, corrections=before)
    with path.open("a") as file:
        file.write("\n" + line("c 3", "x"))
    for kept_rows in (50_000, 0):
        again = load_splits(made.data, base=tmp_path, corrections=before, kept_rows=kept_rows)
        assert (again.num_corrections, again.content_hash) == (2, first.content_hash)
        assert list(again.train) == list(first.train)
    now = find_corrections(made, base=tmp_path)
    assert load_splits(made.data, base=tmp_path, corrections=now).num_corrections == 3
    assert as_at_start(now, note_sizes(before)) == before
    assert as_at_start(now, {}) == ()


def test_only_the_last_answer_is_learned(tiny_model: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"))
    data = DataRecipe.model_validate({"path": "-"})
    conversation = turns("Where?", "Hither.", "Where, please?", "There.")
    row = Row({"messages": conversation, "origin": {}}, "c", 1)
    correction = correction_of(row)

    def learned(example: Messages) -> str:
        (tokens,) = tokenize([example], tokenizer, data, task="sft").rows
        return tokenizer.decode(tokens.ids[tokens.loss_mask].tolist())

    assert learned(correction) == "There.<|im_end|>"
    assert learned(replace(correction, only_last=False)) == "Hither.<|im_end|>There.<|im_end|>"


TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}..."
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [TAGGED, REWRITING], ids=["generation tags", "rewrites earlier turns"])
def test_only_the_last_answer_is_learned_whatever_the_template_does(
    tiny_model: Callable[..., Path], tmp_path: Path, template: str
) -> None:
    (tmp_path / "template.jinja").write_text(template)
    tokenizer = load_tokenizer(tiny_model("llama"), chat_template=str(tmp_path / "template.jinja"))
    data = DataRecipe.model_validate({"path": "-"})
    row = Row({"messages": turns("Where?", "Hither.", "Where, please?", "There.")}, "c", 1)
    (tokens,) = tokenize([correction_of(row)], tokenizer, data, task="sft").rows
    assert tokenizer.decode(tokens.ids[tokens.loss_mask].tolist()) == "There.<|im_end|>"
    assert "Where, please?" in tokenizer.decode(tokens.ids.tolist())


def test_a_correction_that_is_cut_learns_its_last_answer_alone(tiny_model: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"))
    conversation = turns("Where? " * 9, "Hither.", "Where, please?", "Yon.", "Where, then?", "There.")
    correction = correction_of(Row({"messages": conversation}, "c", 1))
    data = DataRecipe.model_validate({"path": "-", "max_seq_length": 100, "truncation": "keep-end"})
    cut = tokenize([correction], tokenizer, data, task="sft")
    (tokens,) = cut.rows
    assert cut.report.count("cut") == 1
    assert "Yon." in tokenizer.decode(tokens.ids.tolist())
    assert tokenizer.decode(tokens.ids[np.flatnonzero(tokens.loss_mask)].tolist()) == "There.<|im_end|>"


def test_a_row_without_json_is_told_from_one_that_is_no_correction() -> None:
    with pytest.raises(RowError, match="c:4: a correction needs `messages`"):
        correction_of(Row({"text": "a"}, "c", 4))
    assert DataFile(Path("a"), "a").num_bytes is None

"""Rows of encoder-decoder models: prompt, end mark, start token, answer, end mark; two limits; templates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_finetune.dataset.explain import explain
from mlx_finetune.dataset.formats import Instruction, Messages, Text
from mlx_finetune.dataset.template import nothing_left, render_prompt, tokenize
from mlx_finetune.dataset.two_sides import check_task
from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.data import DataRecipe

TinyT5 = Callable[..., Path]


@pytest.fixture
def tokenizer(tiny_t5: TinyT5) -> ModelTokenizer:
    return load_tokenizer(tiny_t5(is_tied=True))


def data(**fields: Any) -> DataRecipe:
    return DataRecipe.model_validate({"path": "rows.jsonl", **fields})


def example(prompt: str = "is this the one", answer: str = "it is", context: str = "") -> Instruction:
    return Instruction(prompt, context, answer, "rows.jsonl", 1)


def rows_of(tokenizer: ModelTokenizer, recipe: DataRecipe, *examples: Any):
    return tokenize(list(examples), tokenizer, recipe, task="seq2seq")


def test_a_row_is_prompt_and_answer_each_with_its_end_mark(tokenizer: ModelTokenizer) -> None:
    (row,) = rows_of(tokenizer, data(), example()).rows
    prompt, answer = tokenizer.encode("is this the one").ids, tokenizer.encode("it is").ids
    assert row.ids.tolist() == [*prompt, 1, 0, *answer, 1]
    assert row.ids[row.loss_mask].tolist() == [*answer, 1]
    assert tokenizer.decode(row.ids[row.loss_mask].tolist()) == "it is</s>"


def test_prompt_and_answer_are_tokenised_apart(tokenizer: ModelTokenizer) -> None:
    """The answer's first word has its own mark of a word's beginning, whatever the prompt ends with."""
    (row,) = rows_of(tokenizer, data(prompt_template="summarize: {instruction} "), example(answer="the a")).rows
    assert row.ids[row.loss_mask].tolist() == [*tokenizer.encode("the a").ids, 1]
    ids = row.ids.tolist()
    assert ids[: ids.index(0)] == [*tokenizer.encode("summarize: is this the one ").ids, 1]


def test_a_prompt_is_rendered_as_in_training(tokenizer: ModelTokenizer) -> None:
    recipe = data(prompt_template="summarize: {instruction}")
    (row,) = rows_of(tokenizer, recipe, example()).rows
    ids = render_prompt([{"role": "user", "content": "is this the one"}], tokenizer, recipe)
    assert ids == row.ids[: len(ids)].tolist()
    assert not row.loss_mask[: len(ids)].any()
    assert row.loss_mask[len(ids) :].all()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("auto", "is this the one\n\nyou"),
        ("none", "is this the oneyou"),
        ("{input} - {instruction}", "you - is this the one"),
    ],
)
def test_what_the_encoder_reads(tokenizer: ModelTokenizer, template: str, expected: str) -> None:
    (row,) = rows_of(tokenizer, data(prompt_template=template), example(context="you")).rows
    ids = row.ids.tolist()
    assert ids[: ids.index(0)] == [*tokenizer.encode(expected).ids, 1]


def test_each_side_has_its_own_limit(tokenizer: ModelTokenizer) -> None:
    long = example(prompt="the " * 30)
    recipe = data(max_seq_length=20, max_target_length=6)
    split = rows_of(tokenizer, recipe, example(), long, example(answer="the " * 9))
    assert len(split.rows) == 1
    problems = [problem.message for problem in split.report.problems]
    assert split.report.count("too_long") == 2
    assert "the prompt's" in problems[0]
    assert "max_seq_length = 20: dropped" in problems[0]
    assert "the answer's" in problems[1]
    assert "max_target_length = 6: dropped" in problems[1]
    answer_alone = rows_of(tokenizer, recipe, example(answer="the " * 9))
    assert nothing_left(answer_alone.report, recipe, "train", None).hint == "raise data.max_target_length"
    kept = rows_of(tokenizer, recipe.model_copy(update={"truncation": "keep-end"}), long)
    assert kept.report.count("cut") == 1
    (row,) = kept.rows
    ids = row.ids.tolist()
    assert ids.index(0) == 20
    assert ids[19] == 1
    assert row.ids[row.loss_mask].tolist() == [*tokenizer.encode("it is").ids, 1]


def test_explained_rows_have_the_marks_between_the_sides(tokenizer: ModelTokenizer) -> None:
    (row,) = explain([example()], tokenizer, data(), task="seq2seq")
    assert "".join(token.text for token in row.tokens) == "is this the one</s><pad>it is</s>"
    assert "".join(token.text for token in row.tokens if token.state == "learned") == "it is</s>"


def test_unknown_characters_are_counted_and_read_as_unknown(tokenizer: ModelTokenizer) -> None:
    """T5's vocabulary has no braces, for one; the name of a control token is refused all the same."""
    split = rows_of(tokenizer, data(), example(prompt="the {} a"), example(prompt="the <unk> a"))
    (row,) = split.rows
    assert 2 in row.ids.tolist()
    assert split.report.count("unknown") == 1
    assert any("stand for unknown characters" in problem.message for problem in split.report.problems)
    assert split.report.count("refused") == 1
    assert 2 in render_prompt([{"role": "user", "content": "the { a"}], tokenizer, data())


def test_what_has_no_two_sides_is_refused(tokenizer: ModelTokenizer) -> None:
    turns = [("user", "the"), ("assistant", "a"), ("user", "the"), ("assistant", "a")]
    messages = tuple({"role": role, "content": text} for role, text in turns)
    split = rows_of(tokenizer, data(), Text("the a", "rows.jsonl", 1), Messages(messages, None, "rows.jsonl", 2))
    assert split.report.count("refused") == 2
    assert not split.rows
    assert "no prompt and answer" in split.report.problems[0].message
    with pytest.raises(DataError, match="control marker"):
        render_prompt([{"role": "user", "content": "a <pad> b"}], tokenizer, data())


def test_the_start_token_travels_with_the_tokenizer(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    """A run's folder has no config.json of the model, and knows all the same how an answer begins."""
    for name, text in tokenizer.files().items():
        (tmp_path / name).write_text(text)
    again = load_tokenizer(tmp_path)
    assert (again.start_token_id, again.eos_token_id, again.bos_token_id, again.unk_token_id) == (0, 1, None, 2)


def test_task_and_model_must_go_together(tokenizer: ModelTokenizer, tiny_model: Callable[..., Path]) -> None:
    check_task("seq2seq", tokenizer, "small")
    with pytest.raises(ModelError, match="encoder-decoder model, which task = 'sft'"):
        check_task("sft", tokenizer, "small")
    with pytest.raises(ModelError, match="has no encoder"):
        check_task("seq2seq", load_tokenizer(tiny_model("llama")), "small")

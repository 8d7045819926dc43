"""Prompts of an evaluation are the tokens that were trained, with examples in front where they are asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eval_runs import evaluation_of, write_place, write_rows
from tiny import write_tiny_model

from mlx_finetune.app.eval.prompts import Prompter
from mlx_finetune.app.eval.rows import Chosen, EvalRow, choose_rows
from mlx_finetune.dataset.formats import Instruction, Messages
from mlx_finetune.errors import DataError
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.data import DataRecipe

TinyModel = Callable[..., Path]
MARKS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("plain"), "gpt2", chat_template=False)


def chosen(folder: Path, *, shots: int = 0) -> tuple[DataRecipe, Chosen]:
    write_rows(folder / "rows.jsonl")
    data = DataRecipe.model_validate({"path": "rows.jsonl"})
    rows = choose_rows(
        data, base=folder, training_base=folder, given=None, max_rows=9, category=None, shots=shots, seed=0
    )
    return data, rows


def alpaca_row(folder: Path) -> EvalRow:
    example = Instruction("Add.", "1 and 2", "3", "rows.jsonl", 1)
    turns = ({"role": "user", "content": "Add.\n\n1 and 2"},)
    return EvalRow("0", "rows.jsonl:1", "", example, turns, "3")


def test_a_prompt_is_the_beginning_of_the_trained_row_and_the_answer_its_rest(tmp_path: Path, tiny_model: TinyModel):
    data, rows = chosen(tmp_path)
    tokenizer = load_tokenizer(tiny_model("llama"))
    prompter = Prompter(tokenizer, data, task="sft", base=tmp_path)
    for row in rows.rows:
        (trained,) = prompter.trained(row.example)
        prompt = prompter.row_prompt(row)
        made = prompter.continuation(row, row.reference)
        assert trained.ids[: len(prompt)].tolist() == prompt == made.ids[: -made.num_targets].tolist()
        targets = made.ids[-made.num_targets :]
        assert targets.tolist() == trained.ids[trained.loss_mask].tolist()
        assert tokenizer.decode(targets.tolist()) == f"{row.reference}<|im_end|>"


def test_another_answer_changes_the_rest_alone(tmp_path: Path, tiny_model: TinyModel):
    data, rows = chosen(tmp_path)
    tokenizer = load_tokenizer(tiny_model("llama"))
    prompter = Prompter(tokenizer, data, task="sft", base=tmp_path)
    made = prompter.continuation(rows.rows[0], "a very long answer")
    assert tokenizer.decode(made.ids[-made.num_targets :].tolist()) == "a very long answer<|im_end|>"
    assert made.ids[: -made.num_targets].tolist() == prompter.row_prompt(rows.rows[0])


def test_examples_are_turns_in_front_of_the_question(tmp_path: Path, tiny_model: TinyModel):
    data, rows = chosen(tmp_path, shots=2)
    tokenizer = load_tokenizer(tiny_model("llama"))
    prompter = Prompter(tokenizer, data, task="sft", base=tmp_path)
    text = tokenizer.decode(prompter.row_prompt(rows.rows[0], rows.shots))
    alone = tokenizer.decode(prompter.row_prompt(rows.rows[0]))
    asked = [str(shot.messages[0]["content"]) for shot in rows.shots if isinstance(shot, Messages)]
    assert text.count("<|im_start|>user") == 3
    assert [text.index(question) for question in asked] == sorted(text.index(question) for question in asked)
    assert text.endswith(alone)
    with_shots = prompter.continuation(rows.rows[0], "red", rows.shots)
    without = prompter.continuation(rows.rows[0], "red")
    assert with_shots.ids[-with_shots.num_targets :].tolist() == without.ids[-without.num_targets :].tolist()


def test_a_base_model_gets_its_prompt_template_with_the_input(tmp_path: Path, base_model: Path):
    tokenizer = load_tokenizer(base_model)
    data = DataRecipe.model_validate({"path": "-", "prompt_template": "alpaca"})
    prompter, row = Prompter(tokenizer, data, task="sft", base=tmp_path), alpaca_row(tmp_path)
    text = tokenizer.decode(prompter.row_prompt(row))
    assert "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n" in text
    (trained,) = prompter.trained(row.example)
    assert trained.ids[: len(prompter.row_prompt(row))].tolist() == prompter.row_prompt(row)
    several = tokenizer.decode(prompter.row_prompt(row, [row.example]))
    assert several.count("### Response:\n") == 2
    assert "### Response:\n3\n\nBelow is" in several
    made = prompter.continuation(row, "4")
    assert tokenizer.decode(made.ids[-made.num_targets :].tolist()) == "4<|endoftext|>"


def test_a_row_that_cannot_be_rendered_says_why(tmp_path: Path, tiny_model: TinyModel):
    data = DataRecipe.model_validate({"path": "-", "max_seq_length": 8})
    prompter = Prompter(load_tokenizer(tiny_model("llama")), data, task="sft", base=tmp_path)
    row = alpaca_row(tmp_path)
    with pytest.raises(DataError, match="more than max_seq_length = 8: dropped"):
        prompter.trained(row.example)
    marked = EvalRow("0", "r:1", "", row.example, ({"role": "user", "content": f"a{MARKS[1]}"},), "3")
    with pytest.raises(DataError, match="control marker"):
        prompter.row_prompt(marked)
    with pytest.raises(DataError, match="no question"):
        prompter.row_prompt(EvalRow("0", "r:1", "", row.example, (), ""))


def test_all_tokens_are_scored_where_all_were_learned(tmp_path: Path, tiny_model: TinyModel):
    place = write_place(tmp_path / "p", tiny_model("llama"))
    evaluation = evaluation_of(place)
    (trained,) = evaluation.prompter.trained(evaluation.rows[0].example)
    data = evaluation.subject.data.model_copy(update={"mask_prompt": False})
    everything = Prompter(evaluation.subject.opened.tokenizer, data, task="sft", base=place)
    (whole,) = everything.trained(evaluation.rows[0].example)
    assert np.count_nonzero(whole.loss_mask) > np.count_nonzero(trained.loss_mask)
    made = everything.continuation(evaluation.rows[0], "red")
    assert made.num_targets == evaluation.prompter.continuation(evaluation.rows[0], "red").num_targets

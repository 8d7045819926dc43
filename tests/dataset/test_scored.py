"""Answers for a scorer: the tokens that its training had, made in one pass."""

import json

import numpy as np
import pytest

from mlx_finetune.app.eval.prompts import Prompter
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.formats import Preference
from mlx_finetune.dataset.pairs import fitted_sequences, tokenize_rows
from mlx_finetune.dataset.scored import AnswerRows
from mlx_finetune.dataset.walk import Walk
from mlx_finetune.errors import DataError
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.data import DataRecipe

PROMPT = [{"role": "user", "content": "Why?"}]
KINDS = ["verifier", "reward"]


@pytest.fixture
def tokenizer(tiny_model) -> ModelTokenizer:
    return load_tokenizer(tiny_model("llama"))


def recipe(path, **more) -> DataRecipe:
    return DataRecipe.model_validate({"path": str(path), "val_split": 0.0, "test_split": 0.0, **more})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["Because.", "", "two\nlines"])
def test_an_answer_has_the_tokens_of_its_training(tmp_path, tokenizer, kind, answer):
    path = tmp_path / "rows.jsonl"
    row = {"completion": answer, "label": True} if kind == "verifier" else {"chosen": answer, "rejected": "Other."}
    path.write_text(json.dumps({"prompt": PROMPT, **row}) + "\n")
    data = recipe(path)
    split = tokenize_rows(load_splits(data, base=tmp_path, task=kind).train, tokenizer, data, task=kind)
    (trained,) = split.rows
    num = len(trained.ids) - 1 if kind == "verifier" else int(trained.values[0] + trained.values[1])
    found = AnswerRows(tokenizer, data, task=kind, base=tmp_path).ids(PROMPT, answer)
    assert found.tolist() == trained.ids[:num].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_goes_through_the_tokenizer_once(tmp_path, tokenizer, monkeypatch, kind):
    rows = AnswerRows(tokenizer, recipe(tmp_path), task=kind, base=tmp_path)
    texts: list[str] = []
    for name in ("encode", "encode_batch"):
        real = getattr(ModelTokenizer, name)

        def noting(self, asked, *, real=real, **more):
            texts.extend([asked] if isinstance(asked, str) else asked)
            return real(self, asked, **more)

        monkeypatch.setattr(ModelTokenizer, name, noting)
    rows.ids(PROMPT, "Because.")
    assert len(texts) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_scored_is_refused_with_its_reason(tmp_path, tokenizer, kind):
    num = len(AnswerRows(tokenizer, recipe(tmp_path), task=kind, base=tmp_path).ids(PROMPT, "Because."))
    rows = AnswerRows(tokenizer, recipe(tmp_path, max_seq_length=num - 1), task=kind, base=tmp_path)
    with pytest.raises(DataError, match=rf"tokens are more than max_seq_length = {num - 1}"):
        rows.ids(PROMPT, "Because.")
    with pytest.raises(DataError, match=r"control marker '<\|im_end\|>'"):
        rows.ids(PROMPT, "A<|im_end|>")


def test_a_reward_model_scores_what_fits_as_it_was_trained(tmp_path, tokenizer):
    num = len(AnswerRows(tokenizer, recipe(tmp_path), task="reward", base=tmp_path).ids(PROMPT, "Because."))
    rows = AnswerRows(tokenizer, recipe(tmp_path, max_seq_length=num), task="reward", base=tmp_path)
    assert len(rows.ids(PROMPT, "Because.")) == num


@pytest.mark.parametrize("answers", [("Because.", "No."), ("Because.",)])
def test_a_long_prompt_is_cut_for_a_scorer_as_it_was_in_training(tmp_path, tokenizer, answers):
    prompt = [{"role": "user", "content": "word " * 30 + "Why?"}]
    chosen, *others = [({"role": "assistant", "content": one},) for one in answers]
    example = Preference(tuple(prompt), chosen, others[0] if others else None, None, "rows", 1)
    data = recipe(tmp_path, max_seq_length=60, truncation="keep-end")
    walk = Walk(tokenizer, data, task="reward", base=tmp_path)
    found = fitted_sequences(walk, example, data, tokenizer.bos_token_id)
    assert max(len(ids) for ids, _ in found.values()) == 60
    if others:
        (row,) = tokenize_rows([example], tokenizer, data, task="reward").rows
        prefix, first = int(row.values[0]), int(row.values[1])
        for ours, trained in ((0, row.ids), (1, row.loss_mask)):
            both = [trained[: prefix + first], np.r_[trained[:prefix], trained[prefix + first :]]]
            assert [one[ours].tolist() for one in found.values()] == [one.tolist() for one in both]
    else:
        rows = AnswerRows(tokenizer, data, task="reward", base=tmp_path)
        assert rows.ids(prompt, answers[0]).tolist() == found["chosen"][0].tolist()


@pytest.mark.parametrize("task", KINDS)
def test_an_evaluation_scores_nothing_that_is_too_long_to_be_trained_on(tmp_path, tokenizer, task):
    turns = ({"role": "user", "content": "word " * 30 + "Why?"},)
    answers = [({"role": "assistant", "content": one},) for one in ("Because.", "No.")]
    example = Preference(turns, answers[0], answers[1] if task == "reward" else None, None, "rows", 1)
    prompter = Prompter(tokenizer, recipe(tmp_path, max_seq_length=60), task=task, base=tmp_path)
    with pytest.raises(DataError, match="tokens are more than max_seq_length = 60"):
        prompter.scored(example)

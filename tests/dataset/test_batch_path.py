"""Rows that went through batches, threads and flat arrays are those made one by one, on the real data of ../shared."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from tiny import write_tiny_model

from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.formats import Example, Messages
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.dataset.tokens import Encoding, TokenizeReport, Tokens
from mlx_finetune.dataset.walk import Walk
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.data import DataRecipe

FILES = (
    "alpaca/alpaca_2k.jsonl",
    "gsm8k/train.jsonl",
    "chat/glaive_toolcall_en_180.json",
    "chat/reason_tool_use_demo_50.jsonl",
    "dialogsum/train.jsonl",
    "text/tinyshakespeare.txt",
)
SETTINGS = (
    {"max_seq_length": 400},
    {"max_seq_length": 300, "truncation": "keep-end"},
    {"max_seq_length": 200, "truncation": "split", "mask_prompt": False},
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return load_tokenizer(write_tiny_model(tmp_path_factory.mktemp("model"), "llama"))


def one_by_one(examples: list[Example], tokenizer: ModelTokenizer, data: DataRecipe) -> Iterator[Tokens]:
    """Every row alone, with all of its offsets in a list."""
    walk = Walk(tokenizer, data, task="sft", base=None)
    for example in examples:
        for draft in walk.drafts(example):
            found = tokenizer.encode(draft.text)
            plain = Encoding(found.ids, found.offsets)
            yield from walk.rows(draft, walk.without_merged_border(draft, plain))


@pytest.mark.some(8)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("file", FILES)
def test_rows_are_those_made_one_by_one(file: str, settings: dict[str, object], tokenizer: ModelTokenizer) -> None:
    data = DataRecipe.model_validate({"path": str(shared("data", *file.split("/"))), **settings})
    examples = list(load_splits(data, base=Path()).train)[:600]
    split = tokenize(examples, tokenizer, data, task="sft")
    rows = list(one_by_one(examples, tokenizer, data))
    assert len(split.rows) == len(rows) > 0
    for one, other in zip(split.rows, rows, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.loss_mask, other.loss_mask)
        assert (one.source, one.line, one.weight) == (other.source, other.line, other.weight)
    check_counts(split.report, rows, len(examples))


def check_counts(report: TokenizeReport, rows: list[Tokens], num_examples: int) -> None:
    assert (report.num_examples, report.num_rows) == (num_examples, len(rows))
    assert report.num_tokens == sum(len(row.ids) for row in rows)
    assert report.num_targets == sum(int(row.loss_mask.sum()) for row in rows)
    assert report.longest == max(len(row.ids) for row in rows)


def test_spans_fetched_one_by_one_are_those_of_the_whole_list(tokenizer: ModelTokenizer) -> None:
    texts = [
        "",
        " ",
        "a  b\n\n<|im_end|>\n",
        "caf\u00e9 \U0001f600\U0001f468\u200d\U0001f469 x",
        "\u00a0\u2003tabs\t\tand 1234",
    ]
    for text, lazy in zip(texts, tokenizer.encode_batch(texts), strict=True):
        plain = Encoding(lazy.ids, lazy.offsets)
        assert [lazy.span(index) for index in range(len(lazy.ids))] == plain.offsets
        for position in range(len(text) + 2):
            assert lazy.first_from(position) == plain.first_from(position), (text, position)


def test_an_order_of_outcomes_is_that_of_the_rows(tokenizer: ModelTokenizer) -> None:
    """Rendering is ahead of masking by a batch, and what it has to say must not come before its turn."""
    data = DataRecipe.model_validate({"path": "x", "max_seq_length": 60})
    examples = [make_example(number) for number in range(1, 900)]
    report = tokenize(examples, tokenizer, data, task="sft").report
    for outcome in report.outcomes.values():
        lines = [int(problem.where.partition(":")[2]) for problem in outcome.rows]
        assert lines == sorted(lines)
    walk = Walk(tokenizer, data, task="sft", base=None)
    for example in examples:
        for draft in walk.drafts(example):
            walk.rows(draft, tokenizer.encode(draft.text))
    alone = walk.take_tally().outcomes()
    assert dict(report.outcomes) == alone


def make_example(number: int) -> Example:
    answer = "word " * 80 if number % 7 == 0 else "yes"
    question = "<|im_end|>" if number % 11 == 0 else f"q {number}"
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Messages(turns if number % 13 else turns[:1], None, "f", number)

"""Tokenizers made here: deterministic, lossless, read by other libraries alike."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_finetune.dataset.formats import Instruction, Messages, Text
from mlx_finetune.errors import DataError
from mlx_finetune.model.scratch.bpe import CONTROL, texts_of, train_bpe, write_tokenizer

WORDS = ("hand", "head")
TEXTS = [f"The {one} of the king, {number} years old, spoke {one}ly.\n" for number in range(60) for one in WORDS]
MADE = train_bpe(TEXTS, 400)


def test_the_same_texts_make_the_same_tokenizer() -> None:
    assert train_bpe(list(TEXTS), 400).tokenizer.to_str() == MADE.tokenizer.to_str()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_every_text_comes_back_as_it_was(text: str) -> None:
    ids = MADE.tokenizer.encode(text).ids
    assert MADE.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_control_tokens_come_first_and_end_of_text_is_one(tmp_path) -> None:
    assert [MADE.tokenizer.token_to_id(token) for token in CONTROL] == [0, 1, 2]
    assert MADE.tokenizer.encode("a<|endoftext|>b").ids.count(0) == 1
    assert MADE.tokenizer.get_vocab_size() <= 400


def test_digits_stand_alone_and_frequent_words_are_one_token() -> None:
    assert [MADE.tokenizer.decode([one]) for one in MADE.tokenizer.encode("1234").ids] == list("1234")
    assert len(MADE.tokenizer.encode(" king").ids) == 1
    total = sum(len(text.encode()) for text in TEXTS)
    assert MADE.bytes_per_token == total / sum(len(MADE.tokenizer.encode(text).ids) for text in TEXTS)


def test_transformers_reads_the_same_tokens(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(MADE.tokenizer, tmp_path)
    other = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "The hand, 17 — naïve \n\n  é"
    assert other.encode(text) == MADE.tokenizer.encode(text).ids
    assert other.decode(other.encode(text)) == text
    assert other.eos_token == "<|endoftext|>"


def test_texts_are_what_people_wrote_without_control_tokens() -> None:
    turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": None})
    examples = [
        Text("one<|endoftext|>", "f", 1),
        Instruction("do", "with", "done", "f", 2),
        Messages(turns, None, "f", 3),  # pyright: ignore[reportArgumentType]
        Text("half \ud800", "f", 4),
    ]
    assert texts_of(examples) == ["one", "do", "with", "done", "hi", "", "half ?"]
    assert texts_of(examples, longest=3) == ["one"]


def test_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="no text to make a tokenizer from"):
        train_bpe(["", ""], 300)

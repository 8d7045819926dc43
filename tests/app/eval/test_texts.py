"""Texts joined, divided and scored: each has the losses of its own tokens, whatever it is divided into."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from eval_runs import evaluation_of, write_place
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.app.eval.run import evaluate
from mlx_finetune.app.eval.texts import blocks, join, text_losses
from mlx_finetune.model.likelihoods import LikelihoodModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.train.losses import chunk_rows

TinyModel = Callable[..., Path]
POEM = "the sea is \u00e4lways there and then it is not there\n" * 130


class Uniform(nn.Module):
    """Finds each of 320 tokens equally likely."""

    def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
        return mx.zeros((*tokens.shape, 320))


@given(st.text(alphabet="ab \n", max_size=300), st.integers(1, 40))
def test_blocks_are_the_text_again_and_none_is_short(text: str, size: int) -> None:
    found = blocks(text, size)
    assert "".join(found) == text
    assert all(len(block) >= size for block in found[:-1])
    assert len(found) == 1 or all(block[0].isspace() for block in found[1:])


def test_a_text_in_blocks_is_read_as_the_one_text_it_is(tiny_model: TinyModel) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"))
    whole = join(tokenizer, ["an", POEM, "end"], [False] * 3)
    parts = blocks(POEM)
    assert len(parts) > 2
    divided = join(tokenizer, ["an", *parts, "end"], [False, False, *[True] * (len(parts) - 1), False])
    assert np.array_equal(divided.ids, whole.ids)
    for place, text in enumerate(parts, 1):
        own = divided.ids[divided.owners == place]
        assert tokenizer.decode(own.tolist(), skip_special_tokens=True) == text
    assert (divided.owners == len(parts) + 1).sum() == (whole.owners == 2).sum()


def test_under_a_uniform_model_perplexity_is_the_vocabulary_and_bits_follow_from_bytes(tiny_model: TinyModel) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"))
    texts = ["one two three", POEM[:500], "x"]
    found = text_losses(LikelihoodModel(Uniform(), chunk_rows), tokenizer, texts, [False] * 3, 64)
    nats = sum(float(one.losses.sum()) for one in found)
    tokens, num_bytes = sum(len(one.losses) for one in found), sum(one.num_bytes for one in found)
    assert math.exp(nats / tokens) == pytest.approx(320, rel=1e-5)
    encoded = [tokenizer.encode(text).ids for text in texts]
    assert tokens == sum(map(len, encoded)) + 3 - 1  # an end mark each; the first token of all is not scored
    assert num_bytes == sum(len(text.encode()) for text in texts) - len(tokenizer.decode(encoded[0][:1]))
    assert nats / math.log(2) / num_bytes == pytest.approx(tokens * math.log2(320) / num_bytes, rel=1e-5)


def test_each_text_has_the_losses_of_its_tokens_in_the_whole(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    local = fetch_model(str(folder), report=lambda _: None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    tokenizer, texts = load_tokenizer(folder), ["the sea", "is there and", "not"]
    likelihoods = LikelihoodModel(model, chunk_rows)
    found = text_losses(likelihoods, tokenizer, texts, [False] * 3, 512)
    joined = join(tokenizer, texts, [False] * 3)
    losses, _ = likelihoods.text_losses(joined.ids, 512, 256)
    assert np.array_equal(np.concatenate([one.losses for one in found]), losses)
    assert [len(one.losses) for one in found] == [
        len(tokenizer.encode(text).ids) + 1 - (text == "the sea") for text in texts
    ]


def test_one_long_document_has_an_interval_over_its_blocks(tmp_path: Path, tiny_model: TinyModel) -> None:
    place = write_place(tmp_path / "place", tiny_model("llama"))
    (place / "poem.jsonl").write_text(json.dumps({"text": POEM}) + "\n")
    evaluation = evaluation_of(place, ("perplexity",), given="poem.jsonl")
    assert [row.is_continued for row in evaluation.rows] == [False, True, True]
    assert evaluation.rows[1].where == "poem.jsonl:1, block 2"
    found = evaluate(
        evaluation, named=None, out=None, show=lambda _: None, say=lambda _: None, report=lambda *_: None
    ).report
    figures = {one.measure.name: one.figures["tuned"] for one in found.results}
    bits = figures["bits_per_byte"]
    assert bits.low is not None
    assert bits.high is not None
    assert bits.low < bits.value < bits.high
    assert figures["perplexity"].value == pytest.approx(math.exp(figures["text_loss"].value))
    assert evaluation_of(place, ("perplexity",), given="poem.jsonl", max_rows=2).rows == evaluation.rows[:2]

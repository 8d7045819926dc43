"""Texts divided and scored: each is read as it was trained and has the losses of its own tokens."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from eval_runs import change_facts, evaluation_of, write_place
from hypothesis import given
from hypothesis import strategies as st
from small_runs import train

from mlx_finetune import rundir
from mlx_finetune.app.eval import view
from mlx_finetune.app.eval.checkpoints.results import report_lines
from mlx_finetune.app.eval.checkpoints.run import measure_course
from mlx_finetune.app.eval.checkpoints.setup import prepare_course
from mlx_finetune.app.eval.run import evaluate
from mlx_finetune.app.eval.texts import Part, blocks, documents, reading_of, text_losses
from mlx_finetune.dataset.edges import token_text
from mlx_finetune.dataset.formats import Text
from mlx_finetune.dataset.walk import Walk
from mlx_finetune.events import Evaluated
from mlx_finetune.journal import read_events
from mlx_finetune.model.likelihoods import LikelihoodModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.page import render
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.train.losses import chunk_rows

TinyModel = Callable[..., Path]
POEM = "the sea is \u00e4lways there and then it is not there\n" * 130
SCRATCH = """
task = "pretrain"
output_dir = "{folder}/pre"
seed = 1
[scratch]
hidden_size = 32
num_layers = 1
num_heads = 2
context_length = 32
vocab_size = 259
[data]
path = "{folder}/text"
packing = true
[training]
max_steps = 12
learning_rate = 1e-2
batch_size = 8
eval_steps = 6
save_at = [0, 0.5, 1.0]
keep_best = false
"""


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


def parts_of(*texts: str) -> list[Part]:
    return [Part(text) for text in texts]


def in_blocks(text: str) -> list[Part]:
    parts = blocks(text)
    return [Part(part, number > 1, number == len(parts)) for number, part in enumerate(parts, 1)]


def test_a_text_in_blocks_is_read_as_the_one_text_it_is(tiny_model: TinyModel) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"))
    whole = documents(tokenizer, parts_of("an", POEM, "end"))
    parts = blocks(POEM)
    assert len(parts) > 2
    middle = in_blocks(POEM)
    divided = documents(tokenizer, [Part("an"), *middle, Part("end")])
    assert [one.ids.tolist() for one in divided] == [one.ids.tolist() for one in whole]
    for place, text in enumerate(parts, 1):
        own = divided[1].ids[divided[1].owners == place]
        assert tokenizer.decode(own.tolist(), skip_special_tokens=True) == text


def test_a_text_longer_than_the_context_has_the_figures_of_its_windows(tiny_model: TinyModel) -> None:
    """The numbers of the version that read all texts as one."""
    folder = tiny_model("llama")
    tokenizer, model = load_tokenizer(folder), LikelihoodModel(loaded(folder), chunk_rows)
    for parts in (parts_of(POEM), in_blocks(POEM)):
        found = text_losses(model, tokenizer, parts, 64)
        nats = sum(float(one.losses.sum(dtype=np.float64)) for one in found)
        tokens, num_bytes = sum(len(one.losses) for one in found), sum(one.num_bytes for one in found)
        assert (tokens, num_bytes) == (4030, 6499)
        assert math.exp(nats / tokens) == pytest.approx(425.0968, rel=1e-4)
        assert nats / math.log(2) / num_bytes == pytest.approx(5.414454, rel=1e-5)
    reading = reading_of(documents(tokenizer, parts_of(POEM)), 64)
    assert reading.described() == "in windows of 64 with stride 32"
    assert reading_of(documents(tokenizer, parts_of("an", "end")), 64).described() == "each row by itself"
    mixed = reading_of(documents(tokenizer, parts_of("an", POEM)), 64)
    assert mixed.described() == "each row by itself, the longest 1 in windows of 64 with stride 32"


def test_under_a_uniform_model_perplexity_is_the_vocabulary_and_bits_follow_from_bytes(tiny_model: TinyModel) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"))
    texts = ["one two three", POEM[:500], "x"]
    found = text_losses(LikelihoodModel(Uniform(), chunk_rows), tokenizer, parts_of(*texts), 64)
    nats = sum(float(one.losses.sum()) for one in found)
    tokens, num_bytes = sum(len(one.losses) for one in found), sum(one.num_bytes for one in found)
    assert math.exp(nats / tokens) == pytest.approx(320, rel=1e-5)
    encoded = [tokenizer.encode(text).ids for text in texts]
    assert tokens == sum(map(len, encoded))  # an end mark each; the first token of each is not scored
    assert num_bytes == sum(len(text.encode()) for text in texts) - sum(len(tokenizer.decode(e[:1])) for e in encoded)
    assert nats / math.log(2) / num_bytes == pytest.approx(tokens * math.log2(320) / num_bytes, rel=1e-5)


def loaded(folder: Path) -> nn.Module:
    local = fetch_model(str(folder), report=lambda _: None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model


@pytest.mark.parametrize(("text", "num_bytes", "num_scored"), [("日本語 x", 8, 9), ("Üb", 1, 2), ("ab", 1, 2)])
def test_of_a_character_of_several_tokens_at_the_front_neither_bytes_nor_losses_count(
    tiny_model: TinyModel, text: str, num_bytes: int, num_scored: int
) -> None:
    """Nothing predicts its first token, and nobody knows how many of its bytes are that token's; an end is scored."""
    (found,) = text_losses(
        LikelihoodModel(Uniform(), chunk_rows), load_tokenizer(tiny_model("llama")), parts_of(text), 64
    )
    assert (found.num_bytes, len(found.losses)) == (num_bytes, num_scored)


def test_no_text_is_read_behind_another(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    likelihoods, tokenizer = LikelihoodModel(loaded(folder), chunk_rows), load_tokenizer(folder)
    texts = ("the sea", "is there and", "not")
    together = text_losses(likelihoods, tokenizer, parts_of(*texts), 512)
    for text, one in zip(texts, together, strict=True):
        (alone,) = text_losses(likelihoods, tokenizer, parts_of(text), 512)
        np.testing.assert_allclose(one.losses, alone.losses, rtol=1e-5)
        assert one.num_bytes == alone.num_bytes


def test_marks_stand_around_a_text_as_in_training(tiny_model: TinyModel, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model("gemma"))
    data = DataRecipe.model_validate({"path": "-", "max_seq_length": 512})
    walk = Walk(tokenizer, data, task="pretrain", base=tmp_path)
    end = token_text(tokenizer, tokenizer.eos_token_id)
    for text in (Text("the sea", "f", 1), Text("the sea", "f", 1, continues=True), Text(f"the sea{end}", "f", 1)):
        (trained,) = walk.tokenized(text)
        (read,) = documents(tokenizer, [Part(text.text, ends=not text.continues)])
        assert read.ids.tolist() == trained.ids.tolist()


def test_short_rows_have_the_loss_that_the_training_said(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{a}+{b}={a + b}"}) for a in range(12) for b in range(12)]
    (tmp_path / "text").mkdir()
    (tmp_path / "text/train.jsonl").write_text("\n".join(rows[::2]))
    (tmp_path / "text/valid.jsonl").write_text("\n".join(rows[1::2]))
    recipe = tmp_path / "pre.toml"
    recipe.write_text(SCRATCH.format(folder=tmp_path))
    run = train(recipe)
    trained = [one.event for one in read_events(run.file(rundir.EVENTS)) if isinstance(one.event, Evaluated)]
    evaluation = evaluation_of(tmp_path, ("perplexity", "loss"), name=str(run.path), max_rows=100)
    found = evaluate(
        evaluation, named=None, out=None, show=lambda _: None, say=lambda _: None, report=lambda *_: None
    ).report
    figures = {one.measure.name: one.figures["tuned"].value for one in found.results}
    assert figures["text_loss"] == pytest.approx(trained[-1].loss, rel=1e-4)
    assert figures["loss"] == pytest.approx(figures["text_loss"], rel=1e-5)
    assert found.texts["perplexity"].how == "each row by itself"
    assert found.texts["perplexity"].tokens == trained[-1].num_targets
    course = prepare_course(run, given=None, max_rows=100, prompts=(), base=tmp_path, report=lambda _: None)
    report = measure_course(course, named=None, show=lambda _: None, say=lambda _: None, report=lambda *_: None).report
    assert "tokens, each row by itself, tokenizer" in render(read_facts(run))
    assert "<b>Asked </b>" not in render(read_facts(run))
    assert "<b>Text </b>" in render(read_facts(run))
    shown = list(view.report_lines(evaluation, found))
    assert any(line.startswith("loss of the rows") for line in shown)
    assert any(line.startswith("    text   ") for line in shown)
    assert not any("asked" in line or "answers" in line for line in shown)
    said = {one.step: one.loss for one in trained}
    for at in report.points:
        assert at.figures["loss"].value == pytest.approx(said[at.step], rel=1e-4)
    assert "read each row by itself" in " ".join(report_lines(report))


def test_held_out_stretches_of_a_file_are_one_text_with_end_marks_between_them(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    place = write_place(tmp_path / "place", tiny_model("llama"))
    (place / "book.txt").write_text("".join(f"the sea is there and you are {n}\n" for n in range(4000)))
    data = {"path": "book.txt", "documents": "file", "val_split": 0.6, "test_split": 0.0, "format": "text"}
    change_facts(place, {"data": data}, place / "adapters" / "keeper")
    evaluation = evaluation_of(place, ("perplexity",))
    assert [row.is_continued for row in evaluation.rows] == [False] + [True] * (len(evaluation.rows) - 1)
    assert evaluation.chosen.unit == "row"
    tokenizer = evaluation.subject.opened.tokenizer
    (read,) = documents(tokenizer, [row.part for row in evaluation.rows])
    wanted = "".join(f"{row.question}<|im_end|>" for row in evaluation.rows)
    assert tokenizer.decode(read.ids.tolist()) == wanted


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

"""Losses token by token: in batches as alone, and perplexity by windows as ALGORITHMS.md section 10 has it."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import make_model

from mlx_finetune.model.cpu.second_core import SecondCore
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.likelihoods import LikelihoodModel, Scored, num_shared, window_of, windows
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.train.losses import chunk_rows

TinyModel = Callable[..., Path]
MODELS = ("llama", "gpt2", "gpt_neox", "gemma")


class Uniform(nn.Module):
    """Finds every token equally likely."""

    def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
        return mx.zeros((*tokens.shape, 37))


def load(folder: Path) -> nn.Module:
    local = fetch_model(str(folder), report=lambda _: None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 200, count).astype(np.int32)


def plain_losses(model: nn.Module, ids: np.ndarray) -> np.ndarray:
    """Of every token but the first, from the whole model's logits in fp64."""
    logits = np.array(model(mx.array(ids[None]))[0].astype(mx.float32)).astype(np.float64)[:-1]
    top = logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return normaliser - logits[np.arange(len(logits)), ids[1:]]


@pytest.mark.parametrize("kind", MODELS)
def test_rows_of_differing_lengths_in_a_batch_have_the_losses_they_have_alone(kind: str, tiny_model: TinyModel) -> None:
    model = load(tiny_model(kind))
    rows = [tokens(length, seed=length) for length in (5, 90, 2, 33, 90, 17)]
    scored = [Scored(ids, np.arange(1, len(ids))) for ids in rows]
    scored[1] = Scored(rows[1], np.array([3, 50, 89]))
    found = LikelihoodModel(model, chunk_rows).losses(scored)
    for ids, one, losses in zip(rows, scored, found, strict=True):
        np.testing.assert_allclose(losses, plain_losses(model, ids)[one.positions - 1], rtol=2e-5, atol=2e-5)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what goes through a model from here on."""
    shapes: list[tuple[int, ...]] = []
    plain = SplitModel.hidden

    def hidden(self: SplitModel, tokens: mx.array, caches: Sequence[object] | None) -> mx.array:
        shapes.append(tokens.shape)
        return plain(self, tokens, caches)

    monkeypatch.setattr(SplitModel, "hidden", hidden)
    return shapes


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_what_all_rows_begin_with_is_read_once(
    kind: str, second: bool, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_model(kind))
    front = tokens(150, seed=1)
    rows = [np.concatenate([front, tokens(length, seed=length)]) for length in [9, 30, 2, 17] * 8]
    scored = [Scored(ids, np.arange(151, len(ids))) for ids in rows]
    with SecondCore() if second else nullcontext() as core:
        likelihoods = LikelihoodModel(model, chunk_rows, core)
        shapes = counted(monkeypatch)
        found = likelihoods.losses(scored)
    assert shapes[0] == (1, 150)
    assert max(length for _, length in shapes[1:]) == 30
    for ids, one, losses in zip(rows, scored, found, strict=True):
        np.testing.assert_allclose(losses, plain_losses(model, ids)[one.positions - 1], rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("front", [0, 60])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_question_in_front_of_several_labels_is_read_once(
    kind: str, second: bool, front: int, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions of unlike lengths, one of a single token, each with three labels; all behind examples, or none."""
    model = load(tiny_model(kind))
    begin, rows = tokens(front, seed=1), list[np.ndarray]()
    for length in (1, 30, 31, 52, 30, 17, 33, 18):
        question = np.concatenate([begin, tokens(length, seed=length)])
        rows += [np.concatenate([question, tokens(1 + label, seed=99 + label)]) for label in range(3)]
    lengths = [len(row) - 1 - place % 3 for place, row in enumerate(rows)]
    scored = [Scored(ids, np.arange(start, len(ids))) for ids, start in zip(rows, lengths, strict=True)]
    with SecondCore() if second else nullcontext() as core:
        likelihoods = LikelihoodModel(model, chunk_rows, core)
        whole = likelihoods.losses(scored)
        shapes = counted(monkeypatch)
        steps: list[int] = []
        found = likelihoods.losses(scored, steps.append, together=3)
    assert steps[-1] == len(rows)
    read, alone = sum(rows * length for rows, length in shapes), sum(len(row) - front for row in rows)
    assert read < 0.65 * alone + front
    for ids, one, losses, before in zip(rows, scored, found, whole, strict=True):
        np.testing.assert_allclose(losses, before, rtol=3e-5, atol=3e-5)
        np.testing.assert_allclose(losses, plain_losses(model, ids)[one.positions - 1], rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("name", ["sliding llama", "mamba"])
def test_a_model_without_plain_keys_and_values_reads_every_row_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(name)
    front = tokens(60, seed=1) % 50
    rows = [np.concatenate([front, tokens(5, seed=seed) % 50]) for seed in range(4)]
    likelihoods = LikelihoodModel(model, chunk_rows)
    shapes = counted(monkeypatch)
    found = likelihoods.losses([Scored(ids, np.array([64])) for ids in rows], together=2)
    assert shapes == [(4, 65)]
    expected = [plain_losses(model, ids)[63:] for ids in rows]
    np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([], 0),
        ([([5, 6, 7, 8], [3])], 2),  # the token that predicts the first target stays with its row
        ([([5, 6, 7, 8], [1, 3])], 0),
        ([([5, 6, 7, 8], [3]), ([5, 9, 7, 8], [3])], 1),
        ([([5, 6, 7, 8], [3]), ([4, 6, 7, 8], [3])], 0),
        ([([5, 6, 7, 8, 9], [4]), ([5, 6, 7], [2])], 1),
        ([([5, 6, 7, 8, 9], [4]), ([5, 6, 7], [])], 2),  # a row without a target keeps a token
        ([([5, 6, 7, 8, 9], [4]), ([5], [])], 0),
    ],
)
def test_rows_share_what_stands_in_front_of_what_predicts(rows: list[tuple[list[int], list[int]]], count: int) -> None:
    made = [Scored(np.array(ids, np.int32), np.array(positions, np.int64)) for ids, positions in rows]
    assert num_shared(made) == count


def test_a_row_without_a_target_has_no_loss(tiny_model: TinyModel) -> None:
    model = load(tiny_model("llama"))
    found = LikelihoodModel(model, chunk_rows).losses(
        [Scored(tokens(4), np.array([], np.int64)), Scored(tokens(4), np.array([2]))]
    )
    assert [len(losses) for losses in found] == [0, 1]


def test_under_a_uniform_model_the_perplexity_is_the_size_of_the_vocabulary() -> None:
    ((losses, places),) = LikelihoodModel(Uniform(), chunk_rows).text_losses([tokens(300) % 37], 64, 32)
    assert math.exp(losses.mean(dtype=np.float64)) == pytest.approx(37, rel=1e-6)
    assert places.tolist() == list(range(1, 300))


def test_a_stride_of_a_window_is_independent_chunks(tiny_model: TinyModel) -> None:
    model, ids = load(tiny_model("llama")), tokens(150)
    ((losses, _),) = LikelihoodModel(model, chunk_rows).text_losses([ids], 64, 64)
    chunks = [plain_losses(model, ids[start : start + 64]) for start in range(0, 150, 64)]
    np.testing.assert_allclose(losses, np.concatenate(chunks), rtol=1e-5, atol=1e-5)


def test_a_stride_of_one_is_the_full_context_within_the_window(tiny_model: TinyModel) -> None:
    model, ids = load(tiny_model("llama")), tokens(60)
    ((losses, places),) = LikelihoodModel(model, chunk_rows).text_losses([ids], 64, 1)
    np.testing.assert_allclose(losses, plain_losses(model, ids), rtol=1e-5, atol=1e-5)
    assert places.tolist() == list(range(1, 60))
    longer = tokens(80)
    ((losses, _),) = LikelihoodModel(model, chunk_rows).text_losses([longer], 64, 1)
    last = plain_losses(model, longer[-64:])[-1]  # the last token sees the window before it and no more
    assert losses[-1] == pytest.approx(last, rel=1e-5)


@given(st.integers(0, 400), st.integers(1, 70), st.data())
def test_windows_score_every_token_but_the_first_once(num_tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    found = windows(num_tokens, window, stride)
    places = [place for one in found for place in range(one.first, one.end)]
    if stride < window:
        assert places == list(range(1, num_tokens))
    else:
        assert places == [place for place in range(num_tokens) if place % window]
    assert all(one.end - one.start <= window and one.start < one.first for one in found)


def test_the_window_is_the_context_and_never_above_the_cap(tiny_model: TinyModel) -> None:
    assert window_of(load(tiny_model("gpt2")), None) == 512
    assert window_of(load(tiny_model("llama")), 512) == 512
    assert window_of(load(tiny_model("llama")), 131_072) == 2048

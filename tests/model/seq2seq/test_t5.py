"""T5 beside transformers, recorded and in person; its rows, its padding, its answers one by one and in batches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from t5_adapter import load_t5
from t5_reference import SHOWN, inputs, load_theirs, their_answers, their_buckets, their_logits
from tiny_t5 import write_tiny_t5

from mlx_finetune.errors import ModelError
from mlx_finetune.model.answers.batches import BatchDecoder, Request
from mlx_finetune.model.answers.generate import Answer, generate_tokens
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.load import load_model
from mlx_finetune.model.seq2seq.positions import bucket_of
from mlx_finetune.model.seq2seq.t5 import Attention, Model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.tokens.tokenizer import load_tokenizer

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "t5.json").read_text())
KINDS = {"tied": True, "untied": False}
TinyT5 = Callable[..., Path]


def our_logits(model: Any) -> np.ndarray:
    prompts, lengths, said = inputs()
    sizes = mx.array(lengths)
    return np.array(model.logits(model.decode(mx.array(said), model.encode(mx.array(prompts), sizes), sizes)))


def our_answers(folder: Path, model: Any) -> list[list[int | None]]:
    tokenizer = load_tokenizer(folder)
    prompts, lengths, _ = inputs()
    return [
        [piece.token_id for piece in generate_tokens(model, tokenizer, [*prompt[:length].tolist(), 0], greedy(12))]
        for prompt, length in zip(prompts, lengths, strict=True)
    ]


def greedy(count: int) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=count)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_answers_are_those_recorded_from_transformers(tiny_t5: TinyT5, kind: str) -> None:
    folder = tiny_t5(is_tied=KINDS[kind])
    model = load_t5(folder).model
    np.testing.assert_allclose(our_logits(model)[..., :SHOWN], GOLDEN[kind]["logits"], atol=1e-4, rtol=0)
    assert our_answers(folder, model) == GOLDEN[kind]["answers"]


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_distances_fall_into_the_buckets_recorded_from_transformers(stack: str) -> None:
    found = bucket_of(np.arange(-300, 301), is_bidirectional=stack == "encoder", num_buckets=32, max_distance=128)
    assert found.tolist() == GOLDEN["buckets"][stack]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_answers_are_those_of_transformers(tiny_t5: TinyT5, kind: str) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'mlx-finetune[parity]'")
    folder = tiny_t5(is_tied=KINDS[kind])
    model, theirs = load_t5(folder).model, load_theirs(folder)
    expected = their_logits(theirs)
    print(f"{kind}: logits off by {np.abs(our_logits(model) - expected).max():.1e}")
    np.testing.assert_allclose(our_logits(model), expected, atol=1e-4, rtol=0)
    assert our_answers(folder, model) == their_answers(theirs) == GOLDEN[kind]["answers"]
    assert their_buckets() == GOLDEN["buckets"]


def test_what_is_padding_changes_no_logit(tiny_t5: TinyT5) -> None:
    model: Any = load_t5(tiny_t5(is_tied=False)).model
    prompts, lengths, said = inputs()
    together = our_logits(model)
    for row, length in enumerate(lengths.tolist()):
        prompt, size = mx.array(prompts[row : row + 1, :length]), mx.array([length])
        alone = model.logits(model.decode(mx.array(said[row : row + 1, :5]), model.encode(prompt, size), size))
        np.testing.assert_allclose(together[row, :5], np.array(alone[0]), atol=1e-4, rtol=0)


def test_a_row_is_a_prompt_and_an_answer_in_one_sequence(tiny_t5: TinyT5) -> None:
    """Rows of differing length, padded at the end: state i of an answer predicts token i + 1 of the row."""
    model = load_t5(tiny_t5(is_tied=True)).model
    prompts, lengths, said = inputs()
    rows = np.zeros((3, 52), np.int32)
    for row, length in enumerate(lengths.tolist()):
        rows[row, :length], rows[row, length : length + 9] = prompts[row, :length], said[row]
    logits, expected = np.array(model(mx.array(rows))), our_logits(model)
    for row, length in enumerate(lengths.tolist()):
        np.testing.assert_allclose(logits[row, length : length + 9], expected[row], atol=2e-5, rtol=0)
        assert not logits[row, :length].any()


def test_answers_in_a_batch_are_those_alone(tiny_t5: TinyT5) -> None:
    """Rows come and go: more prompts than places, of differing lengths, with answers of differing lengths."""
    folder = tiny_t5(is_tied=False)
    model, tokenizer = load_t5(folder).model, load_tokenizer(folder)
    rng = np.random.default_rng(2)
    requests = [
        Request([*rng.integers(3, 60, size).tolist(), 1, 0], greedy(count))
        for size, count in ((30, 9), (4, 3), (17, 12), (60, 2), (9, 7))
    ]
    decoder = BatchDecoder(model, tokenizer, max_rows=3)
    numbers = [decoder.add(request) for request in requests]
    found: dict[int, list[int | None]] = {number: [] for number in numbers}
    while len(decoder):
        for number, piece in decoder.step():
            found[number].append(piece.token_id)
    for number, request in zip(numbers, requests, strict=True):
        alone = generate_tokens(model, tokenizer, request.prompt_ids, request.sampling)
        assert found[number] == [piece.token_id for piece in alone]


def test_a_prompt_that_comes_in_pieces_is_read_as_a_whole(tiny_t5: TinyT5) -> None:
    folder = tiny_t5(is_tied=True)
    model: Any = load_t5(folder).model
    ids = [*np.random.default_rng(3).integers(3, 60, 700).tolist(), 1]
    pieces, whole = model.make_cache(), model.make_cache()
    for start in (0, 512):
        model(mx.array([ids[start : start + 512]]), cache=pieces)
    model(mx.array([ids]), cache=whole)
    first, second = (model(mx.array([[0]]), cache=cache) for cache in (pieces, whole))
    assert mx.array_equal(first, second)


def test_keys_of_the_prompt_are_computed_once_for_an_answer(tiny_t5: TinyT5, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_t5(is_tied=True)
    model = load_t5(folder).model
    assert isinstance(model, Model)
    sizes: list[int] = []
    plain = Attention.keys_and_values

    def counted(attention: Attention, states: mx.array):
        sizes.append(states.shape[1])
        return plain(attention, states)

    monkeypatch.setattr(Attention, "keys_and_values", counted)
    list(generate_tokens(model, load_tokenizer(folder), [7] * 20 + [1, 0], greedy(4)))
    # two blocks of the encoder and two of the decoder read the prompt; then two of the decoder for each of 4 tokens
    assert sizes == [21] * 4 + [1] * 8


def test_an_answer_begins_anew_behind_the_prompt(tiny_t5: TinyT5) -> None:
    """The prompt's words put no blank before the answer's first, and the repetition penalty does not fall on them."""
    folder = tiny_t5(is_tied=True)
    model, tokenizer = load_t5(folder).model, load_tokenizer(folder)
    prompt = [*tokenizer.encode("what is this").ids, 1, 0]
    (word,) = tokenizer.encode("person").ids
    answer = Answer(model, tokenizer, Request(prompt, greedy(6)))
    assert answer.say(word).text + answer.say(word).text == "person person"

    def first_of(ids: list[int], penalty: float) -> int | None:
        sampling = Sampling(temperature=0.0, max_tokens=1, repetition_penalty=penalty)
        return next(iter(generate_tokens(model, tokenizer, [*ids, 1, 0], sampling))).token_id

    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 100, 40).tolist() for _ in range(40)]
    said = [(ids, token) for ids in prompts if (token := first_of(ids, 1.0)) in ids]
    assert said
    assert all(first_of(ids, 10.0) == token for ids, token in said)


def test_files_may_hold_copies_of_the_embedding(tiny_t5: TinyT5, tmp_path: Path) -> None:
    folder = write_tiny_t5(tmp_path, is_tied=True)
    weights = load_file(folder / "model.safetensors")
    more: dict[str, np.ndarray] = dict.fromkeys(
        ["encoder.embed_tokens.weight", "lm_head.weight"], weights["shared.weight"]
    )
    more["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.zeros((32, 4), np.float32)
    save_file(weights | more, folder / "model.safetensors")
    assert np.array_equal(our_logits(load_t5(folder).model), our_logits(load_t5(tiny_t5(is_tied=True)).model))


def test_what_cannot_be_computed_rightly_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_t5(tmp_path, is_tied=True)
    local = LocalModel("tiny", folder, "folder", None, "", None)
    with pytest.raises(ModelError, match="larger than float16 can hold"):
        load_model(local, quantize=None, compute_dtype="float16", on_gpu=False)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"lm_head.weight": 2 * weights["shared.weight"]}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"no copy of shared\.weight"):
        load_t5(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"feed_forward_proj": "gated-sine"}))
    with pytest.raises(ModelError, match="gated-sine"):
        load_t5(folder)


def test_packed_weights_answer_nearly_like_the_others(tiny_t5: TinyT5) -> None:
    local = LocalModel("tiny", tiny_t5(is_tied=False), "folder", None, "", None)
    model = load_model(local, quantize=8, compute_dtype="float32", on_gpu=False).model
    expected = our_logits(load_t5(tiny_t5(is_tied=False)).model)
    difference = np.abs(our_logits(model) - expected)
    assert 0 < difference.mean() < 0.1 * np.abs(expected).mean()

"""Answers in a batch are those one by one, whatever comes and goes beside them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from random_models import make_model

from mlx_finetune.errors import ModelError, UsageError
from mlx_finetune.model.answers.batches import SHORT_PROMPT, BatchDecoder, Piece, Request, check_batchable
from mlx_finetune.model.answers.caches import ROOM
from mlx_finetune.model.answers.constrain import Grammar
from mlx_finetune.model.answers.generate import PREFILL_TOKENS, generate_tokens
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.tokens.tokenizer import load_tokenizer

GREEDY = Sampling(temperature=0, max_tokens=12)
DRAWN = Sampling(temperature=0.9, max_tokens=15, seed=5)
PROMPTS = ([30, 31, 32, 33, 34], [40], [50, 51], [3] * 7, [9, 8, 7], [60] * 20)
FAMILIES = ("llama", "sliding llama", "gemma", "gpt2", "gpt_neox", "mamba")
ARRAY = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "minItems": 2, "maxItems": 5}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., Path]) -> Any:
    return load_tokenizer(tiny_model("llama"))


def one_by_one(model: Any, tokenizer: Any, request: Request) -> list[Piece]:
    return list(
        generate_tokens(
            model,
            tokenizer,
            request.prompt_ids,
            request.sampling,
            stop_texts=request.stop,
            ends_with_object=request.ends_with_object,
            grammar=request.grammar,
            num_logprobs=request.num_logprobs,
        )
    )


def together(decoder: BatchDecoder, requests: Sequence[Request]) -> list[list[Piece]]:
    said: dict[int, list[Piece]] = {decoder.add(request): [] for request in requests}
    while len(decoder):
        for number, piece in decoder.step():
            said[number].append(piece)
    return list(said.values())


def ids(pieces: Sequence[Piece]) -> list[tuple[int | None, str, str | None]]:
    return [(piece.token_id, piece.text, piece.finish) for piece in pieces]


@pytest.mark.some(8)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_rows", [2, 4, 8])
def test_answers_are_those_one_by_one_greedy_and_drawn(family: str, max_rows: int, tokenizer: Any) -> None:
    model = make_model(family)
    requests = [
        Request(prompt, replace((GREEDY, DRAWN)[number % 2], seed=number, max_tokens=3 + 4 * number))
        for number, prompt in enumerate(PROMPTS)
    ]
    expected = [ids(one_by_one(model, tokenizer, request)) for request in requests]
    assert [ids(said) for said in together(BatchDecoder(model, tokenizer, max_rows=max_rows), requests)] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_comes_late_or_goes_early_changes_no_other(family: str, tokenizer: Any) -> None:
    model = make_model(family)
    decoder = BatchDecoder(model, tokenizer, max_rows=3)
    requests = [Request(prompt, replace(GREEDY, max_tokens=14)) for prompt in PROMPTS]
    expected = [ids(one_by_one(model, tokenizer, request)) for request in requests]
    said: dict[int, list[Piece]] = {}
    numbers: list[int] = []
    for turn in range(60):
        if turn in (0, 2, 3, 7, 8, 9):
            numbers.append(decoder.add(requests[len(numbers)]))
        if turn == 5:
            decoder.remove(numbers[0])
        for number, piece in decoder.step():
            said.setdefault(number, []).append(piece)
    assert len(decoder) == 0
    assert len(said[numbers[0]]) < 14
    for number, wanted in zip(numbers, expected, strict=True):
        assert ids(said[number]) == wanted[: len(said[number])]
    assert all(len(said[number]) == len(wanted) for number, wanted in zip(numbers[1:], expected[1:], strict=True))


def test_schemas_stop_texts_and_objects_hold_row_by_row(tokenizer: Any) -> None:
    model = make_model("llama", vocab_size=320)
    wild = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=60, seed=2)
    free = "".join(piece.text for piece in one_by_one(model, tokenizer, Request([9], wild)))
    requests = [
        Request([30], wild, grammar=Grammar(tokenizer, ARRAY)),
        Request([9], wild, stop=(free[5:7],)),
        Request([40], wild, ends_with_object=True),
        Request([30], replace(wild, seed=3), grammar=Grammar(tokenizer, {"enum": ["yes", "no"]})),
    ]
    answers = together(BatchDecoder(model, tokenizer), requests)
    assert [ids(said) for said in answers] == [ids(one_by_one(model, tokenizer, request)) for request in requests]
    texts = ["".join(piece.text for piece in said) for said in answers]
    assert texts[0].startswith("[")
    assert texts[0].endswith("]")
    assert texts[1] == free[: free.index(free[5:7])]
    assert texts[3] in ('"yes"', '"no"')


def test_a_long_prompt_is_read_in_parts_while_others_speak(tokenizer: Any) -> None:
    model = make_model("llama")
    decoder = BatchDecoder(model, tokenizer)
    first = decoder.add(Request([30, 31], replace(GREEDY, max_tokens=50)))
    decoder.step()
    long = np.random.default_rng(0).integers(3, 96, 2 * PREFILL_TOKENS + 100).tolist()
    second = decoder.add(Request(long, GREEDY))
    spoke = [[number for number, _ in decoder.step()] for _ in range(4)]
    assert spoke == [[first], [first], [first, second], [first, second]]
    short = [decoder.add(Request([40, 41], GREEDY)) for _ in range(2)]
    assert {number for number, _ in decoder.step()} == {first, second, *short}  # short ones are read in one step


class Recording(nn.Module):
    """A model that notes the shapes it is asked for."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.layers = inner.layers
        self.shapes: list[Any] = []

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        self.shapes = [*self.shapes, tuple(tokens.shape)]
        return self.inner(tokens, cache=cache)


def test_short_prompts_of_about_one_length_are_read_together(tokenizer: Any) -> None:
    model = Recording(make_model("llama"))
    decoder = BatchDecoder(model, tokenizer)
    model.shapes = []
    lengths = (5, 6, 4, 60, 1, 2 * SHORT_PROMPT, 3)
    requests = [Request(list(range(3, 96))[:length] + [7] * (length - 93), GREEDY) for length in lengths]
    for request in requests:
        decoder.add(request)
    decoder.step()
    assert model.shapes == [(3, 5), (1, 59), (1, 255), (1, 2), (7, 1)]
    answers = [ids(one_by_one(model.inner, tokenizer, request)) for request in requests]
    assert [ids(said) for said in together(BatchDecoder(model, tokenizer), requests)] == answers


def test_equal_prompts_are_read_once_and_the_last_is_kept_for_those_that_come_later(tokenizer: Any) -> None:
    """Ten answers to each of three prompts, a long one among them, through four places: the same as one by one."""
    model = Recording(make_model("llama"))
    prompts = ([5, 6, 7, 8, 9], list(range(3, 93)) * 2, [7, 8, 9])
    requests = [
        Request(prompt, replace(DRAWN, seed=seed, max_tokens=1 + seed % 5)) for prompt in prompts for seed in range(10)
    ]
    decoder = BatchDecoder(model, tokenizer, max_rows=4, repeats=True)
    model.shapes = []
    waiting, said = list(enumerate(requests)), dict[int, list[Piece]]()
    numbers: dict[int, int] = {}
    while waiting or len(decoder):
        while waiting and len(decoder) < 4:
            place, request = waiting.pop(0)
            numbers[decoder.add(request)] = place
        for number, piece in decoder.step():
            said.setdefault(numbers[number], []).append(piece)
    assert [shape for shape in model.shapes if shape[1] > 1] == [(1, 4), (1, 179), (1, 2)]
    assert [ids(said[place]) for place in range(30)] == [
        ids(one_by_one(model.inner, tokenizer, request)) for request in requests
    ]


def test_equal_prompts_among_others_that_are_taken_in_together_are_read_once(tokenizer: Any) -> None:
    model = Recording(make_model("llama"))
    decoder = BatchDecoder(model, tokenizer)
    model.shapes = []
    requests = [
        Request(prompt, replace(DRAWN, seed=seed)) for seed, prompt in enumerate(([5, 6, 7], [8, 9], [5, 6, 7], [8, 9]))
    ]
    answers = together(decoder, requests)
    assert model.shapes[:2] == [(2, 2), (4, 1)]
    assert [ids(said) for said in answers] == [ids(one_by_one(model.inner, tokenizer, one)) for one in requests]


def test_a_row_that_comes_or_goes_copies_what_the_caches_hold_and_no_more(tokenizer: Any) -> None:
    decoder = BatchDecoder(make_model("llama"), tokenizer)
    for length in (3, 4, 5):
        decoder.add(Request([7] * length, replace(GREEDY, max_tokens=length - 1)))
    while len(decoder) > 1:
        decoder.step()
    assert {layer.keys.shape[:3:2] for layer in decoder._layers} == {(1, 4 + 3)}  # the last one's prompt and answer


def test_caches_of_rows_that_are_read_together_have_room_for_a_few_positions(tokenizer: Any) -> None:
    """mlx-lm's have 256 from the first one on, for every row: most of what short answers would take."""
    decoder = BatchDecoder(make_model("llama"), tokenizer)
    for length in (3, 4, 5):
        decoder.add(Request([7] * length, GREEDY))
    decoder.step()
    assert {layer.keys.shape[:3:2] for layer in decoder._layers} == {(3, ROOM)}


def test_learned_positions_end_a_row_and_no_other(tokenizer: Any) -> None:
    model = make_model("gpt2")
    requests = [Request([5] * 60, GREEDY), Request([5, 6], GREEDY), Request([5] * 64, GREEDY)]
    decoder = BatchDecoder(model, tokenizer)
    answers = together(decoder, requests)
    assert [ids(said) for said in answers] == [ids(one_by_one(model, tokenizer, request)) for request in requests]
    assert [said[-1].finish for said in answers] == ["context", "length", "context"]
    with pytest.raises(ModelError, match="65 tokens"):
        decoder.add(Request([5] * 65, GREEDY))
    with pytest.raises(ModelError, match="no tokens"):
        decoder.add(Request([], GREEDY))
    with pytest.raises(ModelError, match="token id 96"):
        decoder.add(Request([96], GREEDY))
    assert len(decoder) == 0


def test_log_probabilities_are_of_the_models_own_distribution(tokenizer: Any) -> None:
    model = make_model("llama", vocab_size=320)
    request = Request([30, 31], DRAWN, num_logprobs=3)
    held = replace(request, grammar=Grammar(tokenizer, ARRAY))
    decoder = BatchDecoder(model, tokenizer)
    free, bound, plain = together(decoder, [request, held, replace(request, num_logprobs=0)])
    assert ids(free) == ids(plain)
    assert plain[0].logprob is None
    assert plain[0].likeliest == ()
    logits = np.array(model(mx.array([[30, 31]]))[0, -1], dtype=np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    for said in (free, bound):
        token = said[0].token_id
        assert token is not None
        assert said[0].logprob == pytest.approx(expected[token], abs=1e-4)
        best = np.argsort(-expected)[:3]
        assert [one for one, _ in said[0].likeliest] == best.tolist()
        assert [value for _, value in said[0].likeliest] == pytest.approx(expected[best], abs=1e-4)


def test_a_row_that_cannot_go_on_fails_alone(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama", vocab_size=320)
    decoder = BatchDecoder(model, tokenizer)
    held = Request([30], GREEDY, grammar=Grammar(tokenizer, ARRAY))
    free = Request([30, 31], GREEDY)

    def advance(*_: Any) -> bool:
        raise ModelError("too much")

    monkeypatch.setattr("mlx_finetune.model.answers.constrain.Constraint.advance", advance)
    failed, fine = together(decoder, [held, free])
    assert (failed[0].finish, failed[0].token_id, str(failed[0].error)) == ("failed", None, "too much")
    assert ids(fine) == ids(one_by_one(model, tokenizer, free))
    with pytest.raises(UsageError, match="repetition_penalty"):
        decoder.add(replace(held, sampling=replace(GREEDY, repetition_penalty=1.2)))


class Unbatchable(nn.Module):
    """A model whose layers keep something that knows one row only."""

    model_type = "peculiar"

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.layers = inner.layers

    def make_cache(self) -> list[Any]:
        from mlx_lm.models.cache import ConcatenateKVCache

        return [ConcatenateKVCache() for _ in self.layers]

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.inner(tokens, cache=cache)


def test_a_model_that_cannot_be_batched_is_named_and_still_answers_one_by_one(tokenizer: Any) -> None:
    model = Unbatchable(make_model("llama"))
    with pytest.raises(ModelError, match=r"a peculiar model answers one prompt at a time.*ConcatenateKVCache"):
        BatchDecoder(model, tokenizer)
    requests = [Request(prompt, GREEDY) for prompt in PROMPTS[:3]]
    answers = together(BatchDecoder(model, tokenizer, max_rows=1), requests)
    assert [ids(said) for said in answers] == [ids(one_by_one(model, tokenizer, request)) for request in requests]
    check_batchable(make_model("mamba"))


def peculiar(kind: str) -> Any:
    """Architectures of mlx-lm that do not answer several rows."""
    from mlx_lm.models import gemma2, gpt_bigcode

    if kind == "gemma2":
        arguments: Any = gemma2.ModelArgs(
            kind, hidden_size=64, num_hidden_layers=2, intermediate_size=96, num_attention_heads=4, head_dim=16,
            rms_norm_eps=1e-5, vocab_size=96, num_key_value_heads=2,
        )  # fmt: skip
        model: Any = gemma2.Model(arguments)
    else:
        arguments = gpt_bigcode.ModelArgs(
            kind, n_embd=64, n_layer=2, n_inner=96, n_head=4, n_positions=64, layer_norm_epsilon=1e-5, vocab_size=96
        )
        model = gpt_bigcode.Model(arguments)
    mx.eval(model.parameters())
    model.eval()
    return model


@pytest.mark.parametrize("kind", ["gemma2", "gpt_bigcode"])
def test_an_architecture_that_fails_on_rows_is_refused_before_it_is_asked(kind: str, tokenizer: Any) -> None:
    model = peculiar(kind)
    with pytest.raises(ModelError, match=rf"a {kind} model answers one prompt at a time: "):
        BatchDecoder(model, tokenizer)
    request = Request(PROMPTS[0], GREEDY)
    answer = together(BatchDecoder(model, tokenizer, max_rows=1), [request])
    assert [ids(said) for said in answer] == [ids(one_by_one(model, tokenizer, request))]


class Mixing(Recording):
    """A model whose rows see each other."""

    model_type = "mixing"

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits = super().__call__(tokens, cache)
        return 0.7 * logits + 0.3 * mx.mean(logits, axis=0, keepdims=True)


def test_a_model_that_says_something_else_in_a_batch_is_refused_and_others_are_tried_once(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="mixing model answers one prompt at a time: it says something else"):
        BatchDecoder(Mixing(make_model("llama")), tokenizer)
    model = Recording(make_model("llama"))
    before = list(dict(model.parameters()))
    for _ in range(2):
        check_batchable(model)
    assert model.shapes == [(1, 3), (1, 1), (1, 2), (2, 1)]
    assert list(dict(model.parameters())) == before
    for family in FAMILIES:
        half = make_model(family)
        half.set_dtype(mx.bfloat16)
        check_batchable(half)


class Rounding(Recording):
    """Says something else by the number of rows that are read at once, as half precision does on a GPU."""

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits = super().__call__(tokens, cache)
        noise = mx.random.normal(logits.shape[2:], key=mx.random.key(len(tokens)))
        return logits + 0.5 * mx.std(logits) * noise


class MixingRounding(Rounding):
    """The same, and what a row says depends on the other one."""

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits = super().__call__(tokens, cache)
        return logits + 5.0 * (mx.mean(logits, axis=0, keepdims=True) - logits)


def test_what_rounding_does_to_a_row_beside_itself_is_no_mixing(tokenizer: Any) -> None:
    check_batchable(Rounding(make_model("llama")))
    with pytest.raises(ModelError, match="it says something else"):
        check_batchable(MixingRounding(make_model("llama")))


def test_memory_returns_when_rows_go(tokenizer: Any) -> None:
    model = make_model("llama")
    decoder = BatchDecoder(model, tokenizer)
    mx.synchronize()
    before = mx.get_active_memory()
    prompt = np.random.default_rng(0).integers(3, 96, 400).tolist()
    numbers = [decoder.add(Request(prompt, replace(GREEDY, max_tokens=500))) for _ in range(4)]
    for _ in range(8):
        decoder.step()
    full = mx.get_active_memory() - before
    for number in numbers[:3]:
        decoder.remove(number)
    decoder.step()
    assert mx.get_active_memory() - before < 0.4 * full
    decoder.remove(numbers[3])
    assert len(decoder) == 0
    assert mx.get_active_memory() - before < 0.02 * full


def test_an_interrupted_step_leaves_an_empty_decoder(tokenizer: Any) -> None:
    model = make_model("llama")
    decoder = BatchDecoder(model, tokenizer)
    for prompt in PROMPTS:
        decoder.add(Request(prompt, GREEDY))
    decoder.step()
    call = model.layers[1].self_attn

    class Interrupting(nn.Module):
        def __call__(self, *_: Any) -> mx.array:
            raise KeyboardInterrupt

    model.layers[1].self_attn = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        decoder.step()
    assert len(decoder) == 0
    model.layers[1].self_attn = call
    request = Request(PROMPTS[0], GREEDY)
    assert ids(together(decoder, [request])[0]) == ids(one_by_one(model, tokenizer, request))

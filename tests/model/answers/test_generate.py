"""Generation: the tokens are those of the model, the text is whole, and the cache changes nothing but the time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from random_models import make_model

from mlx_finetune.errors import ModelError
from mlx_finetune.model.answers.generate import Detokenizer, PromptCache, generate_text, generate_tokens
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.tokens.tokenizer import load_tokenizer

GREEDY = Sampling(temperature=0, max_tokens=12)
PROMPT = [30, 31, 32, 33, 34]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., Path]) -> Any:
    return load_tokenizer(tiny_model("llama"))


class Scripted(nn.Module):
    """Says the tokens of a script one after the other, whatever it is asked."""

    def __init__(self, script: Sequence[int], vocab_size: int) -> None:
        super().__init__()
        self.layers: list[nn.Module] = []
        self.script = tuple(script)
        self.calls: list[int] = []
        self._vocab_size = vocab_size

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        position = len([length for length in self.calls if length == 1])
        self.calls = [*self.calls, tokens.shape[1]]
        logits = mx.zeros((1, tokens.shape[1], self._vocab_size))
        logits[0, -1, self.script[min(position, len(self.script) - 1)]] = 9.0
        return logits


def scripted(text: str, tokenizer: Any, *, end: bool = True) -> Scripted:
    ids = [*tokenizer.encode(text).ids, *([tokenizer.eos_token_id] if end else [])]
    return Scripted(ids, tokenizer.vocab_size)


def greedy_by_hand(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(np.array(model(mx.array([ids]))[0, -1]))))
    return ids[len(prompt) :]


def ids_of(model: Any, tokenizer: Any, prompt: list[int], **more: Any) -> list[int | None]:
    return [piece.token_id for piece in generate_tokens(model, tokenizer, prompt, GREEDY, **more)]


@pytest.mark.parametrize("family", ["llama", "sliding llama", "gemma", "gpt2", "gpt_neox", "mamba"])
def test_greedy_tokens_are_those_of_full_forward_passes_with_and_without_a_reused_cache(
    family: str, tokenizer: Any
) -> None:
    model = make_model(family)
    expected = greedy_by_hand(model, PROMPT, 12)
    assert ids_of(model, tokenizer, PROMPT) == expected
    cache = PromptCache(model)
    assert ids_of(model, tokenizer, PROMPT, cache=cache) == expected
    longer = [*PROMPT, *expected[:-1], 40, 41]
    assert ids_of(model, tokenizer, longer, cache=cache) == greedy_by_hand(model, longer, 12)
    other = [*PROMPT[:3], 50, 51]
    assert ids_of(model, tokenizer, other, cache=cache) == greedy_by_hand(model, other, 12)
    assert ids_of(model, tokenizer, other, cache=cache) == greedy_by_hand(model, other, 12)


def test_a_reused_cache_computes_only_what_is_new(tokenizer: Any) -> None:
    model = scripted("yes", tokenizer)
    cache = PromptCache(model)
    answer = generate_tokens(model, tokenizer, PROMPT, GREEDY, cache=cache)
    tokens = [piece.token_id for piece in answer if piece.token_id is not None]
    assert model.calls == [4, 1, *[1] * (len(tokens) - 1)]
    assert cache.ids == [*PROMPT, *tokens[:-1]]
    model.calls = []
    list(generate_tokens(model, tokenizer, [*PROMPT, *tokens, 7, 8], GREEDY, cache=cache))
    assert model.calls[:2] == [2, 1]  # the end mark and 7, then 8


def test_long_prompts_are_read_in_chunks_with_the_same_result(tokenizer: Any) -> None:
    model = make_model("llama")
    prompt = np.random.default_rng(0).integers(3, 96, 700).tolist()
    assert ids_of(model, tokenizer, prompt)[:3] == greedy_by_hand(model, prompt, 3)
    talker = scripted("a", tokenizer)
    list(generate_tokens(talker, tokenizer, prompt, GREEDY))
    assert talker.calls[:3] == [512, 187, 1]


@pytest.mark.parametrize("text", ["plain words, and the end", "naïve café — 東京 🙂🙃 ok", "\n\n  indented", "é"])
def test_pieces_join_to_the_text_and_none_holds_half_a_character(text: str, tokenizer: Any) -> None:
    model = scripted(text, tokenizer)
    pieces = list(generate_tokens(model, tokenizer, PROMPT, Sampling(temperature=0, max_tokens=200)))
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == "stop"
    assert pieces[-1].token_id == tokenizer.eos_token_id


def test_text_is_shown_as_soon_as_it_is_whole(tokenizer: Any) -> None:
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode("a🙂b").ids
    assert [detokenizer.add(token) for token in ids] == ["a", "", "", "", "🙂", "b"]


def test_what_is_no_utf8_appears_as_replacement_characters_and_never_waits_for_long(tokenizer: Any) -> None:
    byte = tokenizer.encode("🙂").ids[0]  # starts a character of four bytes that never comes
    detokenizer = Detokenizer(tokenizer)
    shown = [detokenizer.add(byte) for _ in range(20)]
    assert "".join(shown) + detokenizer.finish() == "\ufffd" * 20
    assert max(len(text) for text in shown) <= 4
    cut = Detokenizer(tokenizer)
    assert cut.add(byte) == ""
    assert cut.finish() == "\ufffd"


def test_stop_tokens_and_other_special_tokens_are_never_shown(tokenizer: Any) -> None:
    start, end = tokenizer.control_tokens["<|im_start|>"], tokenizer.control_tokens["<|im_end|>"]
    a, b = tokenizer.encode("a").ids[0], tokenizer.encode("b").ids[0]
    model = Scripted([a, start, b, end, a], tokenizer.vocab_size)
    pieces = list(generate_tokens(model, tokenizer, PROMPT, GREEDY))
    assert "".join(piece.text for piece in pieces) == "ab"
    assert (pieces[-1].token_id, pieces[-1].finish) == (end, "stop")


def test_max_tokens_ends_with_length(tokenizer: Any) -> None:
    pieces = list(generate_tokens(scripted("abc" * 9, tokenizer), tokenizer, PROMPT, GREEDY))
    assert len(pieces) == 12
    assert pieces[-1].finish == "length"
    assert "".join(piece.text for piece in pieces) == "abc" * 4


def test_the_caller_can_stop_before_any_token(tokenizer: Any) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 4  # once for the prompt, then before each token

    pieces = list(generate_tokens(scripted("abcdefgh", tokenizer), tokenizer, PROMPT, GREEDY, stop=stop))
    assert "".join(piece.text for piece in pieces) == "abc"
    assert (pieces[-1].token_id, pieces[-1].finish) == (None, "cancelled")


def test_an_interrupted_forward_pass_leaves_no_half_filled_cache(tokenizer: Any) -> None:
    model = make_model("llama")
    cache = PromptCache(model)
    ids_of(model, tokenizer, PROMPT, cache=cache)
    call = model.layers[1].self_attn
    model.layers[1].self_attn = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        ids_of(model, tokenizer, [*PROMPT, 3, 4], cache=cache)
    assert cache.ids == []
    model.layers[1].self_attn = call
    assert ids_of(model, tokenizer, [*PROMPT, 3], cache=cache) == greedy_by_hand(model, [*PROMPT, 3], 12)


class Interrupting(nn.Module):
    def __call__(self, *_: Any) -> mx.array:
        raise KeyboardInterrupt


def test_learned_positions_end_the_answer_and_too_long_a_prompt_is_refused(tokenizer: Any) -> None:
    model = make_model("gpt2")
    pieces = list(generate_tokens(model, tokenizer, [5] * 60, GREEDY))
    assert len(pieces) == 5  # positions 60 to 63 are read, and the last one's answer is the fifth
    assert pieces[-1].finish == "context"
    assert [piece.token_id for piece in pieces] == greedy_by_hand(model, [5] * 60, 5)
    assert list(generate_tokens(model, tokenizer, [5] * 64, GREEDY))[-1].finish == "context"
    with pytest.raises(ModelError, match="65 tokens, and this model has positions for 64"):
        next(generate_tokens(model, tokenizer, [5] * 65, GREEDY))
    with pytest.raises(ModelError, match="the prompt has no tokens"):
        next(generate_tokens(model, tokenizer, [], GREEDY))


def test_a_stop_text_ends_an_answer_across_tokens_and_is_not_shown(tokenizer: Any) -> None:
    model = scripted("one two END three", tokenizer)
    many = Sampling(temperature=0, max_tokens=40)
    pieces = list(generate_tokens(model, tokenizer, PROMPT, many, stop_texts=("never", " END")))
    assert "".join(piece.text for piece in pieces) == "one two"
    assert pieces[-1].finish == "stop"
    assert pieces[-1].token_id not in tokenizer.stop_token_ids
    model = scripted("one EN", tokenizer)
    pieces = list(generate_tokens(model, tokenizer, PROMPT, many, stop_texts=("END",)))
    assert "".join(piece.text for piece in pieces) == "one EN"  # what was held back was no stop text


def test_an_answer_can_end_with_its_first_object(tokenizer: Any) -> None:
    model = scripted('ok {"a": {"b": "}"}} and more', tokenizer, end=False)
    many = Sampling(temperature=0, max_tokens=60)
    pieces = list(generate_tokens(model, tokenizer, PROMPT, many, ends_with_object=True))
    assert "".join(piece.text for piece in pieces) == 'ok {"a": {"b": "}"}}'
    assert pieces[-1].finish == "stop"


def test_an_end_in_the_text_that_waited_is_an_end_too(tokenizer: Any) -> None:
    start = tokenizer.encode("\u00e9").ids[0]  # half a character, shown as U+FFFD when nothing follows
    pieces = list(
        generate_tokens(
            Scripted([start], tokenizer.vocab_size),
            tokenizer,
            PROMPT,
            Sampling(temperature=0, max_tokens=1),
            stop_texts=("\ufffd",),
        )
    )
    assert [(piece.text, piece.finish) for piece in pieces] == [("", "stop")]


def test_the_same_seed_gives_the_same_answer(tokenizer: Any) -> None:
    model = make_model("llama")
    settings = Sampling(temperature=1.0, max_tokens=20, seed=4)
    first = [piece.token_id for piece in generate_tokens(model, tokenizer, PROMPT, settings)]
    assert [piece.token_id for piece in generate_tokens(model, tokenizer, PROMPT, settings)] == first
    other = Sampling(temperature=1.0, max_tokens=20, seed=5)
    assert [piece.token_id for piece in generate_tokens(model, tokenizer, PROMPT, other)] != first


def test_a_trained_model_tells_a_story(shared: Callable[..., Path]) -> None:
    folder = shared("models", "stories260K")
    local = LocalModel("stories260K", folder, f"folder:{folder}", None, "", None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer.encode("Once upon a time", add_special_tokens=True).ids
    text = generate_text(model, tokenizer, prompt, Sampling(temperature=0, max_tokens=40))
    assert text.startswith(", there was a little girl named Lily. She loved to play outside in the park.")
    after_space = tokenizer.encode("Lily and her", add_special_tokens=True).ids
    assert generate_text(model, tokenizer, after_space, Sampling(temperature=0, max_tokens=3)).startswith(" ")

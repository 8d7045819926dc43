"""Answers held to a schema: valid when they end, refused where that cannot be promised."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from random_models import make_model
from tiny import make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlx_finetune.errors import DataError, ModelError, UsageError
from mlx_finetune.model.answers.constrain import Constraint, Grammar
from mlx_finetune.model.answers.generate import Answer, Piece, PromptCache, generate_tokens
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.tokens.tokenizer import load_tokenizer

Schema = Mapping[str, Any]

EVENT = {key: {"type": "string", "maxLength": 12} for key in ("ts", "event", "fan_sentiment")}
TIMELINE = {
    "type": "object",
    "properties": {
        "timeline": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {"type": "object", "properties": EVENT, "required": list(EVENT), "additionalProperties": False},
        }
    },
    "required": ["timeline"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Schema] = {
    "timeline": TIMELINE,
    "scalars": {
        "type": "object",
        "properties": {
            "count": {"type": "integer", "minimum": -3, "maximum": 1200},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "mood": {"enum": ["good", "bad", None, 3]},
            "sure": {"type": "boolean"},
            "when": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{1,3}$"},
        },
        "required": ["count", "share", "mood", "sure", "when", "code"],
        "additionalProperties": False,
    },
    "list": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 4},
    "number": {"type": "integer", "minimum": 10, "maximum": 99},
    "choice": {"anyOf": [{"const": "yes"}, {"type": "object", "properties": {}, "additionalProperties": False}]},
    "defs": {
        "$defs": {"one": {"type": "string", "maxLength": 3}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/one"}, "b": {"$ref": "#/$defs/one"}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
WILD: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., Path]) -> Any:
    return load_tokenizer(tiny_model("llama"))


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama", vocab_size=320)  # more rows than the tokenizer has tokens, as many real models have


def answer(model: Any, tokenizer: Any, grammar: Grammar, **settings: Any) -> list[Piece]:
    return list(generate_tokens(model, tokenizer, [30, 31], Sampling(**settings), grammar=grammar))


@pytest.mark.some(3)
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_of_a_random_model_that_ends_is_valid(name: str, model: Any, tokenizer: Any) -> None:
    grammar = Grammar(tokenizer, SCHEMAS[name])
    ended = 0
    for seed in range(6):
        pieces = answer(model, tokenizer, grammar, seed=seed, max_tokens=250, **WILD)
        if pieces[-1].finish == "stop":
            ended += 1
            jsonschema.validate(json.loads("".join(piece.text for piece in pieces)), SCHEMAS[name])
    assert ended >= 5


def test_an_answer_ends_with_its_last_brace_and_needs_no_end_mark(model: Any, tokenizer: Any) -> None:
    pieces = answer(model, tokenizer, Grammar(tokenizer, TIMELINE), temperature=0, max_tokens=300)
    assert pieces[-1].finish == "stop"
    assert pieces[-1].text == "}"
    assert pieces[-1].token_id not in tokenizer.stop_token_ids


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 3, **WILD}])
def test_tokens_without_a_choice_are_read_with_the_next_one_and_change_nothing(
    settings: dict[str, Any], model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = Grammar(tokenizer, SCHEMAS["timeline"])
    lengths: list[int] = []
    advance = PromptCache.advance

    def recording(cache: PromptCache, ids: Any) -> mx.array:
        lengths.append(len(ids))
        return advance(cache, ids)

    monkeypatch.setattr(PromptCache, "advance", recording)
    quick = answer(model, tokenizer, grammar, max_tokens=300, **settings)
    assert sum(lengths) <= len(quick) + 1
    assert max(lengths) > 8  # ","event":" comes letter by letter in this vocabulary
    computed, lengths = len(lengths), []
    monkeypatch.setattr(Answer, "forced", lambda _: None)
    slow = answer(model, tokenizer, grammar, max_tokens=300, **settings)
    assert quick == slow
    assert computed < 0.8 * len(lengths) == 0.8 * (len(slow) + 1)


def test_running_out_of_tokens_is_length_and_nothing_is_added(model: Any, tokenizer: Any) -> None:
    grammar = Grammar(tokenizer, TIMELINE)
    whole = answer(model, tokenizer, grammar, temperature=0, max_tokens=300)
    cut = answer(model, tokenizer, grammar, temperature=0, max_tokens=20)
    assert (len(cut), cut[-1].finish) == (20, "length")
    assert [piece.token_id for piece in cut] == [piece.token_id for piece in whole[:20]]
    with pytest.raises(ValueError, match=r"line 1"):
        json.loads("".join(piece.text for piece in cut))


def test_where_the_value_may_go_on_the_end_mark_ends_it(tokenizer: Any) -> None:
    constraint = Constraint(Grammar(tokenizer, {"type": "integer"}))
    digit = tokenizer.encode("7").ids[0]
    logits = mx.zeros((320,))
    assert not any(np.isfinite(np.array(constraint.mask(logits)))[sorted(tokenizer.stop_token_ids)])
    assert constraint.advance(digit) is False
    allowed = np.flatnonzero(np.isfinite(np.array(constraint.mask(logits))))
    assert set(tokenizer.stop_token_ids) <= set(allowed.tolist())
    assert tokenizer.control_tokens["<|im_start|>"] not in allowed


def test_tokens_that_only_the_model_has_are_never_said_and_the_logits_keep_their_type(tokenizer: Any) -> None:
    constraint = Constraint(Grammar(tokenizer, True))
    masked = constraint.mask(mx.zeros((400,), mx.bfloat16))
    assert masked.dtype == mx.bfloat16
    assert not np.isfinite(np.array(masked.astype(mx.float32))[tokenizer.vocab_size :]).any()
    few = constraint.mask(mx.zeros((100,)))  # a model with fewer tokens than its tokenizer
    assert few.shape == (100,)


def test_a_model_without_the_tokens_says_so(tokenizer: Any) -> None:
    constraint = Constraint(Grammar(tokenizer, TIMELINE))
    with pytest.raises(ModelError, match="no token of this model"):
        constraint.mask(mx.zeros((3,)))


def test_logits_that_are_no_numbers_end_in_one_error(model: Any, tokenizer: Any) -> None:
    constraint = Constraint(Grammar(tokenizer, TIMELINE))
    with pytest.raises(ModelError, match="cannot be held to its schema"):
        constraint.advance(tokenizer.encode("x").ids[0])


@pytest.mark.parametrize(
    ("schema", "text", "says"),
    [
        ({"type": "object"}, '{"a":1,"a":2}', "the key 'a' stands twice"),
        ({"type": "number"}, "1e999", "too large"),
    ],
)
def test_what_a_grammar_cannot_see_is_an_error_and_not_an_answer(
    schema: Schema, text: str, says: str, tokenizer: Any
) -> None:
    pieces = [*tokenizer.encode(text).ids, tokenizer.eos_token_id]
    model, grammar = Saying(pieces), Grammar(tokenizer, schema)
    with pytest.raises(ModelError, match=says):
        answer(model, tokenizer, grammar, temperature=0)


class Saying(nn.Module):
    """Says these tokens, whatever it is asked."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.layers: list[nn.Module] = []
        self.ids = tuple(ids)
        self.num_read = -2  # the prompt has two tokens

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        logits = mx.zeros((1, tokens.shape[1], 320))
        self.num_read += tokens.shape[1]
        if self.num_read >= 0:
            logits[0, -1, self.ids[self.num_read]] = 9.0
        return logits


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (False, "admits nothing"),
        ({"enum": []}, "admits nothing"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "admits nothing"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "admits nothing"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"if": {"type": "string"}, "then": {"maxLength": 3}}, "if"),
        ({"type": "string", "format": "of my own"}, "of my own"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "("}, "cannot be enforced"),
        ({"type": "text"}, "text"),
        ({"$ref": "https://example.org/schema.json"}, "cannot be enforced"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "#"}, "cannot be enforced"),
        ({"x-guidance": {"lenient": True}, "uniqueItems": True, "type": "array"}, "uniqueItems"),
    ],
)
def test_a_schema_that_cannot_be_promised_is_one_error(schema: Any, says: str, tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        Grammar(tokenizer, schema)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_the_schema_cannot_bring_blanks_back(tokenizer: Any) -> None:
    grammar = Grammar(tokenizer, {**TIMELINE, "x-guidance": {"whitespace_flexible": True}})
    allowed = np.array(Constraint(grammar).mask(mx.zeros((320,))))
    assert not np.isfinite(allowed[tokenizer.encode(" ").ids[0]])


def test_a_schema_goes_with_no_repetition_penalty_and_no_stop_text(model: Any, tokenizer: Any) -> None:
    grammar = Grammar(tokenizer, TIMELINE)
    with pytest.raises(UsageError, match=r"repetition_penalty = 1\.1 do not go together"):
        answer(model, tokenizer, grammar, repetition_penalty=1.1)
    with pytest.raises(UsageError, match="a schema and a stop text"):
        next(generate_tokens(model, tokenizer, [30], Sampling(), grammar=grammar, stop_texts=("a",)))


def test_a_list_of_objects_does_not_end_with_its_first_object(model: Any, tokenizer: Any) -> None:
    schema = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "object", "maxProperties": 0}}
    grammar = Grammar(tokenizer, schema)
    pieces = list(
        generate_tokens(model, tokenizer, [30], Sampling(temperature=0), grammar=grammar, ends_with_object=True)
    )
    assert "".join(piece.text for piece in pieces) == "[{},{}]"


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused(tmp_path: Path) -> None:
    words = {"[UNK]": 0, "<|endoftext|>": 1, "a": 2, "##b": 3, "{": 4, "}": 5}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    with pytest.raises(ModelError, match="a schema cannot be used with this tokenizer"):
        Grammar(load_tokenizer(tmp_path), TIMELINE)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["yes", "a <think> b"]},
        {"const": {"<|im_end|>": 1}},
        {"type": "array", "items": {"type": "object", "properties": {"<think>": {"type": "string"}}}},
    ],
)
def test_a_schema_that_names_a_control_token_is_refused(schema: Schema, tmp_path: Path) -> None:
    backend = make_tokenizer()
    backend.add_tokens([AddedToken("<think>", special=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="is a token of its own in this tokenizer"):
        Grammar(tokenizer, schema)
    described = {**TIMELINE, "description": "no <think> and no <|im_end|>"}
    constraint = Constraint(Grammar(tokenizer, described))
    for token in tokenizer.encode('{"timeline":[{"ts":"').ids:
        constraint.advance(token)
    masked = np.array(constraint.mask(mx.zeros((320,))))
    assert not np.isfinite(masked[list(tokenizer.control_tokens.values())]).any()  # inside a text neither


TOKENIZERS = {
    "stories260K": ("models", "stories260K"),
    "gpt-neox": ("models", "tokenizers", "gpt-neox-20B_tokenizer.json"),
    "gpt2": ("models", "tokenizers", "gpt2_vocab.json"),
    "llama2": ("models", "tokenizers", "llama2_tokenizer.model"),
}


def real_tokenizer(name: str, folder: Path, shared: Callable[..., Path]) -> Any:
    path = shared(*TOKENIZERS[name])
    if name == "stories260K":
        return load_tokenizer(path)
    if name == "gpt2":
        (folder / "vocab.json").write_bytes(path.read_bytes())
        (folder / "merges.txt").write_bytes(path.with_name("gpt2_merges.txt").read_bytes())
    else:
        (folder / ("tokenizer.json" if path.suffix == ".json" else "tokenizer.model")).write_bytes(path.read_bytes())
    if name == "gpt-neox":
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return load_tokenizer(folder)


@pytest.mark.some(2)
@pytest.mark.filterwarnings("ignore")  # transformers' converters
@pytest.mark.parametrize("name", TOKENIZERS)
def test_real_vocabularies_bytes_and_sentencepiece_give_valid_answers(
    name: str, tmp_path: Path, shared: Callable[..., Path]
) -> None:
    tokenizer = real_tokenizer(name, tmp_path, shared)
    model = make_model("llama", vocab_size=(tokenizer.vocab_size + 63) // 64 * 64)
    grammar = Grammar(tokenizer, TIMELINE)
    said = ""
    for seed in range(6):
        prompt = tokenizer.encode("Answer:").ids
        settings = Sampling(seed=seed, max_tokens=300, **WILD)
        pieces = list(generate_tokens(model, tokenizer, prompt, settings, grammar=grammar))
        text = "".join(piece.text for piece in pieces)
        assert pieces[-1].finish == "stop"
        jsonschema.validate(json.loads(text), TIMELINE)
        said += text
    assert not said.isascii()  # characters of several tokens were among them

"""The tokenizer inside a GGUF file, written as tokenizer.json and tokenizer_config.json.

Byte-level BPE with the pre-tokenizers below, and sentencepiece BPE (type "llama"). Each was compared with recorded
ids of the original tokenizer (``tests/model/gguf/test_tokenizer.py``); a pre-tokenizer that is not in the list is
refused by name, since a wrong split gives wrong ids silently.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from mlx_finetune.errors import ModelError
from mlx_finetune.model.gguf.container import Gguf, Value

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"\p{N}" + _REST


@dataclass(frozen=True, slots=True)
class _Style:
    """How text is cut before the merges, and what a byte-level tokenizer does besides."""

    pieces: Callable[[], list[pre_tokenizers.PreTokenizer]]
    ignore_merges: bool = False
    normalize: bool = False
    adds_bos: bool = False


def _split(pattern: str, *, behavior: str = "isolated") -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior)


def _bytes(*, use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


_PRE_TOKENIZERS: Mapping[str, _Style] = {
    "gpt-2": _Style(lambda: [_bytes(use_regex=True)]),
    "smollm": _Style(lambda: [pre_tokenizers.Digits(individual_digits=True), _bytes(use_regex=True)]),
    "llama-bpe": _Style(lambda: [_split(_LLAMA3), _bytes(use_regex=False)], ignore_merges=True, adds_bos=True),
    "qwen2": _Style(lambda: [_split(_QWEN2), _bytes(use_regex=False)], normalize=True),
    "deepseek-llm": _Style(
        lambda: [
            _split(r"[\r\n]"),
            _split(r"\s?[\p{Lu}\p{Ll}\p{Lt}]+"),
            _split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
            _split(r"\s+$"),
            _split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            pre_tokenizers.Digits(individual_digits=True),
            _bytes(use_regex=False),
        ]
    ),
    "deepseek-coder": _Style(
        lambda: [
            _split(r"[\r\n]"),
            _split(r"\s?\p{L}+"),
            _split(r"\s?\p{P}+"),
            _split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            pre_tokenizers.Digits(individual_digits=True),
            _bytes(use_regex=False),
        ]
    ),
}
_ALIASES = {
    "starcoder": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}


def write_tokenizer(gguf: Gguf, folder: Path) -> None:
    """Write both tokenizer files. Raises ``ModelError`` naming what is missing or unsupported."""
    pieces = _strings(gguf, "tokenizer.ggml.tokens")
    kinds = _integers(gguf, "tokenizer.ggml.token_type", len(pieces))
    kind = gguf.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, style_adds_bos = _byte_level(gguf, pieces)
    elif kind == "llama":
        tokenizer, style_adds_bos = _sentencepiece(gguf, pieces, kinds), True
    else:
        raise ModelError(
            f"{gguf.path}: the tokenizer type {kind!r} is not supported; gpt2 (bytes) and llama (sentencepiece) are",
            "use the model's safetensors folder instead",
        )
    for wanted, special in (((_CONTROL, _UNKNOWN), True), ((_USER_DEFINED,), False)):
        texts = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind in wanted]
        tokens = [AddedToken(text, special=special, normalized=False) for text in texts]
        tokenizer.add_special_tokens(tokens) if special else tokenizer.add_tokens(tokens)
    named = {name: _token(gguf, pieces, key) for name, key in _SPECIALS.items()}
    bos = named["bos_token"] if gguf.metadata.get("tokenizer.ggml.add_bos_token", style_adds_bos) else None
    if bos is not None:
        _put_in_front(gguf, tokenizer, bos)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bos is not None,
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in named.items() if token is not None},
    }
    template = gguf.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), "utf-8")


def _put_in_front(gguf: Gguf, tokenizer: Tokenizer, bos: str) -> None:
    """Make ``bos`` the first token of every text that is encoded with special tokens."""
    if " " in bos or ":" in bos or not bos:  # the template below is split at spaces and colons
        raise ModelError(f"{gguf.path}: the token {bos!r} cannot be put in front of a text")
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        template = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.post_processor = template


_SPECIALS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def token_id(gguf: Gguf, key: str) -> int | None:
    """The id under ``key`` if it names a token of the vocabulary, else None."""
    value, tokens = gguf.metadata.get(key), gguf.metadata.get("tokenizer.ggml.tokens")
    known = len(tokens) if isinstance(tokens, list) else 0
    return value if isinstance(value, int) and 0 <= value < known else None


def _token(gguf: Gguf, pieces: Sequence[str], key: str) -> str | None:
    index = token_id(gguf, key)
    return None if index is None else pieces[index]


def _byte_level(gguf: Gguf, pieces: Sequence[str]) -> tuple[Tokenizer, bool]:
    name = gguf.metadata.get("tokenizer.ggml.pre", "missing")
    style = _PRE_TOKENIZERS.get(_ALIASES.get(str(name), str(name)))
    if style is None:
        raise ModelError(
            f"{gguf.path}: the pre-tokenizer {name!r} is not supported",
            f"supported are {', '.join(sorted({*_PRE_TOKENIZERS, *_ALIASES}))}; or use the model's safetensors folder",
        )
    merges = [_pair(gguf, merge) for merge in _strings(gguf, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(_bpe(gguf, pieces, merges, ignore_merges=style.ignore_merges))
    if style.normalize:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(style.pieces())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, style.adds_bos


def _pair(gguf: Gguf, merge: str) -> tuple[str, str]:
    first, _, second = merge.partition(" ")
    if not first or not second or " " in second:
        raise ModelError(f"{gguf.path} is damaged: {merge!r} is not a merge of two pieces")
    return first, second


def _bpe(gguf: Gguf, pieces: Sequence[str], merges: list[tuple[str, str]], **options: object) -> BPE:
    vocab = {piece: index for index, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ModelError(f"{gguf.path}: {len(pieces) - len(vocab)} pieces of the vocabulary occur twice")
    try:
        return BPE(vocab=vocab, merges=merges, **options)
    except Exception as error:  # the library raises plain Exception for merges outside the vocabulary
        raise ModelError(f"{gguf.path} is damaged: the tokenizer does not fit together ({error})") from error


def _sentencepiece(gguf: Gguf, pieces: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    """A sentencepiece BPE vocabulary as merges: any two pieces whose joint is a piece, the joint's score as rank."""
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or [type(score) for score in scores] != [float] * len(pieces):
        raise ModelError(f"{gguf.path} is damaged: the tokenizer has {len(pieces)} pieces without a score for each")
    usable = {piece: index for index, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind == _NORMAL}
    ranked: list[tuple[float, int, int, int, str, str]] = []
    for piece, index in usable.items():
        for cut in range(1, len(piece)):
            first, second = piece[:cut], piece[cut:]
            if first in usable and second in usable:
                score = scores[index]
                assert isinstance(score, float)
                ranked.append((-score, index, usable[first], usable[second], first, second))
    ranked.sort()
    unknown = _token(gguf, pieces, "tokenizer.ggml.unknown_token_id")
    merges = [(first, second) for *_, first, second in ranked]
    tokenizer = Tokenizer(_bpe(gguf, pieces, merges, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in kinds))
    prefix = gguf.metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[normalizers.Normalizer] = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    back = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    return tokenizer


def _strings(gguf: Gguf, key: str) -> list[str]:
    value = gguf.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{gguf.path} has no list of texts `{key}`", "the file needs its tokenizer inside")
    return [str(item) for item in value]


def _integers(gguf: Gguf, key: str, length: int) -> list[int]:
    value: Value | None = gguf.metadata.get(key)
    if value is None:
        return [_NORMAL] * length
    if not isinstance(value, list) or len(value) != length or not all(isinstance(item, int) for item in value):
        raise ModelError(f"{gguf.path} is damaged: `{key}` does not have one number for each of {length} tokens")
    return [item for item in value if isinstance(item, int)]

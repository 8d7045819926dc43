"""Tiny random T5s in the layout of the hub: two blocks a stack, width 64, a unigram tokenizer with T5's control tokens.

The same weights for the same arguments, from numpy alone, so that a test may pin numbers without torch.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WIDTH, HEAD, HEADS, INNER, LAYERS, BUCKETS = 64, 16, 4, 128, 2, 32
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_WORDS = "the a of to and in is you it that was for on are with he she they what this summarize dialogue person"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?#'-()/\"$%&"


def write_tiny_t5(
    folder: Path,
    *,
    is_tied: bool,
    seed: int = 0,
    dtype: type[np.generic] = np.float32,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write config, weights and tokenizer: v1.0 (ReLU, the embedding is the head) or v1.1 (gated gelu, its own)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or make_t5_tokenizer()
    size = tokenizer.get_vocab_size()
    (folder / "config.json").write_text(json.dumps(t5_config(size, is_tied=is_tied), indent=1))
    weights = t5_weights(size, is_tied=is_tied, seed=seed)
    save_file(
        {name: value.astype(dtype) for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "T5Tokenizer", "eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1))
    return folder


def t5_config(vocab_size: int, *, is_tied: bool) -> dict[str, object]:
    """As the files of t5-small and flan-t5-small have it."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": INNER,
        "d_kv": HEAD,
        "d_model": WIDTH,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "relu" if is_tied else "gated-gelu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": LAYERS,
        "num_heads": HEADS,
        "num_layers": LAYERS,
        "pad_token_id": 0,
        "relative_attention_num_buckets": BUCKETS,
        "tie_word_embeddings": is_tied,
        "use_cache": True,
        "vocab_size": vocab_size,
    }


def t5_weights(vocab_size: int, *, is_tied: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Under the names of transformers; matrices are (out, in)."""
    rng = np.random.default_rng([seed, is_tied])

    def matrix(*shape: int, scale: float = 0.1) -> np.ndarray:
        return rng.normal(0, scale, shape).astype(np.float32)

    weights = {"shared.weight": matrix(vocab_size, WIDTH, scale=0.3 if is_tied else 1.0)}
    for stack in ("encoder", "decoder"):
        attentions = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
        for block in range(LAYERS):
            for number, attention in enumerate(attentions):
                place = f"{stack}.block.{block}.layer.{number}"
                for name in ("q", "k", "v"):
                    weights[f"{place}.{attention}.{name}.weight"] = matrix(HEADS * HEAD, WIDTH)
                weights[f"{place}.{attention}.o.weight"] = matrix(WIDTH, HEADS * HEAD)
                weights[f"{place}.layer_norm.weight"] = 1 + matrix(WIDTH)
            if block == 0:
                table = matrix(BUCKETS, HEADS, scale=1.0)
                weights[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = table
            place = f"{stack}.block.{block}.layer.{len(attentions)}"
            for name in ("wi",) if is_tied else ("wi_0", "wi_1"):
                weights[f"{place}.DenseReluDense.{name}.weight"] = matrix(INNER, WIDTH)
            weights[f"{place}.DenseReluDense.wo.weight"] = matrix(WIDTH, INNER, scale=0.4)
            weights[f"{place}.layer_norm.weight"] = 1 + matrix(WIDTH)
        weights[f"{stack}.final_layer_norm.weight"] = 1 + matrix(WIDTH)
    if not is_tied:
        weights["lm_head.weight"] = matrix(vocab_size, WIDTH, scale=0.2)
    return weights


def make_t5_tokenizer() -> Tokenizer:
    """Pad, end and unknown are 0, 1 and 2, then words and letters."""
    words = [f"\u2581{word}" for word in _WORDS.split()]
    pieces = [(PAD, 0.0), (END, 0.0), (UNKNOWN, 0.0), ("\u2581", -2.0)]
    pieces += [(word, -3.0 - place / 100) for place, word in enumerate(words)]
    pieces += [(letter, -5.0 - place / 100) for place, letter in enumerate(_LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", END], pair=None, special_tokens=[(END, 1)])
    specials = [AddedToken(text, special=True, normalized=False) for text in (PAD, END, UNKNOWN)]
    tokenizer.add_special_tokens(specials)
    return tokenizer

"""A T5 with random weights and a tokenizer of single characters, in the layout of the hub: something to train at once.

python docs/tiny_t5.py tiny-t5
mlxft train recipes/questions-t5.toml
"""

import json
import string
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

WIDTH, HEAD, HEADS, INNER, LAYERS, BUCKETS = 128, 32, 4, 256, 2, 32
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
CHARACTERS = [*string.printable[:95], "\n"]


def make_tokenizer() -> Tokenizer:
    """Pad, end and unknown are 0, 1 and 2, then one token for each character."""
    vocabulary = {token: number for number, token in enumerate([PAD, END, UNKNOWN, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", END], pair=None, special_tokens=[(END, 1)])
    tokenizer.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in (PAD, END, UNKNOWN)])
    return tokenizer


def make_config(vocab_size: int) -> dict[str, object]:
    """The keys that T5 of the hub has in its config.json."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": WIDTH,
        "d_kv": HEAD,
        "d_ff": INNER,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": HEADS,
        "vocab_size": vocab_size,
        "relative_attention_num_buckets": BUCKETS,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-6,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def make_weights(vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """Matrices (out, in) under the names of transformers, as large as T5 begins with."""
    rng = np.random.default_rng(seed)

    def matrix(out: int, into: int, spread: float) -> np.ndarray:
        return rng.normal(0, spread, (out, into)).astype(np.float32)

    norm = np.ones(WIDTH, np.float32)
    weights = {
        "shared.weight": matrix(vocab_size, WIDTH, 1.0),
        "lm_head.weight": matrix(vocab_size, WIDTH, WIDTH**-0.5),
    }
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for block in range(LAYERS):
            for number, attention in enumerate(attentions):
                place = f"{stack}.block.{block}.layer.{number}"
                weights[f"{place}.layer_norm.weight"] = norm.copy()
                weights[f"{place}.{attention}.q.weight"] = matrix(HEADS * HEAD, WIDTH, (WIDTH * HEAD) ** -0.5)
                weights[f"{place}.{attention}.k.weight"] = matrix(HEADS * HEAD, WIDTH, WIDTH**-0.5)
                weights[f"{place}.{attention}.v.weight"] = matrix(HEADS * HEAD, WIDTH, WIDTH**-0.5)
                weights[f"{place}.{attention}.o.weight"] = matrix(WIDTH, HEADS * HEAD, (HEADS * HEAD) ** -0.5)
            place = f"{stack}.block.{block}.layer.{len(attentions)}"
            weights[f"{place}.layer_norm.weight"] = norm.copy()
            weights[f"{place}.DenseReluDense.wi_0.weight"] = matrix(INNER, WIDTH, WIDTH**-0.5)
            weights[f"{place}.DenseReluDense.wi_1.weight"] = matrix(INNER, WIDTH, WIDTH**-0.5)
            weights[f"{place}.DenseReluDense.wo.weight"] = matrix(WIDTH, INNER, INNER**-0.5)
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        weights[table] = matrix(BUCKETS, HEADS, WIDTH**-0.5)
        weights[f"{stack}.final_layer_norm.weight"] = norm.copy()
    return weights


def main(folder: Path, seed: int = 0) -> None:
    """Write config, weights and tokenizer into the new ``folder``."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    size = tokenizer.get_vocab_size()
    (folder / "config.json").write_text(json.dumps(make_config(size), indent=1))
    save_file(make_weights(size, seed), folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "T5Tokenizer", "eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

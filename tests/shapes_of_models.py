"""Configurations of published models, as far as sizes go."""

from typing import Any

Config = dict[str, Any]


def _config(
    model_type: str, hidden: int, inner: int, layers: int, heads: tuple[int, int], vocab: int, **more: Any
) -> Config:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "tie_word_embeddings": False,
    } | more


MISTRAL_7B = _config("mistral", 4096, 14336, 32, (32, 8), 32000)
LLAMA_7B = _config("llama", 4096, 11008, 32, (32, 32), 32000)
LLAMA_3_8B = _config("llama", 4096, 14336, 32, (32, 8), 128256)
GEMMA_7B = _config("gemma", 3072, 24576, 28, (16, 16), 256000, head_dim=256, tie_word_embeddings=True)
TINYLLAMA = _config("llama", 2048, 5632, 22, (32, 4), 32000)
QWEN3_8B = _config("qwen3", 4096, 12288, 36, (32, 8), 151936, head_dim=128)
QWEN3_0_6B = _config("qwen3", 1024, 3072, 28, (16, 8), 151936, head_dim=128, tie_word_embeddings=True)
SMOLLM2_135M = _config("llama", 576, 1536, 30, (9, 3), 49152, tie_word_embeddings=True)

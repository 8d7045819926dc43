"""Which token begins the answers of an encoder-decoder model."""

from collections.abc import Mapping

#: A key of config.json; kept in tokenizer_config.json, because a run's folder has no other.
START = "decoder_start_token_id"
_ENCODER_DECODERS = ("t5",)


def start_id(model_config: Mapping[str, object], tokenizer_config: Mapping[str, object]) -> int | None:
    """T5's is 0, the pad token, where ``config.json`` does not say; None for a decoder-only model."""
    is_two_sided = model_config.get("model_type") in _ENCODER_DECODERS
    value = model_config.get(START, 0) if is_two_sided else tokenizer_config.get(START)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

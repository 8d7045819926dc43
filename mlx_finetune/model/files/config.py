"""``config.json`` of a model folder: read with bounds, without mlx, before anything is built from it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from mlx_finetune.errors import DataError, ModelError

_MAX_CONFIG_BYTES = 10_000_000
_MAX_LAYERS = 1_000
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_LAYER_COUNT = re.compile(r"(?:num|n)_(?:\w+_)?(?:layers?|blocks)")
#: Sizes that config.json may give, with the largest that is believed.
_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), _MAX_LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "intermediate_size", "head_dim"), 10**7),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), 10**5),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 10**9),
}


def read_config(folder: Path) -> dict[str, object]:
    """config.json as a table. Raises ``ModelError`` where it is missing, not JSON, or plainly absurd."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json", "give a folder with config.json and safetensors weights")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 10 MB")
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is not a table")
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "fetch or copy the model again") from error
    for key, limit in _LIMITS.items():
        value = config.get(key)
        if value is not None and (type(value) is not int or not 0 < value <= limit):
            raise _absurd(path, key, value, limit)
    _check_nested(path, cast("dict[str, object]", config))
    return cast("dict[str, object]", config)


def first_number(config: Mapping[str, object], *keys: str) -> int | None:
    """The first of ``keys`` that is a positive number in ``config``, or in the part of it that is on text."""
    text = config.get("text_config")
    tables = [config, cast("dict[str, object]", text)] if isinstance(text, dict) else [config]
    values = (table.get(key) for table in tables for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def context_length(config: Mapping[str, object]) -> int | None:
    """How many tokens the model reads at most; None where that has no end, as the positions of T5, or is not said."""
    return None if config.get("model_type") == "t5" else first_number(config, *_CONTEXT_KEYS)


def context_of(folder: Path) -> int | None:
    """``context_length`` of the model in ``folder``."""
    return context_length(read_config(folder))


def too_long(where: str, length: int, name: str, context: int) -> DataError:
    """Of a row that the model cannot read as a whole, and how it can be trained on."""
    return DataError(
        f"{where} has {length} tokens, but {name} reads at most {context}",
        f"set data.max_seq_length = {context} or less",
    )


def refuse_more_blocks(asked: int, num_blocks: int) -> None:
    """Raise ``ModelError`` where ``lora.num_layers`` asks for more blocks than the model has."""
    if asked > num_blocks:
        raise ModelError(
            f"[lora] num_layers = {asked}, but the model has {num_blocks} blocks",
            f'write num_layers = "all" or a number from 1 to {num_blocks}',
        )


def _check_nested(path: Path, table: Mapping[str, object]) -> None:
    """Refuse sizes that no model has in any table: layers are built one by one, whether or not there are weights."""
    for key, value in table.items():
        if isinstance(value, dict):
            _check_nested(path, cast("dict[str, object]", value))
        limit = _MAX_LAYERS if _LAYER_COUNT.fullmatch(key) else _LIMITS.get(key)
        if limit is not None and isinstance(value, int) and value > limit:
            raise _absurd(path, key, value, limit)


def _absurd(path: Path, key: str, value: object, limit: int) -> ModelError:
    return ModelError(f"{path}: `{key}` = {repr(value)[:40]} is not a number from 1 to {limit}")

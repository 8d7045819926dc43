"""JSON that every browser can read: ASCII, and null for a number that is not finite."""

import json
import math
from collections.abc import Mapping
from typing import cast


def encode(value: object) -> bytes:
    """``value`` as one line."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:  # a journal that was not written by us
        text = json.dumps(_finite(value), allow_nan=False)
    return text.encode("ascii")


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in cast("list[object]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value

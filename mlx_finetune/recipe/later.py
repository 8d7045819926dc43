"""Keys of features that do not exist yet: known by name, so that they are refused with a sentence.

A feature that arrives moves its keys from here into ``schema.py``; ``tests/recipe/test_later.py`` fails while a key
stands in both places.
"""

from collections.abc import Mapping, Sequence

#: Dotted key (or section) -> what it is.
_KEYS: Mapping[str, str] = {
    "training.loraplus_lr_ratio": "LoRA+, another learning rate for B",
    "lora.loraplus_lr_ratio": "LoRA+, another learning rate for B",
    "lora.init": "PiSSA and other initial values",
    "lora.pissa": "PiSSA initial values",
    "lora.init_lora_weights": "PiSSA and other initial values",
    "export": "exported formats",
    "hostfile": "training on several machines",
    "hardware.hostfile": "training on several machines",
    "training.hostfile": "training on several machines",
}


def later_key(path: Sequence[str | int]) -> str | None:
    """What the key or section is, when it belongs to a feature that does not exist yet."""
    return _KEYS.get(".".join(map(str, path)))


def later_keys() -> Sequence[str]:
    """Every dotted key that is refused for now."""
    return tuple(_KEYS)

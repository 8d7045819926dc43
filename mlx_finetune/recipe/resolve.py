"""A recipe written out in full, in one canonical form, and the differences between two."""

import json
from collections.abc import Mapping
from typing import cast

from mlx_finetune.recipe.schema import Recipe, section_names
from mlx_finetune.recipe.values import toml_value

_WITHOUT = {"lora": "every weight is trained", "scratch": "training starts from `model`"}


def render_resolved(recipe: Recipe, reasons: Mapping[str, str]) -> str:
    """TOML that reads back into the same recipe. ``reasons`` maps keys such as ``training.batch_size`` to sentences.

    Keys without a value are written as comments, because TOML has no null.
    """
    values = recipe.model_dump(mode="json")
    lines = _render_keys({key: value for key, value in values.items() if key not in section_names()}, "", reasons)
    for name in section_names():
        if values[name] is None:
            lines += ["", f"# [{name}] is left out: {_WITHOUT[name]}"] if name in _WITHOUT else []
        else:
            lines += ["", f"[{name}]", *_render_keys(cast(dict[str, object], values[name]), f"{name}.", reasons)]
    return "\n".join(lines) + "\n"


def _render_keys(values: Mapping[str, object], prefix: str, reasons: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for key, value in values.items():
        # A comment ends with its line and may hold no control character.
        reason = "".join(c if c.isprintable() else " " for c in reasons.get(prefix + key, ""))
        line = f"# {key} is not set" if value is None else f"{key} = {toml_value(value)}"
        lines.append(f"{line}  # {reason}" if reason else line)
    return lines


def canonical_json(recipe: Recipe) -> str:
    """One line of JSON with sorted keys, equal for equal recipes whatever their files look like."""
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def flatten_recipe(recipe: Recipe) -> dict[str, object]:
    """Every key with its section, such as ``training.batch_size``, to its value; a missing section is ``None``."""
    flat: dict[str, object] = {}
    for name, value in recipe.model_dump(mode="json").items():
        if name in section_names() and isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in cast(dict[str, object], value).items()}
        else:
            flat[name] = value
    return flat


def diff_recipes(first: Recipe, second: Recipe) -> list[tuple[str, object, object]]:
    """(dotted key, value in ``first``, value in ``second``) where they differ, in the order of the schema.

    A key of a section that one of them leaves out has the value None there.
    """
    a, b = flatten_recipe(first), flatten_recipe(second)
    for flat, other in ((a, b), (b, a)):
        for name in section_names():
            if name in flat and name not in other:
                del flat[name]  # the section is None here and written out there: compare its keys
    keys = dict.fromkeys([*a, *b])
    return [(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)]

"""A recipe written out in full: every default, and beside each automatic choice its reason."""

import json
from collections.abc import Mapping
from typing import cast

from mlx_finetune.recipe.schema import Recipe, section_names


def render_resolved(recipe: Recipe, reasons: Mapping[str, str]) -> str:
    """TOML that reads back into the same recipe. ``reasons`` maps keys such as ``training.batch_size`` to sentences.

    Keys without a value are written as comments, because TOML has no null.
    """
    values = recipe.model_dump(mode="json")
    sections = [name for name in section_names() if values[name] is not None]
    lines = _render_keys({key: value for key, value in values.items() if key not in section_names()}, "", reasons)
    for name in sections:
        lines += ["", f"[{name}]", *_render_keys(cast(dict[str, object], values[name]), f"{name}.", reasons)]
    return "\n".join(lines) + "\n"


def _render_keys(values: Mapping[str, object], prefix: str, reasons: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for key, value in values.items():
        reason = reasons.get(prefix + key, "").replace("\n", " ")
        line = f"# {key} is not set" if value is None else f"{key} = {_render_value(value)}"
        lines.append(f"{line}  # {reason}" if reason else line)
    return lines


def _render_value(value: object) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{_render_value(key)} = {_render_value(entry)}" for key, entry in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_render_value(entry) for entry in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def flatten_recipe(recipe: Recipe) -> dict[str, object]:
    """Every key with its section, such as ``training.batch_size``, to its value; a missing section is ``None``."""
    flat: dict[str, object] = {}
    for name, value in recipe.model_dump(mode="json").items():
        if name in section_names() and isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat

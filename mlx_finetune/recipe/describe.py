"""What the schema allows: as JSON Schema for editors, and as one phrase per key for error messages.

Both come from the models in ``schema.py``, so that what an editor underlines and what an error says cannot differ.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from mlx_finetune.recipe.hardware import GPU_NAME
from mlx_finetune.recipe.pipeline.schema import NAME
from mlx_finetune.recipe.schema import ENDPOINT_PATH, ENDPOINT_PROMPT, Recipe
from mlx_finetune.recipe.values import toml_value

#: The file name in the ``#:schema`` line of a recipe.
SCHEMA_NAME = "recipe.schema.json"
_SCHEMA_TITLE = "mlxft recipe"
_PATTERNS = {
    ENDPOINT_PATH: "text of up to 64 of a-z, 0-9, - and _, the first a letter or a digit",
    ENDPOINT_PROMPT: "text in quotes with {text} in it",
    NAME: "text of up to 40 of a-z, 0-9, - and _, the first a letter or a digit",
    GPU_NAME: 'text such as "applegpu_g16s"',
}

Schema = Mapping[str, Any]


@cache
def json_schema() -> Schema:
    """JSON Schema (draft 2020-12) of a recipe file: keys described, unknown ones refused, no null (TOML has none)."""
    generated = cast(dict[str, Any], without_null(Recipe.model_json_schema()))
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    always = [key for key in generated["required"] if key != "model"]  # a recipe with [scratch] has none
    either = {"if": {"not": {"required": ["scratch"]}}, "then": {"required": ["model"]}}
    return head | generated | {"title": _SCHEMA_TITLE, "required": always} | either


def schema_text() -> str:
    """The contents of ``recipe.schema.json``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=True) + "\n"


def allowed(path: Sequence[str | int]) -> str:
    """What may stand at ``path``, as a phrase after "must be". ``path`` exists in the schema."""
    return phrase(property_schema(path))


def property_schema(path: Sequence[str | int]) -> Schema:
    """The schema of the key (or array element, or table entry) at ``path``, references followed."""
    schema = json_schema()
    for part in path:
        schema = _inside(schema, part)
    return schema


def keys_of(section: Sequence[str | int]) -> tuple[str, ...]:
    """Our keys in the section (or, for an empty path, at the top level), in the order of the schema."""
    return tuple(property_schema(section).get("properties", {}))


def _inside(schema: Schema, part: str | int) -> Schema:
    for option in schema.get("anyOf", [schema]):
        resolved = _resolve(option)
        if isinstance(part, int) and "items" in resolved:
            return _resolve(resolved["items"])
        if part in resolved.get("properties", {}):
            return _resolve(resolved["properties"][part])
        if isinstance(resolved.get("additionalProperties"), dict):
            return _resolve(resolved["additionalProperties"])
    raise KeyError(part)


def _resolve(schema: Schema) -> Schema:
    if "$ref" in schema:
        target: Schema = json_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
        return target
    return schema


def without_null(schema: object) -> object:
    """Optional keys are left out in TOML, so ``null`` goes, and single-option unions with it."""
    if isinstance(schema, list):
        return [without_null(item) for item in cast(list[object], schema)]
    if not isinstance(schema, dict):
        return schema
    result = {key: without_null(value) for key, value in cast(dict[str, object], schema).items()}
    if "default" in result and result["default"] is None:
        del result["default"]
    options = result.get("anyOf")
    if isinstance(options, list):
        kept = [option for option in cast(list[dict[str, object]], options) if option.get("type") != "null"]
        if len(kept) == 1:
            del result["anyOf"]
            return kept[0] | result
        result["anyOf"] = kept
    return result


def phrase(schema: Schema) -> str:
    """What ``schema`` allows, as a phrase after "must be"."""
    schema = _resolve(schema)
    if "anyOf" in schema:
        return _either([phrase(option) for option in schema["anyOf"]])
    if "const" in schema:
        return toml_value(schema["const"])
    if "enum" in schema:
        return _either([toml_value(value) for value in schema["enum"]])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "string":
        if "pattern" in schema:
            return _PATTERNS[schema["pattern"]]
        if "examples" in schema:
            return f"text such as {toml_value(schema['examples'][0])}"
        return "text in quotes, not empty" if schema.get("minLength") else "text in quotes"
    if kind == "array":
        return f"a list of values, each {phrase(schema['items'])}"
    if kind == "object" and "properties" not in schema:
        return f"a table whose values are {phrase(schema['additionalProperties'])}"
    return "true or false" if kind == "boolean" else "a table"


def _either(phrases: Sequence[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} or {phrases[-1]}"


def _range(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    parts = [
        f"{word} {bound}"
        for word, bound in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if bound is not None
    ]
    if not parts:
        return ""
    return (" of " if low is not None else " ") + " and ".join(parts)

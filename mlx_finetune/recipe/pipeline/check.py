"""Everything that is wrong with a pipeline file, in our words: key, value, what is allowed, one fix.

Each stage and each evaluation is checked by itself, so that one mistake hides no other.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from mlx_finetune.recipe.describe import Schema, phrase, without_null
from mlx_finetune.recipe.explain import Finding
from mlx_finetune.recipe.overrides import KeyPath, Values
from mlx_finetune.recipe.pipeline.rules import evaluation_findings, stage_findings
from mlx_finetune.recipe.pipeline.schema import EvaluationRecipe, Pipeline, StageRecipe
from mlx_finetune.recipe.values import shown, shown_name, toml_value

#: The file name in the ``#:schema`` line of a pipeline.
SCHEMA_NAME = "pipeline.schema.json"
_LISTS = ("stages", "evaluations")
_SectionT = TypeVar("_SectionT", bound=BaseModel)


def check(values: Values) -> tuple[Pipeline | None, list[Finding]]:
    """The pipeline, and everything that is wrong with ``values``.

    None where its stages cannot be told; where anything else is wrong, what is there of it, to look for more.
    """
    findings = list(_top(values))
    num_unread = len(findings)
    stages = list(_sections(values, "stages", StageRecipe, findings))
    is_told = len(findings) == num_unread == 0
    evaluations = list(_sections(values, "evaluations", EvaluationRecipe, findings))
    names = [_name_of(one) for one in cast(list[object], values["stages"])] if _is_list(values, "stages") else []
    trained = [name for name, one in zip(names, values.get("stages", []), strict=False) if "recipe" in one]
    findings += stage_findings(stages, names)
    findings += evaluation_findings(evaluations, trained, names)
    if not findings:
        return Pipeline.model_validate(values), []
    parts = {"stages": tuple(one for _, one in stages), "evaluations": tuple(one for _, one in evaluations)}
    found = Pipeline.model_construct(None, output_dir=values["output_dir"], **parts) if is_told else None
    return found, list(dict.fromkeys(findings))


@cache
def json_schema() -> Schema:
    """JSON Schema (draft 2020-12) of a pipeline file."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    generated = cast(dict[str, Any], without_null(Pipeline.model_json_schema()))
    return head | generated | {"title": "mlxft pipeline"}


def schema_text() -> str:
    """The contents of ``pipeline.schema.json``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=True) + "\n"


def _top(values: Values) -> Iterator[Finding]:
    """The keys at the top; lists of sections are looked into elsewhere."""
    known = tuple(Pipeline.model_fields)
    for key in values:
        if key not in known:
            yield _unknown((key,), known)
    if "output_dir" not in values:
        yield Finding((), "the pipeline has no `output_dir`", 'add output_dir = "adapters/mine" before the first stage')
    elif not isinstance(values["output_dir"], str) or not values["output_dir"]:
        yield _wrong(("output_dir",), values["output_dir"], json_schema()["properties"]["output_dir"])
    if not values.get("stages"):
        yield Finding((), "the pipeline has no stages", 'add [[stages]] and below it name = "sft" and a recipe')
    for key in _LISTS:
        if values.get(key) and not _is_list(values, key):
            hint = f"write [[{key}]] on a line of its own for each, and its keys below it"
            yield Finding((key,), f"`{key}` = {shown(values[key])} must be sections", hint)


def _is_list(values: Values, key: str) -> bool:
    found = values.get(key)
    return isinstance(found, list) and all(isinstance(one, dict) for one in cast(list[object], found))


def _name_of(value: object) -> str:
    name = cast(Mapping[str, object], value).get("name")
    return name if isinstance(name, str) else ""


def _sections(
    values: Values, key: str, kind: type[_SectionT], findings: list[Finding]
) -> Iterator[tuple[int, _SectionT]]:
    """The sections with their numbers, one that is not well-formed with what is good of it; what is wrong is added."""
    if not _is_list(values, key):
        return
    for index, value in enumerate(cast(list[dict[str, object]], values[key])):
        try:
            yield index, kind.model_validate(value)
        except ValidationError as error:
            findings += _explained(error, (key, index), value)
            bad = {item["loc"][0] for item in error.errors() if item["loc"]}
            good = {name: one for name, one in value.items() if name in kind.model_fields and name not in bad}
            yield index, kind.model_construct(None, **{"name": "", "stages": (), **good})


def _explained(error: ValidationError, section: KeyPath, value: Mapping[str, object]) -> Iterator[Finding]:
    title = f"[[{section[0]}]]" + (f" {shown_name(name)}" if (name := _name_of(value)) else "")
    fields = _fields(str(section[0]))
    for item in error.errors(include_url=False, include_input=False):
        key = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "value_error":
            for rule in str(item.get("ctx", {}).get("error", "")).splitlines():
                message, _, hint = rule.rpartition("; ")
                named = [name for name in message.split("`")[1::2] if name in value]
                yield Finding((*section, *named[-1:]), f"{title} {message}", hint)
        elif item["type"] == "missing":
            example = fields[key].get("examples", ["mine"])[0]
            yield Finding(section, f"{title} has no `{key}`", f"write {key} = {toml_value(example)} there")
        elif key not in fields:
            yield _unknown((*section, key), tuple(fields), title)
        else:
            yield _wrong((*section, key), value[key], fields[key])


def _fields(key: str) -> Mapping[str, Schema]:
    """Key -> what it may hold, for one kind of section."""
    kind = {"stages": "StageRecipe", "evaluations": "EvaluationRecipe"}[key]
    return json_schema()["$defs"][kind]["properties"]


def _unknown(path: KeyPath, known: Sequence[str], title: str = "the top level") -> Finding:
    key = str(path[-1])
    near = get_close_matches(key, known, 1)
    hint = f"did you mean `{near[0]}`?" if near else f"its keys are {', '.join(known)}"
    if key in _RECIPE_KEYS:
        hint = f'this belongs into the recipe of the stage; change one key by set = ["{_RECIPE_KEYS[key]}"]'
    return Finding(path, f"{title} has no key `{shown_name(key)}`", hint)


#: What people write into a stage that belongs into its recipe.
_RECIPE_KEYS: Mapping[str, str] = {
    "model": "model=smollm2-135m",
    "adapter": "adapter=NAME",
    "data": "data.path=FILE",
    "training": "training.max_steps=50",
    "lora": "lora.rank=8",
    "seed": "seed=1",
}


def _wrong(path: KeyPath, value: object, schema: Schema) -> Finding:
    key = path[-1]
    hint = f"write for instance {key} = {toml_value(schema['examples'][0])}" if "examples" in schema else ""
    if not hint and schema.get("type") == "array" and isinstance(value, str):
        hint = f"write {key} = {toml_value([value])}"
    return Finding(path, f"`{key}` = {shown(value)} must be {phrase(schema)}", hint or "remove it, or correct it")

"""What pydantic found wrong, in our words: key, value, what is allowed, one fix.

Pydantic's own sentences never reach a user. Several of its errors about one value (one for each member of a union)
become one problem; a value it stopped at is taken out and checking goes on, so that rules between keys are reported in
the same pass as wrong values.
"""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

from pydantic import ValidationError

from mlx_finetune.recipe import describe
from mlx_finetune.recipe.foreign import recognise
from mlx_finetune.recipe.later import later_key
from mlx_finetune.recipe.overrides import EXCLUDES, KeyPath, Values
from mlx_finetune.recipe.schema import Recipe, section_names
from mlx_finetune.recipe.values import shown, shown_name, shown_path, toml_value

#: What to write for a key that must be there.
_REQUIRED: Mapping[KeyPath, str] = {
    ("model",): 'model = "smollm2-135m"',
    ("output_dir",): 'output_dir = "adapters/mine"',
    ("data",): '[data] and below it path = "data/mine"',
}
#: What people write where TOML has no word.
_NOTHING = ("null", "None", "none", "nil", "~")
#: A section that a sentence names.
_SECTION = re.compile(r"\[(\w+)\]")
#: Enough rounds for wrong values, then rules inside sections, then rules between them.
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem that is not located yet: the path it is about (what is written there decides the line)."""

    path: KeyPath
    message: str
    hint: str


def check(values: Values) -> Recipe | list[Finding]:
    """The recipe, or everything that is wrong with ``values``; ``values`` is left as it is."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        findings = _explain(error, values)
        rest = copy.deepcopy(values)
        _mend(rest, error)
        for _ in range(_ROUNDS):
            try:
                Recipe.model_validate(rest)
                break
            except ValidationError as later:
                findings += _explain(later, rest)
                _mend(rest, later)
        return list(dict.fromkeys(findings))


def _explain(error: ValidationError, values: Values) -> list[Finding]:
    findings: dict[KeyPath, list[Finding]] = {}
    for item in error.errors(include_url=False, include_input=False):
        path, known = _key_path(item["loc"])
        if path in findings:
            continue
        if item["type"] == "missing":
            findings[path] = [_missing(path)]
        elif not known:
            findings[path] = [_unknown(path, values)]
        elif item["type"] == "value_error" and _is_table(path):
            rules = str(item.get("ctx", {}).get("error", "")).splitlines()
            findings[path] = [_broken_rule(path, rule, values) for rule in rules]
        else:
            findings[path] = [_wrong_value(path, _at(values, path))]
    return [finding for group in findings.values() for finding in group]


def _key_path(location: Sequence[str | int]) -> tuple[KeyPath, bool]:
    """The part of pydantic's location that is written in the file (union members cut off); is it in the schema?"""
    path: KeyPath = ()
    for part in location:
        try:
            describe.property_schema((*path, part))
        except KeyError:
            inside = describe.property_schema(path)
            return ((*path, part), False) if "properties" in inside else (path, True)
        path = (*path, part)
    return path, True


def _is_table(path: KeyPath) -> bool:
    return "properties" in describe.property_schema(path)


def _at(values: object, path: KeyPath) -> object:
    for part in path:
        if isinstance(part, int):
            values = cast(list[object], values)[part]
        else:
            values = cast(dict[str, object], values)[part]
    return values


# --- one sentence for each kind of problem ---


def _missing(path: KeyPath) -> Finding:
    if path not in _REQUIRED:
        example = describe.property_schema(path).get("examples", ["data/mine"])[0]
        return Finding(
            path, f"{_label(path[:-1])} has no `{path[-1]}`", f"write {path[-1]} = {toml_value(example)} there"
        )
    if path == ("data",):
        return Finding(path, "the recipe has no section [data]", f"add {_REQUIRED[path]}")
    return Finding(path, f"the recipe has no `{path[-1]}`", f"add {_REQUIRED[path]} before the first section")


def _broken_rule(path: KeyPath, rule: str, values: Values) -> Finding:
    """A rule between keys: it belongs to the last key it names (``SECTION.KEY`` from outside) that is written, or else
    to a section."""
    message, _, hint = rule.rpartition("; ")
    named = [(*path, *name.split(".")) for name in (*_SECTION.findall(message), *message.split("`")[1::2])]
    written = [name for name in named if _is_written(values, name)]
    section = f"{_label(path)} " if path else ""
    return Finding(written[-1] if written else path, section + message, hint)


def _is_written(values: Values, path: KeyPath) -> bool:
    try:
        _at(values, path)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _wrong_value(path: KeyPath, value: object) -> Finding:
    name = f"`{shown_path(path)}` = {shown(value)}"
    if _is_table(path):
        return Finding(path, f"{name} must be a section", _section_fix(path, value))
    return Finding(path, f"{name} must be {describe.allowed(path)}", _value_fix(path, value))


def _section_fix(path: KeyPath, value: object) -> str:
    if path == ("data",) and isinstance(value, str):
        return f"write [data] on a line of its own and path = {shown(value)} below it"
    if isinstance(path[-1], int):
        return "write [[data.sources]] on a line of its own and path = ... below it"
    if path == ("lora",) and value is False:
        return "remove it: without a [lora] section every weight is trained"
    return f"write [{shown_path(path)}] on a line of its own and its keys below it"


def _value_fix(path: KeyPath, value: object) -> str:
    schema = describe.property_schema(path)
    options = [describe.property_schema(path)] if "anyOf" not in schema else list(schema["anyOf"])
    key = path[-1] if isinstance(path[-1], str) else path[-2]
    fixed = _near_value(options, value)
    if fixed is not None:
        return f"write {key} = {fixed}" if isinstance(path[-1], str) else f"write {fixed} there"
    if value in _NOTHING and len(rivals := EXCLUDES.get(tuple(path), ())) == 1:
        return f"leave it out: setting `{rivals[0]}` takes its place"
    default = schema.get("default")
    if default not in (None, "", [], {}) and isinstance(path[-1], str):
        return f"leave it out for the default, {toml_value(default)}"
    if "examples" in schema:
        return f"write for instance {key} = {toml_value(schema['examples'][0])}"
    return "remove it, or write an allowed value"


def _near_value(options: Sequence[Mapping[str, Any]], value: object) -> str | None:
    """The allowed value that was probably meant, as TOML."""
    for option in options:
        kind = option.get("type")
        if kind == "boolean" and not isinstance(value, bool):
            truth = {"true": "true", "yes": "true", "on": "true", "1": "true"}
            falsehood = {"false": "false", "no": "false", "off": "false", "0": "false"}
            found = (truth | falsehood).get(str(value).lower())
        elif kind in ("integer", "number"):
            found = _near_number(option, value)
        elif kind == "array":
            found = _near_texts(option["items"], value)
        else:
            found = _near_word(option, value)
        if found is not None:
            return found
    return None


def _near_texts(item: Mapping[str, Any], value: object) -> str | None:
    """A list of the texts in ``value``, which is one itself or a list with something else in it too."""
    values = cast(list[object], value) if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str) and text]
    return toml_value(texts) if texts and item.get("type") == "string" else None


def _near_word(option: Mapping[str, Any], value: object) -> str | None:
    if "enum" not in option and "const" not in option:
        is_scalar = isinstance(value, int | float) and abs(value) < 10**30
        return (
            f'"{shown(value)}"' if option.get("type") == "string" and is_scalar and "examples" not in option else None
        )
    words = [option["const"]] if "const" in option else list(option["enum"])
    if not isinstance(value, str):
        return None
    text = value.lower()
    numbers = [str(word) for word in words if not isinstance(word, str)]
    if text in numbers:
        return text
    texts = [word for word in words if isinstance(word, str)]
    near = get_close_matches(text, texts, 1) or [word for word in texts if len(text) > 2 and word.startswith(text)]
    return toml_value(near[0]) if near else None


def _near_number(option: Mapping[str, Any], value: object) -> str | None:
    number: float | int
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            number = float(value.replace(",", "").rstrip("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            return None
    elif isinstance(value, int | float):
        number = value
    else:
        return None
    if isinstance(number, float) and not math.isfinite(number):
        return None
    if "enum" in option:
        return toml_value(min(option["enum"], key=lambda word: abs(word - number)))
    low, high = option.get("minimum"), option.get("maximum")
    if low is not None and number < low:
        number = low
    if high is not None and number > high:
        number = high
    above, below = option.get("exclusiveMinimum"), option.get("exclusiveMaximum")
    if (above is not None and number <= above) or (below is not None and number >= below):
        return None
    return toml_value(round(number) if option["type"] == "integer" else number)


# --- keys that do not exist ---


def _unknown(path: KeyPath, values: Values) -> Finding:
    section, key = path[:-1], str(path[-1])
    name = shown_name(key)
    value = _at(values, path)
    later = later_key(path)
    if later is not None:
        return Finding(path, f"`{shown_path(path)}` ({later}) is not available yet", "remove it")
    message = f"{_label(section)} has no key `{name}`"
    if section and key in section_names():
        return Finding(path, message, f"`{key}` is a section of its own: write [{key}]")
    homes = [home for home in ((), *((name,) for name in section_names())) if key in describe.keys_of(home)]
    if homes and isinstance(value, dict) == (key in section_names()):
        return Finding(path, message, f"this key belongs {_place(homes)}")
    siblings = cast(Mapping[str, object], _at(values, section))
    foreign = recognise(key, value, siblings)
    if foreign is not None and foreign.ours:
        ours = f"[{foreign.ours}]" if foreign.ours in section_names() else f"`{foreign.ours}`"
        return Finding(path, f"`{name}` is {foreign.tool} name for {ours}", foreign.fix)
    if foreign is not None:
        return Finding(path, f"`{name}` is {foreign.tool} key and has no counterpart here", foreign.fix)
    return Finding(path, message, _near_key(section, key))


def _near_key(section: KeyPath, key: str) -> str:
    here = describe.keys_of(section)
    near = get_close_matches(key, here, 1) or [name for name in here if name.lower() == key.lower()]
    if near:
        return f"did you mean `{near[0]}`?"
    for home in ((), *((name,) for name in section_names())):
        if home != section and (near := get_close_matches(key, describe.keys_of(home), 1, cutoff=0.8)):
            return f"did you mean `{near[0]}` {_place([home])}?"
    return f"its keys are {', '.join(here)}"


def _place(homes: Sequence[KeyPath]) -> str:
    places = [f"in [{home[0]}]" if home else "at the top, before the first section" for home in homes]
    return " or ".join(places)


def _label(section: KeyPath) -> str:
    return f"[{shown_path(section)}]" if section else "the top level"


# --- going on after an error ---


def _mend(values: Values, error: ValidationError) -> None:
    """Take out of ``values`` whatever ``error`` is about, so that the rest can be checked."""
    for item in error.errors(include_url=False, include_input=False):
        path, known = _key_path(item["loc"])
        if not path:
            values.pop("quantize", None)
            values.pop("adapter", None)
            continue
        parent = cast(dict[Any, Any], _at(values, path[:-1]))
        # An optional key goes, so that no rule is broken by a value the user never wrote; [data] needs one source.
        is_needed = known and (path in _REQUIRED or _may_be_the_source(path) or _is_table(path) or _is_required(path))
        if item["type"] == "missing" or isinstance(path[-1], int) or is_needed:
            parent[path[-1]] = _valid(path)
        else:
            parent.pop(path[-1], None)


def _may_be_the_source(path: KeyPath) -> bool:
    """Is ``path`` in [data], and no key of it that can be left out without leaving it without rows?"""
    return path[0] == "data" and (len(path) != 2 or path[1] in ("path", "train", "valid", "test", "sources"))


def _is_required(path: KeyPath) -> bool:
    return path[-1] in describe.property_schema(path[:-1]).get("required", ())


def _valid(path: KeyPath) -> object:
    """Some value that is allowed at ``path``."""
    if path == ("data",):
        return {"path": "x"}
    if path == ("data", "sources"):
        return [{"path": "x"}]
    schema = describe.property_schema(path)
    if "properties" in schema:
        return {key: _valid((*path, key)) for key in schema.get("required", ())}
    option = schema["anyOf"][0] if "anyOf" in schema else schema
    words = [option["const"]] if "const" in option else option.get("enum", [])
    if words:
        return words[0]
    if option.get("type") in ("integer", "number"):
        return next(option[name] for name in ("minimum", "maximum") if name in option)
    # Elements of an array may have to differ: a stand-in has its number in it.
    text = f"x{''.join(str(part) for part in path if isinstance(part, int))}"
    empty: dict[str, object] = {"string": text, "boolean": True, "array": [], "object": {}}
    return empty[str(option["type"])]

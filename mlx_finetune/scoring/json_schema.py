"""JSON Schema: files read with clear errors, answers checked through ``jsonschema`` and compared field by field.

The dialect is the one ``$schema`` names (drafts 3 to 2020-12), 2020-12 where it names none. Nothing is ever fetched: a
``$ref`` must lead to a place in the same file. ``format`` is an annotation, as 2020-12 has it: it is not checked.
Patterns run in the package ``regex`` with a limit on their time, as in ``scoring.text``: the strings they meet come
from a model.

At most 1 MB and 100 levels; schemas and values that would exhaust the stack end in an error, not in a crash. Checking
a schema of ten lines takes about 5 ms, a value of 20 objects 0.4 ms.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlx_finetune.errors import DataError, MlxftError
from mlx_finetune.scoring.json_text import NotJsonError, parse
from mlx_finetune.scoring.text import compile_regex, matches, nfc

if TYPE_CHECKING:
    from jsonschema.exceptions import SchemaError, ValidationError
    from referencing import Resource

MAX_BYTES = 1_000_000

Schema = dict[str, object]

_EXAMPLE = 'a schema is an object such as {"type": "object", "properties": {"name": {"type": "string"}}}'
_NEWEST = "https://json-schema.org/draft/2020-12/schema"
_SHOWN_CHARS = 200
_REFERENCES = {"$ref", "$dynamicRef", "$recursiveRef"}


def read_schema(path: Path) -> Schema:
    """The schema in the file, checked. Raises ``DataError`` for everything that is wrong with it."""
    return check_schema(_read(path), str(path))


def check_schema(schema: object, name: str = "the schema") -> Schema:
    """The same schema if it can be used. Raises ``DataError`` beginning with ``name``: no object, not valid, a
    ``$ref`` that leads nowhere.
    """
    if not isinstance(schema, dict):
        raise DataError(f"{name} holds {_kind(schema)}, not an object", _EXAMPLE)
    schema = cast(Schema, schema)
    try:
        _check_dialect(schema, name)
        _check_keywords(schema, name)
        _check_references(schema, name)
        _check_ends(schema, name)
    except RecursionError:
        raise DataError(f"{name} is nested too deeply to be checked", "flatten it, with parts under $defs") from None
    return schema


class Validator:
    """Checks values against one schema. Raises ``DataError`` like ``check_schema`` when it is made."""

    def __init__(self, schema: Mapping[str, object]) -> None:
        self._validator = _validator(check_schema(dict(schema)))

    def problems(self, value: object, *, most: int = 20) -> list[str]:
        """What is wrong, as ``$.timeline[3].ts: ...``, by place, at most ``most`` of them; empty for a valid value.

        ``value`` is what ``json_text.parse`` returns. Raises ``MlxftError`` where the schema refers to itself without
        end or one of its patterns takes too long.
        """
        return _problems(self._validator, value)[:most]

    def is_valid(self, value: object) -> bool:
        """Whether ``problems`` is empty."""
        return not self.problems(value, most=1)


def _problems(validator: Any, value: object) -> list[str]:
    try:
        found = sorted(validator.iter_errors(value), key=lambda error: [str(part) for part in error.absolute_path])
    except RecursionError:
        raise MlxftError(
            "the JSON schema goes too deep for this value, or one of its $ref leads back to itself",
            "let every circle of $ref go through `properties` or `items`",
        ) from None
    except OverflowError:
        return ["$: a number is too large to be checked"]
    return [_describe(error) for error in found]


def _describe(error: "ValidationError | SchemaError") -> str:
    place = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    text = " ".join(error.message.split())
    text = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS // 2]} ... {text[-_SHOWN_CHARS // 2 :]}"
    return f"{place[:_SHOWN_CHARS]}: {text}"


# Reading


def _read(path: Path) -> object:
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a file", "name a file that holds a JSON Schema")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"the schema {path} cannot be read: {reason}", "check the name and its permissions") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} is larger than {MAX_BYTES // 10**6} MB", "is it the schema, and not the data?")
    try:
        return parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start + 1})", "save it as UTF-8") from None
    except NotJsonError as error:
        raise DataError(
            f"{path} is not JSON: {error}", "mend it there; JSON has no comments and no trailing commas"
        ) from None


def _kind(value: object) -> str:
    names: dict[type, str] = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# Checking


def _check_dialect(schema: Schema, name: str) -> None:
    from referencing import jsonschema as dialects

    dialect = schema.get("$schema", _NEWEST)
    try:
        dialects.specification_with(dialect if isinstance(dialect, str) else "")
    except dialects.UnknownDialect:
        raise DataError(
            f"{name} says $schema {str(dialect)[:80]!r}, which is no known draft of JSON Schema",
            f'leave $schema out, or write "{_NEWEST}"',
        ) from None


def _check_keywords(schema: Schema, name: str) -> None:
    from jsonschema import FormatChecker
    from jsonschema.exceptions import SchemaError

    checker = FormatChecker(formats=())
    checker.checks("regex", raises=MlxftError)(_is_regex)  # of what runs the patterns later
    try:
        _dialect_class(schema).check_schema(schema, format_checker=checker)
    except SchemaError as error:
        hint = (
            error.cause.message
            if isinstance(error.cause, MlxftError)
            else "see json-schema.org for what each keyword takes"
        )
        raise DataError(f"{name} is not a valid JSON Schema: {_describe(error)}", hint) from None


def _is_regex(value: object) -> bool:
    if isinstance(value, str):
        compile_regex(value)
    return True


def _check_references(schema: Schema, name: str) -> None:
    """Each ``$ref`` leads to a schema in this file, and each schema that one leads to is valid."""
    from referencing import Registry

    root = _resource(schema)
    todo, seen, keywords = [(root, Registry().resolver_with_root(root))], set[int](), set[str]()
    while todo:
        resource, resolver = todo.pop()
        content = resource.contents
        if id(content) in seen or not isinstance(content, dict):
            continue
        seen.add(id(content))
        keywords.update(content)
        if "$schema" in content and content is not schema:
            raise DataError(f"{name} has $schema below its top", "one file has one draft: leave the inner $schema out")
        try:
            resolver = resolver.in_subresource(resource)
        except ValueError as error:
            raise DataError(
                f"{name}: $id {str(content['$id'])[:80]!r} is no address: {error}", "leave $id out"
            ) from None
        for keyword in _REFERENCES & content.keys():
            found = _look_up(resolver, name, keyword, content[keyword])
            if isinstance(found.contents, dict) and id(found.contents) not in seen:
                dialect = {"$schema": schema.get("$schema", _NEWEST)}
                _check_keywords(dialect | found.contents, f"{name}, at {content[keyword]},")
                todo.append((_resource(found.contents, schema), found.resolver))
        todo.extend((below, resolver) for below in resource.subresources())
    if {"patternProperties", "unevaluatedProperties"} <= keywords:
        raise DataError(
            f"{name} uses patternProperties and unevaluatedProperties, which cannot be checked together",
            "write additionalProperties in the place of unevaluatedProperties",
        )


def _look_up(resolver: Any, name: str, keyword: str, reference: str) -> Any:
    from referencing.exceptions import Unresolvable

    try:
        found = resolver.lookup(reference)
    except (Unresolvable, LookupError, ValueError, TypeError):
        raise _no_target(name, keyword, reference) from None
    if not isinstance(found.contents, dict | bool):
        raise _no_target(name, keyword, reference)
    return found


def _no_target(name: str, keyword: str, reference: str) -> DataError:
    shown = reference[:_SHOWN_CHARS]
    if reference.startswith("#"):
        return DataError(f"{name}: {keyword} {shown!r} leads to no schema", 'parts stand under "$defs": "#/$defs/NAME"')
    return DataError(
        f"{name}: {keyword} {shown!r} leads out of the file, and nothing is fetched",
        'copy that schema under "$defs" and write "#/$defs/NAME"',
    )


def _check_ends(schema: Schema, name: str) -> None:
    """A schema that refers to itself at its top is found now, not at the first answer."""
    for value in ({}, [], "", 0, None):
        try:
            _problems(_validator(schema), value)
        except MlxftError as error:
            raise DataError(f"{name}: {error.message}", error.hint) from None


# Field accuracy


_Place = tuple[str | int, ...]


def field_accuracy(expected: object, got: object) -> float:
    """Share of fields that are right, 0 to 1. Both are what ``parse`` returns; count 0 for an answer that it refuses.

    A field is a place that holds a string, number, true, false, null or an empty object or list; its name is the way
    there, such as ``timeline[0].ts``. The fields of both values are put together, and one is right if both have it
    with an equal value. So a missing field is wrong, an extra one is wrong, and so is each field below where one has
    an object and the other a string.

    The order of keys does not matter. Lists are compared position by position: a left-out first item makes all later
    ones wrong, and both of two swapped items are wrong. That is strict on purpose: to align items would pay for
    repeating one.

    Strings are equal in NFC and otherwise letter by letter; numbers by value (1 equals 1.0); true is not 1.
    """
    right, total = count_fields(expected, got)
    return right / total


def count_fields(expected: object, got: object) -> tuple[int, int]:
    """How many fields are right, and how many there are in either value (at least 1); for one ratio over all rows."""
    wanted, found = _leaves(expected), _leaves(got)
    right = sum(place in found and _equal(value, found[place]) for place, value in wanted.items())
    return right, len(wanted.keys() | found.keys())


def _leaves(value: object) -> dict[_Place, object]:
    leaves: dict[_Place, object] = {}
    todo: list[tuple[_Place, object]] = [((), value)]
    while todo:
        place, item = todo.pop()
        if isinstance(item, dict) and item:
            todo.extend(((*place, name), below) for name, below in cast(dict[str, object], item).items())
        elif isinstance(item, list) and item:
            todo.extend(((*place, number), below) for number, below in enumerate(cast(list[object], item)))
        else:
            leaves[place] = item
    return leaves


def _equal(one: object, other: object) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return nfc(one) == nfc(other)
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)]
    return one == other if all(numbers) else type(one) is type(other) and one == other


# jsonschema's classes


def _resource(content: Any, root: Schema | None = None) -> "Resource[Any]":
    from referencing import jsonschema as dialects

    dialect = (content if root is None else root).get("$schema", _NEWEST)
    return dialects.specification_with(str(dialect)).create_resource(content)


def _dialect_class(schema: Schema) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    return validator_for(cast(Any, schema), default=Draft202012Validator)


def _validator(schema: Schema) -> Any:
    from jsonschema.validators import extend
    from referencing import Registry

    dialect = _dialect_class(schema)
    ours = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties(dialect.VALIDATORS["additionalProperties"]),
    }
    own = extend(dialect, {name: check for name, check in ours.items() if name in dialect.VALIDATORS})
    # Without $schema: a $ref to the top would go on in jsonschema's class of that name, in the place of this one.
    plain = {name: value for name, value in schema.items() if name != "$schema"}
    return own(plain, registry=Registry())  # an empty one: jsonschema's own would fetch


def _pattern(validator: Any, pattern: str, value: object, schema: object) -> Iterator["ValidationError"]:
    from jsonschema.exceptions import ValidationError

    if isinstance(value, str) and not matches(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, value: object, schema: object) -> Iterator["ValidationError"]:
    if isinstance(value, dict):
        fields = cast(dict[str, object], value)
        for pattern, below in patterns.items():
            for name in fields:
                if matches(pattern, name):
                    yield from validator.descend(fields[name], below, path=name, schema_path=pattern)


def _additional_properties(upstream: Any) -> Any:
    """jsonschema's check, given only the properties that no pattern takes."""

    def check(validator: Any, allowed: Any, value: object, schema: Any) -> Iterator["ValidationError"]:
        patterns = schema.get("patternProperties")
        if not patterns or not isinstance(value, dict):
            yield from upstream(validator, allowed, value, schema)
            return
        rest = {name: below for name, below in value.items() if not any(matches(pattern, name) for pattern in patterns)}
        plain = {key: below for key, below in schema.items() if key != "patternProperties"}
        yield from upstream(validator, allowed, rest, plain)

    return check

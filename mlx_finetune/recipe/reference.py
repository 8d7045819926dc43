"""docs/recipe.md: every key of a recipe with what is allowed, its default and its sentence, all from the schema."""

from collections.abc import Iterator, Sequence

from mlx_finetune.recipe.describe import Schema, allowed, keys_of, property_schema
from mlx_finetune.recipe.measured import CHECKS, MEASURES, TASKS
from mlx_finetune.recipe.schema import section_names
from mlx_finetune.recipe.values import toml_value

_HEAD = """\
# Recipe reference

Every key of a recipe. A recipe is a TOML file: the keys at the top come first, then its sections.
`--set SECTION.KEY=VALUE` changes one key for one command. This page is written from the schema, not by hand:
`mlxft recipe schema --markdown`.
"""


def reference_text() -> str:
    """The contents of ``docs/recipe.md``: one heading and one table for each section."""
    return "\n".join([_HEAD, *_section((), "At the top"), *_sections()]) + "\n"


def _sections() -> Iterator[str]:
    for name in section_names():
        yield from ["", *_section((name,), f"[{name}]")]
        if name == "eval":
            yield from ["", *_measures()]
        if name == "data":
            yield from ["", *_section((name, "sources", 0), "[[data.sources]]")]
        if name == "serve":
            yield from ["", *_section((name, "endpoints", 0), "[[serve.endpoints]]")]


def _section(path: Sequence[str | int], heading: str) -> list[str]:
    schema = property_schema(path)
    lines = [f"## {heading}", ""]
    if path:
        purpose = str(schema["description"]).partition(": ")[2].replace("``", "`")
        lines += [purpose[0].upper() + purpose[1:], ""]
    lines += ["| Key | Allowed | Default | Meaning |", "|---|---|---|---|"]
    keys = [key for key in keys_of(path) if path or key not in section_names()]
    return lines + [_row(schema, path, key) for key in keys]


def _measures() -> Iterator[str]:
    """Every task of [eval] with the names of its measures."""
    yield from ["## What eval measures", "", "| Task | What it is | Measures |", "|---|---|---|"]
    for task, what in TASKS.items():
        names = ", ".join(f"`{name}`" for name, its in MEASURES.items() if its == task)
        yield f"| `{task}` | {what} | {names or 'none for a gate'} |"
    for check, what in CHECKS.items():
        yield f"| `{check}:` | {what} behind the colon | the check as it is written |"


def _row(section: Schema, path: Sequence[str | int], key: str) -> str:
    """One line of a table; a key without a default is required, or does nothing where it is left out."""
    field = section["properties"][key]
    if key in (*section.get("required", ()), *section.get("then", {}).get("required", ())):
        default = "required"
    else:
        default = f"`{toml_value(field['default'])}`" if "default" in field else "left out"
    cells = (f"`{key}`", allowed([*path, key]), default, str(field["description"]))
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

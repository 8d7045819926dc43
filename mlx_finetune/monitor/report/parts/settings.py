"""The recipe: what was asked for and what was chosen with its reason first, every default behind a click."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from mlx_finetune.monitor.report.choices import Choice
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, code, cut, details, foreign, section, table, tag

_MOST_TEXT = 60_000


def settings(facts: ReportFacts) -> Html | None:
    """The section; None where neither file of it is left."""
    if not facts.choices and not facts.recipe:
        return None
    chosen = [one for one in facts.choices if one.origin == "chosen"]
    asked = [one for one in facts.choices if one.origin == "asked" and one.value]
    rest = [one for one in facts.choices if one.origin == "default" and one.value]
    return section(
        "recipe",
        "The recipe",
        *([tag("h3", "Asked for"), _table(asked)] if asked else []),
        *([tag("h3", "Chosen by mlxft, and why"), _reasons(chosen)] if chosen else []),
        details(f"{len(rest)} settings left at their defaults", _table(rest)) if rest else None,
        details("recipe.toml, as it was written", _text(facts.recipe)) if facts.recipe else None,
    )


def _text(text: str) -> Html:
    return tag("pre", tag("bdi", cut(text, _MOST_TEXT)))


def _table(choices: Sequence[Choice]) -> Html:
    return table(("section", "key", "value"), _rows(choices), class_="settings wide")


def _reasons(choices: Sequence[Choice]) -> Html:
    rows = [[*row, foreign(one.reason)] for row, one in zip(_rows(choices), choices, strict=True)]
    return table(("section", "key", "value", "why"), rows, class_="settings")


def _rows(choices: Iterable[Choice]) -> list[list[Child]]:
    """The section stands beside its first key only."""
    rows: list[list[Child]] = []
    for name, group in groupby(choices, key=lambda one: one.section):
        for place, one in enumerate(group):
            shown = code(one.value, 600) if one.value else tag("span", "not set", class_="same")
            rows.append([code(f"[{name}]") if name and not place else "", code(one.key), shown])
    return rows

"""``mlxft doctor``: what is missing or wrong here, and the command that mends it."""

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.doctor.examine import Facts
    from mlx_finetune.app.doctor.finding import Finding
    from mlx_finetune.recipe.load import LoadedRecipe
    from mlx_finetune.rundir import RunDir

EXIT_BLOCKED = 3
_COLOURS = {"blocker": "red", "warning": "yellow", "note": "cyan"}
_REMEDY = {"blocker": "  mend it: ", "warning": "  mend it: ", "note": "  type: "}


@click.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--report",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[FILE]",
    help="Also write a text file for a bug report, without names, tokens or training text.",
)
def command(recipe: Path | None, as_json: bool, report: str | None) -> int:
    """Say what is missing or wrong on this machine, and the command that mends it.

    With RECIPE also what that needs: its model, its data, room. Exit code 3 when something stops training, else 0.
    """
    if not _can_examine():
        return EXIT_BLOCKED
    from mlx_finetune.app.doctor import examine, words
    from mlx_finetune.app.doctor.finding import verdict

    loaded = _load(recipe)
    asked = examine.Asked(Path.cwd(), os.environ, go_on=_go_on, check=_check_named)
    facts = examine.examine(asked, loaded)
    findings = examine.find_problems(facts)
    last = verdict(findings, facts.typed.train(str(recipe or "")))
    if as_json:
        click.echo(json.dumps(words.to_json(facts, findings), indent=2))
    elif sys.stdout.isatty():
        _draw(words.sections(facts), findings, last)
    else:
        for line in plain_lines(words.sections(facts), findings, last):
            click.echo(line)
    if report is not None:
        _write_report(facts, findings, report)
    return EXIT_BLOCKED if any(finding.level == "blocker" for finding in findings) else 0


def _can_examine() -> bool:
    """Whether what the doctor itself needs can be imported; what cannot is a blocker that is told here."""
    try:
        importlib.import_module("mlx_finetune.app.doctor.examine")
    except (ImportError, SyntaxError, AttributeError) as error:
        import mlx_finetune
        from mlx_finetune.app.doctor.finding import how_to_type

        typed = how_to_type(package=Path(mlx_finetune.__file__).resolve().parent, base=Path.cwd())
        click.echo(f"blocker: the environment is damaged: {error}")
        click.echo(f"{_REMEDY['blocker']}{typed.rebuild()}")
        return False
    return True


def _load(recipe: Path | None) -> "LoadedRecipe | None":
    from mlx_finetune.recipe.load import load_recipe

    return None if recipe is None else load_recipe(recipe)


def _go_on(run: "RunDir") -> Sequence[str]:
    """The command that continues a run, as ``mlxft monitor`` says it."""
    from mlx_finetune.commands.closing import recorded_go_on_lines

    return recorded_go_on_lines(run)


def _check_named(recipe: "LoadedRecipe", base: Path) -> None:
    """As ``mlxft train`` checks it before it starts."""
    from mlx_finetune.commands.named import check_named

    check_named(recipe, base)


def _write_report(facts: "Facts", findings: "Sequence[Finding]", name: str) -> None:
    import time

    from mlx_finetune.app.doctor import report

    made = report.make_report(
        facts,
        findings,
        base=Path.cwd(),
        variables=os.environ,
        person=report.read_person(os.environ),
        now=time.time(),
    )
    if name == "-":
        click.echo(made.text, nl=False)
        return
    path = report.write_report(made, Path(name) if name else None, Path.cwd())
    taken = sum(made.counts.values())
    click.echo(f"report: {path} ({len(made.text.splitlines())} lines)", err=True)
    click.echo(
        "In it: versions, this machine, the findings; of the newest run its recipe, numbers and log, without texts.",
        err=True,
    )
    click.echo(f"Taken out: {taken} names, tokens and texts. Please read it before you send it.", err=True)


def plain_lines(
    sections: Mapping[str, Sequence[tuple[str, str]]], findings: "Sequence[Finding]", last: str
) -> list[str]:
    """The report without colour or boxes, one fact a line."""
    lines = [f"{label:<16} {value}" for rows in sections.values() for label, value in rows]
    for finding in findings:
        lines += [f"{finding.level}: {finding.message}", f"{_REMEDY[finding.level]}{finding.command}"]
    return [*lines, last]


def _draw(sections: Mapping[str, Sequence[tuple[str, str]]], findings: "Sequence[Finding]", last: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for heading, rows in sections.items():
        console.print(Text(heading, style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", min_width=18)
        table.add_column(overflow="fold")
        for label, value in rows:
            table.add_row(Text(f"  {label}"), Text(value))
        console.print(table)
        console.print()
    for finding in findings:
        console.print(Text.assemble((f"{finding.level}: ", f"bold {_COLOURS[finding.level]}"), finding.message))
        # Never wrapped: a command that is copied must stay one line, and the terminal breaks it without a blank.
        console.print(Text.assemble(_REMEDY[finding.level], (finding.command, "bold")), soft_wrap=True)
    if findings:
        console.print()
    is_blocked = any(finding.level == "blocker" for finding in findings)
    console.print(Text(last, style=f"bold {'red' if is_blocked else 'green'}"))

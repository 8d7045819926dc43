"""``mlxft doctor``: what is missing or wrong here, and the command that mends it."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlx_finetune.app.doctor import Finding

EXIT_BLOCKED = 3


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> int:
    """Say what is missing or wrong on this machine, and the command that mends it.

    Exit code 3 when something stops training, else 0.
    """
    from mlx_finetune.app import doctor

    facts = doctor.examine()
    findings = doctor.find_problems(facts)
    if as_json:
        click.echo(json.dumps(doctor.to_json(facts, findings), indent=2))
    elif sys.stdout.isatty():
        _draw(doctor.sections(facts), findings)
    else:
        for line in plain_lines(doctor.sections(facts), findings):
            click.echo(line)
    return EXIT_BLOCKED if any(finding.level == "blocker" for finding in findings) else 0


def plain_lines(sections: Mapping[str, Sequence[tuple[str, str]]], findings: "Sequence[Finding]") -> list[str]:
    """The report without colour or boxes, one fact a line."""
    lines = [f"{label:<15} {value}" for rows in sections.values() for label, value in rows]
    for finding in findings:
        lines += [f"{finding.level}: {finding.message}", f"  mend it: {finding.command}"]
    return [*lines, _verdict(findings)]


def _verdict(findings: "Sequence[Finding]") -> str:
    blockers = sum(finding.level == "blocker" for finding in findings)
    if blockers:
        return f"{blockers} blocker{'s' if blockers > 1 else ''} to mend before training."
    warnings = f" ({len(findings)} warning{'s' if len(findings) > 1 else ''})" if findings else ""
    return f"Ready to train{warnings}. Next: mlxft train recipes/quickstart.toml"


def _draw(sections: Mapping[str, Sequence[tuple[str, str]]], findings: "Sequence[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for heading, rows in sections.items():
        console.print(Text(heading, style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", min_width=15)
        table.add_column(overflow="fold")
        for label, value in rows:
            table.add_row(Text(f"  {label}"), Text(value))
        console.print(table)
        console.print()
    for finding in findings:
        colour = "red" if finding.level == "blocker" else "yellow"
        console.print(Text.assemble((f"{finding.level}: ", f"bold {colour}"), finding.message))
        console.print(Text.assemble("  mend it: ", (finding.command, "bold")))
    colour = "red" if any(finding.level == "blocker" for finding in findings) else "green"
    console.print(Text(_verdict(findings), style=f"bold {colour}"))

"""``mlxft eval VERIFIER_RUN --samples FOLDER``: what the verifier's pick of k answers is worth."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mlx_finetune.errors import UsageError


def check_samples_options(others: Sequence[str]) -> None:
    """``others`` are options that were given beside. Raises ``UsageError`` where there are any."""
    if others:
        raise UsageError(f"--samples and {others[0]} do not go together", "the samples are what is evaluated")


def eval_samples(name: str, samples: str, *, out: Path | None, as_json: bool, as_csv: bool) -> int:
    """Score the answers that ``mlxft sample`` drew, print the comparison, and keep it in the run of the verifier."""
    from mlx_finetune.commands.evaluating import open_for_eval

    subject = open_for_eval(name)
    from mlx_finetune.app.sampling.best_of import csv_text, lines, to_json
    from mlx_finetune.app.sampling.judge import JSON_END, judge
    from mlx_finetune.commands.measuring import renew_report, shown
    from mlx_finetune.units import counted

    is_terminal = sys.stderr.isatty()

    def step(done: int, total: int) -> None:
        if is_terminal:
            click.echo(f"\r\x1b[K{done} of {total} different answers scored", err=True, nl=done == total)

    judged = judge(subject, Path(samples), out=out, step=step)
    if as_json:
        click.echo(json.dumps(to_json(judged.found, judged.facts), ensure_ascii=False))
    elif as_csv:
        click.echo(csv_text(judged.found), nl=False)
    else:
        for line in lines(judged.found, judged.remark):
            click.echo(line)
    if judged.remark and (as_json or as_csv):
        click.echo(f"warning: {judged.remark}", err=True)
    if judged.unscored:
        answers = counted(sum(judged.unscored.values()), "answer")
        why = "; ".join(f"{count}: {reason}" for reason, count in judged.unscored.items())
        click.echo(f"{answers} could not be scored and will be picked last ({why})", err=True)
    if judged.path is None:
        click.echo("\nnothing was kept: --out FOLDER keeps the result of a model without a run", err=True)
        return 0
    kept = shown(judged.path.with_name(judged.path.name + JSON_END))
    click.echo(f"\nkept in {kept}, .csv and .scores.jsonl", err=True)
    if out is None and subject.run is not None:
        renew_report(subject.run.path)
        click.echo(f"next: mlxft report {shlex.quote(subject.opened.name)}", err=True)
    return 0

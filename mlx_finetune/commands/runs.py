"""``mlxft runs``: list, show, compare and remove runs. Reads journals and small files; never imports mlx."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_finetune.errors import RunError

if TYPE_CHECKING:
    from mlx_finetune.monitor.run_report import RunFacts
    from mlx_finetune.rundir import RunDir

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, show, compare or remove runs. RUN is a folder, or a name under adapters/."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command)


def read_facts(run: "RunDir") -> "RunFacts":
    """Everything the listing and the report of a run need."""
    from mlx_finetune.app.running.runs import is_running, run_bytes
    from mlx_finetune.journal import read_events
    from mlx_finetune.monitor.run_report import RunFacts
    from mlx_finetune.monitor.summary import summarise
    from mlx_finetune.rundir import EVENTS, RunDir

    return RunFacts(
        name=run.label,
        path=str(run.path),
        num_bytes=run_bytes(run),
        is_running=is_running(run),
        checkpoints=tuple((path.name, run_bytes(RunDir(path))) for path in run.checkpoints()),
        summary=summarise(read_events(run.file(EVENTS))),
    )


@command.command("list", short_help="Model, status, steps, losses and size of each.")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("adapters"))
@as_json_option
def list_command(folder: Path = Path("adapters"), as_json: bool = False) -> None:
    """The runs and pipelines' stages in FOLDER (adapters/ unless named): model, status, steps, losses, size."""
    from mlx_finetune.monitor.run_report import facts_json, table_lines
    from mlx_finetune.rundir import list_all_runs

    found = [read_facts(run) for run in list_all_runs(folder)]
    if as_json:
        click.echo(json.dumps([facts_json(facts) for facts in found], ensure_ascii=False))
        return
    if not found:
        click.echo(f"no runs in {folder}/; mlxft train RECIPE starts one", err=True)
        return
    for line in table_lines(found):
        click.echo(line)
    last = found[-1].name if folder == Path("adapters") else found[-1].path
    click.echo(f"\nnext: mlxft runs show {shlex.quote(last)}", err=True)


@command.command("show")
@click.argument("run")
@as_json_option
def show_command(run: str, as_json: bool) -> None:
    """Settings, losses, answers, checkpoints, evaluations and corrections of RUN."""
    from mlx_finetune.app.eval.between_runs import kept_verdicts
    from mlx_finetune.app.running.runs import count_corrections
    from mlx_finetune.monitor.run_report import report_json, report_lines
    from mlx_finetune.rundir import CORRECTIONS, find_run

    folder = find_run(run, base=Path.cwd())
    facts, settings = read_facts(folder), read_settings(folder)
    verdicts, num_corrections = kept_verdicts(folder), count_corrections(folder)
    if as_json:
        pipeline = str(folder.pipeline) if folder.pipeline is not None else None
        more = {"evaluations": verdicts, "num_corrections": num_corrections, "pipeline": pipeline}
        click.echo(json.dumps(report_json(facts, settings) | more, ensure_ascii=False))
        return
    for line in report_lines(facts, settings):
        click.echo(line)
    if folder.pipeline is not None:
        click.echo(f"\nstage {folder.path.name} of the pipeline in {folder.pipeline}")
    if verdicts:
        click.echo("\nevaluations")
    for name, sentence in verdicts.items():
        click.echo(f"  {name}  {sentence}")
    if num_corrections:
        click.echo(f"\n{CORRECTIONS}: {num_corrections} answers put right in chats")
    click.echo(f"\n{_following(folder, facts, shlex.quote(run), str(settings.get('task', '')))}", err=True)


def _following(run: "RunDir", facts: "RunFacts", name: str, task: str) -> str:
    """What to do next: talk with what there is; else watch it, go on with it, or start it again."""
    from mlx_finetune.commands.closing import recorded_go_on_lines
    from mlx_finetune.recipe.asking import talk_command
    from mlx_finetune.rundir import ADAPTER_CONFIG, MODEL_FOLDER

    if facts.checkpoints or run.file(ADAPTER_CONFIG).is_file() or run.file(MODEL_FOLDER).is_dir():
        return f"next: {talk_command(task, name)}"
    if facts.is_running:
        return f"next: mlxft monitor {name}"
    go_on = recorded_go_on_lines(run)
    return go_on[0] if go_on else "nothing was saved: the command that started it starts it anew"


@command.command("compare", short_help="Two runs: recipes and evaluations.")
@click.argument("first")
@click.argument("second")
@as_json_option
def compare_command(first: str, second: str, as_json: bool) -> None:
    """What the recipes of two runs say differently, and which run did better on the same rows.

    Only evaluations of the same name and of the same rows are ranked; mlxft eval makes them.
    """
    from mlx_finetune.app.eval.between_runs import compare_runs, comparison_json, comparison_lines, nothing_for_both
    from mlx_finetune.rundir import find_run

    folders = [find_run(name, base=Path.cwd()) for name in (first, second)]
    if folders[0].path.resolve() == folders[1].path.resolve():
        raise RunError(f"{first} and {second} are the same run", "name two different ones")
    found = compare_runs(*folders)
    if as_json:
        click.echo(json.dumps(comparison_json(found), ensure_ascii=False))
        return
    for line in comparison_lines(found):
        click.echo(line)
    if not any(not one.refusal for one in found.evaluations):
        names = [shlex.quote(name) for name in (first, second)]
        why_not = nothing_for_both(*folders)
        step = f"next: mlxft eval {names[0]} --data ROWS, and mlxft eval {names[1]} --data ROWS"
        click.echo(f"\n{f'no rows can be of both: {why_not}' if why_not else step}", err=True)


@command.command("rm", short_help="Remove run folders, for good.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--corrections", is_flag=True, help="Remove the answers put right in chats too.")
def remove_command(runs: tuple[str, ...], yes: bool, corrections: bool) -> None:
    """Remove run folders with their adapters and checkpoints, for good. What /fix wrote in chats stays."""
    from mlx_finetune.app.running.runs import check_removable, count_corrections, find_leftover, remove_run, run_bytes
    from mlx_finetune.rundir import CORRECTIONS, find_run
    from mlx_finetune.units import format_bytes

    here = Path.cwd()
    left = {name: find_leftover(name, base=here) if corrections else None for name in runs}
    folders = [left[name] or find_run(name, base=here) for name in runs]
    for folder in folders:
        check_removable(folder)
    for folder in folders:
        size = format_bytes(run_bytes(folder))
        count = count_corrections(folder)
        few = "1 correction" if count == 1 else f"{count} corrections"
        what = f"{size}, {few} {'too' if corrections else 'stays' if count == 1 else 'stay'}" if count else size
        if not yes:
            if not sys.stdin.isatty():
                raise RunError(f"{folder.path} ({what}) is not removed without being asked", "add --yes")
            if not click.confirm(f"remove {folder.path} ({what})?", err=True):
                continue
        remove_run(folder, with_corrections=corrections)
        verb = "stays" if count == 1 else "stay"
        stays = f"; its {few} {verb} in {folder.file(CORRECTIONS)}" if count and not corrections else ""
        click.echo(f"removed {folder.path}, {size}{stays}", err=True)


def example_prompt(run: "RunDir | None") -> str:
    """A prompt for a command to be typed, quoted: the first of [eval] of the run, if it is short and on one line."""
    section = {} if run is None else read_settings(run).get("eval", {})
    prompts = section.get("prompts") if isinstance(section, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    first = prompts[0] if isinstance(prompts, list) and prompts else ""  # pyright: ignore[reportUnknownVariableType]
    is_good = isinstance(first, str) and 0 < len(first) <= 200 and first.isprintable()
    return shlex.quote(first if is_good else "Why is the sky blue?")


def read_settings(run: "RunDir") -> dict[str, object]:
    """The resolved recipe of a run as plain tables; the recipe as written where it never came to step 1."""
    import tomllib

    from mlx_finetune.rundir import RECIPE, RESOLVED

    for name in (RESOLVED, RECIPE):
        try:
            return tomllib.loads(run.file(name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
    return {}

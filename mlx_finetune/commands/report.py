"""``mlxft report``: a run as one HTML page. ``train`` and ``eval`` make it too, and never fail because of it."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.monitor.report.facts import ReportFacts
    from mlx_finetune.rundir import RunDir


@click.command()
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to; default is in the run folder.")
@click.option("--json", "as_json", is_flag=True, help="Print where it is, and what it says in short, as JSON.")
def command(run: str, out: Path | None, as_json: bool) -> None:
    """Everything about RUN on one page for any browser, also without a network: curves, answers, data, settings.

    RUN is a folder, or a name under adapters/; the page of a pipeline is about all its stages. A report that was
    changed by hand is left as it is.
    """
    from mlx_finetune.monitor.report.facts import read_facts
    from mlx_finetune.monitor.report.write import write_report
    from mlx_finetune.rundir import REPORT, find_pipeline, find_run

    if (pipeline := find_pipeline(run, base=Path())) is not None:
        _report_pipeline(pipeline, out, as_json=as_json)
        return
    folder = find_run(run, base=Path())
    facts = read_facts(folder)
    path = write_report(folder, out=out, facts=facts)
    is_beside = out is None and path.name != REPORT
    if as_json:
        click.echo(json.dumps(_facts_json(facts, path, is_beside=is_beside), ensure_ascii=False))
        return
    _say_path(path, is_beside=is_beside)


def _say_path(path: Path, *, is_beside: bool) -> None:
    from mlx_finetune.rundir import REPORT

    if is_beside:
        edited = path.with_name(REPORT)
        click.echo(f"{edited} was changed by hand, or is another run's, and is left as it is", err=True)
    click.echo(str(path))
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    click.echo(f"next: {opener} {shlex.quote(str(path))}", err=True)


def _report_pipeline(folder: Path, out: Path | None, *, as_json: bool) -> None:
    """The page of a pipeline, with the table beside it, or the page alone at ``out``."""
    from mlx_finetune.monitor.pipeline.facts import read_pipeline
    from mlx_finetune.monitor.pipeline.page import write_page, write_reports
    from mlx_finetune.monitor.pipeline.table import table_json
    from mlx_finetune.rundir import REPORT

    facts = read_pipeline(folder)
    path = write_reports(facts)[0] if out is None else write_page(facts, out)
    is_beside = out is None and path.name != REPORT
    if as_json:
        more = {"path": str(path), "num_bytes": path.stat().st_size, "is_beside_edited": is_beside}
        click.echo(json.dumps(more | {"pipeline": table_json(facts)}, ensure_ascii=False))
        return
    _say_path(path, is_beside=is_beside)


def _facts_json(facts: "ReportFacts", path: Path, *, is_beside: bool) -> dict[str, object]:
    from mlx_finetune.monitor.run_report import facts_json

    newest = facts.evaluations[0] if facts.evaluations else None
    return {
        "path": str(path),
        "num_bytes": path.stat().st_size,
        "is_beside_edited": is_beside,
        "run": facts_json(facts.run),
        "verdict": newest.verdict.sentence if newest else None,
    }


def try_report(run: "RunDir", *, only_renew: bool = False) -> tuple[Path | None, list[str]]:
    """Where the report of a run is now, and what to say where it could not be made; nothing where there is none.

    ``only_renew`` makes none where there was none, or an edited one.
    """
    from mlx_finetune.errors import MlxftError
    from mlx_finetune.monitor.report.facts import read_facts
    from mlx_finetune.monitor.report.write import has_something, is_renewable, write_report

    try:
        facts = read_facts(run)
        if not has_something(facts) or (only_renew and not is_renewable(run, facts)):
            return None, []
        return write_report(run, facts=facts), []
    except OSError as error:
        reason = error.strerror or str(error)
    except MlxftError as error:
        reason = error.message
    except Exception as error:  # a page about a run must never be what the run fails of
        reason = f"{type(error).__name__}: {error}"
    return None, [f"warning: the report could not be made ({reason})", f"hint: try again with: mlxft report {run.name}"]

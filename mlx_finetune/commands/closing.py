"""What is said when a training has ended or was left: by ``train``, ``monitor`` and ``stop`` alike."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlx_finetune.rundir import LOG, RECIPE, RUN_INFO, RunDir, run_info

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.running.supervise import Supervised
    from mlx_finetune.events import RunFailed, RunFinished, RunStopped
    from mlx_finetune.monitor.summary import Summary

LOG_LINES = 12


def ended_lines(
    supervised: "Supervised", summary: "Summary", run: RunDir, go_on: Sequence[str], report: Path | None = None
) -> Sequence[str]:
    """The last words of ``mlxft train``. ``go_on`` is the command that resumes the run, with its first words.

    ``report`` is the run's page, where it was made.
    """
    from mlx_finetune.hardware.planning.disk import free_bytes
    from mlx_finetune.units import format_bytes

    ended, ending = supervised.ended, supervised.ending
    checkpoints = run.checkpoints()
    saved = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was saved"
    has_begun = run.file(RUN_INFO).is_file()  # without a checkpoint it goes on from the start
    again = go_on if checkpoints or has_begun else []
    page = _report_line(report)
    if ended.outcome is not None and ending.kind not in ("crashed", "no_space"):
        return outcome_lines(ended.outcome, summary, run, go_on, report)
    match ending.kind:
        case "refused":
            return ended.log_tail[next(i for i, line in enumerate(ended.log_tail) if line.startswith("error: ")) :]
        case "stopped" | "finished":
            return ["", saved, *page, *again]
        case "no_space":
            free = format_bytes(free_bytes(run.path))
            return ["", *page, f"error: {ending.message} ({free} free)", f"hint: {ending.hint}", *again]
        case "failed" | "crashed":
            log = [f"  {line}" for line in ended.log_tail[-LOG_LINES:]]
            shown = ["", f"its last lines (see {run.file(LOG)}):", *log] if log else []
            hint = [f"hint: {ending.hint}"] if ending.hint else []
            return [*shown, "", *page, f"error: {ending.message}; {saved}", *hint, *again]


def _report_line(report: Path | None) -> list[str]:
    return [] if report is None else [f"report for your browser: {report}"]


def outcome_lines(
    outcome: "RunFinished | RunStopped | RunFailed",
    summary: "Summary",
    run: RunDir,
    go_on: Sequence[str],
    report: Path | None = None,
) -> Sequence[str]:
    """What a run's own last word tells: what was learned, where it stopped, or what went wrong."""
    from mlx_finetune.events import RunFailed, RunFinished, RunStopped
    from mlx_finetune.monitor.ending import finished_lines, restarted_lines

    match outcome:
        case RunFinished() as finished:
            width = shutil.get_terminal_size((100, 24)).columns
            page = str(report or "")
            return finished_lines(summary, finished, folder=str(run.path), name=run.name, width=width, report=page)
        case RunFailed() as failed:
            hint = [f"hint: {failed.hint}"] if failed.hint else []
            return [*_report_line(report), f"error: {failed.message}", *hint]
        case RunStopped() as stopped:
            done = f"after step {stopped.step}; everything up to there is saved" if stopped.step else "before step 1"
            has_begun = run.file(RUN_INFO).is_file()  # else there is nothing to go on from, and nothing in the way
            return [
                "",
                f"stopped {done}",
                *restarted_lines(summary),
                *_report_line(report),
                *(go_on if has_begun else []),
            ]


def go_on_lines(recipe: str, options: Sequence[str]) -> Sequence[str]:
    """``to go on: mlxft train RECIPE ... --resume``."""
    return [f"to go on: {shlex.join(['mlxft', 'train', recipe, *options, '--resume'])}"]


def recorded_go_on_lines(run: RunDir) -> Sequence[str]:
    """The same for a run that somebody else started, from its run.json; empty where that does not tell.

    Relative paths count from the folder where it was started; a run that lies elsewhere now is named where it lies.
    """
    found = _recorded(run)
    if found is None:
        return []
    folder, lines = found
    if folder.resolve() == Path.cwd():
        return lines
    return [line.replace("to go on: ", f"to go on: cd {shlex.quote(str(folder))} && ", 1) for line in lines]


def copied_go_on(run: RunDir) -> str:
    """The command alone, as it works in a terminal that is opened afterwards; "" where run.json does not tell."""
    found = _recorded(run)
    return "" if found is None else copied(found[1][0].removeprefix("to go on: "), found[0])


def copied(command: str, folder: Path) -> str:
    """``mlxft ...`` as typed in ``folder``, for a terminal that is opened afterwards: there nothing is set up."""
    import mlx_finetune
    from mlx_finetune.app.doctor.finding import how_to_type

    where = folder.resolve()
    typed = how_to_type(package=Path(mlx_finetune.__file__).resolve().parent, base=where)
    return f"cd {shlex.quote(str(where))} && {typed.mlxft}{command.removeprefix('mlxft')}"


def _recorded(run: RunDir) -> tuple[Path, Sequence[str]] | None:
    """The folder where a run was started, and how it goes on from there."""
    info = cast("dict[str, Any]", run_info(run))
    try:
        recipe, folder = Path(info["recipe_path"]), Path(info.get("started_in", "."))
        overrides = [str(override) for override in info["overrides"]]
        output_dir = info.get("resolved", {}).get("output_dir")
    except (KeyError, TypeError, AttributeError):
        return None
    here = run.path.resolve()
    if output_dir and (folder / Path(output_dir).expanduser()).resolve() != here:
        overrides = [one for one in overrides if not one.startswith("output_dir=")] + [f"output_dir={here}"]
    if not (folder / recipe).is_file() and (here / RECIPE).is_file():
        recipe = here / RECIPE
    return folder, go_on_lines(str(recipe), [part for override in overrides for part in ("--set", override)])

"""Puts a report into its place. One that somebody has edited is never written over.

The last line of a report holds a hash of the run and one of everything above it. A file without that line, with another
hash, or of another run is somebody's own work.
"""

import hashlib
import re
from itertools import count
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.errors import RunError
from mlx_finetune.events import RunFailed
from mlx_finetune.monitor.report.facts import ReportFacts, read_facts
from mlx_finetune.monitor.report.page import render
from mlx_finetune.rundir import LOG, RunDir, next_report

_SEAL = re.compile(rb"<!-- mlxft report, run ([0-9a-f]{16}), unedited ([0-9a-f]{64}) -->\n\Z")


def write_report(run: RunDir, *, out: Path | None = None, facts: ReportFacts | None = None) -> Path:
    """Make the report of ``run`` and say where it is: ``out``, else report.html, or report-2.html beside an edited one.

    ``facts`` are those of ``run``, where they have been read already.
    Raises ``RunError`` where there is nothing to tell yet or ``out`` holds something else, ``OSError`` for what the
    disk refuses.
    """
    facts = facts or read_facts(run)
    if not has_something(facts):
        raise _nothing(run, facts)
    owner = _owner(facts)
    path = free_place(run, owner) if out is None else checked_place(out, owner)
    durable.replace_file(path, [sealed(render(facts), owner)])
    return path


def is_renewable(run: RunDir, facts: ReportFacts) -> bool:
    """True where report.html is there and nobody has edited it. Raises ``OSError``."""
    path = run.file(next_report(1))
    return path.is_file() and is_ours(path, _owner(facts))


def has_something(facts: ReportFacts) -> bool:
    """True where the run came as far as having loaded everything."""
    return facts.summary.started is not None


def _nothing(run: RunDir, facts: ReportFacts) -> RunError:
    """Why there is no page: it has not come so far, or never will."""
    outcome = facts.summary.outcome
    if facts.run.is_running:
        return RunError(f"{run.path} has nothing to report yet", f"watch it with: mlxft monitor {run.name}")
    if isinstance(outcome, RunFailed):
        what = f"{run.path} failed before there was anything to report: {outcome.message}"
        return RunError(what, outcome.hint or f"more is in {run.file(LOG)}")
    what = f"{run.path} has nothing to report: it ended before the model was loaded"
    return RunError(what, f"how to go on: mlxft runs show {run.name}")


def sealed(page: str, owner: str) -> bytes:
    """The page with its last line."""
    content = page.encode("utf-8")
    return content + b"<!-- mlxft report, run %s, unedited %s -->\n" % (
        owner.encode("ascii"),
        hashlib.sha256(content).hexdigest().encode("ascii"),
    )


def is_ours(path: Path, owner: str) -> bool:
    """True for a report of the same run as it was made. Raises ``OSError``."""
    content = path.read_bytes()
    found = _SEAL.search(content)
    if found is None or found[1] != owner.encode("ascii"):
        return False
    return hashlib.sha256(content[: found.start()]).hexdigest().encode("ascii") == found[2]


def _owner(facts: ReportFacts) -> str:
    """What stays the same of a run wherever its folder is moved to and whatever a fork of it learns from."""
    begun = facts.info.created or str(facts.summary.first_time)
    return hashlib.sha256(begun.encode("utf-8", "replace")).hexdigest()[:16]


def free_place(run: RunDir, owner: str) -> Path:
    """The first of report.html, report-2.html and so on that is free or was not touched since it was made."""
    for number in count(1):
        path = run.file(next_report(number))
        if not _is_there(path) or (path.is_file() and is_ours(path, owner)):
            return path
    raise AssertionError("names do not end")


def checked_place(out: Path, owner: str) -> Path:
    """``out``, where nothing is lost by writing it. Raises ``RunError``."""
    if out.is_dir():
        raise RunError(f"{out} is a folder", f"name a file in it: --out {out / 'report.html'}")
    if not out.parent.is_dir():
        raise RunError(f"the folder {out.parent} does not exist", "make it first, or choose another --out")
    if _is_there(out) and not (out.is_file() and is_ours(out, owner)):
        raise RunError(f"{out} is not an unedited report of this run", "choose another --out; nothing is overwritten")
    return out


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()

"""One text file about this machine and its newest run that others may read: ``mlxft doctor --report``.

What is in it, and what was taken out, stands at its top. A file that exists is never written over. What of a run is in
it, is in ``run_extract``; what is taken out, in ``redact``.
"""

import getpass
import importlib.metadata
import os
import platform
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.app.doctor.examine import Facts
from mlx_finetune.app.doctor.finding import Finding
from mlx_finetune.app.doctor.redact import Person, Redactor, Training, make_redactor
from mlx_finetune.app.doctor.run_extract import run_parts, training_of
from mlx_finetune.app.doctor.runs import newest_runs
from mlx_finetune.app.doctor.words import sections
from mlx_finetune.errors import RunError
from mlx_finetune.hardware.system.programs import Runner, run_program

DEFAULT_NAME = "mlxft-doctor.txt"
_MAX_NUMBER = 1000
_MORE_PACKAGES = (
    *("mlx-metal", "mlx-cpu", "safetensors", "huggingface-hub", "pydantic", "psutil", "rich", "textual", "starlette"),
    *("prompt-toolkit", "llguidance", "jinja2", "ngsolve-openblas"),
)


#: Small programs of macOS whose whole answer shows how it is read, should we read it wrongly.
_PROGRAMS = (
    ("/usr/bin/sw_vers",),
    ("/usr/bin/pmset", "-g"),
    ("/usr/bin/pmset", "-g", "custom"),
    ("/usr/bin/pmset", "-g", "batt"),
    ("/usr/bin/pmset", "-g", "therm"),
    ("/usr/sbin/sysctl", "kern.memorystatus_vm_pressure_level"),
    ("/usr/sbin/sysctl", "vm.swapusage"),
    ("/usr/sbin/sysctl", "iogpu.wired_limit_mb"),
    ("/usr/sbin/sysctl", "iogpu.rsrc_limit"),
    ("/usr/sbin/sysctl", "machdep.cpu.brand_string"),
    ("/usr/bin/vm_stat",),
    ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator"),
)
#: Of the register of devices only these lines: others hold numbers that belong to one machine.
_REGISTER_LINE = re.compile(
    r"PerformanceStatistics|gpu-core-count|\"model\"|GPUConfigurationVariable|Utilization|memory"
)
_NUMBER_OF_ONE = re.compile(r"\(id=\d+\)")
_MAX_ANSWER_LINES = 60


@dataclass(frozen=True, slots=True)
class Report:
    """The text, and what was taken out of it, by kind."""

    text: str
    counts: Mapping[str, int]


def read_person(variables: Mapping[str, str]) -> Person:
    """The user and the machine, by every name that the system has for them."""
    users = {variables.get("USER", ""), variables.get("LOGNAME", ""), Path.home().name}
    with suppress(KeyError, OSError, ImportError):
        import pwd

        entry = pwd.getpwuid(os.getuid())
        users |= {entry.pw_name, entry.pw_gecos.partition(",")[0]}
    with suppress(OSError, KeyError):
        users.add(getpass.getuser())
    hosts = {platform.node(), variables.get("HOSTNAME", "")}
    with suppress(OSError):
        hosts.add(socket.gethostname())
    hosts |= {host.partition(".")[0] for host in hosts}
    return Person(str(Path.home()), tuple(filter(None, users)), tuple(filter(None, hosts)))


def make_report(
    facts: Facts,
    findings: Sequence[Finding],
    *,
    base: Path,
    variables: Mapping[str, str],
    person: Person,
    now: float,
    run_tool: Runner = run_program,
) -> Report:
    """The report; ``base`` is the folder whose newest run is in it. ``run_tool`` starts the Mac's own programs."""
    run = next(iter(newest_runs(base, now)), None)
    redactor = make_redactor(person, variables, training_of(run, base) if run is not None else Training())
    told = {
        heading: [f"{label:<16} {redactor.text(value)}" for label, value in rows]
        for heading, rows in sections(facts).items()
    }
    parts = [
        ("Findings", _findings(findings, redactor)),
        *told.items(),
        ("Environment", _environment(facts, redactor)),
        *(run_parts(run, redactor) if run is not None else [("Newest run", ["none in the last days"])]),
        ("Answers of macOS", list(_answers(facts, redactor, run_tool))),
    ]
    body = "\n".join(f"\n## {heading}\n\n" + "\n".join(lines) for heading, lines in parts if lines)
    return Report(f"{_head(redactor, now)}{body}\n", dict(redactor.counts))


def _head(redactor: Redactor, now: float) -> str:
    taken = ", ".join(f"{count} x {kind}" for kind, count in sorted(redactor.counts.items())) or "nothing was found"
    made = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"# mlxft doctor report, {made}\n\n"
        "In it: versions, this machine, its settings, what the doctor found; of the newest run its recipe, numbers,\n"
        "and lines of its log. Taken out: home folder, names of user and machine, tokens, keys, e-mail and network\n"
        "addresses, prompts, answers, and whatever may be training text. Please read it before you send it.\n"
        f"Taken out here: {taken}.\n"
    )


def _findings(findings: Sequence[Finding], redactor: Redactor) -> list[str]:
    lines: list[str] = []
    for one in findings:
        lines += [f"{one.level}: {redactor.sentence(one.message)}", f"  mend it: {redactor.text(one.command)}"]
    return lines or ["none"]


def _environment(facts: Facts, redactor: Redactor) -> list[str]:
    environment, typed = facts.environment, facts.typed
    alone = "" if environment.is_venv else " (no environment of its own)"
    versions: list[str] = []
    for name in _MORE_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return [
        f"{'prefix':<16} {redactor.text(environment.prefix)}{alone}",
        f"{'project':<16} {redactor.text(typed.root) or 'none'}, typed as {redactor.text(typed.mlxft)}",
        f"{'more packages':<16} {', '.join(versions)}",
        *(f"{name}={redactor.text(value)}" for name, value in (environment.variables or {}).items()),
    ]


def _answers(facts: Facts, redactor: Redactor, run_tool: Runner) -> Iterator[str]:
    """What MLX and the small programs of a Mac say, word for word but for people and serial numbers."""
    if facts.device.system != "darwin":
        return
    yield f"mlx: {facts.device.metal}"
    for command in _PROGRAMS:
        answer = run_tool(command)
        yield f"$ {' '.join([command[0].rpartition('/')[2], *command[1:]])}"
        lines = ["[no answer]"] if answer is None else answer.splitlines()
        if command[0].endswith("ioreg"):
            lines = [line for line in lines if _REGISTER_LINE.search(line)]
        for line in lines[:_MAX_ANSWER_LINES]:
            yield f"  {redactor.text(_NUMBER_OF_ONE.sub('(id)', line))}"


def write_report(report: Report, path: Path | None, base: Path) -> Path:
    """Write it to ``path``, or to the first free name in ``base``. Raises ``RunError``; nothing is written over."""
    numbered = [base / f"mlxft-doctor-{number}.txt" for number in range(2, _MAX_NUMBER)]
    for candidate in [path] if path is not None else [base / DEFAULT_NAME, *numbered]:
        try:
            durable.write_new(candidate, [report.text.encode("utf-8")])
        except FileExistsError:
            continue
        except OSError as error:
            hint = "name another place: mlxft doctor --report FILE"
            raise RunError(f"{candidate} cannot be written: {error.strerror}", hint) from error
        return candidate
    raise RunError(f"{path or base / DEFAULT_NAME} exists and is not written over", "mlxft doctor --report FILE")

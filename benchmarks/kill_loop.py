"""Small real runs, killed with SIGKILL at random instants and resumed, must end with the bits of runs never killed.

    python benchmarks/kill_loop.py [--kills 1000] [--seed 7] [--kinds NAME,...] [--jobs 2] [--folder F] [--model M]
    python benchmarks/kill_loop.py --by SIGINT,SIGTERM,SIGHUP     # asked to stop instead

After each kill: every checkpoint is whole, every line of the journal but a torn last one can be read, and no step is
lost that was ever announced as saved. At the end of each run: the published weights, samples.jsonl, the last
checkpoint's optimizer and the whole course (losses, rates, norms, evaluations, answers) are those of the reference
run of that kind, and no temporary file is left. Exit code 1 if anything is wrong; the folder of such a run is kept.

A process that is asked to stop must leave with 130, 143 or 129, and have committed the step after which it says it was
stopped; one that does not listen yet dies of the signal.

Half of the kills come at a uniformly random instant of what is left of the run; the other half wait until the process
is inside a start, a resume, a save, a rotation or the publishing of the result, and come up to 20 ms later. Where a
process died is known, not guessed: it keeps the number of its phase in one byte of shared memory, which outlives it.
On Linux one process imports everything and forks each trial before mlx has computed anything (its threads do not
survive a fork), which makes a start cost 0.1 instead of 3 seconds; elsewhere, and with --fresh, each is a new process.
"""

import argparse
import datetime
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from kill_state import fingerprint, read_state, read_status
from kill_trial import KINDS, PHASES, ROOT, Trial, load_everything, settings, start_trial, write_inputs

from mlx_finetune import rundir
from mlx_finetune.events import RunStarted, StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import RunDir

POLL_SECONDS = 1e-4
HUNG_SECONDS = 300.0
MAX_KILLS_A_RUN = 16
INSIDE = ("save", "rotate", "resume")
MIN_SHARE, MIN_KILLS = 0.2, 100  # kills inside save, rotate and resume; not asked of fewer kills than MIN_KILLS

#: What a kill may wait for: how often it is chosen, which entry into the phase at most, the longest delay in seconds.
TARGETS = {
    "start": (2, 4, 0.004),
    "resume": (3, 5, 0.004),
    "save": (3, 4, 0.02),
    "rotate": (3, 4, 0.002),
    "publish": (1, 1, 0.008),
}

T = TypeVar("T")
Task = Generator[None, None, T]


@dataclass(slots=True)
class Outcome:
    """One run from its first start to its end. ``unreadable`` has one entry for each state that was not whole."""

    kind: str
    folder: Path
    kills: Counter[str] = field(default_factory=Counter[str])
    already_ended: int = 0
    announced: int = 0
    steps_lost: int = 0
    unreadable: list[str] = field(default_factory=list[str])
    failed: str = ""
    leftovers: list[str] = field(default_factory=list[str])
    different: list[str] = field(default_factory=list[str])
    fingerprint: dict[str, object] = field(default_factory=dict[str, object])
    seconds: float = 0.0

    def problems(self) -> list[str]:
        """Everything wrong with the run, in sentences; empty for a good one."""
        return [
            *([self.failed] if self.failed else []),
            *self.unreadable,
            *([f"{self.steps_lost} steps that were announced as saved are lost"] if self.steps_lost else []),
            *([f"other than in the reference run: {', '.join(self.different)}"] if self.different else []),
            *([f"left behind: {', '.join(self.leftovers)}"] if self.leftovers else []),
        ]


@dataclass(frozen=True, slots=True)
class Aim:
    """When to send which signal: ``delay`` seconds after the start, or after the ``entry``-th entry into ``phase``."""

    number: signal.Signals
    delay: float
    phase: str | None = None
    entry: int = 0

    @classmethod
    def draw(cls, rng: random.Random, numbers: Sequence[signal.Signals], seconds: float, *, resuming: bool) -> "Aim":
        """Half of the aims are instants of the next ``seconds``, the others wait for a phase."""
        number = numbers[0] if len(numbers) == 1 else rng.choice(numbers)
        if rng.random() < 0.5:
            return cls(number, rng.uniform(0.0, seconds))
        never = "start" if resuming else "resume"
        targets = {name: target for name, target in TARGETS.items() if name != never}
        phase = rng.choices(list(targets), [weight for weight, _, _ in targets.values()])[0]
        return cls(number, rng.uniform(0.0, TARGETS[phase][2]), phase, rng.randint(1, TARGETS[phase][1]))


@dataclass(slots=True)
class Harness:
    """Starts trials in ``folder``. ``left`` is the number of kills still to be made."""

    folder: Path
    seed: int
    left: int
    fresh: bool
    numbers: Sequence[signal.Signals]
    references: dict[str, Outcome] = field(default_factory=dict[str, Outcome])

    def start(self, case: Path, kind: str, *, resume: bool) -> Trial:
        """Start or resume the run of ``case``."""
        arguments = ["--recipe", str(self.folder / "recipe.toml"), *settings(kind, self.folder)]
        arguments += ["--set", f"output_dir={case / 'run'}", "--parent-pid", str(os.getpid())]
        arguments += ["--resume"] if resume else []
        return start_trial(case / "phase", case / "trial.log", arguments, fresh=self.fresh)

    def wait(self, trial: Trial, aim: Aim | None) -> Task[bool]:
        """Wait for the moment or the end; True where the signal found a living process and ended it."""
        is_sent = False
        moment = trial.started + aim.delay if aim and aim.phase is None else None
        while trial.is_running():
            now = time.monotonic()
            if aim and aim.phase and moment is None and trial.entries(aim.phase) >= aim.entry:
                moment = now + aim.delay
            if aim and moment is not None and now >= moment and not is_sent:
                is_sent = True
                trial.send(aim.number)
            if now > trial.started + HUNG_SECONDS:
                trial.kill()
                return False
            yield
        return aim is not None and is_sent and trial.exit_code() in (-aim.number, 128 + aim.number)

    def run(self, name: str, kind: str, num_kills: int) -> Task[Outcome]:
        """One run, killed up to ``num_kills`` times, then left to finish."""
        rng = random.Random(f"{self.seed}/{name}")
        outcome = Outcome(kind, self.folder / f"{name}-{kind}")
        outcome.folder.mkdir()
        run, began = RunDir(outcome.folder / "run"), time.monotonic()
        step = aims = 0
        while not outcome.failed and not self._is_finished(run):
            resume = run.file(rundir.RUN_INFO).is_file() or bool(run.checkpoints())
            aim = None
            if aims < num_kills and self.left > 0:
                aims, self.left = aims + 1, self.left - 1
                aim = Aim.draw(rng, self.numbers, self._seconds_left(kind, step), resuming=resume)
            trial = self.start(outcome.folder, kind, resume=resume)
            try:
                is_killed = yield from self.wait(trial, aim)
            finally:
                trial.kill()
            if is_killed:
                outcome.kills[PHASES[trial.phase_at_signal]] += 1
            else:
                self.left += aim is not None
                outcome.already_ended += aim is not None
                outcome.failed = self._failure(trial, run)
            state = read_state(run, outcome.announced)
            step, outcome.announced = state.step, state.announced
            outcome.steps_lost = max(outcome.steps_lost, state.announced - state.step)
            outcome.unreadable += ["; ".join(state.unreadable)] if state.unreadable else []
            if is_killed and state.stopped and state.stopped != state.step:
                outcome.unreadable.append(f"stopped after step {state.stopped}, saved was {state.step}")
        outcome.seconds = time.monotonic() - began
        if not outcome.failed:
            self._compare(outcome, run, kind)
        return outcome

    def _is_finished(self, run: RunDir) -> bool:
        try:
            return read_status(run) == "finished"
        except ValueError:
            return False  # counted as unreadable already; a resume will say what it makes of it

    def _failure(self, trial: Trial, run: RunDir) -> str:
        code = trial.exit_code()
        if code == -signal.SIGKILL:
            return f"a trial took longer than {HUNG_SECONDS:.0f} seconds, or someone else killed it"
        if code == 0:
            return "" if self._is_finished(run) else "a trial ended with code 0 without having finished"
        log = run.file(rundir.LOG) if run.file(rundir.LOG).is_file() else run.path.with_name("trial.log")
        return f"a trial ended with code {code}: {' | '.join(log.read_text().splitlines()[-3:])}"

    def _seconds_left(self, kind: str, step: int) -> float:
        """How long a start after ``step`` takes to its end, by the reference run's clock."""
        reference = self.references[kind]
        events = list(read_events(reference.folder / "run" / rundir.EVENTS))
        steps = [record.time for record in events if isinstance(record.event, StepDone)]
        loaded = next(record.time for record in events if isinstance(record.event, RunStarted))
        training = steps[-1] - loaded
        return reference.seconds - training * step / len(steps)

    def _compare(self, outcome: Outcome, run: RunDir, kind: str) -> None:
        outcome.fingerprint = fingerprint(run)
        hidden = (path for path in run.path.rglob(".*") if path.name != rundir.LOCK)
        outcome.leftovers = sorted(str(path.relative_to(run.path)) for path in hidden)
        expected = self.references[kind].fingerprint if kind in self.references else outcome.fingerprint
        names = sorted(expected.keys() | outcome.fingerprint.keys())
        outcome.different = [name for name in names if expected.get(name) != outcome.fingerprint.get(name)]


def in_parallel(more: Callable[[], Task[T] | None], jobs: int, seen: Callable[[T], None]) -> None:
    """Run the tasks that ``more`` hands out, ``jobs`` at a time, in this one thread, until it has none."""
    active: list[Task[T]] = []
    try:
        while True:
            while len(active) < jobs and (task := more()) is not None:
                active.append(task)
            if not active:
                return
            for task in list(active):
                try:
                    next(task)
                except StopIteration as end:
                    active.remove(task)
                    seen(end.value)
            time.sleep(POLL_SECONDS)
    finally:
        for task in active:
            task.close()


def report(outcomes: Sequence[Outcome], options: argparse.Namespace, seconds: float) -> list[str]:
    """The printed table."""
    kills = sum((outcome.kills for outcome in outcomes), Counter[str]())
    total, most = kills.total(), max((outcome.kills.total() for outcome in outcomes), default=0)
    inside = sum(kills[phase] for phase in INSIDE)
    ended = sum(outcome.already_ended for outcome in outcomes)
    finished = [outcome for outcome in outcomes if not outcome.failed]
    equal = sum(not outcome.different for outcome in finished)
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("mlx-finetune", "mlx", "mlx-lm", "numpy"))
    rows = [
        ("machine", f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"),
        ("versions", versions),
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("model, kinds", f"{options.model or 'random llama, 2 layers, width 64'}; {', '.join(options.kinds)}"),
        ("seed, jobs, steps", f"{options.seed}, {options.jobs}, {options.steps} in each run"),
        ("signals", ", ".join(number.name for number in options.by)),
        ("kills", f"{total} in {len(outcomes)} runs, at most {most} in one"),
        *((f"  inside {phase}", f"{kills[phase]}") for phase in INSIDE),
        ("  elsewhere", ", ".join(f"{phase} {kills[phase]}" for phase in PHASES if phase not in INSIDE)),
        ("inside save, rotate, resume", f"{100 * inside / max(total, 1):.1f} % (needed: {100 * MIN_SHARE:.0f} %)"),
        ("found the process ended", f"{ended} (not counted as kills)"),
        ("unreadable states", f"{sum(len(outcome.unreadable) for outcome in outcomes)}"),
        ("steps lost beyond the commit", f"{sum(outcome.steps_lost for outcome in outcomes)}"),
        ("runs that could not finish", f"{len(outcomes) - len(finished)}"),
        ("runs with files left behind", f"{sum(bool(outcome.leftovers) for outcome in outcomes)}"),
        ("final hashes equal / different", f"{equal} / {len(finished) - equal}"),
        ("kills a second, wall time", f"{total / seconds:.2f}, {seconds:.0f} s"),
    ]
    return [f"{name:<32} {value}" for name, value in rows]


def kill_and_resume(harness: Harness, kinds: Sequence[str], jobs: int) -> list[Outcome]:
    """The reference run of each kind, then killed runs of the kinds in turn until no kill is left."""
    waiting = list(kinds)

    def next_reference() -> Task[Outcome] | None:
        return harness.run("reference", waiting.pop(0), 0) if waiting else None

    references: list[Outcome] = []
    in_parallel(next_reference, jobs, references.append)
    harness.references = {outcome.kind: outcome for outcome in references}
    bad = [f"{outcome.kind}: {'; '.join(outcome.problems())}" for outcome in references if outcome.problems()]
    if bad:
        raise SystemExit("a run that nobody killed went wrong: " + " | ".join(bad))
    outcomes: list[Outcome] = []
    rng = random.Random(harness.seed)
    started = 0

    def next_run() -> Task[Outcome] | None:
        nonlocal started
        if harness.left <= 0:
            return None
        started += 1
        return harness.run(f"{started:05d}", kinds[(started - 1) % len(kinds)], rng.randint(1, MAX_KILLS_A_RUN))

    def seen(outcome: Outcome) -> None:
        outcomes.append(outcome)
        for problem in outcome.problems():
            print(f"{outcome.folder}: {problem}", flush=True)
        if not outcome.problems():
            shutil.rmtree(outcome.folder)

    in_parallel(next_run, jobs, seen)
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume, compare, print the table; 1 where anything is wrong."""
    options = _parse(arguments)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="mlxft-kill-loop-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.append(str(ROOT / "tests"))
    load_everything(folder / "cache")
    write_inputs(folder, options.model, options.steps)
    began = time.monotonic()
    harness = Harness(folder, options.seed, options.kills, options.fresh, options.by)
    outcomes = kill_and_resume(harness, options.kinds, options.jobs)
    for line in report(outcomes, options, time.monotonic() - began):
        print(line)
    kills = sum((outcome.kills for outcome in outcomes), Counter[str]())
    is_enough = kills.total() < MIN_KILLS or sum(kills[phase] for phase in INSIDE) >= MIN_SHARE * kills.total()
    bad = [outcome for outcome in outcomes if outcome.problems()]
    if bad:
        print(f"WRONG: {len(bad)} runs, kept in {folder}")
    elif not is_enough:
        print("WRONG: too few kills inside save, rotate and resume")
    else:
        print("all states readable, nothing lost, every final hash equal")
    if not bad and not options.folder:
        shutil.rmtree(folder)
    return 0 if is_enough and not bad else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="processes to kill (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="fixes the plan: which runs, how many kills, their aims")
    parser.add_argument(
        "--by",
        type=lambda text: [signal.Signals[name] for name in text.split(",")],
        default=[signal.SIGKILL],
        help="signals to draw from; SIGKILL",
    )
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--steps", type=int, default=30, help="length of each run; it saves every third step")
    parser.add_argument("--jobs", type=int, default=2, help="trials at the same time")
    parser.add_argument(
        "--folder", type=Path, help="where the runs go; kept. Default: a temporary one, kept on failure"
    )
    parser.add_argument("--model", type=Path, help="folder of a model to train instead of a random tiny one")
    parser.add_argument("--fresh", action="store_true", default=sys.platform != "linux", help="do not fork trials")
    options = parser.parse_args(arguments)
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no such kind: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())

"""A whole training, disturbed at one operation under its run folder, then resumed: what must hold."""

import json
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from faults.trials import Ended, Operation, Server, Verdict, applicable, done_to
from small_runs import course, write_recipe

from mlx_finetune import rundir
from mlx_finetune.errors import EXIT_NO_SPACE
from mlx_finetune.events import CheckpointSaved, RunFailed
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.commit import newest_checkpoint

SAME = (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS, rundir.SAMPLES)
RECIPE = "save_steps = 2\nkeep_checkpoints = 1"


class TrainTrials:
    """The undisturbed training (6 steps, a checkpoint every 2, one kept) and disturbed ones to compare with it.

    With ``resumes`` it is the process that goes on from checkpoint 2 that is disturbed, else the first one.
    """

    def __init__(self, server: Server, model: Path, folder: Path, *, resumes: bool = False) -> None:
        self._server, self._folder, self.resumes = server, folder, resumes
        self._recipe = write_recipe(folder, model, extra=RECIPE)
        self._run = RunDir(folder / f"straight-{server.count}")
        # A sample of the machine is one operation more, at a moment that no two runs share
        self._arguments = ("--recipe", str(self._recipe), "--set", "hardware.sample_seconds=0")
        self._train(RunDir(folder / f"warm-{server.count}"))  # leaves the tokens in the cache, as it is for all others
        ended = self._train(self._run)
        assert ended.code == 0, (ended, _words(self._run, ended))
        self.operations = ended.operations
        self._course = course(self._run)
        self._begun: RunDir | None = None
        if resumes:
            index = next(i for i, op in enumerate(self.operations, 1) if op.second == "checkpoint-4")
            self._begun = RunDir(folder / f"begun-{server.count}")
            self._train(self._begun, index=index, action="kill")
            run = self._new_run()
            self.operations = self._train(run, *self._options).operations

    @property
    def root(self) -> Path:
        """The folder of the undisturbed run."""
        return self._run.path

    @property
    def _options(self) -> tuple[str, ...]:
        return ("--resume",) if self._begun else ()

    def _new_run(self) -> RunDir:
        """A run folder that is not there yet, or that of a process that was killed as it committed checkpoint 4."""
        run = RunDir(self._folder / f"run-{self._server.count}")
        if self._begun:
            shutil.copytree(self._begun.path, run.path)
        return run

    def pairs(self) -> Iterator[tuple[int, str]]:
        """Every operation, by its number from 1, with every action that can happen to it."""
        for index, operation in enumerate(self.operations, 1):
            for action in applicable(operation):
                yield index, action

    def run(self, index: int, action: str) -> Verdict:
        """Disturb one operation, look at what is left, go on to the end."""
        run = self._new_run()
        ended = self._train(run, *self._options, index=index, action=action)
        problems = _check_end(run, ended, action)
        is_intact = not (damage := _check_checkpoints(run))
        problems += damage
        goes_on = not (rest := self._check_rest(run))
        problems += rest
        shutil.rmtree(run.path)
        hit = next((op.name for op in ended.operations if op.action == action), "none")
        return Verdict(hit, action, is_intact, goes_on, problems)

    def _train(self, run: RunDir, *options: str, index: int = 0, action: str = "") -> Ended:
        arguments = (*self._arguments, "--set", f"output_dir={run.path}", *options)
        return self._server.run(run.path, index=index, action=action, arguments=arguments)

    def _check_rest(self, run: RunDir) -> list[str]:
        """Resumed, or started where nothing had begun, the run ends with the bits of the undisturbed one."""
        problems: list[str] = []
        status = _status(run)
        if status != "finished":
            options = ("--resume",) if status or run.checkpoints() else ()
            rest = self._train(run, *options)
            if rest.code != 0:
                return [f"it does not go on: {rest.code} {rest.error[:1]} {rest.message} {_words(run, rest)[-300:]}"]
        if course(run) != self._course:
            problems.append("the journal tells another course")
        for name in SAME:
            if run.file(name).read_bytes() != self._run.file(name).read_bytes():
                problems.append(f"{name} has other bytes")
        names, expected = ({path.name for path in one.path.iterdir()} for one in (run, self._run))
        # Losses of single tokens are measured once the run has finished; `mlxft microscope RUN` does it as well.
        later = {rundir.MICROSCOPE} if status == "finished" else set[str]()
        problems += [f"{name} is missing" for name in expected - names - later]
        # What a process leaves that dies in its last rotation, or cannot sweep, goes at the next start or save.
        more = names - expected
        return problems + ([f"{sorted(more)} were left"] if len(more) > 1 or not _are_old(more) else [])


def _are_old(names: set[str]) -> bool:
    return all(
        name.startswith((".trash-checkpoint-", ".checkpoint-", "checkpoint-", f".{rundir.MICROSCOPE}."))
        for name in names
    )


def _check_end(run: RunDir, ended: Ended, action: str) -> list[str]:
    """Killed where it was; finished where the system only asked to go on; else one sentence and no traceback."""
    if done_to(ended) != [action]:
        return [f"the shim did {done_to(ended)}"]
    if action in ("kill", "torn"):
        return [] if ended.code == -signal.SIGKILL else ["it was not killed"]
    if ended.code == 0:
        return []
    problems = ["it did not finish"] if action in ("short", "eintr") else []
    words = _words(run, ended)
    if ended.error or "Traceback" in words:
        problems.append(f"traceback: {ended.error[:1]} {ended.message}")
    said = [record.event for record in read_events(run.file(rundir.EVENTS)) if isinstance(record.event, RunFailed)]
    if not said and "error: " not in words and ended.code != EXIT_NO_SPACE:
        problems.append(f"it ended with {ended.code} and without a word")
    return problems


def _check_checkpoints(run: RunDir) -> list[str]:
    """The newest checkpoint is a valid one, and at least that of the last one announced."""
    problems: list[str] = []
    announced = [r.event.step for r in read_events(run.file(rundir.EVENTS)) if isinstance(r.event, CheckpointSaved)]
    newest = newest_checkpoint(run, on_damage=problems.append)
    if (newest.step if newest else 0) < max(announced, default=0):
        problems.append(f"{announced} were announced, the newest is {newest}")
    return problems


def _status(run: RunDir) -> str:
    """The status in run.json, "" where there is none."""
    path = run.file(rundir.RUN_INFO)
    return str(json.loads(path.read_bytes())["status"]) if path.is_file() else ""


def _words(run: RunDir, ended: Ended) -> str:
    """Everything the process wrote for people."""
    log = run.file(rundir.LOG)
    return ended.output + (log.read_text(errors="replace") if log.is_file() else "")


def sample(operations: Sequence[Operation], pairs: Sequence[tuple[int, str]], count: int) -> list[tuple[int, str]]:
    """``count`` pairs: first those of operations, kinds of files and actions that were taken least often."""
    taken, chosen = Counter[str](), list[tuple[int, str]]()
    pool = random.Random(7).sample(pairs, len(pairs))
    for _ in range(count):
        index, action = min(pool, key=lambda pair: sum(taken[key] for key in _keys(operations[pair[0] - 1], pair[1])))
        pool.remove((index, action))
        chosen.append((index, action))
        taken.update(_keys(operations[index - 1], action))
    return chosen


def _keys(operation: Operation, action: str) -> tuple[str, ...]:
    kind = re.sub(r"[\d.]+part.*", "", operation.path)
    return operation.name, action, kind.split("/")[0], f"{operation.name} {action}"

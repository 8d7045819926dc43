"""Runs a pipeline: stage after stage, each with its evaluations, and keeps pipeline.json up to date on the way.

A training is the same child process as that of ``mlxft train``, a command or an evaluation is a process of ``mlxft``
(``process``). What a stage needs was decided before; it is decided again when its turn has come, because only then is
it known what the stages before it made.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.app.eval.places import set_aside
from mlx_finetune.app.pipeline.aside import bring_back, forget, held_bytes, move_away
from mlx_finetune.app.pipeline.decide import (
    Deciding,
    ReplacingError,
    Step,
    UnmadeError,
    data_of,
    is_used,
    refuse_replacing,
    run_status,
)
from mlx_finetune.app.pipeline.fingerprint import hash_result
from mlx_finetune.app.running.runs import check_removable, remove_run
from mlx_finetune.errors import Interrupted, MlxftError, RunError
from mlx_finetune.recipe.pipeline.load import LoadedPipeline, Stage
from mlx_finetune.recipe.pipeline.record import (
    EvaluationRecord,
    PipelineRecord,
    StageRecord,
    Status,
    read_record,
    write_record,
)
from mlx_finetune.recipe.pipeline.schema import EvaluationRecipe
from mlx_finetune.rundir import EVALUATIONS, LOCK, LOG, RunDir, check_folder, take_lock, weights_step
from mlx_finetune.units import format_bytes

GATE_MISSED = 4
#: Codes of a process that a signal has asked to leave.
_STOPPED = (130, 143, 129)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a stage or an evaluation ended: its exit code, and why and what to do where that is not 0.

    ``stop_signal`` is a signal that came too late to stop it: what is next is not begun any more. 0 without one.
    ``goes_on`` is False where the same command would end in the same way.
    """

    exit_code: int
    message: str = ""
    hint: str = ""
    stop_signal: int = 0
    goes_on: bool = True

    @property
    def status(self) -> Status:
        """For the record."""
        if self.exit_code in (0, GATE_MISSED):
            return "finished"
        return "stopped" if self.exit_code in _STOPPED else "failed"


@dataclass(frozen=True, slots=True)
class Hands:
    """What does the work. ``train`` gets a stage and whether it goes on; ``command`` the words after ``mlxft`` and the
    file for what it prints, if that is kept. ``say`` is told what a person should know."""

    train: Callable[[Stage, bool], Ended]
    command: Callable[[Sequence[str], Path | None], Ended]
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the pipeline ended; ``where`` names the stage or evaluation that did not finish, "" where all did.

    ``goes_on`` as in ``Ended``.
    """

    exit_code: int
    record: PipelineRecord
    where: str = ""
    message: str = ""
    hint: str = ""
    goes_on: bool = True


def carry_out(deciding: Deciding, hands: Hands) -> Outcome:
    """Run what is not done yet. Raises ``RunError`` where something would be lost or another process is at work here.

    A stage that fails or is stopped ends it there; what was done is kept.
    """
    pipeline = deciding.pipeline
    check_folder(pipeline.folder)
    if RunDir(pipeline.folder).is_run():
        raise RunError(f"{pipeline.folder} holds a run, not a pipeline", "choose another output_dir")
    old = read_record(pipeline.folder)
    steps = deciding.all_steps(old)
    refuse_replacing(steps, deciding, old)
    for step in steps:
        if step.action == "replace" and step.stage.loaded is not None:
            check_removable(RunDir(step.stage.folder))
    durable.make_folder(pipeline.folder)
    lock = take_lock(pipeline.folder / LOCK)
    if lock is None:
        raise RunError(
            f"another process runs the pipeline in {pipeline.folder}", f"look at it: {pipeline.command('--status')}"
        )
    try:
        return _Work(deciding, hands, begun_record(deciding, read_record(pipeline.folder))).run(steps)
    finally:
        os.close(lock)


def begun_record(deciding: Deciding, old: PipelineRecord | None) -> PipelineRecord:
    """The record with the stages that the file has now, at the beginning of a start.

    What is known of them stays, and what is known of those that the file has no more, should they come back.
    """
    pipeline, options = deciding.pipeline, deciding.selection.options
    created = old.created if old is not None else datetime.now(UTC).isoformat(timespec="seconds")
    known = {one.name: one for one in (*old.former, *old.stages)} if old is not None else {}
    stages: list[StageRecord] = []
    for stage in pipeline.stages:
        what = str(stage.loaded.path) if stage.loaded is not None else stage.asked.command or ""
        kind = "command" if stage.loaded is None else "train"
        kept = known.pop(stage.name, None) or StageRecord(stage.name, kind, what)
        stages.append(replace(kept, kind=kind, what=what, needs=stage.needs, was_skipped=False))
    names = [(name, one.name) for one in pipeline.pipeline.evaluations for name in one.stages]
    evaluated = {(one.stage, one.name): one for one in old.all_evaluations} if old is not None else {}
    current = tuple(evaluated.pop(key) for key in names if key in evaluated)
    return PipelineRecord(
        created,
        str(pipeline.path),
        str(deciding.base.resolve()),
        pipeline.overrides,
        tuple(stages),
        current,
        tuple(known.values()),
        tuple(evaluated.values()),
        options,
        tuple(old.redone_by(options, pipeline.overrides)) if old is not None else (),
    )


@dataclass(slots=True)
class _Work:
    deciding: Deciding
    hands: Hands
    record: PipelineRecord
    results: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def pipeline(self) -> LoadedPipeline:
        return self.deciding.pipeline

    def run(self, steps: Sequence[Step]) -> Outcome:
        """Everything in order, to the end or to the first that does not finish."""
        self._keep(self.record)
        for number, planned in enumerate(steps, start=1):
            stage, kept = planned.stage, self.record.stage(planned.stage.name)
            assert kept is not None
            if planned.action == "leave":
                if kept.status == "finished":
                    self.results[stage.name] = kept.result_sha256
                continue
            title = f"stage {number} of {len(steps)}, {stage.name}"
            ended = self._stage(stage, title)
            if ended.status != "finished" or ended.stop_signal:
                return self._left(ended, f"stage {stage.name}")
            for one in self.pipeline.pipeline.evaluations:
                if stage.name not in one.stages:
                    continue
                ended = self._evaluation(stage, one)
                if ended.status != "finished" or ended.stop_signal:
                    return self._left(ended, f"the evaluation {one.name} of stage {stage.name}")
        self._keep(replace(self.record, options=(), redone=()))
        return Outcome(0, self.record)

    def _left(self, ended: Ended, where: str) -> Outcome:
        code = 128 + ended.stop_signal if ended.stop_signal else ended.exit_code
        return Outcome(code, self.record, where, ended.message, ended.hint, ended.goes_on)

    def _keep(self, record: PipelineRecord) -> None:
        self.record = record
        write_record(self.pipeline.folder, record)

    def _stage(self, stage: Stage, title: str) -> Ended:
        """Do what a stage still needs; a refusal is an end of it that leaves its record as it was."""
        try:
            return self._decided(stage, title)
        except Interrupted:
            raise
        except MlxftError as error:
            goes_on = not isinstance(error, ReplacingError | UnmadeError)
            return Ended(error.exit_code, error.message, error.hint, goes_on=goes_on)

    def _decided(self, stage: Stage, title: str) -> Ended:
        step = self.deciding.step(stage, self.record, self.results)
        if step.action == "skip":
            other = step.result != self._known(stage).result_sha256
            self.hands.say(f"{title}: done before, skipped{'; its result was changed since' if other else ''}")
            known = replace(self._known(stage), was_skipped=True, result_sha256=step.result, taken=self._taken(stage))
            self._keep(self.record.with_stage(replace(known, step=weights_step(RunDir(stage.folder)))))
            self.results[stage.name] = step.result
            return Ended(0)
        if step.action == "replace":
            refuse_replacing([step], self.deciding, self.record)
            why, size = "; ".join(step.reasons[:3]), format_bytes(held_bytes(stage))
            place = move_away(stage, self._known(stage))
            what = f"what it holds, {size}, waits in {place} until that is complete"
            self.hands.say(f"{title}: replaced, because {why}; {what}")
        if step.action == "run" and is_used(stage):
            self._remove(stage)
        assert step.fingerprint is not None
        is_resumed = step.action == "resume" and stage.loaded is not None
        if is_resumed and run_status(stage) == "finished":
            return self._finish(stage, Ended(0), 0.0)  # only the last word was missing
        self.hands.say(f"{title}: {'goes on' if step.action == 'resume' else 'begins'}")
        old = self._known(stage)
        before = old.seconds if step.action == "resume" else 0.0
        begun = replace(
            old,
            status="begun",
            fingerprint=step.fingerprint,
            result_sha256="",
            taken=self._taken(stage),
            seconds=before,
            started=time.time(),
            message="",
            was_skipped=False,
        )
        self._keep(self.record.with_stage(begun))
        started = time.monotonic()
        ended = self._work(stage, is_resumed=is_resumed)
        return self._finish(stage, ended, time.monotonic() - started)

    def _known(self, stage: Stage) -> StageRecord:
        kept = self.record.stage(stage.name)
        assert kept is not None
        return kept

    def _taken(self, stage: Stage) -> dict[str, str]:
        return {name: self.results[name] for name in stage.needs}

    def _work(self, stage: Stage, *, is_resumed: bool) -> Ended:
        try:
            if stage.loaded is not None:
                return self.hands.train(stage, is_resumed)
            durable.make_folder(stage.folder)
            return self.hands.command(stage.words, stage.folder / LOG)
        except MlxftError as error:
            return Ended(error.exit_code, error.message, error.hint)

    def _finish(self, stage: Stage, ended: Ended, seconds: float) -> Ended:
        result = hash_result(stage) if ended.status == "finished" else ""
        if ended.status != "finished" and not is_used(stage) and (before := bring_back(stage)) is not None:
            self.hands.say(f"{stage.folder} is as it was before: nothing was made anew")
            self._keep(self.record.with_stage(before))
            return ended
        if ended.status == "finished" and stage.loaded is not None and not result:
            ended = Ended(1, f"{stage.result} holds no weights")
        done = replace(
            self._known(stage),
            status=ended.status,
            result_sha256=result,
            step=weights_step(RunDir(stage.folder)),
            seconds=self._known(stage).seconds + seconds,
            ended=time.time(),
            message=ended.message,
        )
        self._keep(self.record.with_stage(done))
        if result:
            self._keep(replace(self.record, redone=(*self.record.redone, stage.name)))
            self.results[stage.name] = result
            forget(stage)
        return ended

    def _remove(self, stage: Stage) -> None:
        """What a start has left that saved nothing."""
        if stage.loaded is not None:
            remove_run(RunDir(stage.folder))
        else:
            durable.remove_tree(stage.folder)

    def _evaluation(self, stage: Stage, one: EvaluationRecipe) -> Ended:
        """Measure the result of a stage, where that was not done."""
        step = self.deciding.evaluation_step(stage, one, self.record, self.results[stage.name])
        if step.action == "skip":
            return Ended(0)
        if step.action == "anew" and (other := set_aside(stage.folder / EVALUATIONS, one.name)) is not None:
            self.hands.say(f"{one.name} of {stage.name} is evaluated anew; the figures before are kept as {other}")
        self.hands.say(f"evaluating {one.name} of {stage.name}")
        kept = self.record.evaluation(stage.name, one.name)
        before = kept.seconds if kept is not None and step.action != "anew" else 0.0
        begun = EvaluationRecord(stage.name, one.name, "begun", step.fingerprint, before)
        self._keep(self.record.with_evaluation(begun))
        started = time.monotonic()
        ended = self.hands.command(evaluation_words(stage, one, data_of(one, self.pipeline)), None)
        done = replace(begun, status=ended.status, seconds=before + time.monotonic() - started, message=ended.message)
        self._keep(self.record.with_evaluation(done))
        return ended


def evaluation_words(stage: Stage, one: EvaluationRecipe, data: str | None) -> Sequence[str]:
    """The command of an evaluation, after ``mlxft``."""
    words = ["eval", str(stage.folder), "--name", one.name]
    options: Mapping[str, object | None] = {"--data": data, "--max-rows": one.max_rows, "--max-tokens": one.max_tokens}
    words += [part for option, value in options.items() if value is not None for part in (option, str(value))]
    return [*words, *(part for task in one.tasks for part in ("--tasks", task))]

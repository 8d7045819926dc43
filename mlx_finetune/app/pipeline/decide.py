"""What is to be done with each stage: nothing, all of it, the rest of it, or something that somebody has to allow.

Decided from pipeline.json and from what lies in the folders. Nothing is run or changed here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mlx_finetune.app.pipeline.fingerprint import (
    RecipeIdentity,
    check_rows,
    command_fingerprint,
    default_values,
    evaluation_fingerprint,
    hash_result,
    training_fingerprint,
)
from mlx_finetune.app.running.runs import is_running
from mlx_finetune.errors import MlxftError, Problem, RecipeError, RunError, UsageError
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.paths import data_paths
from mlx_finetune.recipe.pipeline.load import LoadedPipeline, Stage
from mlx_finetune.recipe.pipeline.record import PipelineRecord, differences
from mlx_finetune.recipe.pipeline.rules import filled
from mlx_finetune.recipe.pipeline.schema import EvaluationRecipe
from mlx_finetune.rundir import (
    CORRECTIONS,
    EVALUATIONS,
    EVENTS,
    LOG,
    RUN_INFO,
    RunDir,
    check_folder,
    free_folder,
    is_run_file,
    run_info,
)

#: leave: not asked for. later: known once an earlier stage has run. replace: what is there would be lost.
Action = Literal["leave", "skip", "run", "resume", "later", "replace"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which stages are asked for. ``is_forced`` allows what is there to be replaced."""

    first: str | None = None
    only: str | None = None
    is_forced: bool = False

    @property
    def names_stages(self) -> bool:
        """True where the user has named the stage to begin with."""
        return self.first is not None or self.only is not None

    @property
    def options(self) -> tuple[str, ...]:
        """As they are typed."""
        named = [part for option, name in self._named() for part in (option, name)]
        return (*named, *(("--force",) if self.is_forced else ()))

    def allowing(self, name: str) -> tuple[str, ...]:
        """Options with which what is asked for may be replaced, ``name`` being the first stage where it would be."""
        return replace(self, first=name if self.first is not None else None, is_forced=True).options

    def _named(self) -> Iterator[tuple[str, str]]:
        for option, name in (("--from", self.first), ("--only", self.only)):
            if name is not None:
                yield option, name

    def chosen(self, names: Sequence[str]) -> Sequence[str]:
        """The stages asked for. Raises ``UsageError`` for one that is not there."""
        for option, name in self._named():
            if name not in names:
                raise UsageError(f"{option} {name}: there is no such stage", f"stages: {', '.join(names)}")
        if self.first is not None and self.only is not None:
            raise UsageError("--from and --only do not go together", "give one of them")
        if self.only is not None:
            return [self.only]
        return names[names.index(self.first) :] if self.first is not None else names


@dataclass(frozen=True, slots=True)
class Step:
    """One stage and what is done with it; ``fingerprint`` is None where that depends on what has not run yet.

    ``result`` is the SHA-256 of what a stage that is skipped has made, as it is now.
    """

    stage: Stage
    action: Action
    reasons: tuple[str, ...] = ()
    fingerprint: Mapping[str, str] | None = None
    result: str = ""


@dataclass(frozen=True, slots=True)
class EvaluationStep:
    """One evaluation of a stage and what is done with it; anew: it is defined otherwise, or measures another result."""

    stage: Stage
    asked: EvaluationRecipe
    action: Literal["skip", "run", "resume", "anew"]
    fingerprint: Mapping[str, str]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deciding:
    """Everything that decisions are made from; relative paths count from ``base``."""

    pipeline: LoadedPipeline
    selection: Selection
    identity: RecipeIdentity
    base: Path
    defaults: Mapping[str, str] = field(default_factory=dict[str, str])

    def all_steps(self, record: PipelineRecord | None) -> Sequence[Step]:
        """The steps of a start, in order. Raises ``MlxftError`` for what cannot work, before anything is begun."""
        names = [stage.name for stage in self.pipeline.stages]
        chosen = self.selection.chosen(names)
        results: dict[str, str] = {}
        steps: list[Step] = []
        problems: list[Problem] = []
        for stage in self.pipeline.stages:
            is_chosen = stage.name in chosen
            try:
                step = self.step(stage, record, results) if is_chosen else Step(stage, "leave")
                if is_chosen:
                    refuse_foreign(stage, self.pipeline)
                if is_chosen and step.fingerprint is None:
                    check_rows(stage, self.pipeline, self.base)
            except RecipeError:
                raise
            except MlxftError as error:
                problems.append(Problem(f"stage {stage.name}", error.message, error.hint))
                continue
            steps.append(step)
            kept = record.stage(stage.name) if record is not None else None
            is_left = step.action == "leave" and stage.result.is_dir()
            if kept is not None and kept.status == "finished" and is_left:
                results[stage.name] = kept.result_sha256
            if step.action == "skip":
                results[stage.name] = step.result
        problems += self._missing_rows(chosen)
        if problems:
            raise RecipeError(problems)
        self._refuse_gaps(steps, results)
        return steps

    def step(self, stage: Stage, record: PipelineRecord | None, results: Mapping[str, str]) -> Step:
        """What is done with ``stage`` now that ``results`` are there (stage -> SHA-256)."""
        kept = record.stage(stage.name) if record is not None else None
        waits = [name for name in stage.needs if name not in results]
        is_foreign = is_used(stage) and (kept is None or not kept.fingerprint)
        if waits and is_foreign:
            return Step(stage, "replace", (_not_made(stage),))
        if waits:
            return Step(stage, "later" if is_used(stage) and holds_work(stage) else "run", (f"takes {waits[0]}",))
        found = self.fingerprint(stage, results)
        if not is_used(stage):
            return Step(stage, "run", (), found)
        if kept is None or not kept.fingerprint:
            return Step(stage, "replace", (_not_made(stage),), found)
        changed = differences(kept.fingerprint, found, self.defaults)
        if changed and not holds_work(stage):
            return Step(stage, "run", tuple(changed), found)
        if changed:
            return Step(stage, "replace", tuple(changed), found)
        if kept.status != "finished":
            return Step(stage, "resume", (kept.status,), found)
        if self.selection.is_forced and self.selection.names_stages and stage.name not in self._redone(record):
            return Step(stage, "replace", ("asked for by --force",), found)
        result = hash_result(stage)
        if not result:
            return Step(stage, "replace", ("its result is gone",), found)
        return Step(stage, "skip", (), found, result)

    def evaluation_step(
        self, stage: Stage, one: EvaluationRecipe, record: PipelineRecord | None, result: str
    ) -> EvaluationStep:
        """What is done with one evaluation of a stage whose ``result`` is there."""
        found = evaluation_fingerprint(one, data_of(one, self.pipeline), result, self.base)
        kept = record.evaluation(stage.name, one.name) if record is not None else None
        if kept is None:
            return EvaluationStep(stage, one, "run", found)
        changed = differences(kept.fingerprint, found, {})
        if changed:
            return EvaluationStep(stage, one, "anew", found, tuple(changed))
        is_there = (stage.folder / EVALUATIONS / f"{one.name}.json").is_file()
        return EvaluationStep(stage, one, "skip" if kept.status == "finished" and is_there else "resume", found)

    def _redone(self, record: PipelineRecord | None) -> Sequence[str]:
        """What this start, interrupted before, has made already."""
        return record.redone_by(self.selection.options, self.pipeline.overrides) if record is not None else ()

    def fingerprint(self, stage: Stage, results: Mapping[str, str]) -> Mapping[str, str]:
        """That of a stage of either kind. Raises ``MlxftError``."""
        if stage.loaded is None:
            return command_fingerprint(stage, self.pipeline, results, self.base)
        self._refuse_unmade(stage, stage.loaded.recipe.data)
        return training_fingerprint(stage, self.pipeline, results, self.identity, self.base)

    def _refuse_unmade(self, stage: Stage, data: DataRecipe) -> None:
        """Raise ``UnmadeError`` for rows that a command before ``stage`` has not made."""
        commands = [one for one in self.pipeline.stages if one.loaded is None and one.name in stage.needs]
        for _, text in data_paths(data):
            maker = next((one for one in commands if one.folder in Path(text).parents), None)
            if maker is not None and not (self.base / Path(text).expanduser()).exists():
                raise UnmadeError(
                    f"{maker.name} has made no rows for it: there is no {text}",
                    f"what it found is in {maker.folder / LOG}; give it easier problems or a better model in "
                    f"{self.pipeline.path}, then: {self.pipeline.command('--force')}",
                )

    def _missing_rows(self, chosen: Sequence[str]) -> Iterator[Problem]:
        """Files that evaluations name and that are not there; what a stage will make is not looked for."""
        for one in self.pipeline.pipeline.evaluations:
            if one.data is None or not set(one.stages) & set(chosen):
                continue
            path = Path(filled(one.data, self.pipeline.folders)).expanduser()
            is_made_here = self.pipeline.folder in path.parents
            if not is_made_here and not (self.base / path).exists():
                yield Problem(f"evaluation {one.name}", f"there is no file {path}", "check `data` in [[evaluations]]")

    def _refuse_gaps(self, steps: Sequence[Step], results: Mapping[str, str]) -> None:
        """A stage that was left out must have a result where another one takes it."""
        missing: dict[str, Sequence[str]] = {}  # stage left out -> what has to run for it, in order
        for step in steps:
            needs = [name for name in step.stage.needs if name in missing]
            if step.action != "leave" and needs:
                first = [self.pipeline.command("--only", name) for name in missing[needs[0]]]
                raise RunError(
                    f"{step.stage.name} takes the result of {needs[0]}, which is not there",
                    f"run that first: {' && '.join(first)}",
                )
            if step.action == "leave" and step.stage.name not in results:
                before = dict.fromkeys(one for name in needs for one in missing[name])
                missing[step.stage.name] = [*before, step.stage.name]


def deciding(pipeline: LoadedPipeline, selection: Selection, identity: RecipeIdentity, base: Path) -> Deciding:
    """Decisions about ``pipeline``."""
    return Deciding(pipeline, selection, identity, base, default_values(identity))


def data_of(one: EvaluationRecipe, pipeline: LoadedPipeline) -> str | None:
    """Where the rows of an evaluation are."""
    return filled(one.data, pipeline.folders) if one.data is not None else None


class UnmadeError(RunError):
    """A stage before made nothing of what this one takes; the same start would find the same."""


class ReplacingError(RunError):
    """Something would be lost; the hint says how to allow it."""


def refuse_replacing(steps: Sequence[Step], deciding: Deciding, record: PipelineRecord | None) -> None:
    """One error for everything that would be lost and may not be. Raises ``ReplacingError``."""
    pipeline, selection = deciding.pipeline, deciding.selection
    lost = [step for step in steps if step.action == "replace"]
    if not lost or selection.is_forced:
        return
    words = "; ".join(f"{step.stage.name} ({', '.join(step.reasons[:3])}{_more(step.reasons)})" for step in lost)
    later = [step.stage.name for step in steps if step.action == "later"]
    after = f", and what follows from it may be too ({', '.join(later)})" if later else ""
    to = "make them again from there on" if selection.first is not None else "replace it"
    undone = "undo the change"
    if record is not None and _is_given(lost, record.overrides, pipeline.overrides):
        undone = f"start it as before: {replace(pipeline, overrides=record.overrides).command(*selection.options)}"
    raise ReplacingError(
        f"what {pipeline.folder} holds would be replaced: {words}{after}",
        f"to {to}: {pipeline.command(*selection.allowing(lost[0].stage.name))}; to keep it: {_elsewhere(pipeline)}; "
        f"or {undone}",
    )


def _is_given(lost: Sequence[Step], then: Sequence[str], now: Sequence[str]) -> bool:
    """True where overrides, given then or now and not both times, are all that has changed."""
    keys = {one.partition("=")[0].strip() for one in set(then) ^ set(now)}
    return all(f"{step.stage.name}.{reason.partition(': ')[0]}" in keys for step in lost for reason in step.reasons)


def refuse_foreign(stage: Stage, pipeline: LoadedPipeline) -> None:
    """Refuse a folder that holds no run but other files: the files of a training would come in between.

    What a start left that came to nothing is none. Raises ``RunError``.
    """
    check_folder(stage.folder)
    if stage.loaded is None or is_used(stage) or not stage.folder.is_dir():
        return
    names = sorted(one.name for one in stage.folder.iterdir() if not one.name.startswith("."))
    is_ours = EVENTS in names
    foreign = [name for name in names if not (is_run_file(name) if is_ours else name in (CORRECTIONS, LOG))]
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise RunError(
            f"{stage.folder} holds no run, but {shown}, which this pipeline did not make",
            f"move that away, or choose another folder: {_elsewhere(pipeline)}",
        )


def _not_made(stage: Stage) -> str:
    return f"{stage.folder} holds what this pipeline did not make"


def _more(reasons: Sequence[str]) -> str:
    return f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""


def _elsewhere(pipeline: LoadedPipeline) -> str:
    """The command with another folder for everything."""
    others = tuple(one for one in pipeline.overrides if one.partition("=")[0].strip() != "output_dir")
    return replace(pipeline, overrides=(*others, f"output_dir={free_folder(pipeline.folder)}")).command()


def is_used(stage: Stage) -> bool:
    """True where the folder of a stage has something in it that a start would meet; what a command said is nothing."""
    if stage.loaded is None:
        names = [one.name for one in stage.folder.iterdir()] if stage.folder.is_dir() else []
        return any(name != LOG and not name.startswith(".") for name in names)
    return (stage.folder / RUN_INFO).is_file()


def holds_work(stage: Stage) -> bool:
    """True where something in the folder of a used stage would be missed: not of a training that has saved nothing."""
    run = RunDir(stage.folder)
    return stage.loaded is None or run_status(stage) == "finished" or bool(run.checkpoints()) or is_running(run)


def run_status(stage: Stage) -> str:
    """What run.json of a training says of it; "" where it says nothing."""
    return str(run_info(RunDir(stage.folder)).get("status", ""))

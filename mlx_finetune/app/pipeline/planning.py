"""What a pipeline will cost, before anything is started: what is done with each stage, its time, memory and disk.

A stage whose model does not exist yet is planned with the model that its chain begins with: of the same shape, it
takes as long and as much. Rows that an earlier stage will make are not known; that is said then.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_finetune.app.pipeline.aside import held_bytes
from mlx_finetune.app.pipeline.decide import Action, Deciding, Selection, Step
from mlx_finetune.app.planning.plan import Plan, find_local
from mlx_finetune.errors import MlxftError
from mlx_finetune.hardware.planning.disk import free_bytes
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.pipeline.load import LoadedPipeline, Stage
from mlx_finetune.recipe.pipeline.record import PipelineRecord, StageRecord
from mlx_finetune.rundir import RunDir, run_info
from mlx_finetune.units import counted, format_bytes, format_seconds

Make = Callable[[LoadedRecipe], Plan]

_WORDS: dict[Action, str] = {
    "leave": "left out",
    "skip": "done, skipped",
    "run": "runs",
    "resume": "goes on",
    "later": "skipped, or needs --force",
    "replace": "needs --force",
}
#: The same where what is there may be replaced.
_ALLOWED: dict[Action, str] = {"later": "skipped, or replaced", "replace": "replaced"}


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage with its plan, None where there is none; ``note`` says why, or what it is planned with;
    ``is_allowed`` that what it holds may be replaced. ``evaluations`` are those that its result still needs, with what
    has changed since they were done, if that is why. ``steps_done`` are those that a training which goes on has saved,
    ``held_bytes`` are on the disk already.
    """

    step: Step
    plan: Plan | None
    kept: StageRecord | None
    note: str
    is_allowed: bool = False
    evaluations: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    steps_done: int = 0
    held_bytes: int = 0

    @property
    def is_replaced(self) -> bool:
        """True where what it holds is kept until it is made anew, and perhaps is."""
        return self.step.action in ("replace", "later")

    @property
    def more_bytes(self) -> float:
        """What it will take on the disk beyond what it has; what is replaced is taken to come out as large as it is
        where no plan tells."""
        new = self.plan.forecast.disk_bytes.expected if self.plan is not None else self.held_bytes * self.is_replaced
        return max(0.0, new - self.held_bytes) if self.step.action == "resume" else new

    @property
    def words(self) -> str:
        """What is done with it."""
        allowed = _ALLOWED.get(self.step.action) if self.is_allowed else None
        return allowed or _WORDS[self.step.action]

    @property
    def finish(self) -> Range | None:
        """Seconds that it will take by its plan, of the steps that are left; None where it has none."""
        if self.plan is None or self.plan.forecast.finish_seconds is None:
            return None
        total = self.plan.resolved.total_steps
        return self.plan.forecast.finish_seconds * (max(0, total - self.steps_done) / max(1, total))

    @property
    def seconds(self) -> float | None:
        """What it will take by its plan, else what it took before; None where neither is known."""
        finish = self.finish
        return finish.expected if finish is not None else (self.kept.seconds or None) if self.kept else None


def plan_stages(deciding: Deciding, record: PipelineRecord | None, make: Make) -> Sequence[PlannedStage]:
    """The stages in order. Raises ``MlxftError`` for a pipeline that could not be started."""
    steps = deciding.all_steps(record)
    outdated = _outdated(deciding, record)
    done = {step.stage.name for step in steps if step.action == "skip"}
    kept = {step.stage.name: record.stage(step.stage.name) if record is not None else None for step in steps}
    found: list[PlannedStage] = []
    for step in steps:
        plan, note = None, ""
        if step.action in ("run", "resume", "later", "replace"):
            plan, note = _plan(step.stage, deciding, done, make)
        if step.action == "replace":
            note = "; ".join(step.reasons[:2])
        if step.action == "leave" and step.stage.name in outdated:
            note = f"outdated: {outdated[step.stage.name]}"
        known = kept[step.stage.name]
        if step.stage.loaded is None and (known is None or not known.seconds):
            note = "; ".join(part for part in (note, "a command: its time is known when it has run once") if part)
        evaluations = {} if step.action == "leave" else _evaluations(step, deciding, record)
        is_forced = deciding.selection.is_forced
        held = held_bytes(step.stage)
        found.append(PlannedStage(step, plan, known, note, is_forced, evaluations, _steps_done(step), held))
    return found


def _steps_done(step: Step) -> int:
    """Those that are saved of a training that goes on; 0 of anything else."""
    if step.action != "resume" or step.stage.loaded is None:
        return 0
    done = run_info(RunDir(Path(step.stage.folder))).get("step")
    return done if isinstance(done, int) else 0


def _outdated(deciding: Deciding, record: PipelineRecord | None) -> Mapping[str, str]:
    """Stage -> why a start of all of them would have to replace it; nothing where all are asked for."""
    if not deciding.selection.names_stages:
        return {}
    try:
        steps = replace(deciding, selection=Selection()).all_steps(record)
    except MlxftError:  # said when these are asked for
        return {}
    return {step.stage.name: "; ".join(step.reasons[:2]) for step in steps if step.action == "replace"}


def _evaluations(step: Step, deciding: Deciding, record: PipelineRecord | None) -> Mapping[str, Sequence[str]]:
    """Evaluation -> what has changed since it was done; of a stage whose result comes out another, all are needed."""
    asked = [one for one in deciding.pipeline.pipeline.evaluations if step.stage.name in one.stages]
    if step.action != "skip":
        return {one.name: () for one in asked}
    steps = [deciding.evaluation_step(step.stage, one, record, step.result) for one in asked]
    return {one.asked.name: one.reasons for one in steps if one.action != "skip"}


def _plan(stage: Stage, deciding: Deciding, done: set[str], make: Make) -> tuple[Plan | None, str]:
    if stage.loaded is None:
        return None, ""
    waits = [name for name in stage.needs if name != stage.asked.start_from and name not in done]
    if waits:
        return None, f"known when {' and '.join(waits)} has run: its rows are made there"
    loaded, note = stage.loaded, ""
    if stage.asked.start_from is not None and stage.asked.start_from not in done:
        root = _root(stage, deciding.pipeline)
        try:
            local = find_local(root.recipe, deciding.base)
        except MlxftError as error:
            return None, error.message
        model = str(local.folder) if local is not None else root.recipe.model
        kept = [one for one in loaded.overrides if one.partition("=")[0] not in ("model", "revision", "adapter")]
        named = [f"{key}=" for key in ("revision", "adapter") if getattr(loaded.recipe, key)]
        loaded = load_recipe(loaded.path, (f"model={model}", *named, *kept))
        note = f"planned with the model that {_first(stage, deciding.pipeline).name} begins with"
    try:
        return make(loaded), note
    except MlxftError as error:
        return None, error.message


def _first(stage: Stage, pipeline: LoadedPipeline) -> Stage:
    """The stage that the chain of ``stage`` begins with."""
    while stage.asked.start_from is not None:
        stage = pipeline.stage(stage.asked.start_from)
    return stage


def _root(stage: Stage, pipeline: LoadedPipeline) -> LoadedRecipe:
    loaded = _first(stage, pipeline).loaded
    assert loaded is not None
    return loaded


def plan_lines(planned: Sequence[PlannedStage], pipeline: LoadedPipeline) -> Iterator[str]:
    """The plan as a table, what each stage takes, and the sum."""
    yield f"plan of {pipeline.path} into {pipeline.folder}"
    yield ""
    rows = [("STAGE", "", "TAKES", "STEPS", "TIME", "MEMORY", "DISK"), *(_row(one) for one in planned)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        if number and planned[number - 1].note:
            yield f"  {planned[number - 1].note}"
    yield ""
    yield from _sum_lines(planned, pipeline)


def _row(one: PlannedStage) -> tuple[str, ...]:
    stage, plan = one.step.stage, one.plan
    steps, time, memory, disk = "", _kept_time(one), "", ""
    if plan is not None:
        total = plan.resolved.total_steps
        steps = f"{total - one.steps_done:,} of {total:,}" if one.steps_done else f"{total:,}"
        memory = format_bytes(plan.forecast.peak_bytes.expected)
        disk = format_bytes(plan.forecast.disk_bytes.expected)
        finish = one.finish
        time = _span(finish) if finish is not None else time or "not known yet"
    return (stage.name, one.words, ", ".join(stage.needs), steps, time, memory, disk)


def _kept_time(one: PlannedStage) -> str:
    """What it took before; a stage that is skipped takes nothing more."""
    if one.kept is None or not one.kept.seconds:
        return ""
    return f"took {format_seconds(one.kept.seconds)}"


def _span(finish: Range) -> str:
    return f"{format_seconds(finish.expected)} ({format_seconds(finish.low)} to {format_seconds(finish.high)})"


def _sum_lines(planned: Sequence[PlannedStage], pipeline: LoadedPipeline) -> Iterator[str]:
    todo = [one for one in planned if one.step.action not in ("leave", "skip")]
    known = [one.seconds for one in todo if one.seconds is not None]
    unknown = [one.step.stage.name for one in todo if one.seconds is None]
    if not todo and not any(one.evaluations for one in planned):
        yield "everything is done"
    elif known:
        more = f", and what {', '.join(unknown)} will take" if unknown else ""
        yield f"about {format_seconds(sum(known))} in all{more}, without evaluations"
    elif unknown:
        yield f"the time is known once something has run here; measure one: mlxft plan {_measurable(todo)}"
    yield from _disk_lines(todo, free_bytes(pipeline.folder))
    yield from _evaluation_lines(planned, pipeline)
    for one in todo:
        if one.plan is not None and not one.plan.fits:
            need = format_bytes(one.plan.forecast.peak_bytes.expected)
            yield f"{one.step.stage.name} does not fit: it needs {need}; see mlxft plan with its recipe"


def most_more_bytes(todo: Sequence[PlannedStage]) -> float:
    """The most that the stages take at once beyond what there is: each is made before what it replaces goes."""
    now = most = 0.0
    for one in todo:
        now += one.more_bytes
        most = max(most, now)
        now -= one.held_bytes * one.is_replaced
    return most


def _disk_lines(todo: Sequence[PlannedStage], free: int) -> Iterator[str]:
    most = most_more_bytes(todo)
    if not most:
        return
    replaced = [one for one in todo if one.is_replaced and one.held_bytes]
    waits = format_bytes(sum(one.held_bytes for one in replaced))
    what = f"more while what is replaced ({waits}) is kept until it is made anew" if replaced else "in all"
    yield f"{format_bytes(most)} of disk {what}, {format_bytes(free)} are free"
    if most > free:
        runs = [str(one.step.stage.folder) for one in replaced if one.step.stage.loaded is not None]
        remove = (
            f", or do without what would be replaced: {shlex.join(['mlxft', 'runs', 'rm', runs[0]])}" if runs else ""
        )
        yield f"that is more than is free: make room first{remove}"


def _evaluation_lines(planned: Sequence[PlannedStage], pipeline: LoadedPipeline) -> Iterator[str]:
    """Which evaluations are done, of which stages; and why, where there are figures already."""
    stages = {
        one.name: [item.step.stage.name for item in planned if one.name in item.evaluations]
        for one in pipeline.pipeline.evaluations
    }
    if count := sum(map(len, stages.values())):
        named = (f"{name} of {', '.join(of)}" for name, of in stages.items() if of)
        yield f"{counted(count, 'evaluation')}: {'; '.join(named)}"
    for item in planned:
        for name, reasons in item.evaluations.items():
            if reasons:
                why = "; ".join(reasons[:2])
                yield f"{name} of {item.step.stage.name} is evaluated anew, and the figures before are kept: {why}"


def _measurable(todo: Sequence[PlannedStage]) -> str:
    loaded = next((one.step.stage.loaded for one in todo if one.plan is not None), None)
    return loaded.command("plan").removeprefix("mlxft plan ") if loaded is not None else "RECIPE"


def plan_json(planned: Sequence[PlannedStage], pipeline: LoadedPipeline) -> dict[str, object]:
    """The plan as plain values; times in seconds, sizes in bytes, None for what is not known."""
    return {
        "file": str(pipeline.path),
        "folder": str(pipeline.folder),
        "most_more_bytes": most_more_bytes([one for one in planned if one.step.action not in ("leave", "skip")]),
        "stages": [_json(one) for one in planned],
        "evaluations": [one.name for one in pipeline.pipeline.evaluations],
    }


def _json(one: PlannedStage) -> dict[str, object]:
    stage, plan = one.step.stage, one.plan
    finish = one.finish
    return {
        "name": stage.name,
        "action": one.step.action,
        "reasons": list(one.step.reasons),
        "evaluations": list(one.evaluations),
        "needs": list(stage.needs),
        "folder": str(Path(stage.folder)),
        "steps": plan.resolved.total_steps if plan is not None else None,
        "steps_done": one.steps_done,
        "seconds": finish.expected if finish is not None else None,
        "peak_bytes": plan.forecast.peak_bytes.expected if plan is not None else None,
        "disk_bytes": plan.forecast.disk_bytes.expected if plan is not None else None,
        "held_bytes": one.held_bytes,
        "fits": plan.fits if plan is not None else None,
        "note": one.note,
    }

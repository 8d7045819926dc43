"""Two runs side by side: what their recipes say differently, and what their evaluations measured on the same rows.

Figures are ranked only where they are of the same thing: the same rows with the same settings. Losses and perplexities
under two tokenizers count different tokens; they give way to bits per byte. Reads files only; needs no model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from mlx_finetune import durable, rundir
from mlx_finetune.app.eval.figures import Result, change, corrected, figure
from mlx_finetune.app.eval.journal import Measured, measured_of, read_lines
from mlx_finetune.app.eval.measures import (
    LOSS,
    Measure,
    RowKind,
    measures_of,
    without_texts_of_tokens,
    without_tokens,
)
from mlx_finetune.app.eval.places import JOURNAL_END, JSON_END
from mlx_finetune.app.eval.verdict import MODEL, TUNED
from mlx_finetune.dataset.kinds import formats_for, wanted_rows
from mlx_finetune.dataset.problems import show
from mlx_finetune.errors import RunError
from mlx_finetune.journal import NOT_NOTED, of_other_weights
from mlx_finetune.recipe.resolve import diff_recipes
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

#: Keys of an identity that must be equal -> how a person calls them.
_MUST_MATCH = {
    "version": "version of mlxft's measuring",
    "data_sha256": "data",
    "rows_sha256": "rows",
    "labels": "labels",
    "schema_sha256": "schema",
    "answer_tokens": "longest answer",
    "references": "reference columns",
}
_OTHER_TARGETS = "one learned the answers alone, the other all of a row, and their losses are of that"
SEED = 0
_SHOWN_LABELS = 6


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished evaluation in a run folder. ``rows`` are its lines, of the run itself and not of its base.

    ``other_weights`` says of which step they are, where the run has others by now.
    ``windows`` are (window, stride) of each perplexity, by its name; None each where every text was read by itself.
    """

    name: str
    identity: Mapping[str, object]
    rows: tuple[Measured, ...]
    windows: Mapping[str, tuple[object, object]]
    other_weights: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One evaluation of both runs: results with a figure for each, or the reason why they are not ranked.

    ``apart`` are the figures of each run over its own rows then, without a change.
    """

    name: str
    results: tuple[Result, ...]
    refusal: str = ""
    notes: tuple[str, ...] = ()
    apart: tuple[Result, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs by the names of their columns. ``recipe`` has (key, first, second) where they differ, ``steps`` how many
    each was trained for, where they differ."""

    first: str
    second: str
    recipe: tuple[tuple[str, object, object], ...]
    evaluations: tuple[Compared, ...]
    steps: tuple[object, object] | None = None


def compare_runs(first: RunDir, second: RunDir) -> Comparison:
    """Everything that can be compared. Raises ``RunError`` where a run has no settings or a damaged result."""
    names = _names(first, second)
    kept = [{one: _kept(run, one) for one in kept_names(run)} for run in (first, second)]
    shared = [name for name in kept[0] if name in kept[1]]
    return Comparison(
        *names,
        tuple(diff_recipes(_recipe(first), _recipe(second))),
        tuple(_compared(kept[0][name], kept[1][name], *names) for name in shared),
        _steps(first, second),
    )


def nothing_for_both(first: RunDir, second: RunDir) -> str:
    """Why no file of rows can measure both runs; "" where their tasks and labels do not tell against it."""
    names = _names(first, second)
    tasks = [_recipe(run).task for run in (first, second)]
    if not {*formats_for(tasks[0])} & {*formats_for(tasks[1])}:
        return f"{names[0]} learned from {wanted_rows(tasks[0])}, {names[1]} from {wanted_rows(tasks[1])}"
    if tasks == ["classify", "classify"]:
        labels = [_labels(run) for run in (first, second)]
        if all(labels) and labels[0] != labels[1]:
            shown = [
                ", ".join([*map(show, one[:_SHOWN_LABELS]), *["..."][: len(one) > _SHOWN_LABELS]]) for one in labels
            ]
            return f"{names[0]} has the labels {shown[0]}; {names[1]} has {shown[1]}"
    return ""


def _labels(run: RunDir) -> Sequence[str]:
    """The labels that a run tells; none where its head is not there."""
    from mlx_finetune.model.heads.files import read_head  # mlx, which no other comparison needs

    heads = (read_head(folder) for folder in (run.path, run.file(rundir.MODEL_FOLDER)) if folder.is_dir())
    return next((sorted(head[0].labels) for head in heads if head is not None), ())


def kept_names(run: RunDir) -> Sequence[str]:
    """The names of the finished evaluations of a run, sorted."""
    folder = run.file(rundir.EVALUATIONS)
    found = sorted(path.name.removesuffix(JOURNAL_END) for path in folder.glob(f"*{JOURNAL_END}"))
    return [name for name in found if (folder / f"{name}{JSON_END}").is_file()]


def kept_verdicts(run: RunDir) -> dict[str, str]:
    """The sentence of each finished evaluation by its name, of checkpoints and long texts too; a file that holds none
    is left out. Of other weights than the run has now, it says so.
    """
    found: dict[str, str] = {}
    paths = {name: run.file(rundir.EVALUATIONS) / f"{name}{JSON_END}" for name in kept_names(run)}
    for folder in (rundir.CHECKPOINT_EVALUATIONS, rundir.SINK_EXPERIMENTS):
        paths |= {f"{path.parent.name}/{path.stem}": path for path in sorted(run.file(folder).glob(f"*{JSON_END}"))}
    for name, path in paths.items():
        fields = durable.read_object_if_any(path)
        try:
            sentence = str(cast("Any", fields.get("verdict", fields))["sentence"])
        except (KeyError, TypeError):
            continue
        mark = _other_weights(run, fields)
        found[name] = f"{sentence} ({mark})" if mark else sentence
    return found


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """Plain values."""
    return {
        "first": comparison.first,
        "second": comparison.second,
        "recipe": [{"key": key, "first": one, "second": other} for key, one, other in comparison.recipe],
        "steps": list(comparison.steps) if comparison.steps else None,
        "evaluations": [
            {
                "name": one.name,
                "refusal": one.refusal,
                "notes": list(one.notes),
                "measures": [_result_json(result) for result in one.results],
                "apart": [_result_json(result) for result in one.apart],
            }
            for one in comparison.evaluations
        ],
    }


def _result_json(result: Result) -> dict[str, object]:
    return {
        "name": result.measure.name,
        "sides": {side: asdict(found) for side, found in result.figures.items()},
        "change": asdict(result.change) if result.change else None,
        "is_better": result.is_better,
        "is_worse": result.is_worse,
    }


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """The comparison for a person."""
    from mlx_finetune.app.eval.table import table, wrapped
    from mlx_finetune.recipe.values import shown

    first, second = comparison.first, comparison.second
    yield f"{first} and {second}"
    yield ""
    yield "recipe" if comparison.recipe else "their recipes are the same"
    for key, one, other in comparison.recipe:
        texts = ["-" if value is None else shown(value) for value in (one, other)]
        yield f"  {key:<34}{texts[0]} -> {texts[1]}"
    if comparison.steps:
        yield f"  {'steps trained':<34}{comparison.steps[0]} -> {comparison.steps[1]}"
    if not comparison.evaluations:
        yield ""
        yield from wrapped(
            "They have no evaluation of the same name, so nothing is ranked: a validation loss during training is of "
            "each run's own rows. mlxft eval makes one."
        )
    for one in comparison.evaluations:
        yield ""
        if one.refusal:
            yield from wrapped(f"evaluation {one.name}: not ranked, {one.refusal}; each for itself:")
            yield ""
            yield from table(one.apart, first, second)
            continue
        yield from wrapped(f"evaluation {one.name}: {verdict(one, second)}")
        yield ""
        yield from table(one.results, first, second)
        for note in one.notes:
            yield from wrapped(note)


def verdict(compared: Compared, second: str) -> str:
    """One sentence about the second run beside the first."""
    better = [one.measure.title for one in compared.results if one.is_better]
    worse = [one.measure.title for one in compared.results if one.is_worse]
    if not better and not worse:
        return "no proof of any difference."
    parts = [f"{word} in {', '.join(found)}" for word, found in (("better", better), ("worse", worse)) if found]
    rest = "" if len(better) + len(worse) == _num_tested(compared) else "; no proof of a difference in the rest"
    return f"{second} is {' and '.join(parts)}{rest}."


def _num_tested(compared: Compared) -> int:
    return sum(one.measure.is_tested and one.change is not None for one in compared.results)


def _names(first: RunDir, second: RunDir) -> tuple[str, str]:
    """The shortest ends of the folders' paths that tell them apart, else A and B."""
    parts = [run.path.parts for run in (first, second)]
    for count in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*one[-count:])) for one in parts]
        if names[0] != names[1]:
            return names[0], names[1]
    return "A", "B"


def _steps(first: RunDir, second: RunDir) -> tuple[object, object] | None:
    """How long each was trained, which ``--extend`` changes without the recipe; None where that is the same."""
    steps = tuple(rundir.run_info(run).get("step") for run in (first, second))
    return None if None in steps or steps[0] == steps[1] else (steps[0], steps[1])


def _recipe(run: RunDir) -> Recipe:
    try:
        return Recipe.model_validate(rundir.run_info(run)["resolved"])
    except (KeyError, ValidationError) as error:
        raise RunError(
            f"the settings of {run.path} cannot be read: {type(error).__name__}",
            "a run is compared from its first step on, and by the version of mlxft that made it",
        ) from None


def _kept(run: RunDir, name: str) -> Kept:
    path: Path = run.file(rundir.EVALUATIONS) / f"{name}{JOURNAL_END}"
    lines = read_lines(path)
    identity = next(lines, {}).get("identity")
    if not isinstance(identity, dict):
        raise RunError(f"{path} does not begin with what was evaluated", "evaluate again under another --name")
    rows = [one for one in map(measured_of, lines) if one.side in (TUNED, MODEL) and not one.error]
    fields = durable.read_object_if_any(run.file(rundir.EVALUATIONS) / f"{name}{JSON_END}")
    other = _other_weights(run, fields)
    return Kept(name, cast("dict[str, object]", identity), tuple(rows), _windows(fields), other)


def _other_weights(run: RunDir, fields: Mapping[str, Any]) -> str:
    """Of which weights a finished evaluation is, where the run has others by now; "" where it has not.

    One of checkpoints has no subject: it names the step of each.
    """
    if "subject" not in fields:
        return ""
    step, measured, subject = fields.get("step", NOT_NOTED), fields.get("measured"), fields["subject"]
    return of_other_weights(run, step, measured=str(measured), subject=str(subject))


def _windows(fields: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """How each text was read; empty where the result does not say."""
    try:
        return {measure: (one["window"], one["stride"]) for measure, one in fields["texts"].items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def _compared(one: Kept, other: Kept, first: str, second: str) -> Compared:
    older = [
        f"that of {name} is {kept.other_weights}"
        for name, kept in ((first, one), (second, other))
        if kept.other_weights
    ]
    if older:
        refusal = f"because {', and '.join(older)} (mlxft eval measures these)"
        return Compared(one.name, (), refusal, apart=_apart(one, other, first, second))
    same_tokens = all(one.identity.get(key) == other.identity.get(key) for key in ("tokenizer_sha256", "data"))
    differing = [
        words
        for key, words in _MUST_MATCH.items()
        if one.identity.get(key) != other.identity.get(key) and (same_tokens or key != "answer_tokens")
    ]
    if differing:
        refusal = f"because they are of different {', '.join(differing)}"
        return Compared(one.name, (), refusal, apart=_apart(one, other, first, second))
    shared = _shared_measures(one, other)
    measures = [measure for measure in shared if measure.work != LOSS or _learns_all(one) == _learns_all(other)]
    if not measures:
        refusal = f"because {_OTHER_TARGETS if shared else 'they have no measure in common'}"
        return Compared(one.name, (), refusal, apart=_apart(one, other, first, second))
    notes = [f"Losses are not ranked: {_OTHER_TARGETS}."] if len(measures) < len(shared) else []
    if not same_tokens:
        measures = without_tokens(measures)
        notes.append(
            "Their tokenizers, templates or masks differ: losses and perplexities count different tokens, so bits per "
            "byte stand in their place."
        )
    elif any(other.windows.get(name, one.windows[name]) != one.windows[name] for name in one.windows):
        measures = without_texts_of_tokens(measures)
        notes.append(
            "Their contexts differ, and with them the windows in which a text is read: perplexities of different "
            "windows are not ranked. Bits per byte are those of each model in its own window."
        )
    results = [_result(measure, one, other, first, second) for measure in measures]
    return Compared(one.name, tuple(corrected([found for found in results if found is not None])), "", tuple(notes))


def _learns_all(kept: Kept) -> bool:
    """Whether losses of rows that are questions with answers are of the questions too."""
    data = cast("Mapping[str, object]", kept.identity.get("data", {}))
    is_whole = kept.identity.get("task") == "pretrain" or not data.get("mask_prompt", True)
    return is_whole and kept.identity.get("kind") != "text"


def _shared_measures(one: Kept, other: Kept) -> Sequence[Measure]:
    names = {measure.name for measure in _measures(other)}
    return [measure for measure in _measures(one) if measure.name in names]


def _measures(kept: Kept) -> Sequence[Measure]:
    has_schema = bool(kept.identity.get("schema_sha256"))
    tasks, kind = cast("list[str]", kept.identity.get("tasks", [])), kept.identity.get("kind", "answers")
    return measures_of(tasks, has_schema=has_schema, kind=cast("RowKind", kind))


def _apart(one: Kept, other: Kept, first: str, second: str) -> tuple[Result, ...]:
    """Every measure of either run, each run over all rows of its own."""
    measures = {measure.name: measure for measure in (*_measures(one), *_measures(other))}
    found: list[Result] = []
    for measure in measures.values():
        made = {
            name: figure(measure, _values(measure, kept), seed=SEED) for name, kept in ((first, one), (second, other))
        }
        figures = {name: value for name, value in made.items() if value is not None}
        if figures:
            found.append(Result(measure, figures))
    return tuple(found)


def _values(measure: Measure, kept: Kept) -> dict[int, tuple[float, ...]]:
    """Those of one run, by row."""
    return {
        row.row: row.values[measure.name]
        for row in kept.rows
        if row.work == measure.work and measure.name in row.values
    }


def _result(measure: Measure, one: Kept, other: Kept, first: str, second: str) -> Result | None:
    columns = [_values(measure, kept) for kept in (one, other)]
    shared = columns[0].keys() & columns[1].keys()
    sides = [{row: values[row] for row in sorted(shared)} for values in columns]
    figures = [figure(measure, rows, seed=SEED) for rows in sides]
    if figures[0] is None or figures[1] is None:
        return None
    changed = change(measure, sides[0], sides[1], seed=SEED)
    return Result(measure, {first: figures[0], second: figures[1]}, changed)

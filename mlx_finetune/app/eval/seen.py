"""Rows that a run knows already: they taught it, or an earlier run that it began from.

On those its figures say what it remembers. They are counted and said, not left out: the user named them. What an
earlier run is known by are the names in run.json and the files that they stand for today: one that is gone is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mlx_finetune import rundir
from mlx_finetune.app.eval.rows import Chosen, Known, Seen
from mlx_finetune.app.eval.subject import Subject, data_sha256_of, folder_of, has_no_data, run_facts
from mlx_finetune.dataset.corpus import Splits, load_splits
from mlx_finetune.dataset.corrections import as_at_start, find_corrections
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.split import content_key
from mlx_finetune.errors import DataError, Problem, RunError
from mlx_finetune.model.sources.fetch import path_of
from mlx_finetune.recipe.load import recorded_recipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

_FOLDER = "folder:"  # what the source of a model in run.json begins with where it is no model of a hub


@dataclass(frozen=True, slots=True)
class Teacher:
    """A run with the rows that taught the subject: the subject itself, whose ``name`` is "", or an earlier run.

    ``is_other``: its data has changed since its training.
    """

    name: str
    splits: Splits
    is_other: bool


@dataclass(frozen=True, slots=True)
class _Training:
    """A run as run.json has it; ``words`` stand for it in a sentence, paths of its recipe count from ``folder``."""

    name: str
    words: str
    recipe: Recipe
    folder: Path
    facts: Mapping[str, object]
    data_sha256: str


def teachers(subject: Subject, *, with_own: bool = True) -> tuple[list[Teacher], list[str]]:
    """The runs whose rows taught ``subject``, itself first unless not ``with_own``, as far as they can be read.

    Of each other one a sentence says why it cannot be told whether it was trained on the rows at hand. A model or an
    adapter by itself has no rows that are known.
    """
    own = _own(subject)
    name = own.words
    found, unknown = list[Teacher](), list[str]()
    left, met = [own], {subject.run.path.resolve()} if subject.run is not None else set[Path]()
    while left:
        run = left.pop(0)
        try:
            found += [_teacher(run)] if with_own or run is not own else []
        except DataError as error:
            unknown.append(f"whether {run.words} was trained on these rows cannot be told: {error.message}")
        for folder in _began_from(run):
            words = f"{folder.label}, which {name} began from,"
            try:
                earlier = None if folder.path in met else _training_at(folder, words, run.folder)
            except RunError as error:
                unknown.append(f"whether {words} was trained on these rows cannot be told: {error.message}")
                earlier = None
            met.add(folder.path)
            left += [earlier] if earlier else []
    return found, unknown


def has_other_data(subject: Subject) -> bool:
    """Whether a run's data has changed since its training. Raises ``DataError``."""
    return _teacher(_own(subject)).is_other


def _own(subject: Subject) -> _Training:
    assert subject.recipe is not None, "has_no_data"
    name = subject.run.label if subject.run is not None else subject.opened.name
    facts = run_facts(subject.opened.located)
    return _Training("", name, subject.recipe, subject.folder, facts, subject.trained_data_sha256)


def _teacher(run: _Training) -> Teacher:
    """Its rows, with the answers put right in chats that were among them. Raises ``DataError``."""
    noted = cast("Mapping[str, int]", run.facts.get("corrections", {}))
    corrections = as_at_start(find_corrections(run.recipe, base=run.folder), noted) if noted else ()
    splits = load_splits(run.recipe.data, base=run.folder, task=run.recipe.task, corrections=corrections)
    return Teacher(run.name, splits, run.data_sha256 not in ("", splits.content_hash))


def _began_from(run: _Training) -> list[RunDir]:
    """The folders of the runs, or of models and adapters by themselves, that it took its weights from."""
    found: list[Path] = []
    if run.recipe.adapter:
        written = path_of(run.recipe.adapter)
        places = [run.folder / written, run.folder / "adapters" / written]
        found.append(next((path for path in places if path.exists()), places[len(written.parts) == 1]))
    source = str(run.facts.get("model_source", ""))
    if source.startswith(_FOLDER):
        recorded, written = Path(source.removeprefix(_FOLDER)), run.folder / path_of(run.recipe.model)
        found.append(recorded if recorded.exists() or not written.exists() else written)
    return [_around(path.resolve()) for path in found]


def _around(path: Path) -> RunDir:
    """The run that a result or a checkpoint lies in; what is in no run stands by itself."""
    is_part = path.name == rundir.MODEL_FOLDER or RunDir(path.parent).is_run()
    return RunDir(path.parent if is_part and not RunDir(path).is_run() else path)


def _training_at(run: RunDir, words: str, base: Path) -> _Training | None:
    """What run.json says; None for what is no run. Raises ``RunError`` for what is not there or cannot be read."""
    if not run.is_run():
        if run.path.exists():
            return None
        path = run.path.relative_to(base) if run.path.is_relative_to(base) else run.path
        raise RunError(f"{path} is not there any more")
    facts = rundir.run_info(run)
    recipe = recorded_recipe(facts, run.label)
    return _Training(run.label, words, recipe, folder_of(facts, base), facts, data_sha256_of(facts))


def with_seen(subject: Subject, chosen: Chosen, given: str | None) -> Chosen:
    """``chosen`` with how many of its rows taught the run or one that it began from; a notice where nobody can tell.

    Of its own held-out rows (``given`` is None) it is asked who began it alone, and only what that was trained on.
    """
    if has_no_data(subject):
        return chosen
    found, unknown = teachers(subject, with_own=given is not None)
    where = "--data" if given is not None else "[data]"
    chosen = replace(chosen, notices=(*chosen.notices, *(Problem(where, message) for message in unknown)))
    if not found:
        return chosen
    keys = [row.whole_key for row in chosen.rows]
    train = [_keys(one.splits.train) for one in found]
    valid = [_keys(one.splits.valid) if given is not None else set[str]() for one in found]
    known = [
        Known(one.name, *_counts(keys, *sides), one.is_other) for one, *sides in zip(found, train, valid, strict=True)
    ]
    return replace(chosen, seen=Seen(*_counts(keys, set[str]().union(*train), set[str]().union(*valid)), tuple(known)))


def _keys(rows: Sequence[Example]) -> set[str]:
    return {f"{content_key(row):016x}" for row in rows}


def _counts(keys: Sequence[str], train: set[str], valid: set[str]) -> tuple[int, int]:
    """How many stand in ``train``, and how many others in ``valid``."""
    return sum(key in train for key in keys), sum(key in valid and key not in train for key in keys)

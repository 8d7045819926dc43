"""What is evaluated: a run with its base, or a model alone, and the hashes by which its figures are kept apart."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.nn as nn

from mlx_finetune import rundir
from mlx_finetune.app.eval.rows import NO_DATA
from mlx_finetune.app.eval.verdict import BASE, MODEL, TUNED
from mlx_finetune.app.open import (
    Located,
    Opened,
    Report,
    base_model,
    fetch_base,
    locate,
    open_name,
    read_recipe,
    start_model,
)
from mlx_finetune.errors import ModelError, RunError
from mlx_finetune.model.adapters.base import recorded_sha256
from mlx_finetune.model.adapters.folder import hash_adapter
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.preference import PREFERENCE_TASKS
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Side:
    """One of the columns of a result: whose answers, with how many examples in each prompt."""

    name: str
    is_base: bool
    shots: int = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """A run or a model. ``folder`` is where paths of its recipe count from; ``run`` is None for a model alone."""

    opened: Opened
    run: RunDir | None
    recipe: Recipe | None
    folder: Path
    trained_data_sha256: str

    @property
    def task(self) -> str:
        """sft or pretrain: which tokens a loss is of."""
        return self.recipe.task if self.recipe else "sft"

    @property
    def seed(self) -> int:
        """Draws the examples and the resamples."""
        return self.recipe.seed if self.recipe else 0

    @property
    def data(self) -> DataRecipe:
        """[data] of the run, or the defaults."""
        return self.opened.data

    def sides(self, shots: int) -> tuple[Side, ...]:
        """The columns: base and tuned, the base with examples too where there are any; a model alone likewise."""
        if not self.opened.has_base:
            alone = Side(MODEL, is_base=False)
            return (alone, Side(shots_name(MODEL, shots), is_base=False, shots=shots)) if shots else (alone,)
        base, tuned = Side(BASE, is_base=True), Side(TUNED, is_base=False)
        return (base, Side(shots_name(BASE, shots), is_base=True, shots=shots), tuned) if shots else (base, tuned)

    @contextmanager
    def model(self, side: Side) -> Generator[nn.Module]:
        """The model of one side while the block runs; the adapter is off for the base, or that of the start."""
        if not side.is_base:
            yield self.opened.model
            return
        adapter = self.started_from
        around = base_model(self.opened) if adapter is None else start_model(self.opened, adapter)
        with around as model:
            model.eval()
            yield model

    @property
    def started_from(self) -> Path | None:
        """The adapter that a preference run began with: what it is compared with is its own start, not the base."""
        if self.recipe is None or self.recipe.task not in PREFERENCE_TASKS or not self.recipe.adapter:
            return None
        return locate(self.recipe.adapter, base=self.folder).adapter

    @property
    def step(self) -> int | None:
        """The step of the weights that a run's name stands for; None where it does not say, and of everything else.

        A checkpoint that was named stays what it is, whatever becomes of its run.
        """
        located = self.opened.located
        folder = located.adapter or Path(located.model or "")
        if located.run is None or folder.name == Path(located.name).name != located.run.path.name:
            return None
        is_checkpoint = folder in located.run.checkpoint_folders()
        return rundir.checkpoint_step(folder) if is_checkpoint else rundir.weights_step(located.run)

    def hashes(self) -> dict[str, object]:
        """SHA-256 of model, adapter and tokenizer; ``adapter`` is empty without one."""
        return {
            "model_sha256": self.opened.info.sha256,
            "adapter_sha256": self.opened.adapter_sha256 or "",
            "tokenizer_sha256": self.opened.tokenizer.settings_hash,
        }

    def base_hash(self, sides: Sequence[Side]) -> dict[str, object]:
        """SHA-256 of what the base among ``sides`` is, where ``hashes`` has nothing of it: the adapter that a
        preference run began with, the model that a fully trained one was. As the run recorded it where that is gone:
        what was measured before can be looked at still.
        """
        if not any(side.is_base for side in sides):
            return {}
        facts = run_facts(self.opened.located)
        try:
            if (adapter := self.started_from) is not None:
                return {"base_sha256": hash_adapter(adapter)}
            found = fetch_base(self.opened.located, lambda _: None).sha256 if self.opened.load_base else ""
        except RunError:
            identity = facts.get("identity")
            found = cast("dict[str, object]", identity).get("adapter_sha256") if isinstance(identity, dict) else None
        except ModelError:
            found = recorded_sha256(facts)
        return {"base_sha256": found} if found else {}


def shots_name(side: str, shots: int) -> str:
    """``base 4-shot``."""
    return f"{side} {shots}-shot"


def open_subject(name: str, *, base: Path, report: Report) -> Subject:
    """Load what ``name`` stands for. Raises ``RunError`` or ``ModelError``."""
    return subject_of(open_name(name, base=base, report=report), base=base)


def subject_of(opened: Opened, *, base: Path) -> Subject:
    """What is open already, with what its run records."""
    located = opened.located
    recipe = read_recipe(located, lambda _: None)
    if recipe is not None:
        recipe = recipe.model_copy(update={"data": opened.data})
    facts = run_facts(located)
    folder = folder_of(facts, base) if located.run else base
    return Subject(opened, located.run, recipe, folder, data_sha256_of(facts))


def has_no_data(subject: Subject) -> bool:
    """True where rows must be named: there is no run, or none whose recipe can be read."""
    return subject.recipe is None or subject.data.path == NO_DATA


def run_facts(located: Located) -> Mapping[str, object]:
    """run.json of the run, else what the checkpoint says."""
    return (rundir.run_info(located.run) if located.run else {}) or located.facts


def folder_of(facts: Mapping[str, object], base: Path) -> Path:
    """Where paths of a run's recipe count from, as run.json says; ``base`` where that is gone."""
    started_in = facts.get("started_in")
    return Path(started_in) if isinstance(started_in, str) and Path(started_in).is_dir() else base


def data_sha256_of(facts: Mapping[str, object]) -> str:
    """The hash of the rows that a run was trained on, as run.json says; "" where it does not."""
    identity = facts.get("identity")
    trained = cast("Mapping[str, object]", identity).get("data_sha256") if isinstance(identity, dict) else None
    return trained if isinstance(trained, str) else ""

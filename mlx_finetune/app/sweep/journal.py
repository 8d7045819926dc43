"""``sweep.json``: what a sweep is of, and the trials that are done. It is written whole after each of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from mlx_finetune import durable
from mlx_finetune.app.sweep.design import Base, Done, Trial, edges_of
from mlx_finetune.errors import RunError
from mlx_finetune.model.adapters.folder import adapter_folder, hash_adapter
from mlx_finetune.model.sources.fetch import fetch_model, path_of
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.rundir import check_folder

FILE_NAME = "sweep.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep in ``folder``. ``identity`` says what it is of; ``test`` is what the winner showed on test rows."""

    folder: Path
    base: Base
    identity: Mapping[str, str]
    done: tuple[Done, ...] = ()
    test: Mapping[str, object] | None = None

    def trial_folder(self, trial: Trial) -> Path:
        """The run folder of one trial."""
        return self.folder / f"trial-{trial.number}"

    def to_json(self) -> dict[str, object]:
        """Plain values, for the file and for ``--json``."""
        return {
            "format_version": FORMAT_VERSION,
            "base": asdict(self.base),
            "identity": dict(self.identity),
            "trials": [asdict(one) | {"folder": str(self.trial_folder(one.trial))} for one in self.done],
            "at_edge": edges_of(self.done),
            "test": self.test,
        }


def identify(loaded: LoadedRecipe, data_sha256: str) -> dict[str, str]:
    """What must be the same for a sweep to go on: the recipe with its overrides, its data, and what its weights begin
    as where that lies in a folder of the user's. Raises ``ModelError`` or ``RunError`` where that is not there.
    """
    recipe = loaded.recipe
    text = json.dumps([recipe.model_dump(mode="json")], sort_keys=True)
    found = {"recipe": hashlib.sha256(text.encode()).hexdigest(), "data": data_sha256}
    if recipe.scratch is None and path_of(recipe.model).exists():
        found["model"] = fetch_model(recipe.model, report=lambda _: None).sha256
    if recipe.adapter:
        found["adapter"] = hash_adapter(adapter_folder(recipe.adapter, Path.cwd()))
    return found


def write_sweep(sweep: Sweep) -> None:
    """Keep what is done. Raises ``OSError``."""
    durable.make_folder(sweep.folder)
    durable.write_json(sweep.folder / FILE_NAME, sweep.to_json())


def begin_sweep(folder: Path, base: Base, identity: Mapping[str, str]) -> Sweep:
    """The sweep in ``folder`` with the trials that are done, or a new one.

    Raises ``RunError`` where another one or a file lies there; nothing of it is touched.
    """
    check_folder(folder)
    fields = _read(folder / FILE_NAME)
    if fields is None:
        return Sweep(folder, base, identity)
    try:
        kept = cast("Mapping[str, str]", fields["identity"])
        old = Base(**cast("Any", fields["base"]))
        trials = cast("Sequence[Mapping[str, Any]]", fields["trials"])
        done = tuple(Done(Trial(**one["trial"]), one["loss"], one["seconds"], one["failure"]) for one in trials)
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / FILE_NAME} is of another version: {error}", _elsewhere(folder)) from None
    changed = [name for name in identity if kept.get(name, identity[name]) != identity[name]]
    if not changed and old != base:
        changed = ["number of steps" if old.total_steps != base.total_steps else "learning rate or rank"]
    if changed:
        raise RunError(f"{folder} holds a sweep with another {' and another '.join(changed)}", _elsewhere(folder))
    return Sweep(folder, base, identity, done, cast("Mapping[str, object] | None", fields.get("test")))


def _elsewhere(folder: Path) -> str:
    return f"move {folder} away, or give the recipe another output_dir"


def _read(path: Path) -> Mapping[str, object] | None:
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}", _elsewhere(path.parent)) from None
    return cast("Mapping[str, object]", fields) if isinstance(fields, dict) else {}

"""Which base model an adapter was trained on, and whether that is the one at hand.

Our runs and checkpoints record the base's SHA-256; folders of other tools name it only. Names and shapes of an adapter
fit every model of the same architecture, so without this an adapter for another base would load and answer nonsense.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mlx_finetune import durable, rundir
from mlx_finetune.errors import ModelError, RunError
from mlx_finetune.events import Notice
from mlx_finetune.model.sources.catalogue import find_entry
from mlx_finetune.model.sources.fetch import LocalModel, Report, fetch_model
from mlx_finetune.model.sources.misnamed import base_of_adapter


@dataclass(frozen=True, slots=True)
class RecordedBase:
    """The base an adapter names. ``sha256`` is that of ``LocalModel``, None where another tool made the adapter."""

    name: str
    sha256: str | None


def check_base(folder: Path, local: LocalModel) -> Notice | None:
    """A warning where the adapter in ``folder`` names another base than ``local`` and has no hash that would tell.

    Raises ``ModelError`` with both names where the recorded hash is another.
    """
    base = recorded_base(folder)
    if base is None or base.sha256 == local.sha256:
        return None
    if base.sha256 is not None:
        raise ModelError(
            f"the adapter in {folder} was trained on {base.name} (sha256 {base.sha256[:12]}), not on {local.name} "
            f"(sha256 {local.sha256[:12]})",
            f'write model = "{base_of_adapter(folder) or base.name}"; to start from it all the same, copy only '
            f"{rundir.ADAPTER_CONFIG} and the "
            "weights to a folder of their own",
        )
    if _short_name(base.name) == _short_name(local.name):
        return None
    return Notice(
        "warning",
        f"the adapter in {folder} says that it was trained on {base.name}; this run starts from {local.name}",
        "on another base an adapter is worse than none: make sure that both are the same model",
    )


def recorded_base(folder: Path) -> RecordedBase | None:
    """What trainer_state.json, run.json or the adapter's configuration in ``folder`` say, in that order.

    Raises ``ModelError`` for a file that is damaged.
    """
    for name in (rundir.TRAINER_STATE, rundir.RUN_INFO):
        facts = read_object(folder / name)
        sha256 = recorded_sha256(facts)
        if sha256 is not None:
            return RecordedBase(str(facts.get("model", "another model")), sha256)
    config = read_object(folder / rundir.ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path", config.get("model"))  # mlx-lm says model
    return RecordedBase(base, None) if isinstance(base, str) and base else None


def recorded_sha256(facts: Mapping[str, object]) -> str | None:
    """The base's SHA-256 in the fields of run.json or trainer_state.json; None in other files."""
    identity = facts.get("identity")
    inner = cast("dict[str, object]", identity) if isinstance(identity, dict) else {}
    value = facts.get("model_sha256", inner.get("model_sha256"))
    return value if isinstance(value, str) and value else None


def fetch_recorded(facts: Mapping[str, object], name: str, whose: str, report: Report) -> LocalModel:
    """The base ``name`` of the fields of run.json: from the folder recorded there, else by its name and revision.

    Raises ``ModelError`` where it is not at hand; whether it is the same still is to be compared.
    """
    folder, revision = facts.get("model_folder"), facts.get("revision")
    try:
        if isinstance(folder, str) and (Path(folder) / "config.json").is_file():
            return replace(fetch_model(folder, report=report), name=name)
        return fetch_model(name, revision=revision if isinstance(revision, str) else None, report=report)
    except ModelError as error:
        raise ModelError(f"the base model of {whose} is not at hand: {error.message}", error.hint) from None


def _short_name(name: str) -> str:
    """The last part of a hub id or path, in lower case; a short name of ours stands for its hub id."""
    entry = find_entry(name)
    return Path(entry.hub_id if entry else name).name.lower()


def read_object(path: Path) -> Mapping[str, object]:
    """The object in a JSON file; empty where there is no file."""
    try:
        return durable.read_object(path) if path.is_file() else {}
    except RunError as error:
        raise ModelError(error.message, "name another adapter") from error

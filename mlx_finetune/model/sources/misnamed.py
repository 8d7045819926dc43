"""What a user meant who wrote for `model` what is none: a run that made an adapter, a run's bare name, a lost run.

Every refusal says which keys of the recipe to write instead.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from mlx_finetune import durable, rundir
from mlx_finetune.errors import ModelError
from mlx_finetune.rundir import RunDir


def refuse_no_model(folder: Path, shown: str) -> None:
    """Raises ``ModelError`` where ``folder`` holds an adapter, or a run that has no model yet.

    ``shown`` is how the user calls it.
    """
    if any(folder.glob("model*.safetensors")):
        return
    if (folder / rundir.ADAPTER_CONFIG).is_file():
        raise ModelError(f"{shown} holds an adapter and not a whole model", _keys_of_adapter(folder, shown))
    if RunDir(folder).is_run():
        raise ModelError(
            f"the run {shown} has no model yet: it did not come to its end",
            f"see how far it is: mlxft runs show {RunDir(Path(shown)).name}",
        )


def refuse_lost_run(path: Path) -> None:
    """Raises ``ModelError`` where ``path`` is not there and its folder holds runs: the hub has nothing of that name."""
    runs = [] if path.exists() or path.parent == Path() else rundir.list_runs(path.parent)
    if runs:
        raise ModelError(f"there is no run {path}", f"runs there: {', '.join(str(run.path) for run in runs)}")


def hint_for_run(name: str) -> str | None:
    """What to write for the bare name of a run under adapters/; None where there is none."""
    path = Path("adapters") / name
    if not RunDir(path).is_run():
        return None
    if (path / rundir.ADAPTER_CONFIG).is_file():
        return _keys_of_adapter(path, str(path))
    return f'a run is named by its folder: model = "{path}"'


def base_of_adapter(folder: Path) -> str | None:
    """What the recipe of the adapter's run has for `model`, else what its configuration calls its base; None where
    neither says it."""
    for place in (folder, folder.parent):  # a run, or a checkpoint in one
        model = _toml(place / rundir.RESOLVED).get("model")
        if isinstance(model, str) and model:
            return model
    config = durable.read_object_if_any(folder / rundir.ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path", config.get("model"))  # mlx-lm says model
    return base if isinstance(base, str) and base else None


def _keys_of_adapter(folder: Path, shown: str) -> str:
    base = base_of_adapter(folder)
    model = f'"{base}"' if base else "its base model"
    return f'write model = {model} and adapter = "{shown}", with the [lora] section it was trained with'


def _toml(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}

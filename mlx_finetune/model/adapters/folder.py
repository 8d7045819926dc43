"""Where an adapter that a user names lies, and the hash of its weights; mlx is not needed for either."""

from pathlib import Path

from mlx_finetune import durable, rundir
from mlx_finetune.errors import RunError
from mlx_finetune.model.sources.fetch import path_of


def adapter_folder(name: str, base: Path) -> Path:
    """Where the adapter of a run, a checkpoint, or any adapter folder lies. Raises ``RunError`` where there is none."""
    for folder in (base / path_of(name), path_of(name)):
        if (folder / rundir.ADAPTER_CONFIG).is_file():
            return folder
    run = rundir.find_run(name, base=base)
    for folder in (run.path, *reversed(run.checkpoints())):
        if (folder / rundir.ADAPTER_CONFIG).is_file():
            return folder
    if (run.path / rundir.MODEL_FOLDER).is_dir():
        raise RunError(
            f"{name} has no adapter: its run trained every weight",
            f'write model = "{run.path}" and remove `adapter`',
        )
    raise RunError(f"{run.path} has no adapter yet", "wait for its first checkpoint")


def hash_adapter(folder: Path) -> str:
    """SHA-256 of each file of weights in ``folder``, with a space between; "" where there is none."""
    names = (rundir.PEFT_WEIGHTS, rundir.MLX_WEIGHTS)
    return " ".join(durable.hash_file(folder / name) for name in names if (folder / name).is_file())

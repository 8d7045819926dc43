"""An attached adapter as a folder, for tests that load it again."""

from pathlib import Path

import mlx.nn as nn

from mlx_finetune.model.adapters.files import adapter_files
from mlx_finetune.model.adapters.lora import AdapterSpec
from mlx_finetune.model.load import ModelInfo


def save_adapter(folder: Path, model: nn.Module, spec: AdapterSpec, info: ModelInfo) -> None:
    """Write the files that a checkpoint would hold of the adapter into ``folder``, which must exist."""
    for name, content in adapter_files(model, spec, info).items():
        (folder / name).write_bytes(content)

"""One run whose updates are read."""

import pytest
from traced_runs import train_series

from mlx_finetune.rundir import RunDir


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> RunDir:
    """One LoRA run on llama that no test changes."""
    return train_series(tmp_path_factory.mktemp("updates"), tiny_model("llama"))

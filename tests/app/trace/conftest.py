"""One run that the tests of a trace share, and a way to make others."""

from collections.abc import Callable

import pytest
from traced_runs import train_series

from mlx_finetune.rundir import RunDir


@pytest.fixture(scope="module")
def make_run(tiny_model, tmp_path_factory) -> Callable[..., RunDir]:
    """``make_run(model_type, *overrides)`` trains a new run."""

    def make(kind: str = "llama", *overrides: str, is_full: bool = False) -> RunDir:
        return train_series(tmp_path_factory.mktemp("trace"), tiny_model(kind), *overrides, is_full=is_full)

    return make


@pytest.fixture(scope="module")
def run(make_run) -> RunDir:
    """One LoRA run on llama, of which no test changes a file outside of trace/."""
    return make_run()

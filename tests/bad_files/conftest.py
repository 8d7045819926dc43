"""A good model and a good adapter that a test may spoil."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from answering_runs import write_adapter
from bad_adapters import CONFIG as ADAPTER_CONFIG
from bad_models import change_json


@pytest.fixture
def folder(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A good model that a test may spoil."""
    return shutil.copytree(tiny_model("llama"), tmp_path / "m")


@pytest.fixture
def adapter(tiny_model: Callable[..., Path], good_adapter: Path, tmp_path: Path) -> Path:
    """A good adapter that a test may spoil; it finds its base by its path."""
    copy = shutil.copytree(good_adapter, tmp_path / "a")
    change_json(copy / ADAPTER_CONFIG, base_model_name_or_path=str(tiny_model("llama")))
    return copy


@pytest.fixture(scope="module")
def good_adapter(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("good") / "a"
    write_adapter(made, tiny_model("llama"))
    return made

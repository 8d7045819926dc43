"""Fixtures of the fault tests: the compiled shim, and a folder in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import trials


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trials.build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def memory_folder() -> Iterator[Path]:
    with trials.memory_folder() as folder:
        yield folder

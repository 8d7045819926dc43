"""One finished run that all chats and answers of these tests are from."""

from collections.abc import Callable
from pathlib import Path

import pytest
from answering_runs import write_run

from mlx_finetune.app.open import Opened, open_name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "adapters" / "keeper", tiny_model("llama"))
    return folder


@pytest.fixture(scope="module")
def opened(place: Path) -> Opened:
    return open_name("keeper", base=place, report=lambda _: None)

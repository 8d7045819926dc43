from pathlib import Path

import pytest

from mlx_finetune.recipe.schema import Recipe


@pytest.mark.parametrize(
    ("written", "folder"),
    [("adapters/a", "adapters/a"), ("/runs/a", "/runs/a"), ("~/runs/a", "/home/me/runs/a"), ("~x/a", "~x/a")],
)
def test_a_run_folder_may_lie_in_the_home_folder(written: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    recipe = Recipe.model_validate({"model": "m", "output_dir": written, "data": {"path": "d"}})
    assert recipe.run_folder == Path(folder)

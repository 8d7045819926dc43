"""A recipe that is started from another folder than its data says so, instead of asking a hub for the path."""

from pathlib import Path

import pytest

from mlx_finetune.errors import RecipeError
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.paths import check_paths


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "my project" / "recipes").mkdir(parents=True)
    (tmp_path / "my project" / "data" / "rows").mkdir(parents=True)
    return tmp_path / "my project"


def load(project: Path, data: str) -> LoadedRecipe:
    path = project / "recipes" / "demo.toml"
    path.write_text(f'model = "m"\noutput_dir = "adapters/x"\n[data]\n{data}\n')
    return load_recipe(path)


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ('path = "data/rows"', "data.path"),
        ('train = "data/rows"\nvalid = "data/none"', "data.train"),
        ('[[data.sources]]\npath = "data/rows"', "data.sources.path"),
    ],
)
def test_data_beside_the_recipe_is_named_with_the_folder_to_start_in(
    project: Path, tmp_path: Path, data: str, key: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_paths(load(project, data), tmp_path)
    assert f"{key} = 'data/rows' is not in {tmp_path}" in caught.value.message
    assert caught.value.hint == f"cd '{project}'"


@pytest.mark.parametrize("data", ['path = "data/rows"', 'path = "owner/name"', 'path = "/nowhere/rows.jsonl"'])
def test_data_that_is_here_and_names_that_are_nowhere_pass(project: Path, data: str) -> None:
    check_paths(load(project, data), project)


def test_a_hub_id_passes_from_anywhere(project: Path, tmp_path: Path) -> None:
    check_paths(load(project, 'path = "owner/name"'), tmp_path)

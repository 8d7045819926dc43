"""A recipe that is started from another folder than its data says so, instead of asking a hub for the path."""

import shutil
from pathlib import Path

import pytest

from mlx_finetune.errors import RecipeError
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.paths import check_paths

ROOT = Path(__file__).parents[2]


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


def test_data_that_is_not_there_yet_is_told_by_the_comment_of_the_recipe(project: Path) -> None:
    comment = "# Data:      put rows into data/mine,\n#            one a line\n# Run:  mlxft train demo.toml\n"
    for text, is_told in (("data/mine", True), ("data/mine.jsonl", True), ("owner/name", False)):
        loaded = load(project, f'path = "{text}"')
        loaded.path.write_text(comment + loaded.path.read_text())
        if not is_told:
            check_paths(loaded, project)
            continue
        with pytest.raises(RecipeError) as caught:
            check_paths(loaded, project)
        assert caught.value.message.endswith(f"data.path = '{text}' is not there yet")
        assert caught.value.hint == "put rows into data/mine, one a line"
    check_paths(load_recipe(loaded.path, ["data.path=data/other.jsonl"]), project)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("classify-sst2", "hub"), ("llama-3.1-8b-alpaca", "hub"), ("scratch-shakespeare", "--set data.path=book.txt")],
)
def test_recipes_whose_data_does_not_come_with_them_say_how_to_get_it(tmp_path: Path, name: str, way_out: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_paths(load_recipe(Path(shutil.copy(ROOT / "recipes" / f"{name}.toml", tmp_path))), tmp_path)
    assert caught.value.hint.startswith("put ")
    assert way_out in caught.value.hint

from pathlib import Path

import pytest

from mlx_finetune.errors import Problem, RecipeError
from mlx_finetune.recipe.describe import property_schema
from mlx_finetune.recipe.later import later_keys
from mlx_finetune.recipe.load import load_recipe

GOOD = 'model = "m"\noutput_dir = "o"\n[data]\npath = "d"\n[lora]\n'


def only_problem(path: Path, override: str) -> Problem:
    path.write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize("key", later_keys())
def test_a_key_of_a_later_feature_is_refused_with_a_sentence(tmp_path: Path, key: str):
    problem = only_problem(tmp_path / "r.toml", f"{key}=1")
    assert problem.message.startswith(f"`{key}` (")
    assert problem.message.endswith(") is not available yet")
    with pytest.raises(KeyError):
        property_schema(key.split("."))


def test_what_the_design_promises_for_later_is_known():
    assert {"export", "hostfile"} <= {*later_keys()}

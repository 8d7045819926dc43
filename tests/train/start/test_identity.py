import dataclasses

from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.start.identity import Identity, current_versions, differences, recipe_identity, version_changes

FIELDS = {"model": "m", "output_dir": "runs/a", "lora": {"rank": 4}, "data": {"path": "d"}}


def identity(**changes):
    recipe = Recipe.model_validate(FIELDS | changes)
    return Identity(recipe_identity(recipe), "data", "model", "tokenizer", "", "order", {"mlx": "1"})


def test_the_same_run_has_no_differences():
    assert differences(identity().to_json(), identity()) == []


def test_each_difference_is_a_sentence_with_both_values():
    assert differences(identity().to_json(), identity(lora={"rank": 8})) == ["lora.rank: was 4, is now 8"]
    assert differences(identity().to_json(), identity(lora=None))[0].startswith("lora")


def test_files_that_changed_are_named():
    changed = dataclasses.replace(identity(), data_sha256="other", model_sha256="other")
    assert differences(identity().to_json(), changed) == ["the data files have changed", "the model's files are others"]


def test_keys_that_change_no_weight_are_not_part_of_it():
    free = identity(output_dir="runs/b", chat={"top_k": 3}, eval={"prompts": ["a"]}, training={"save_steps": 9})
    assert differences(identity().to_json(), free) == []


def test_versions_and_the_number_of_blas_threads_are_recorded_and_compared():
    versions = current_versions()
    assert {"mlx", "numpy", "mlxft", "python", "system", "BLAS threads"} <= versions.keys()
    newer = dataclasses.replace(identity(), versions={"mlx": "2"})
    assert version_changes(identity().to_json(), newer) == ["mlx: 1 -> 2"]
    assert version_changes({}, newer) == ["versions were not recorded"]

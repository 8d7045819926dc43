import json
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_finetune.recipe.describe import keys_of
from mlx_finetune.recipe.resolve import canonical_json, diff_recipes, flatten_recipe, render_resolved
from mlx_finetune.recipe.schema import Recipe, section_names

BASE: dict[str, Any] = {"model": "m", "output_dir": "o", "data": {"path": "d"}}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
FLOATS = st.floats(min_value=1e-6, max_value=0.45, allow_subnormal=False)


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(BASE | changes)


RECIPES = st.builds(
    recipe,
    model=TEXT,
    output_dir=TEXT,
    seed=st.integers(0, 2**31 - 1),
    lora=st.none()
    | st.fixed_dictionaries(
        {"alpha": FLOATS}, optional={"target_modules": st.just("attention") | st.lists(TEXT, min_size=1, max_size=3)}
    ),
    data=st.fixed_dictionaries(
        {"sources": st.lists(st.fixed_dictionaries({"path": TEXT, "weight": FLOATS}), min_size=1, max_size=3)},
        optional={
            "columns": st.dictionaries(TEXT, TEXT, max_size=3),
            "template_arguments": st.dictionaries(TEXT, st.booleans() | st.integers() | FLOATS | TEXT, max_size=3),
            "val_split": FLOATS,
        },
    ),
    training=st.fixed_dictionaries({}, optional={"epochs": FLOATS, "save_at": st.lists(FLOATS, max_size=3)}),
    eval=st.fixed_dictionaries({"prompts": st.lists(TEXT, max_size=3)}),
)


@settings(max_examples=50, deadline=None)
@given(RECIPES, TEXT)
def test_a_resolved_recipe_reads_back_into_itself(made: Recipe, reason: str):
    keys = flatten_recipe(made)
    text = render_resolved(made, dict.fromkeys(keys, reason))
    assert Recipe.model_validate(tomllib.loads(text)) == made


def test_every_key_is_written_with_its_default():
    for name in section_names():
        sections: dict[str, object] = {"model": "scratch", "scratch": {}} if name == "scratch" else {"lora": {}}
        sections |= {"task": "dpo", "preference": {}} if name == "preference" else {}
        text = render_resolved(recipe(**sections), {})
        assert f"\n[{name}]\n" in text
        for key in keys_of((name,)):
            assert f"\n{key} = " in text or f"\n# {key} is not set" in text


def test_reasons_stand_behind_their_keys():
    text = render_resolved(
        recipe(), {"training.batch_size": "4 needs 21.3 GB,\nlimit 18.0 GB", "quantize": "as stored"}
    )
    assert '\nbatch_size = "auto"  # 4 needs 21.3 GB, limit 18.0 GB\n' in text
    assert "\n# quantize is not set  # as stored\n" in text
    assert "\n# [lora] is left out: every weight is trained\n" in text


def test_canonical_json_is_equal_for_equal_recipes():
    first = recipe(training={"epochs": 1, "max_grad_norm": 1}, seed=3)
    second = Recipe.model_validate({"seed": 3, "training": {"max_grad_norm": 1.0, "epochs": 1.0}} | BASE)
    assert canonical_json(first) == canonical_json(second)
    assert Recipe.model_validate(json.loads(canonical_json(first))) == first
    assert canonical_json(first) != canonical_json(recipe(seed=4))


def test_differences_name_the_key_and_both_values():
    first = recipe(seed=1, training={"epochs": 2})
    second = recipe(seed=2, training={"max_steps": 5})
    assert diff_recipes(first, second) == [
        ("seed", 1, 2),
        ("training.epochs", 2.0, None),
        ("training.max_steps", None, 5),
    ]
    assert diff_recipes(first, first) == []


def test_a_section_that_one_recipe_leaves_out_differs_key_by_key():
    found = diff_recipes(recipe(), recipe(lora={"rank": 4}))
    assert ("lora.rank", None, 4) in found
    assert {key for key, _, _ in found} == {f"lora.{key}" for key in keys_of(("lora",))}
    assert ("lora.rank", 4, None) in diff_recipes(recipe(lora={"rank": 4}), recipe())

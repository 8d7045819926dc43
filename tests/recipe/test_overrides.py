from pathlib import Path

import pytest

from mlx_finetune.errors import RecipeError
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe, name_recipe
from mlx_finetune.recipe.overrides import latest

TEXT = """model = "m"
quantize = 4
output_dir = "o"
[lora]
rank = 4
[data]
path = "d"
[training]
epochs = 1
warmup_steps = 5
"""


def load(tmp_path: Path, *overrides: str) -> LoadedRecipe:
    path = tmp_path / "r.toml"
    path.write_text(TEXT)
    return load_recipe(path, overrides)


def errors(tmp_path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, *overrides)
    return [f"{problem.where}: {problem.message}" for problem in caught.value.problems]


def test_values_are_toml_or_bare_text(tmp_path: Path):
    recipe = load(
        tmp_path,
        "model=foo/bar",
        "revision=1234567",
        "seed = 9",
        "training.save_at=[0.5,1.0]",
        "training.learning_rate=1e-3",
        "lora.target_modules=['q_proj']",
        "data.mask_prompt=false",
        "output_dir=2026-11-21",
        "chat.system=true",
        "training.batch_size=auto",
        "data.columns={instruction = 'question'}",
    ).recipe
    assert (recipe.model, recipe.revision, recipe.seed, recipe.output_dir) == ("foo/bar", "1234567", 9, "2026-11-21")
    assert (recipe.training.save_at, recipe.training.learning_rate) == ((0.5, 1.0), 1e-3)
    assert recipe.lora is not None
    assert recipe.lora.target_modules == ("q_proj",)
    assert (recipe.data.mask_prompt, recipe.chat.system, recipe.training.batch_size) == (False, "true", "auto")
    assert recipe.data.columns == {"instruction": "question"}


def test_an_empty_value_removes_the_key_or_the_section(tmp_path: Path):
    assert load(tmp_path, "quantize=").recipe.quantize is None
    assert load(tmp_path, "quantize=", "lora=").recipe.lora is None
    assert load(tmp_path, "training.max_minutes=").recipe.training.max_minutes is None


def test_a_key_of_an_absent_section_makes_the_section(tmp_path: Path):
    recipe = load(tmp_path, "lora=", "lora.rank=2", "eval.prompts=['a']").recipe
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.eval.prompts) == (2, ("a",))


def test_the_last_of_two_overrides_counts(tmp_path: Path):
    assert load(tmp_path, "seed=1", "seed=2").recipe.seed == 2


def test_an_override_takes_the_place_of_the_key_it_excludes(tmp_path: Path):
    loaded = load(tmp_path, "training.max_steps=5", "training.warmup_ratio=0.1", "data.train=t")
    training = loaded.recipe.training
    assert (training.epochs, training.max_steps, training.warmup_steps) == (None, 5, None)
    assert (loaded.recipe.data.path, loaded.recipe.data.train) == (None, "t")
    assert loaded.notices == (
        "--set training.max_steps=5 takes the place of epochs = 1 in the file",
        "--set training.warmup_ratio=0.1 takes the place of warmup_steps = 5 in the file",
        '--set data.train=t takes the place of path = "d" in the file',
    )


def test_two_overrides_that_exclude_each_other_are_refused(tmp_path: Path):
    assert errors(tmp_path, "training.max_steps=5", "training.epochs=2") == [
        "--set training.max_steps=5: [training] `epochs` = 2.0 and `max_steps` = 5 say the same thing twice"
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.max_steps=x",
            '--set training.max_steps=x: `training.max_steps` = "x" must be a whole number from 1 to 1000000000',
        ),
        ("lora.ranks=3", "--set lora.ranks=3: [lora] has no key `ranks`"),
        ("nonsense", "--set nonsense: is not KEY=VALUE"),
        ("=3", "--set =3: is not KEY=VALUE"),
        ("eval.prompts=[1", '--set eval.prompts=[1: "[1" is not a value'),
        (
            "seed.deep=3",
            "--set seed.deep=3: `seed` = { deep = 3 } must be a whole number of at least 0 and below 2147483648",
        ),
        ("model.deep=3", '--set model.deep=3: `model` is "m", not a section'),
        ("lora=", "r.toml:2: `quantize` = 4 without a [lora] section: quantised weights cannot be trained themselves"),
        ("data.path=", "r.toml:6: [data] no data is named"),
    ],
)
def test_an_override_is_checked_like_the_file(tmp_path: Path, override: str, message: str):
    assert [found.replace(f"{tmp_path}/", "") for found in errors(tmp_path, override)] == [message]


def test_elements_of_a_list_can_be_set(tmp_path: Path):
    overrides = ('data.sources=[{path = "a"}, {path = "b"}]', "data.sources.1.weight=2.0")
    assert [source.weight for source in load(tmp_path, *overrides).recipe.data.sources] == [1.0, 2.0]
    assert errors(tmp_path, *overrides, "data.sources.2.path=x") == [
        "--set data.sources.2.path=x: `data.sources[2]` is not there, not a section"
    ]


def test_a_command_sets_every_key_once_as_the_last_one_asks() -> None:
    given = ["training.max_steps=20", "quantize=", "training.max_steps = 30", "training.max_steps=20"]
    assert latest(given) == ["quantize=", "training.max_steps=20"]
    assert name_recipe("mlxft train RECIPE", Path("r.toml"), given) == (
        "mlxft train r.toml --set quantize= --set training.max_steps=20"
    )

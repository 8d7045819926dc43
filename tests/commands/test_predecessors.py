"""What a recipe takes from an earlier run: named with the command that makes it, where a recipe here does."""

import json
from pathlib import Path

import pytest

from mlx_finetune.commands.checked import check_recipe
from mlx_finetune.errors import RecipeError
from mlx_finetune.recipe.load import load_recipe

BODY = 'model = "{model}"\noutput_dir = "{out}"\n[data]\npath = "rows.jsonl"\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "recipes/chain"):
        Path(folder).mkdir(parents=True)
    Path("mine/this.toml").write_text(BODY.format(model="smollm2-135m", out="adapters/this"))
    Path("mine/first.toml").write_text(
        "# Then: mlxft sample first --data a.jsonl --out adapters/drawn   (answers)\n"
        + BODY.format(model="smollm2-135m", out="adapters/first")
    )
    Path("recipes/chain/judge.toml").write_text(BODY.format(model="smollm2-135m", out="adapters/judge"))
    stage = '[[stages]]\nname = "sft"\nrecipe = "chain/judge"\n'
    Path("recipes/chain.toml").write_text(f'output_dir = "adapters/chain"\n{stage}')
    return tmp_path


def problems(*overrides: str) -> list[tuple[str, str]]:
    loaded = load_recipe(Path("mine/this.toml"), overrides)
    try:
        check_recipe(loaded, Path.cwd())
    except RecipeError as error:
        return [(one.message.partition(" yet")[0], one.hint) for one in error.problems]
    return []


@pytest.mark.parametrize(
    ("change", "what", "command"),
    [
        (["model=adapters/first"], "adapters/first", "mlxft train mine/first.toml"),
        (["adapter=first", "lora.rank=4"], "adapters/first", "mlxft train mine/first.toml"),
        (["model=adapters/chain/sft"], "adapters/chain/sft", "mlxft pipeline recipes/chain.toml"),
        (["data.path=adapters/drawn/verifier"], "adapters/drawn/verifier", None),
        (["task=grpo", 'grpo.rewards=["verifier:judge"]'], "adapters/judge", "mlxft train recipes/chain/judge.toml"),
    ],
)
def test_the_command_that_makes_it_is_named(change: list[str], what: str, command: str | None) -> None:
    command = command or "mlxft sample first --data a.jsonl --out adapters/drawn"
    assert problems(*change) == [(f"there is no {what}", f"make it: {command}")]
    Path(what).mkdir(parents=True)
    assert problems(*change) == []


def test_what_nobody_makes_is_left_to_who_loads_it() -> None:
    assert problems() == []
    assert problems("model=adapters/nobody", "data.path=adapters/none") == []
    assert problems("model=owner/first") == []


@pytest.mark.parametrize("change", [["model=adapters/first"], ["task=grpo", 'grpo.rewards=["verifier:first"]']])
def test_a_run_that_did_not_come_to_its_end_goes_on_first(change: list[str]) -> None:
    run = Path("adapters/first")
    run.mkdir(parents=True)
    facts = {"status": "stopped", "recipe_path": "mine/first.toml", "started_in": str(Path.cwd()), "overrides": []}
    (run / "run.json").write_text(json.dumps(facts))
    for folder in (run / "checkpoint-2",):
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    ((message, hint),) = problems(*change)
    assert message == "the run adapters/first has no model"
    assert hint == "to go on: mlxft train mine/first.toml --resume"

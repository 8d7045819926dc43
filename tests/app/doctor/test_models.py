from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_facts import GB, PACKAGE, TYPED

from mlx_finetune.app.doctor.finding import Finding, Typed
from mlx_finetune.app.doctor.models import HubState, Needs, hub_problems, read_needs, recipe_problems
from mlx_finetune.errors import Problem, RecipeError
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.model.sources.catalogue import CachedModel
from mlx_finetune.model.sources.hub_access import Access
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe

MACHINE = Machine(on_gpu=True, memory_bytes=16 * GB, working_set_bytes=11 * GB, chip="Apple M4")
REACHED = HubState("", has_token=False)
AWAY = HubState("there is no network", has_token=False)
OFFLINE = HubState(None, has_token=False)
QWEN = Needs("mine.toml", "qwen3-0.6b", "Qwen/Qwen3-0.6B", is_here=False, access="open", download_bytes=1_500_000_000)
GEMMA = replace(QWEN, model="gemma-2b", hub_id="google/gemma-2b", download_bytes=5 * GB)


def problems(needs: Needs, state: HubState = REACHED, *, free: int = 80 * GB, typed: Typed = TYPED) -> list[Finding]:
    return list(recipe_problems(needs, state, typed, machine=MACHINE, free_bytes=free))


def written(folder: Path, model: str, more: str = "") -> LoadedRecipe:
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    path = folder / "mine.toml"
    path.write_text(f'model = "{model}"\noutput_dir = "adapters/mine"\n{more}[data]\npath = "rows.jsonl"\n')
    return load_recipe(path)


def never(hub_id: str) -> Access:
    raise AssertionError(f"the hub was asked about {hub_id}")


def needs_from(
    loaded: LoadedRecipe,
    base: Path,
    cached: Sequence[CachedModel],
    *,
    on_gpu: bool,
    ask: Callable[[str], Access] | None,
    check: Callable[[LoadedRecipe, Path], None] = lambda recipe, base: None,
) -> Needs:
    return read_needs(loaded, base, cached, on_gpu=on_gpu, ask=ask, check=check)


def needs_of(folder: Path, model: str, cached: Sequence[str] = (), ask: Callable[[str], Access] = never) -> Needs:
    models = [CachedModel(name, folder, 1, "hub") for name in cached]
    return needs_from(written(folder, model), folder, models, on_gpu=True, ask=ask)


# --- the hub ---


def test_a_hub_that_answers_or_is_not_asked_is_no_finding():
    assert list(hub_problems(REACHED, ["a/b"], TYPED)) == []
    assert list(hub_problems(OFFLINE, [], TYPED)) == []


@pytest.mark.parametrize(
    ("cached", "works"),
    [
        (("qwen3-0.6b",), "training with models on this disk (qwen3-0.6b)"),
        (tuple("abcdef"), "models on this disk (a, b, c, d and others)"),
        ((), "training with smollm2-135m, which the package index has too"),
    ],
)
def test_a_hub_out_of_reach_is_a_note_that_says_what_still_works(cached: tuple[str, ...], works: str):
    (finding,) = hub_problems(AWAY, cached, TYPED)
    assert (finding.level, finding.command) == ("note", "./launchers/mlxft models list")
    assert "the hub cannot be reached: there is no network" in finding.message
    assert works in finding.message


def test_a_token_that_the_hub_refuses_is_a_warning_with_the_tool_of_this_environment():
    state = HubState("", has_token=True, token_is_refused=True)
    assert [finding.command for finding in hub_problems(state, [], TYPED)] == [".venv/bin/hf auth login"]
    assert [finding.command for finding in hub_problems(state, [], PACKAGE)] == ["/opt/env/bin/hf auth login"]


# --- what a recipe needs ---


def test_a_model_on_this_disk_needs_nothing_of_the_hub(tmp_path: Path):
    assert problems(needs_of(tmp_path, "smollm2-135m", ["smollm2-135m"]), AWAY) == []
    assert problems(needs_of(tmp_path, "qwen3-0.6b", ["Qwen/Qwen3-0.6B"]), AWAY) == []
    assert problems(needs_of(tmp_path, "someone/model", ["someone/model"]), AWAY) == []


@pytest.mark.parametrize("access", ["open", "gated", "missing", "unknown"])
def test_the_hub_is_asked_about_a_model_that_is_not_here(tmp_path: Path, access: Access):
    asked: list[str] = []

    def ask(hub_id: str) -> Access:
        asked.append(hub_id)
        return access

    needs = needs_of(tmp_path, "gemma-2b", ["Qwen/Qwen3-0.6B"], ask)
    assert (asked, needs.access, needs.is_here, needs.download_bytes) == (["google/gemma-2b"], access, False, 5 * GB)


def test_a_gated_model_without_a_token_blocks_whatever_the_hub_says():
    for state, access in ((REACHED, "gated"), (REACHED, "open"), (AWAY, None)):
        found = problems(replace(GEMMA, access=access), state)
        assert [finding.level for finding in found] == ["blocker"]
        assert "gemma-2b asks for its licence to be accepted (" in found[0].message
        assert "/google/gemma-2b), and there is no token" in found[0].message
        assert found[0].command == ".venv/bin/hf auth login"
    unlisted = replace(QWEN, model="meta-llama/Llama-3.2-1B", hub_id="meta-llama/Llama-3.2-1B", access="gated")
    assert [finding.command for finding in problems(unlisted)] == [".venv/bin/hf auth login"]


def test_a_licence_that_was_not_accepted_yet_blocks_with_its_page():
    with_token = HubState("", has_token=True)
    (finding,) = problems(replace(GEMMA, access="gated"), with_token)
    assert "your account has not accepted the licence of gemma-2b yet; do that first: " in finding.message
    assert finding.command == "./launchers/mlxft models get gemma-2b"
    assert problems(replace(GEMMA, access="open"), with_token) == []


@pytest.mark.parametrize(
    ("needs", "state", "level", "says"),
    [
        (QWEN, REACHED, None, ""),
        (replace(QWEN, access="missing"), REACHED, "blocker", "there is no model Qwen/Qwen3-0.6B on the hub"),
        (replace(QWEN, access=None), AWAY, "blocker", "cannot be fetched: there is no network"),
        (replace(QWEN, access=None), OFFLINE, "blocker", "cannot be fetched: the hub is not asked"),
        (replace(QWEN, access=None, has_other_source=True), AWAY, "note", "it will come from the package index"),
        (replace(QWEN, is_here=True, access=None), AWAY, None, ""),
    ],
)
def test_a_model_that_cannot_be_fetched_blocks(needs: Needs, state: HubState, level: str | None, says: str):
    found = problems(needs, state)
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(says in finding.message for finding in found)


def test_the_quickstarts_model_has_a_second_source_unless_a_revision_is_asked_for(tmp_path: Path):
    assert needs_of(tmp_path, "smollm2-135m", ask=lambda _: "open").has_other_source
    loaded = written(tmp_path, "smollm2-135m", 'revision = "main"\n')
    assert not needs_from(loaded, tmp_path, [], on_gpu=True, ask=None).has_other_source


def test_a_download_that_does_not_fit_on_the_disk_blocks():
    (finding,) = problems(QWEN, free=GB)
    assert (finding.level, finding.message) == (
        "blocker",
        "qwen3-0.6b is 1.5 GB, and 1.0 GB are free; ./launchers/mlxft models rm NAME makes room",
    )
    assert finding.command == "./launchers/mlxft models list"


@pytest.mark.parametrize(
    ("model", "more", "on_gpu", "num_bytes"),
    [
        ("qwen3-0.6b", "", True, 2 * 596_049_920),
        ("qwen3-0.6b", "", False, 4 * 596_049_920),
        ("qwen3-0.6b", "quantize = 4\n[lora]\n", True, round(4.5 * 596_049_920 / 8)),
        ("llama-3.1-8b", "", True, 4_500_000_000),
        ("llama-3.1-8b", "", False, 4_500_000_000),
        ("someone/else", "", True, 0),
    ],
)
def test_weights_are_counted_as_they_are_held(tmp_path: Path, model: str, more: str, on_gpu: bool, num_bytes: float):
    needs = needs_from(written(tmp_path, model, more), tmp_path, [], on_gpu=on_gpu, ask=None)
    assert needs.weights_bytes == num_bytes


def test_weights_that_exceed_the_memory_block_with_a_smaller_form():
    needs = replace(QWEN, weights_bytes=16 * GB, recipe="/Users/me/mlxft/my recipe.toml")
    (finding,) = problems(needs)
    assert "the weights of qwen3-0.6b alone take 16.0 GB, and 11.0 GB of memory can be used" in finding.message
    assert finding.command == "./launchers/mlxft plan 'my recipe.toml'"


def test_a_local_model_that_is_gone_blocks_and_one_that_is_there_does_not(tmp_path: Path):
    gone = needs_of(tmp_path, f"{tmp_path}/model")
    assert [finding.message for finding in problems(gone)] == [f"there is no file or folder {tmp_path}/model"]
    (tmp_path / "model").mkdir()
    assert problems(needs_of(tmp_path, f"{tmp_path}/model")) == []


def test_data_that_lies_beside_the_recipe_but_not_here_blocks(tmp_path: Path):
    (tmp_path / "there").mkdir()
    loaded = written(tmp_path / "there", "smollm2-135m")
    (finding,) = problems(
        needs_from(loaded, tmp_path, [CachedModel("smollm2-135m", tmp_path, 1, "mlxft")], on_gpu=True, ask=never)
    )
    assert finding.command == f"cd {tmp_path}/there"
    assert "data.path = 'rows.jsonl' is not in" in finding.message


def test_data_that_is_nowhere_blocks_with_the_command_that_looks_closer(tmp_path: Path):
    loaded = written(tmp_path, "smollm2-135m")
    (tmp_path / "rows.jsonl").unlink()
    needs = needs_from(loaded, tmp_path, [CachedModel("smollm2-135m", tmp_path, 1, "mlxft")], on_gpu=True, ask=never)
    (finding,) = problems(replace(needs, recipe="/Users/me/mlxft/mine.toml"))
    assert f"data.path = 'rows.jsonl': there is no such file or folder in {tmp_path}" in finding.message
    assert finding.command == "./launchers/mlxft data check mine.toml"


def test_a_data_set_of_the_hub_is_not_looked_for_on_this_disk(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('model = "smollm2-135m"\noutput_dir = "adapters/mine"\n[data]\npath = "someone/rows"\n')
    cached = [CachedModel("smollm2-135m", tmp_path, 1, "mlxft")]
    assert needs_from(load_recipe(path), tmp_path, cached, on_gpu=True, ask=never).problems == ()
    (tmp_path / "someone").mkdir()
    assert len(needs_from(load_recipe(path), tmp_path, cached, on_gpu=True, ask=never).problems) == 1


def test_what_a_recipe_names_besides_blocks_with_the_way_out_of_the_training(tmp_path: Path):
    def check(recipe: LoadedRecipe, base: Path) -> None:
        raise RecipeError(
            [Problem(f"{recipe.path}:3", "wandb is not installed", "mlxft train x"), Problem("", "b", "c")]
        )

    cached = [CachedModel("smollm2-135m", tmp_path, 1, "mlxft")]
    needs = needs_from(written(tmp_path, "smollm2-135m"), tmp_path, cached, on_gpu=True, ask=never, check=check)
    first, second = problems(needs)
    assert (first.level, first.message) == ("blocker", f"{tmp_path}/mine.toml:3: wandb is not installed")
    assert (first.command, second.message, second.command) == ("./launchers/mlxft train x", "b", "c")

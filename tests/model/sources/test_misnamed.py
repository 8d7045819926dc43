import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_finetune.errors import ModelError, RunError
from mlx_finetune.model.adapters.base import check_base
from mlx_finetune.model.adapters.folder import adapter_folder
from mlx_finetune.model.sources import hub
from mlx_finetune.model.sources.fetch import LocalModel, fetch_model

TinyModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def in_a_folder_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: TinyModel) -> Path:
    """adapters/ with the run ``lora``, which began with the model of the run ``gen``, and ``begun``, still empty."""
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("lora", "gen", "begun"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "events.jsonl").write_text("")
    lora, gen = tmp_path / "adapters/lora", tmp_path / "adapters/gen"
    (lora / "resolved.toml").write_text('model = "adapters/gen"\n')
    facts = {"model": "gen", "identity": {"model_sha256": "1" * 64}}
    (lora / "run.json").write_text(json.dumps(facts))
    (lora / "adapter_config.json").write_text('{"base_model_name_or_path": "gen"}')
    (gen / "run.json").write_text("{}")
    (gen / "model").symlink_to(tiny_model("llama"))
    return tmp_path


def refused(name: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        fetch_model(name, report=lambda _: None)
    return caught.value


@pytest.mark.parametrize("name", ["adapters/lora", "./adapters/lora"])
def test_a_run_with_an_adapter_for_a_model_is_told_which_two_keys_to_write(name: str) -> None:
    error = refused(name)
    assert error.message == "adapters/lora holds an adapter and not a whole model"
    assert error.hint.startswith('write model = "adapters/gen" and adapter = "adapters/lora"')


def test_so_is_an_adapter_of_another_tool_and_one_that_names_no_base(tmp_path: Path) -> None:
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    assert refused("./peft").hint.startswith('write model = "owner/base" and adapter = "peft"')
    (peft / "adapter_config.json").write_text("[]")
    assert refused("./peft").hint.startswith('write model = its base model and adapter = "peft"')


def test_a_run_without_a_model_yet_is_told_from_a_folder_that_is_none(tmp_path: Path) -> None:
    error = refused("adapters/begun")
    assert "did not come to its end" in error.message
    assert error.hint == "see how far it is: mlxft runs show begun"
    (tmp_path / "empty").mkdir()
    assert "holds no model*.safetensors" in refused("./empty").message


def test_the_bare_name_of_a_run_is_told_its_folder() -> None:
    assert refused("gen").hint == 'a run is named by its folder: model = "adapters/gen"'
    assert refused("lora").hint.startswith('write model = "adapters/gen" and adapter = "adapters/lora"')
    assert "mlxft models list" in refused("nothing-like-it").hint


def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "ask_hub", ask)
    error = refused("adapters/nope")
    assert error.message == "there is no run adapters/nope"
    assert error.hint == "runs there: adapters/begun, adapters/gen, adapters/lora"


def test_another_base_is_named_as_the_recipe_of_the_adapters_run_names_it(tmp_path: Path) -> None:
    other = LocalModel("other", tmp_path, "folder:x", None, "2" * 64, None)
    with pytest.raises(ModelError, match="was trained on gen") as caught:
        check_base(Path("adapters/lora"), other)
    assert caught.value.hint.startswith('write model = "adapters/gen"; ')


def test_the_adapter_of_a_run_that_trained_every_weight_is_its_model(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="every weight") as caught:
        adapter_folder("gen", tmp_path)
    assert 'model = "' in caught.value.hint
    assert "adapters/gen" in caught.value.hint
    with pytest.raises(RunError, match="has no adapter yet"):
        adapter_folder("begun", tmp_path)

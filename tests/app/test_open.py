"""A name becomes what it stands for; the base beneath an adapter is the base, bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from answering_runs import write_adapter, write_facts, write_full_run, write_run

from mlx_finetune import rundir
from mlx_finetune.app.open import Opened, base_model, locate, open_name
from mlx_finetune.errors import ModelError, RunError, UsageError
from mlx_finetune.events import Notice, Phase

IDS = mx.array([[5, 80, 81, 82, 83]])


@pytest.fixture(scope="module")
def llama(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A folder with a finished run ``adapters/keeper``."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "adapters" / "keeper", llama)
    return folder


def opened(name: str, place: Path, said: list[Phase | Notice] | None = None) -> Opened:
    return open_name(name, base=place, report=(said if said is not None else []).append)


def logits(model) -> np.ndarray:
    return np.array(model(IDS))


def test_a_run_opens_by_name_by_path_and_as_an_adapter_of_its_own(place: Path, llama: Path) -> None:
    by_name = opened("keeper", place)
    expected = logits(by_name.model)
    assert np.array_equal(logits(opened(str(place / "adapters" / "keeper"), place).model), expected)
    assert not np.array_equal(logits(opened(str(llama), place).model), expected)
    assert by_name.spec is not None
    assert by_name.spec.rank == 4
    assert by_name.info.name == llama.name


def test_a_run_brings_the_chat_settings_of_its_recipe_and_a_model_the_defaults(place: Path, llama: Path) -> None:
    run, model = opened("keeper", place), opened(str(llama), place)
    assert (run.chat.temperature, run.chat.max_tokens, run.chat.system) == (0.0, 8, "Be brief.")
    assert (model.chat.temperature, model.chat.max_tokens, model.chat.system) == (0.7, 512, "")
    assert not model.has_base


def test_what_is_opened_for_answers_has_its_norms_fixed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed: list[object] = []
    monkeypatch.setattr("mlx_finetune.model.trained.fix_norms", fixed.append)
    assert fixed == [opened("keeper", place).model]


def test_inside_base_model_the_weights_are_those_of_the_base_and_afterwards_the_adapters(
    place: Path, llama: Path
) -> None:
    run = opened("keeper", place)
    tuned = logits(run.model)
    with base_model(run) as model:
        assert np.array_equal(logits(model), logits(opened(str(llama), place).model))
    assert np.array_equal(logits(run.model), tuned)
    with pytest.raises(RuntimeError, match="on purpose"), base_model(run):
        raise RuntimeError("on purpose")
    assert np.array_equal(logits(run.model), tuned)


def test_a_model_without_an_adapter_has_no_base(place: Path, llama: Path) -> None:
    with pytest.raises(UsageError, match="without an adapter"), base_model(opened(str(llama), place)):
        pass


def test_a_fully_trained_run_opens_its_model_and_compares_with_what_it_began_as(
    tmp_path: Path, tiny_model: Callable[..., Path], llama: Path
) -> None:
    trained = tiny_model("llama", seed=5)
    write_full_run(tmp_path / "adapters" / "full", llama, trained)
    run = opened("full", tmp_path)
    assert run.spec is None
    assert run.has_base
    assert run.info.name == "full"
    assert np.array_equal(logits(run.model), logits(opened(str(trained), tmp_path).model))
    with base_model(run) as model:
        assert np.array_equal(logits(model), logits(opened(str(llama), tmp_path).model))


def test_a_checkpoint_opens_by_itself_and_stands_in_for_a_run_that_has_not_finished(
    tmp_path: Path, llama: Path
) -> None:
    run = tmp_path / "adapters" / "half"
    write_facts(run, llama)
    for step, seed in ((2, 7), (10, 8)):
        write_adapter(run / f"checkpoint-{step}", llama, seed=seed)
        (run / f"checkpoint-{step}" / rundir.MANIFEST).write_text("{}")
    said: list[Phase | Notice] = []
    newest = opened("half", tmp_path, said)
    assert [event.message for event in said if isinstance(event, Notice) and event.level == "warning"] == [
        "half has not finished; this is checkpoint-10"
    ]
    assert np.array_equal(logits(newest.model), logits(opened("half/checkpoint-10", tmp_path).model))
    first = opened("half/checkpoint-2", tmp_path)
    assert not np.array_equal(logits(first.model), logits(newest.model))
    assert first.chat.system == "Be brief."


def test_an_adapter_folder_from_elsewhere_finds_its_base_by_its_own_configuration(tmp_path: Path, llama: Path) -> None:
    write_adapter(tmp_path / "foreign", llama)
    config = json.loads((tmp_path / "foreign" / rundir.ADAPTER_CONFIG).read_text())
    (tmp_path / "foreign" / rundir.ADAPTER_CONFIG).write_text(
        json.dumps(config | {"base_model_name_or_path": str(llama)})
    )
    assert opened("foreign", tmp_path).spec is not None


def test_a_base_that_is_gone_is_named(tmp_path: Path, llama: Path) -> None:
    shutil.copytree(llama, tmp_path / "base")
    write_run(tmp_path / "adapters" / "keeper", tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ModelError, match="the base model of keeper is not at hand: there is no model 'base'"):
        opened("keeper", tmp_path)


def test_a_base_with_other_weights_is_said(tmp_path: Path, tiny_model: Callable[..., Path], llama: Path) -> None:
    write_run(tmp_path / "adapters" / "keeper", llama)
    info = tmp_path / "adapters" / "keeper" / rundir.RUN_INFO
    facts = json.loads(info.read_text())
    info.write_text(json.dumps(facts | {"model_folder": str(tiny_model("llama", seed=5))}))
    said: list[Phase | Notice] = []
    opened("keeper", tmp_path, said)
    warnings = [event.message for event in said if isinstance(event, Notice) and event.level == "warning"]
    assert len(warnings) == 1
    assert "is not the file this was trained on" in warnings[0]


def test_settings_of_another_version_fall_back_to_the_defaults_and_say_so(tmp_path: Path, llama: Path) -> None:
    write_run(tmp_path / "adapters" / "keeper", llama)
    info = tmp_path / "adapters" / "keeper" / rundir.RUN_INFO
    facts = json.loads(info.read_text())
    facts["resolved"]["chat"]["mood"] = "fair"
    info.write_text(json.dumps(facts))
    said: list[Phase | Notice] = []
    assert opened("keeper", tmp_path, said).chat.temperature == 0.7
    assert any("`chat.mood`" in event.message for event in said if isinstance(event, Notice))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("keepr", "did you mean keeper?"), ("smollm2-153m", "smollm2-135m"), ("zzz", "runs here: keeper")],
)
def test_an_unknown_name_gets_near_names_and_no_network(place: Path, name: str, hint: str) -> None:
    with pytest.raises(RunError, match="there is no run, folder or model") as caught:
        locate(name, base=place)
    assert hint in caught.value.hint


def test_runs_that_are_stages_of_a_pipeline_are_named_too(tmp_path: Path, llama: Path) -> None:
    write_facts(tmp_path / "adapters" / "chain" / "sft", llama)
    (tmp_path / "adapters" / "chain" / rundir.PIPELINE).write_text("{}")
    with pytest.raises(RunError) as caught:
        locate("zzz", base=tmp_path)
    assert caught.value.hint == "runs here: chain/sft; models: mlxft models list"


def test_a_run_that_saved_nothing_and_a_folder_that_holds_nothing_are_refused(tmp_path: Path, llama: Path) -> None:
    write_facts(tmp_path / "adapters" / "empty", llama)
    with pytest.raises(RunError, match="has no adapter yet") as refused:
        locate("empty", base=tmp_path)
    assert refused.value.hint.startswith("see how it ended, and how it goes on: mlxft runs show ")
    (tmp_path / "stuff").mkdir()
    with pytest.raises(RunError, match="neither a run nor an adapter nor a model"):
        locate("stuff", base=tmp_path)


def test_a_damaged_run_json_is_a_sentence(tmp_path: Path, llama: Path) -> None:
    write_run(tmp_path / "adapters" / "keeper", llama)
    (tmp_path / "adapters" / "keeper" / rundir.RUN_INFO).write_text("{")
    with pytest.raises(RunError, match=r"run\.json cannot be read") as caught:
        locate("keeper", base=tmp_path)
    assert caught.value.hint == "copy run.json of its newest checkpoint to its place"

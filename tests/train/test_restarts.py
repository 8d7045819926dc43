"""What the training process does with its supervisor's words: restarts are recorded, safer settings carried out."""

import json

import pytest
from small_runs import course, train, write_recipe

from mlx_finetune import rundir
from mlx_finetune.events import Restarted, StepDone
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.journal import read_events

NO_NOISE = ("lora.dropout=0.0", "training.neftune_alpha=0.0", "eval.prompts=[]")


def restart(number, change="", is_bitwise=True):
    entry = {"id": float(number), "attempt": 1, "cause": "gpu_memory", "message": "the GPU ran out of memory"}
    return entry | {"change": change, "is_bitwise": is_bitwise}


def restarted(run):
    events = (record.event for record in read_events(run.file(rundir.EVENTS)))
    return [event for event in events if isinstance(event, Restarted)]


def losses(run):
    events = (record.event for record in read_events(run.file(rundir.EVENTS)))
    return [event.loss for event in events if isinstance(event, StepDone)]


@pytest.fixture
def recipe(tiny_model, tmp_path):
    return write_recipe(tmp_path, tiny_model("llama"))


def test_a_restart_is_one_event_one_entry_of_the_metrics_and_changes_no_bit(recipe, tiny_model, tmp_path):
    straight = train(write_recipe(tmp_path / "straight", tiny_model("llama")))
    run = train(recipe, kill_after=3)
    train(recipe, resume=True, restarts=(restart(1),), kill_after=3)  # dies before it has saved anything new
    train(recipe, resume=True, restarts=(restart(1), restart(2)), kill_after=5)
    train(recipe, resume=True, restarts=(restart(1), restart(2), restart(3)))
    assert [event.step for event in restarted(run)] == [2, 2, 4]
    assert course(run) == course(straight)
    metrics = json.loads(run.file(rundir.METRICS).read_text())
    assert [(entry["id"], entry["step"], entry["cause"]) for entry in metrics["restarts"]] == [
        (1.0, 2, "gpu_memory"),
        (2.0, 2, "gpu_memory"),
        (3.0, 4, "gpu_memory"),
    ]


@pytest.mark.some(3)
@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("safer", [Safer(pieces=2), Safer(recomputation=True), Safer(2, True, 0.25, False)])
def test_safer_settings_give_the_same_losses_up_to_rounding(tiny_model, tmp_path, packing, safer):
    recipe = write_recipe(tmp_path, tiny_model("llama"), packing=packing)
    plain = train(recipe, overrides=(*NO_NOISE, f"output_dir={tmp_path / 'plain'}"))
    careful = train(recipe, overrides=NO_NOISE, safer=safer)
    assert losses(careful) == pytest.approx(losses(plain), rel=2e-5)
    assert "since an abort" in careful.file(rundir.RESOLVED).read_text()


def test_safer_settings_stay_for_a_later_resume_and_go_with_a_fork(recipe):
    run = train(recipe, kill_after=3, safer=Safer(pieces=2))
    saved = Safer(pieces=2).to_json()
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["safer"] == saved
    train(recipe, resume=True, stop_after=3)
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["safer"] == saved
    train(recipe, fork=True, stop_after=4)
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["safer"] == Safer().to_json()


def test_the_cache_and_wiring_change_no_bit(recipe, tmp_path):
    plain = train(recipe, overrides=(f"output_dir={tmp_path / 'plain'}",))
    careful = train(recipe, safer=Safer(cache_share=0.0625, wired=False))
    assert course(careful) == course(plain)

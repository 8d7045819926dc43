"""A run that waits for power or memory: saved first, stoppable at any moment, and the same bits in the end."""

import hashlib
import json
import time
from types import SimpleNamespace

import mlx.core as mx
import pytest
from small_runs import course, train, write_recipe
from watched import MAINS, ROOMY, FakeMachine

from mlx_finetune import rundir
from mlx_finetune.errors import RecipeError
from mlx_finetune.events import CheckpointSaved, Continued, Event, Paused, StepDone, TimeJump
from mlx_finetune.hardware.sensors import Memory, Power
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import RunDir
from mlx_finetune.train import loop
from mlx_finetune.train.signals import StopRequest

LOW = Power(on_battery=True, percent=19)


def weights_hash(run: RunDir) -> list[str]:
    names = (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS)
    return [hashlib.sha256(run.file(name).read_bytes()).hexdigest() for name in names]


def events_of(run: RunDir, *kinds: type[Event]) -> list[Event]:
    return [record.event for record in read_events(run.file(rundir.EVENTS)) if isinstance(record.event, kinds)]


def saved_steps(run: RunDir) -> list[int]:
    return [event.step for event in events_of(run, CheckpointSaved) if isinstance(event, CheckpointSaved)]


class Machine(FakeMachine):
    """Becomes short of something right after a step, and has enough again after a minute of waiting."""

    def __init__(self, *, step: int, power: Power = MAINS, memory: Memory = ROOMY) -> None:
        super().__init__()
        self.shortage = (step, power, memory)
        self.paused_at: list[int] = []
        self.cache_bytes: list[int] = []

    def on_event(self, event: Event, stop: StopRequest) -> None:
        step, power, memory = self.shortage
        if isinstance(event, StepDone):
            self.run(6)  # longer than the sensors are left alone
            if event.step == step:
                self.power, self.memory = power, memory
        elif isinstance(event, Paused):
            self.paused_at.append(event.step)
            self.cache_bytes.append(mx.get_cache_memory())
            self.in_seconds(60, "power", MAINS)
            self.in_seconds(60, "memory", ROOMY)


@pytest.fixture(scope="module")
def straight(tiny_model, tmp_path_factory) -> RunDir:
    """The run that never waited."""
    return train(write_recipe(tmp_path_factory.mktemp("straight"), tiny_model("llama")))


@pytest.fixture
def recipe(tiny_model, tmp_path):
    return write_recipe(tmp_path, tiny_model("llama"))


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("machine", "step", "reason"),
    [
        (Machine(step=3, power=LOW), 3, "the battery is at 19%"),
        (Machine(step=1, memory=Memory("critical", 0)), 3, "macOS reports critical pressure"),
        (Machine(step=1, memory=Memory("normal", 2**31)), 3, "2.1 GB more are swapped out"),
    ],
    ids=["battery", "pressure", "swap"],
)
def test_a_shortage_saves_waits_and_changes_no_bit(recipe, straight, machine: Machine, step: int, reason: str) -> None:
    kept = "training.keep_checkpoints=9"
    run = train(recipe, overrides=(kept,), around=machine.around(), on_event=machine.on_event)
    (paused,), (continued,) = events_of(run, Paused), events_of(run, Continued)
    assert isinstance(paused, Paused)
    assert isinstance(continued, Continued)
    assert (paused.step, continued.step, machine.paused_at) == (step, step, [step])
    assert reason in paused.reason
    assert 10 <= continued.seconds <= 80
    assert machine.cache_bytes == [0]
    assert saved_steps(run) == [2, 3, 4, 6]
    assert run.checkpoint(step).is_dir()
    assert course(run) == course(straight)
    assert weights_hash(run) == weights_hash(straight)


def test_a_pause_at_a_step_that_is_saved_anyway_saves_it_once(recipe) -> None:
    machine = Machine(step=2, power=LOW)
    run = train(recipe, around=machine.around(), on_event=machine.on_event)
    kinds = [type(event).kind for event in events_of(run, CheckpointSaved, Paused, Continued, StepDone)]
    assert kinds[:6] == ["step", "step", "checkpoint", "paused", "continued", "step"]
    assert saved_steps(run) == [2, 4, 6]


def test_a_battery_that_is_low_before_the_first_step_waits_there(recipe, straight) -> None:
    machine = Machine(step=99)
    machine.power = LOW
    run = train(recipe, around=machine.around(), on_event=machine.on_event)
    assert machine.paused_at == [0]
    assert not run.checkpoint(0).exists()
    assert weights_hash(run) == weights_hash(straight)


def test_after_the_last_step_nothing_is_waited_for(recipe) -> None:
    machine = Machine(step=6, power=LOW)
    run = train(recipe, around=machine.around(), on_event=machine.on_event)
    assert machine.paused_at == []
    assert run.file(rundir.METRICS).is_file()


def test_a_stop_during_a_pause_ends_the_run_there_and_it_resumes_to_the_same_bits(recipe, straight) -> None:
    machine = Machine(step=3, power=LOW)

    def stop_while_paused(event: Event, stop: StopRequest) -> None:
        machine.on_event(event, stop)
        if isinstance(event, Paused):
            machine.later = [(machine.awake + 1, lambda: stop.request(15))]

    run = train(recipe, around=machine.around(), on_event=stop_while_paused)
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["status"] == "stopped"
    assert json.loads(run.file(rundir.RUN_INFO).read_text())["step"] == 3
    assert sum(machine.naps) < 2
    assert events_of(run, Continued) == []
    train(recipe, resume=True)
    assert course(run) == course(straight)
    assert weights_hash(run) == weights_hash(straight)


def test_a_pause_is_no_time_of_training_and_puts_no_work_at_risk(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own clock runs on through a pause of an hour: no limit is reached, no checkpoint is due."""
    machine = Machine(step=1, power=LOW)
    real = time.monotonic
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: real() + 60 * sum(machine.naps)))
    limits = ("training.max_minutes=5", "training.save_minutes=5", "training.save_steps=3", "training.eval_steps=6")
    run = train(recipe, overrides=limits, around=machine.around(), on_event=machine.on_event)
    metrics = json.loads(run.file(rundir.METRICS).read_text())
    assert 60 * sum(machine.naps) > 3000
    assert metrics["reason"] == "finished"
    assert metrics["train_seconds"] < 60
    assert saved_steps(run) == [1, 3, 6]


def test_sleep_and_a_set_clock_are_in_the_journal_and_in_nothing_else(recipe, straight) -> None:
    machine = Machine(step=99)

    def sleep_and_set(event: Event, stop: StopRequest) -> None:
        machine.on_event(event, stop)
        if isinstance(event, StepDone) and event.step == 2:
            machine.suspend(8 * 3600)
        if isinstance(event, StepDone) and event.step == 4:
            machine.wall -= 7200

    run = train(recipe, around=machine.around(), on_event=sleep_and_set)
    assert events_of(run, TimeJump) == [TimeJump(8 * 3600.0, True), TimeJump(-7200.0, False)]
    assert course(run) == course(straight)
    assert weights_hash(run) == weights_hash(straight)


def test_the_charge_to_wait_at_is_asked_for_in_the_recipe_and_free_on_resume(recipe, straight) -> None:
    machine = Machine(step=2, power=LOW)
    never = ("hardware.min_battery_percent=0",)
    train(recipe, overrides=never, around=machine.around(), on_event=machine.on_event, stop_after=3)
    assert machine.paused_at == []
    higher = ("hardware.min_battery_percent=19",)
    run = train(recipe, overrides=higher, resume=True, around=machine.around(), on_event=machine.on_event)
    assert machine.paused_at == [3]
    assert weights_hash(run) == weights_hash(straight)
    with pytest.raises(RecipeError):
        train(recipe, overrides=("hardware.min_battery_percent=101",))

"""A checkpoint that somebody asked for: written after the step at hand, and nothing else is different for it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import course, train, write_recipe
from watched import FakeMachine

from mlx_finetune import rundir
from mlx_finetune.events import CheckpointSaved, Evaluated, Event, Paused, Phase, RunStarted, StepDone
from mlx_finetune.hardware.sensors import Power
from mlx_finetune.journal import read_events
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.signals import StopRequest

TinyModel = Callable[..., Path]
OnEvent = Callable[[Event, StopRequest], None]


@pytest.fixture(scope="module")
def straight(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run that nobody asked anything."""
    return train(write_recipe(tmp_path_factory.mktemp("straight"), tiny_model("llama")))


@pytest.fixture
def recipe(tiny_model: TinyModel, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, tiny_model("llama"))


def weights(run: RunDir) -> list[str]:
    names = (rundir.MLX_WEIGHTS, rundir.PEFT_WEIGHTS, rundir.SAMPLES)
    return [hashlib.sha256(run.file(name).read_bytes()).hexdigest() for name in names]


def saved(run: RunDir) -> list[int]:
    return [one.event.step for one in read_events(run.file(rundir.EVENTS)) if isinstance(one.event, CheckpointSaved)]


def kinds(run: RunDir) -> list[str]:
    return [f"{one.event.kind} {getattr(one.event, 'step', '')}" for one in read_events(run.file(rundir.EVENTS))]


def ask_at(*steps: int) -> OnEvent:
    """Asks right after the lines of these steps, twice in a row."""

    def asks(event: Event, stop: StopRequest) -> None:
        if isinstance(event, StepDone) and event.step in steps:
            stop.request_save()
            stop.request_save()

    return asks


@pytest.mark.some(2)
@pytest.mark.parametrize("steps", [(1,), (3,), (5,), (1, 2, 3, 4, 5, 6)])
def test_the_step_at_hand_is_saved_once_and_no_bit_is_different(
    recipe: Path, straight: RunDir, steps: tuple[int, ...]
) -> None:
    run = train(recipe, on_event=ask_at(*steps))
    assert saved(run) == sorted({*steps, 2, 4, 6})
    assert saved(straight) == [2, 4, 6]
    assert course(run) == course(straight)
    assert weights(run) == weights(straight)


def test_what_was_saved_because_of_the_request_is_resumed_to_the_same_bits(recipe: Path, straight: RunDir) -> None:
    run = train(recipe, on_event=ask_at(3), kill_after=4)
    assert run.checkpoints()[-1].name == "checkpoint-3"
    train(recipe, resume=True)
    assert course(run) == course(straight)
    assert weights(run) == weights(straight)


def test_before_a_long_evaluation_the_step_is_saved_first(recipe: Path, straight: RunDir) -> None:
    run = train(recipe, on_event=ask_at(2))
    assert [kind for kind in kinds(run) if kind in ("checkpoint 2", "evaluation 2")] == ["checkpoint 2", "evaluation 2"]
    assert [kind for kind in kinds(straight) if kind in ("checkpoint 2", "evaluation 2")] == [
        "evaluation 2",
        "checkpoint 2",
    ]
    assert weights(run) == weights(straight)


def test_a_request_before_the_first_step_waits_for_it(recipe: Path, straight: RunDir) -> None:
    def asks(event: Event, stop: StopRequest) -> None:
        if isinstance(event, RunStarted):
            stop.request_save()

    run = train(recipe, on_event=asks)
    assert saved(run) == [1, 2, 4, 6]
    assert weights(run) == weights(straight)


def test_a_request_during_an_evaluation_is_carried_out_after_it(recipe: Path, straight: RunDir) -> None:
    def asks(event: Event, stop: StopRequest) -> None:
        if isinstance(event, Phase) and event.name == "answer":
            stop.request_save()

    run = train(recipe, on_event=asks, overrides=("training.save_steps=6", "training.keep_best=false"))
    assert saved(run) == [1, 2, 4, 6]  # that of the base model's answers means step 1
    assert course(run) == course(straight)


def test_a_request_in_a_pause_means_the_step_after_it(recipe: Path, straight: RunDir) -> None:
    machine = FakeMachine()

    def asks(event: Event, stop: StopRequest) -> None:
        if isinstance(event, StepDone):
            machine.run(6)
            machine.power = Power(on_battery=event.step == 3, percent=10)
        elif isinstance(event, Paused):
            stop.request_save()
            machine.in_seconds(60, "power", Power(on_battery=False, percent=50))

    run = train(
        recipe, around=machine.around(), on_event=asks, overrides=("training.keep_best=false", "training.save_steps=6")
    )
    assert saved(run) == [3, 4, 6]
    assert course(run) == course(straight)


def test_a_request_at_the_end_is_the_last_checkpoint(recipe: Path, straight: RunDir) -> None:
    def asks(event: Event, stop: StopRequest) -> None:
        if isinstance(event, Evaluated) and event.step == 6:
            stop.request_save()

    run = train(recipe, on_event=asks)
    assert saved(run) == [2, 4, 6]
    assert weights(run) == weights(straight)

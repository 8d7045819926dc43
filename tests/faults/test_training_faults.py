"""Every operation of a training under its run folder fails once; resumed, it ends with the bits of one undisturbed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.training import TrainTrials, sample
from faults.trials import ACTIONS, Server, render_table

TinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def trials(shim: Path, memory_folder: Path, tiny_model: TinyModel) -> Iterator[TrainTrials]:
    with Server("train", shim, memory_folder) as server:
        yield TrainTrials(server, tiny_model("llama"), memory_folder)


def test_a_training_whose_operation_fails_goes_on_to_the_same_bits(trials: TrainTrials) -> None:
    chosen = sample(trials.operations, list(trials.pairs()), 20)
    verdicts = [(trials.operations[index - 1], trials.run(index, action)) for index, action in chosen]
    assert {action for _, action in chosen} == set(ACTIONS)
    assert [(operation, verdict.problems) for operation, verdict in verdicts if verdict.problems] == []


@pytest.mark.slow
def test_every_operation_of_a_training_may_fail_in_every_way(trials: TrainTrials) -> None:
    verdicts = [trials.run(index, action) for index, action in trials.pairs()]
    print(render_table(verdicts))
    assert [verdict for verdict in verdicts if verdict.problems] == []

"""Every operation of a training under its run folder fails once; resumed, it ends with the bits of one undisturbed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.training import TrainTrials, sample
from faults.trials import ACTIONS, STRACE, Server, read_strace, render_table

TinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def server(shim: Path, memory_folder: Path) -> Iterator[Server]:
    with Server("train", shim, memory_folder) as server:
        yield server


@pytest.fixture(scope="module", params=[False, True], ids=["first process", "resumed process"])
def trials(request: pytest.FixtureRequest, server: Server, memory_folder: Path, tiny_model: TinyModel) -> TrainTrials:
    return TrainTrials(server, tiny_model("llama"), memory_folder, resumes=request.param)


def test_a_training_whose_operation_fails_goes_on_to_the_same_bits(trials: TrainTrials) -> None:
    chosen = sample(trials.operations, list(trials.pairs()), 3 if trials.resumes else 8)
    chosen = [*chosen, (len(trials.operations), "eio")]  # the last flush of the journal once slipped through
    verdicts = [(trials.operations[index - 1], trials.run(index, action)) for index, action in chosen]
    assert trials.resumes or {action for _, action in chosen} == set(ACTIONS)
    assert [(operation, verdict.problems) for operation, verdict in verdicts if verdict.problems] == []


@pytest.mark.slow
def test_every_operation_of_a_training_may_fail_in_every_way(trials: TrainTrials) -> None:
    verdicts = [trials.run(index, action) for index, action in trials.pairs()]
    print(render_table(verdicts))
    assert [verdict for verdict in verdicts if verdict.problems] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to check the shim's list of calls")
def test_strace_sees_the_same_operations_of_a_training_as_the_shim(
    shim: Path, memory_folder: Path, tiny_model: TinyModel
) -> None:
    folder = memory_folder / "traced"
    folder.mkdir()
    trace = folder / "trace"
    with Server("train", shim, folder, prefix=(*STRACE, str(trace))) as server:
        trials = TrainTrials(server, tiny_model("llama"), folder)
    assert read_strace(trace, trials.root) == [operation.name for operation in trials.operations]

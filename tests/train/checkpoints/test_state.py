"""What a run's state counts."""

import pytest

from mlx_finetune.train.checkpoints.state import RunState


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([], 0), ([2.0], 0), ([2.0, 1.0], 0), ([1.0, 2.0], 1), ([3, 1, 2, 3, 4], 3), ([1, 2, 3, 3], 0), ([1, 2, 1, 2], 1)],
)
def test_rises_are_counted_from_the_end(losses: list[float], expected: int) -> None:
    state = RunState()
    for step, loss in enumerate(losses):
        state.step = step
        state.record_evaluation(loss)
        state.log({"loss": 9.0 - step})
    assert state.num_rises() == expected

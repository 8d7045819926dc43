"""One process of ``mlxft plan --lr-range``: ``python -m mlx_finetune.train.lr_range --recipe PATH``.

It prepares the run as training does and takes up to 150 real steps while the rate rises (``hardware.planning.lr_range``
has the curve). Its last line is what it found, after the events of loading. It writes nothing but a reference that the
training will need as well (``start.reference``), and weights and moments are afterwards what they were, bit for bit;
the order of rows depends on the step alone.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_finetune.events import Phase
from mlx_finetune.hardware.planning.lr_range import NUM_STEPS, RangeFound, RangeTest, most_steps, rate_at
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.talking import answer, arguments_of, prepared_run, tell

if TYPE_CHECKING:  # imports mlx, which must see the BLAS loaded first
    from mlx_finetune.dataset.stream import Batch
    from mlx_finetune.train.optim import FlatArrays
    from mlx_finetune.train.start.prepare import Prepared
    from mlx_finetune.train.step import Trainer


def range_test(
    prepared: "Prepared", stop: StopRequest, progress: Callable[[int], None], *, num_steps: int = NUM_STEPS
) -> RangeFound:
    """Train with rising rates on the rows of the first steps; ``progress`` is called with the steps done.

    A quarter of ``num_steps`` comes on top where the loss still falls after them, and another one likewise. Raises
    ``Interrupted`` between two steps.
    """
    assert prepared.objective.live is None, "the command refuses tasks that learn from their own answers"
    trainer = prepared.trainer
    kept = dict(trainer.parameters), dict(trainer.state)
    test, has_diverged = RangeTest(), False
    recipe_rate = float(prepared.recipe.training.learning_rate)
    try:
        for step in range(most_steps(num_steps)):
            is_decided = step in (num_steps, num_steps + num_steps // 4)
            if is_decided and not test.found(recipe_rate, has_diverged=False).is_at_end:
                break
            stop.raise_if_asked("between two steps")
            began = time.perf_counter()
            rate = rate_at(step, num_steps)
            batches = prepared.stream.microbatches(step)
            before = _loss_with(kept[0], trainer, batches)
            gradients, result = trainer.compute(batches, step)
            has_diverged = test.add(rate, result.loss, before)
            if has_diverged:
                break
            trainer.apply(gradients, learning_rate=rate, step=step)
            test.seconds += time.perf_counter() - began
            progress(step + 1)
    finally:
        trainer.restore(*kept)
    times_seen = prepared.stream.progress(test.num_steps)
    return test.found(recipe_rate, has_diverged=has_diverged, times_seen=round(times_seen, 2))


def _loss_with(parameters: "FlatArrays", trainer: "Trainer", batches: "Sequence[Batch]") -> float:
    """What ``batches`` cost with other ``parameters`` than those of now."""
    now, trainer.parameters = trainer.parameters, parameters
    found = [trainer.loss(batch) for batch in batches]
    trainer.parameters = now
    trainer.load_into_model()
    return sum(sums[0] for sums, _ in found) / sum(count for _, count in found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the steps, print, and return the exit code."""
    parser = arguments_of("mlx_finetune.train.lr_range")
    parser.add_argument("--parent-pid", type=int)
    given = parser.parse_args(arguments)
    stop = StopRequest.of_child(given.parent_pid)
    return answer(lambda: {"lr_range": _test(given.recipe, given.overrides, stop).to_json()})


def _test(path: Path, overrides: Sequence[str], stop: StopRequest) -> RangeFound:
    with prepared_run(load_recipe(path, overrides), stop, tell) as prepared:
        _add_reference(prepared, stop)
        return range_test(prepared, stop, _tell_progress)


def _add_reference(prepared: "Prepared", stop: StopRequest) -> None:
    """What the objective compares with, where it does, for the rows of the test; the training reads it then."""
    from mlx_finetune.dataset.stream import ordered_batches
    from mlx_finetune.train.ranks import ALONE
    from mlx_finetune.train.start.reference import add_reference

    its = replace(prepared, total_steps=most_steps(), valid_batches=ordered_batches([], 1), num_valid_rows=0)
    add_reference(its, stop, tell, ALONE)


def _tell_progress(done: int) -> None:
    tell(Phase("learning rates", done=done, total=max(done, NUM_STEPS), unit="steps"))


if __name__ == "__main__":
    sys.exit(main())

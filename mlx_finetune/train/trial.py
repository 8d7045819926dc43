"""One process of ``mlxft tune``: ``python -m mlx_finetune.train.trial --recipe PATH --steps N``.

It prepares the run as training does, without what was tuned before, takes one step to warm up, the one with most
tokens, then N steps that are typical of the run, and says how long each took: the last line of its stdout, after the
events of loading. The same steps for whatever settings. It leaves nothing behind. With ``--steps 0`` it finds out how
many fit into ``--seconds``. Frozen blocks are computed in every step, and nothing is drawn at random (no dropout, no
NEFTune), so that losses can be compared.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlx_finetune.events import Event
from mlx_finetune.hardware.busy import Others
from mlx_finetune.hardware.tune import Case, Run
from mlx_finetune.hardware.tuned import KEYS, VARIABLES
from mlx_finetune.recipe.load import LoadedRecipe, load_recipe
from mlx_finetune.recipe.resolve import flatten_recipe
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.talking import answer, arguments_of, prepared_run

if TYPE_CHECKING:  # imports mlx, which must see the BLAS loaded first
    from mlx_finetune.train.start.prepare import Prepared

LEAST_STEPS, MOST_STEPS = 3, 10
MAX_SEEN = 200  # steps of the run that are looked at
#: Of the tokens of the run's steps, in this order.
QUANTILES = (0.5, 0.75, 0.25, 0.9, 0.1, 0.6, 0.4, 0.8, 0.2, 0.5)


def choose_steps(tokens: Sequence[int]) -> tuple[int, list[int]]:
    """The step with most tokens, and ``MOST_STEPS`` that are typical, by their numbers; of equal ones the first."""
    order = sorted(range(len(tokens)), key=lambda step: (tokens[step], -step))
    return order[-1], [order[min(len(order) - 1, int(share * len(order)))] for share in QUANTILES[:MOST_STEPS]]


def count_steps(seconds_of_one: float, allowed: float) -> int:
    """How many steps fit into ``allowed`` seconds, from ``LEAST_STEPS`` to ``MOST_STEPS``."""
    return max(LEAST_STEPS, min(MOST_STEPS, int(allowed / max(seconds_of_one, 1e-6))))


def take_steps(prepared: "Prepared", num_steps: int, allowed: float, stop: StopRequest) -> Run:
    """Take the steps of this trial; ``num_steps`` 0 lets the first one decide how many there are."""
    import mlx.core as mx

    stream, rows = prepared.stream, prepared.stream.all_rows
    seen = min(prepared.total_steps, stream.steps_in_epoch(0), MAX_SEEN)
    largest, typical = choose_steps([int(rows.lengths[stream.rows(step)].sum()) for step in range(seen)])
    losses: list[float] = []
    seconds: list[float] = []

    def take(step: int) -> float:
        stop.raise_if_asked("between two steps")
        batches = stream.microbatches(step)
        began = time.perf_counter()
        gradients, result = prepared.trainer.compute(batches, step)
        prepared.trainer.apply(gradients, learning_rate=prepared.schedule(step), step=step)
        losses.append(result.loss)
        return time.perf_counter() - began

    take(largest)
    if mx.metal.is_available():  # a shape is compiled when it comes first
        for step in typical[: num_steps or LEAST_STEPS]:
            take(step)
    seconds.append(take(typical[0]))
    num_steps = num_steps or count_steps(seconds[0], allowed)
    seconds += [take(step) for step in typical[1:num_steps]]
    return Run(tuple(seconds), tuple(losses), mx.get_peak_memory(), prepared.limits.memory_bytes)


def describe(prepared: "Prepared", asked: LoadedRecipe) -> Case:
    """The settings that count in this process, and which of them the recipe or its environment decides."""
    from mlx_finetune.model.load import on_gpu

    recipe, flat = prepared.recipe, flatten_recipe(asked.recipe)
    theirs = {name for name, variable in VARIABLES.items() if variable in os.environ}
    training, hardware = recipe.training, recipe.hardware
    assert isinstance(training.batch_size, int), "a prepared run has its batch size"
    assert isinstance(hardware.microbatch, int), "a prepared run has its microbatch"
    return Case(
        on_gpu=on_gpu(),
        is_full=recipe.lora is None,
        num_cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        compute_dtype=hardware.compute_dtype,
        batch_size=training.batch_size,
        accumulation=training.gradient_accumulation_steps,
        microbatch=hardware.microbatch,
        gradient_checkpointing=training.gradient_checkpointing is True,
        num_threads=hardware.num_threads,
        fixed=frozenset(name for name, key in KEYS.items() if flat[key] != "auto" or name in theirs),
    )


def without_noise(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe with nothing random in a step, and with every block computed in it."""
    overrides = ["training.neftune_alpha=0", "training.reuse_frozen_layers=false"]
    overrides += ["lora.dropout=0"] if loaded.recipe.lora is not None else []
    return load_recipe(loaded.path, [*loaded.overrides, *overrides])


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the steps, print, and return the exit code."""
    parser = arguments_of("mlx_finetune.train.trial")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--parent-pid", type=int)
    given = parser.parse_args(arguments)
    stop = StopRequest.of_child(given.parent_pid)
    return answer(lambda: {"trial": _try(load_recipe(given.recipe, given.overrides), given.steps, given.seconds, stop)})


def _try(loaded: LoadedRecipe, num_steps: int, allowed: float, stop: StopRequest) -> dict[str, object]:
    with prepared_run(without_noise(loaded), stop, _ignore, uses_tuned=False) as prepared:
        busy = Others()
        run = take_steps(prepared, num_steps, allowed, stop)
        case = describe(prepared, loaded)
    values = asdict(case) | {"fixed": sorted(case.fixed)}
    return {"run": asdict(run), "case": values, "others_share": round(busy.share(), 3)}


def _ignore(event: Event) -> None:
    """Nobody watches what is loaded."""
    del event


if __name__ == "__main__":
    sys.exit(main())

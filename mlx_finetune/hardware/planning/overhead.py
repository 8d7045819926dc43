"""What a step takes beside its operations: Python, building graphs, norms and activations. Nearly all of a small model.

On a CPU, processor times of steps of llamas of 0.1 to 6.7 million parameters, 16 to 512 positions, two cores of an EPYC
that others used too (2026-11-27): with one row of 16 tokens 14 to 18 ms for 2 blocks, 19 to 28 for 3, 37 to 49 for 6;
and per block and position some 20 microseconds more than the matrix products take. A GPU was not measured: nothing is
added.
"""

from mlx_finetune.hardware.planning.shapes import ModelShape

STEP_SECONDS = 0.005  # the update, the event
BLOCK_SECONDS = 0.008  # of a microbatch, forward and backward
POSITION_SECONDS = 18e-6  # of a block
LEAST_SHARE = 0.5  # of a time is operations, whatever is taken off: another machine may be faster at Python


def step_overhead(shape: ModelShape, *, num_microbatches: float, positions: float, on_gpu: bool) -> float:
    """Seconds of a step with ``positions`` in all that no rate of operations tells."""
    if on_gpu:
        return 0.0
    each = BLOCK_SECONDS * num_microbatches + POSITION_SECONDS * positions
    return STEP_SECONDS + shape.num_layers * each


def operations_per_second(operations: float, seconds: float, overhead: float) -> float:
    """The rate at which a step of ``seconds`` did its ``operations``, its ``overhead`` taken off."""
    return operations / max(seconds - overhead, LEAST_SHARE * seconds)

"""What counts of the evaluations so far, where a run goes on otherwise than it was when its checkpoint was saved.

It follows from the checkpoint and from what is trained now, so a process that is killed before the next checkpoint
changes nothing: the one that resumes it finds the same.
"""

from collections.abc import Mapping

from mlx_finetune.events import Notice
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.train.start.identity import Identity, differences
from mlx_finetune.train.start.rows import Emit


def carry_over(
    run: RunDir, state: RunState, before: Mapping[str, object], now: Identity, total_steps: int, emit: Emit
) -> None:
    """Change ``state``, which is that of a checkpoint; ``before`` is all that checkpoint says, empty without one.

    A run with another length, or with anything else another, has new patience; one that is measured otherwise knows no
    loss yet. Best weights that nobody kept are none. What ``max_minutes`` ended was evaluated behind its last
    checkpoint, and is again where it goes on.
    """
    identity = before.get("identity")
    if not isinstance(identity, dict):
        return
    is_other = bool(differences(identity, now))
    if is_other or before.get("total_steps") != total_steps:
        state.evaluations_without_improvement = 0
        state.is_evaluated = state.is_evaluated and state.evaluated_step == state.step
    if is_other and identity.get("measure_sha256", now.measure_sha256) != now.measure_sha256:
        state.forget_evaluations()
        emit(Notice("info", "validation losses so far are of other rows or another loss: the best counts from here on"))
    if state.best_step and now.recipe["training.keep_best"] and not run.checkpoint(state.best_step).is_dir():
        emit(Notice("info", f"the weights of step {state.best_step} were not kept: the best counts from here on"))
        state.forget_best()

"""The training loop: steps, evaluation, checkpoints, stop. It knows no task; see ``objective.py``.

One step in order: the microbatches, refuse a loss or norm that is not finite while the weights are still good, update,
report; then perhaps evaluate, perhaps checkpoint, perhaps stop. Evaluation, logging and saving draw nothing random
that training draws, so switching them on or off changes no weight.

Of several ranks each computes its share of a step and of an evaluation and knows the whole result; whatever depends on
a clock, a sensor or a signal is decided by rank 0 and told to the others between two steps.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import mlx.core as mx

from mlx_finetune.dataset.ahead import Ahead, Steps
from mlx_finetune.dataset.stream import Batch
from mlx_finetune.errors import TrainingError
from mlx_finetune.events import CheckpointSaved, Evaluated, Event, Notice, StepDone
from mlx_finetune.recipe.training import TrainingRecipe
from mlx_finetune.train.checkpoints.commit import Checkpoint
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.train.optim import Schedule
from mlx_finetune.train.ranks import ALONE, LostRankError, Ranks
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.step import StepResult, Trainer
from mlx_finetune.train.watch import Watch

RISES = 3  # evaluations in a row with a higher loss than the one before, which are told once
_RISEN = f"the validation loss has risen {RISES} times in a row: what is learned now helps on the training rows only"
_ENDS = "training.early_stopping_patience = 3 ends such a run by itself"

EndReason = Literal["finished", "early_stopping", "max_minutes", "stopped"]


@dataclass(frozen=True, slots=True)
class Cadence:
    """When things happen, in optimizer steps. ``kept_steps`` are checkpoints that stay for good."""

    total_steps: int
    eval_steps: int
    save_steps: int
    kept_steps: frozenset[int]


@dataclass(frozen=True, slots=True)
class Loop:
    """What the loop is handed. ``save`` commits a checkpoint of the current state, None on ranks that do not write;
    ``answer_prompts`` fills samples.jsonl; ``locate_row`` names a row number as ``file:line``; ``report_machine`` is
    called often, and writes what the machine did (``hardware.sampling``) where there is something new."""

    trainer: Trainer
    stream: Steps
    valid_batches: Sequence[Batch]
    schedule: Schedule
    cadence: Cadence
    training: TrainingRecipe
    stop: StopRequest
    watch: Watch
    emit: Callable[[Event], None]
    save: Callable[[RunState], Checkpoint | None]
    answer_prompts: Callable[[int], bool]
    locate_row: Callable[[int], str]
    ranks: Ranks = ALONE
    report_machine: Callable[[int], None] = lambda step: None


def run_loop(loop: Loop, state: RunState) -> EndReason:
    """Train from ``state`` until the end, a limit or a signal; ``state`` is updated in place.

    A checkpoint of the last step is committed in every case but an exception, and also where another rank is lost,
    which raises ``LostRankError``. Raises ``TrainingError`` for a loss or gradient that is not finite where the recipe
    says to stop.
    """
    saver, ranks = _Saver(loop, saved_step=_saved_step(loop.cadence, state)), loop.ranks
    steps = range(state.step, loop.cadence.total_steps)
    with Ahead(loop.stream, steps, rank=ranks.rank, num_ranks=ranks.size) as ahead:
        try:
            return _run(loop, state, saver, ahead)
        except LostRankError:
            saver.save(state)  # whole: it changes after a step was summed over all ranks
            raise


def _run(loop: Loop, state: RunState, saver: "_Saver", ahead: Ahead) -> EndReason:
    while True:
        loop.report_machine(state.step)
        if not state.is_evaluated and not _evaluate_safely(loop, state, saver):
            saver.save(state)
            return "stopped"
        if _is_save_due(loop, state, saver):
            saver.save(state)
        reason, shortage = _decide(loop, state)
        if reason is None and shortage:
            _pause(loop, state, saver, shortage)
        elif reason is None:
            _take_step(loop, state, ahead)
        elif reason == "max_minutes" and state.evaluated_step != state.step:
            state.is_evaluated = False
        else:
            saver.save(state)
            return reason


def _saved_step(cadence: Cadence, state: RunState) -> int:
    """The step that needs no other checkpoint: the one continued from. Step 0 is saved where save_at asks for it."""
    return -1 if state.step == 0 and 0 in cadence.kept_steps - set(state.kept_steps) else state.step


class _Saver:
    """Commits checkpoints and remembers when the last one was; a step is saved once."""

    def __init__(self, loop: Loop, saved_step: int) -> None:
        self._loop = loop
        self._saved_step = saved_step
        self._saved_time = time.monotonic()
        self.evaluation_seconds = 0.0  # of the last evaluation, with its answers

    def is_overdue(self, state: RunState, seconds: float) -> bool:
        """True where ``seconds`` more of work would put more at risk than ``save_minutes`` allow.

        Pauses do not count: nothing is at risk while no step is taken.
        """
        if state.step == self._saved_step:
            self._saved_time = time.monotonic()
            return False
        return time.monotonic() - self._saved_time + seconds > 60 * self._loop.training.save_minutes

    def save(self, state: RunState) -> None:
        if state.step == self._saved_step:
            return
        started = time.monotonic()
        if not self._loop.ranks.rank:
            self._loop.stop.take_save_request()  # one that comes from here on asks for another checkpoint
        checkpoint = self._loop.save(state)
        self._saved_step, self._saved_time = state.step, time.monotonic()
        seconds = round(self._saved_time - started, 3)
        if checkpoint is not None:
            self._loop.emit(CheckpointSaved(state.step, checkpoint.path.name, checkpoint.num_bytes, seconds))


def _evaluate_safely(loop: Loop, state: RunState, saver: _Saver) -> bool:
    """``_evaluate``; the steps before a long one are committed first."""
    if loop.stop.is_save_asked or saver.is_overdue(state, saver.evaluation_seconds):
        saver.save(state)
    started = time.monotonic()
    is_done = _evaluate(loop, state)
    saver.evaluation_seconds = time.monotonic() - started
    return is_done


def _pause(loop: Loop, state: RunState, saver: _Saver, reason: str) -> None:
    """Commit, give back the memory that MLX keeps for reuse, and wait; neither the time nor the step counts."""
    saver.save(state)
    mx.clear_cache()
    if not loop.ranks.rank:  # the others wait for its next decision
        loop.watch.pause(state.step, reason, loop.report_machine)


def _take_step(loop: Loop, state: RunState, ahead: Ahead) -> None:
    """One optimizer step and its event; ``state.step`` goes up by one also where the update is left out."""
    started = time.monotonic()
    step = state.step
    taken = ahead.take(step)
    learning_rate = loop.schedule(step)
    gradients, result = loop.trainer.compute(taken.microbatches, step)
    if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
        loop.trainer.apply(gradients, learning_rate=learning_rate, step=step)
        state.targets_trained += result.num_targets
        state.tokens_trained += result.num_tokens
    else:
        _report_nonfinite(loop, state, taken.rows, result)
    seconds = time.monotonic() - started
    state.step = step + 1
    state.epoch = taken.progress
    state.loss = result.loss if math.isfinite(result.loss) else state.loss
    state.learning_rate = learning_rate
    state.train_seconds += seconds
    state.step_seconds = seconds
    state.peak_memory_bytes = max(state.peak_memory_bytes, mx.get_peak_memory())
    state.is_evaluated = not _is_evaluation_due(loop.cadence, state.step)
    _log_step(loop, state, result, seconds)


def _log_step(loop: Loop, state: RunState, result: StepResult, seconds: float) -> None:
    if state.step % loop.training.logging_steps and state.step != loop.cadence.total_steps:
        return
    logged = {"loss": result.loss, "learning_rate": state.learning_rate, "grad_norm": result.grad_norm}
    state.log(logged | dict(result.metrics))
    loop.emit(
        StepDone(
            step=state.step,
            epoch=round(state.epoch, 4),
            loss=result.loss,
            learning_rate=state.learning_rate,
            grad_norm=result.grad_norm,
            num_targets=result.num_targets,
            num_tokens=result.num_tokens,
            padding_share=round(1 - result.num_tokens / result.num_positions, 4),
            step_seconds=round(seconds, 4),
            targets_per_second=round(result.num_targets / max(seconds, 1e-9), 2),
            active_memory_bytes=mx.get_active_memory(),
            peak_memory_bytes=state.peak_memory_bytes,
            metrics=result.metrics,
        )
    )


def _report_nonfinite(loop: Loop, state: RunState, numbers: Sequence[int], result: StepResult) -> None:
    """Stop, or leave the step out, and name its rows."""
    rows = sorted(loop.locate_row(row) for row in numbers)
    shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    what = f"step {state.step + 1}: loss {result.loss}, gradient norm {result.grad_norm}; rows {shown}"
    if loop.training.on_nonfinite == "stop":
        raise TrainingError(
            f"{what}: not a finite number; the weights of step {state.step} are untouched",
            'lower training.learning_rate, or set training.on_nonfinite = "skip" to leave such steps out',
        )
    state.skipped_steps += 1
    loop.emit(Notice("warning", f"{what}: left out because training.on_nonfinite is skip"))


def _is_evaluation_due(cadence: Cadence, step: int) -> bool:
    return step % cadence.eval_steps == 0 or step >= cadence.total_steps


def _evaluate(loop: Loop, state: RunState) -> bool:
    """Evaluate the whole validation set and answer the prompts; False when a signal cut it short.

    A set that was evaluated before the signal is not evaluated again when the run is resumed; the prompts are.
    """
    if state.evaluated_step != state.step and not _evaluate_set(loop, state):
        return False
    state.is_evaluated = loop.ranks.share(loop.answer_prompts(state.step))
    return state.is_evaluated


def _evaluate_set(loop: Loop, state: RunState) -> bool:
    started, trainer = time.monotonic(), loop.trainer
    align(trainer, loop.ranks)
    value: float | None = None
    if trainer.has_step_value:
        rows = _over_batches(loop, state, trainer.value_sums)
        if rows is None:
            return False
        value = trainer.step_value([rows], is_shared=False)
    found = _over_batches(loop, state, partial(trainer.loss, value=value))
    if found is None:
        return False
    totals, num_targets = found
    state.evaluated_step = state.step
    if num_targets:
        loss, metrics = trainer.means(totals, num_targets)
        is_best = state.record_evaluation(loss)
        seconds = round(time.monotonic() - started, 3)
        loop.emit(Evaluated(state.step, loss, num_targets, is_best, seconds, metrics))
        if state.num_rises() == RISES:
            kept = f"the best weights are kept (keep_best); {_ENDS}" if loop.training.keep_best else _ENDS
            loop.emit(Notice("warning", _RISEN, kept))
    return True


def _over_batches(
    loop: Loop, state: RunState, measure: Callable[[Batch], tuple[list[float], int]]
) -> tuple[list[float], int] | None:
    """The sums and the count that ``measure`` gives of all validation batches, on whichever rank; None where a signal
    cut it short."""
    totals: list[float] = []
    count = 0
    for start in range(0, len(loop.valid_batches), loop.ranks.size):
        found = loop.ranks.gather(_of_batch(loop, start + loop.ranks.rank, measure))
        if _is_stop_asked(loop, [number for number, _, _ in found]):
            return None
        loop.report_machine(state.step)
        for _, sums, number in found:
            totals = [old + new for old, new in zip(totals, sums, strict=True)] if totals and sums else totals or sums
            count += number
    return totals, count


def _of_batch(
    loop: Loop, number: int, measure: Callable[[Batch], tuple[list[float], int]]
) -> tuple[int, list[float], int]:
    """``(signal, sums, count)``; nothing is computed after a signal, or where there is no such batch."""
    if loop.stop.signal_number or number >= len(loop.valid_batches):
        return loop.stop.signal_number, [], 0
    return 0, *measure(loop.valid_batches[number])


def align(trainer: Trainer, ranks: Ranks) -> None:
    """Rank 0's weights on every rank. Equal machines compute the same bits; unlike ones drift apart by the last."""
    if ranks.size > 1:
        trainer.parameters = ranks.share_arrays(trainer.parameters)
        trainer.load_into_model()


def _is_save_due(loop: Loop, state: RunState, saver: _Saver) -> bool:
    cadence, training = loop.cadence, loop.training
    is_best = training.keep_best and state.best_step == state.step
    by_step = state.step % cadence.save_steps == 0 or state.step in cadence.kept_steps
    return is_best or by_step or loop.stop.is_save_asked or saver.is_overdue(state, state.step_seconds)


def _decide(loop: Loop, state: RunState) -> tuple[EndReason | None, str | None]:
    """Why the run ends, else why it pauses: what rank 0 sees, and a signal that reached any rank.

    A checkpoint that another rank was asked for becomes a request to rank 0, which writes it after the next step.
    """
    reason = _reason_to_end(loop, state)
    shortage = loop.watch.reason_to_pause() if reason is None and not loop.ranks.rank else None
    is_save_asked = bool(loop.ranks.rank) and loop.stop.take_save_request()
    found = loop.ranks.gather((loop.stop.signal_number, reason, shortage, is_save_asked))
    _, reason, shortage, _ = found[0]
    if not loop.ranks.rank and any(asked for _, _, _, asked in found):
        loop.stop.request_save()
    if _is_stop_asked(loop, [number for number, _, _, _ in found]) and reason is None:
        reason = "stopped"
    return reason, shortage


def _is_stop_asked(loop: Loop, signals: Sequence[int]) -> bool:
    """True where a signal reached a rank, which counts for all of them. ``signals`` are what the ranks got, 0 none."""
    loop.stop.request(max(signals))
    return max(signals) > 0


def _reason_to_end(loop: Loop, state: RunState) -> EndReason | None:
    training = loop.training
    if state.step >= loop.cadence.total_steps:
        return "finished"
    patience = training.early_stopping_patience
    if patience and state.evaluations_without_improvement >= patience:
        return "early_stopping"
    if training.max_minutes is not None and state.train_seconds >= 60 * training.max_minutes:
        return "max_minutes"
    return None

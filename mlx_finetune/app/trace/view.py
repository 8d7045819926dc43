"""A trace as text for a terminal: when what was learned, then how far the weights moved."""

import statistics
from collections.abc import Iterator, Sequence

from mlx_finetune.app.text import shorten
from mlx_finetune.app.trace.learned import Category, Point
from mlx_finetune.app.trace.tables import DISCLAIMER, Traced, block_number
from mlx_finetune.dataset.visible import harmless
from mlx_finetune.model.reload_check import TOLERANCE
from mlx_finetune.units import counted

_MOST_MODULES = 12
_WIDTH = 90


def summary_lines(traced: Traced) -> Iterator[str]:
    """The answers first, then the course by category, the layers and the matrices."""
    yield from reload_lines(traced)
    if traced.categories:
        yield ""
        yield "When was it learned?"
    for category in traced.categories:
        yield f"  {harmless(category.sentence)}"
    for category in traced.categories:
        yield ""
        yield from _course(category)
    yield ""
    yield from _samples(traced)
    yield from _layers(traced)
    yield from _matrices(traced)
    if traced.directions:
        count = sum(one.is_intruder for one in traced.directions)
        yield f"Intruder directions: {count} of {len(traced.directions)} top directions are like none of the base's"
    for sentence in traced.left_out:
        yield f"left out: {sentence}"
    yield DISCLAIMER


def reload_lines(traced: Traced) -> Iterator[str]:
    """Whether every checkpoint is, when loaded afresh, what was saved."""
    checkpoints = [result for result in traced.results if result.is_checkpoint]
    checked = [(result.step, gap) for result in checkpoints if (gap := result.reload.difference) is not None]
    wrong = [(step, gap) for step, gap in checked if gap > TOLERANCE]
    if wrong:
        for step, gap in wrong:
            yield f"warning: checkpoint-{step} has another loss than it was saved with: {gap:.2e} nats a target apart"
    if len(checked) > len(wrong):
        most = max(gap for _, gap in checked if gap <= TOLERANCE)
        right = counted(len(checked) - len(wrong), "checkpoint")
        yield f"{right} reloaded with the loss saved (at most {most:.1e} nats a target apart)"
    if len(checked) < len(checkpoints):
        rest = len(checkpoints) - len(checked)
        yield f"{counted(rest, 'checkpoint')} {'hold' if rest > 1 else 'holds'} no loss to check: not of save_at"


def _course(category: Category) -> Iterator[str]:
    yield f"{harmless(category.name)} ({counted(category.num_probes, 'probe')})"
    shares = f"{'right':>6} {'95 %':>10} {'rank':>5} {'margin':>7} {'95 %':>14}"
    yield f"  {'step':>7} {shares} {'loss':>7} {'token rank':>10}"
    for point in category.course:
        yield f"  {point.step:>7,} {_share(point, category.num_probes)} {point.loss:>7.3f} {point.token_rank:>10,.0f}"


def _share(point: Point, count: int) -> str:
    if point.num_right is None or point.low is None or point.high is None:
        return f"{'':>6} {'':>10} {'':>5} {'':>7} {'':>14}"
    ends = f"{100 * point.low:.0f} to {100 * point.high:.0f}"
    margins = f"{point.margin_low:+.2f} to {point.margin_high:+.2f}"
    return f"{point.num_right / count:>6.0%} {ends:>10} {point.rank:>5.2f} {point.margin:>+7.2f} {margins:>14}"


def _samples(traced: Traced) -> Iterator[str]:
    """Free answers, before and after; those in between are in samples.csv."""
    first, last = traced.results[0], traced.results[-1]
    for before, after in zip(first.samples, last.samples, strict=True):
        yield f"asked: {shorten(before.prompt, _WIDTH)}"
        for result, sample in ((first, before), (last, after)):
            yield f"  step {result.step:>5,}: {shorten(sample.answer, _WIDTH)}"
    if first.samples:
        yield ""


def _layers(traced: Traced) -> Iterator[str]:
    last = traced.results[-1]
    compared = [layer for layer in last.layers if layer.base_cka is not None]
    if not compared:
        return
    least = min(compared, key=lambda layer: layer.base_cka or 0.0)
    yield (
        f"Hidden states, step {last.step} against the base: linear CKA from {compared[0].base_cka:.3f} (block 0) to "
        f"{compared[-1].base_cka:.3f} (block {compared[-1].layer}), least in block {least.layer} ({least.base_cka:.3f})"
    )
    read = [layer for layer in last.layers if layer.base_kl is not None]
    if read:
        most = max(read, key=lambda layer: layer.base_kl or 0.0)
        yield f"Logit lens: KL(base || tuned) is largest after block {most.layer} ({most.base_kl:.2f} nats)"


def _matrices(traced: Traced) -> Iterator[str]:
    last = traced.results[-1]
    names = sorted({matrix.path.rpartition(".")[2] for matrix in last.matrices})
    if not names:
        return
    yield f"Updates at step {last.step}, mean over blocks:"
    yield f"  {'':<18} {'||dW||':>8} {'/ ||W||':>9} {'effective rank':>14} {'stable rank':>11}  most in block"
    for name in names[:_MOST_MODULES]:
        chosen = [matrix for matrix in last.matrices if matrix.path.rpartition(".")[2] == name]
        most = max(chosen, key=lambda matrix: matrix.norm)
        block = block_number(most.path)
        yield (
            f"  {shorten(name, 18):<18} {_mean([one.norm for one in chosen]):>8} "
            f"{_mean([one.relative for one in chosen], 4):>9} {_mean([one.effective_rank for one in chosen]):>14} "
            f"{_mean([one.stable_rank for one in chosen]):>11}  {'' if block is None else block}"
        )
    if len(names) > _MOST_MODULES:
        yield f"  and {len(names) - _MOST_MODULES} more kinds of matrices, in matrices.csv"


def _mean(values: Sequence[float | None], digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.{digits}f}" if known else "-"

"""Which settings ``mlxft tune`` tries, and which of them it keeps: pure arithmetic over what child processes reported.

The settings are tried in stages, each beside the best so far. In a round every candidate that is left trains the same
few steps once, and so does the best so far, each in a process of its own; the next round goes the other way round.
Step by step the times are divided, best so far over candidate, and

    a candidate wins if in each of ``ROUNDS`` rounds the median of these ratios is above 1, and that of all of them
    above 1 + noise; noise is three times the median by which a step, of either of the two, differs from its own median
    over the rounds, and at least ``LEAST_GAIN``.

Of several that win the fastest is kept; where none does, the default stays. One that is more than ``HOPELESS`` slower
in its first round is not run again. A median is not moved by a process that was held up once; where other programs
come in between half of the time, the noise is so large that nothing wins. Of 100 candidates that are no faster at most
four win, however busy the machine (simulated, ``tests/hardware/test_tune.py``).

Safe is what ends well, within the memory limit, with the losses of the default: equal but for rounding. Dropout and
NEFTune, which are drawn anew for another microbatch, are switched off meanwhile. Deliberately not tried: anything that
changes what is learned (rows of a step, learning rate, packing).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from mlx_finetune.hardware.tuned import KEYS, Tried, TunedSettings, Value, Verdict, shown_value
from mlx_finetune.units import format_bytes

ROUNDS = 3
LEAST_GAIN = 0.02
HOPELESS = 0.05
_NOISE_FACTOR = 3
BUFFERS = (10, 25, 100, 200)  # commands, and MB, after which mlx hands a buffer to the GPU; its own are 40 to 50
MOST_AT_ONCE = 32  # rows of a microbatch that are tried
#: Relative difference of a loss that is rounding: sums in another order, and the 16-bit types (STYLE section 7).
ROUNDING_FLOAT32, ROUNDING_16_BIT = 1e-3, 2e-2

STAGES_GPU = ("compute_dtype", "batch_size", "buffers", "gradient_checkpointing")
STAGES_CPU = ("num_threads", "batch_size", "gradient_checkpointing")


@dataclass(frozen=True, slots=True)
class Case:
    """What is tuned: the settings of the best so far, and what limits the choice.

    ``batch_size * accumulation`` rows (or packs) are in a step, ``microbatch`` go through the model at once. ``fixed``
    are the settings (``tuned.KEYS``) that the recipe decides itself.
    """

    on_gpu: bool
    is_full: bool
    num_cores: int
    compute_dtype: str
    batch_size: int
    accumulation: int
    microbatch: int
    gradient_checkpointing: bool
    num_threads: str | int
    fixed: frozenset[str] = frozenset()

    def value(self, name: str) -> Value | None:
        """What the setting ``name`` of ``TunedSettings`` is by default; None where only mlx knows."""
        known: Mapping[str, Value] = {
            "compute_dtype": self.compute_dtype,
            "batch_size": self.microbatch,
            "gradient_checkpointing": self.gradient_checkpointing,
            "num_threads": self.num_threads,
        }
        return known.get(name)

    def with_settings(self, settings: TunedSettings) -> "Case":
        """The case once ``settings`` are kept."""
        return replace(
            self,
            compute_dtype=settings.compute_dtype or self.compute_dtype,
            microbatch=settings.batch_size or self.microbatch,
            num_threads=settings.num_threads or self.num_threads,
            gradient_checkpointing=(
                self.gradient_checkpointing
                if settings.gradient_checkpointing is None
                else settings.gradient_checkpointing
            ),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One process that came to its end: seconds and losses of its steps, in one order in all runs of a session.

    ``losses`` has those of the warm-up as well.
    """

    seconds: tuple[float, ...]
    losses: tuple[float, ...]
    peak_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """One process that did not: a result as well. ``message`` is a sentence."""

    verdict: Verdict
    message: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate beside the best so far. ``gain`` is the median ratio, ``noise`` what it must exceed 1 by."""

    gain: float
    noise: float
    rounds: int
    is_faster: bool


Result = Run | Failure


def stages(case: Case) -> tuple[str, ...]:
    """What is tried, in this order; what promises most comes first, because the time may be up."""
    return STAGES_GPU if case.on_gpu else STAGES_CPU


def candidates(stage: str, case: Case) -> tuple[TunedSettings, ...]:
    """The settings of one stage that are tried beside the best so far; none that the recipe decides itself."""
    if stage == "buffers":
        found = [TunedSettings(max_ops_per_buffer=size, max_mb_per_buffer=size) for size in BUFFERS]
        found += [TunedSettings(max_ops_per_buffer=BUFFERS[-1]), TunedSettings(max_mb_per_buffer=BUFFERS[-1])]
    elif stage == "compute_dtype":
        other = {"bfloat16": "float16", "float16": "bfloat16"}.get(case.compute_dtype)
        found = [TunedSettings(compute_dtype=other)] if other and not case.is_full else []
    elif stage == "num_threads":
        counts = sorted({1, case.num_cores // 2, case.num_cores} - {0, case.num_threads})
        found = [TunedSettings(num_threads=count) for count in counts]
    elif stage == "batch_size":
        found = [TunedSettings(batch_size=size) for size in _other_sizes(case)]
    else:
        found = _recomputation(case)
    return tuple(one for one in found if not case.fixed & one.values().keys())


def _other_sizes(case: Case) -> list[int]:
    """A quarter, half, twice and four times the microbatch, as far as a step has so many rows."""
    now, most = case.microbatch, max(case.microbatch, min(case.batch_size * case.accumulation, MOST_AT_ONCE))
    sizes = {max(1, now // 4), max(1, now // 2), min(2 * now, most), min(4 * now, most)}
    return sorted(sizes - {now})


def _recomputation(case: Case) -> list[TunedSettings]:
    """With it where there is none; without it, and with fewer rows at once, where memory asked for it."""
    if not case.gradient_checkpointing:
        return [TunedSettings(gradient_checkpointing=True)]
    fewer = sorted({max(1, case.microbatch // 4), max(1, case.microbatch // 2)} - {case.microbatch})
    return [TunedSettings(gradient_checkpointing=False, batch_size=size) for size in fewer]


def compare(best: Sequence[Run], candidate: Sequence[Run]) -> Comparison:
    """``candidate`` beside the ``best`` so far, round by round; at least one round of each."""
    pairs = [
        [before / after for before, after in zip(one.seconds, other.seconds, strict=True)]
        for one, other in zip(best, candidate, strict=True)
    ]
    gain = median(ratio for ratios in pairs for ratio in ratios)
    noise = max(LEAST_GAIN, noise_of(best, candidate))
    is_always_faster = all(median(ratios) > 1 for ratios in pairs)
    return Comparison(gain, noise, len(pairs), len(pairs) >= ROUNDS and is_always_faster and gain > 1 + noise)


def noise_of(*groups: Sequence[Run]) -> float:
    """Three times the median by which a step differs from its median over the runs of its group, as a share of that.

    0 for one run of each.
    """
    misses: list[float] = []
    for runs in groups:
        typical = [median(seconds) for seconds in zip(*(run.seconds for run in runs), strict=True)]
        misses += [abs(one / usual - 1) for run in runs for one, usual in zip(run.seconds, typical, strict=True)]
    return _NOISE_FACTOR * median(misses)


def is_open(case: Case, settings: TunedSettings, best: Sequence[Run | None], results: Sequence[Result | None]) -> bool:
    """True where another round may tell more of ``settings``: they are safe so far, and not hopelessly slower."""
    return _settle_one(case, settings, best, results).verdict in ("kept", "tie", "unsure")


def why_unsafe(run: Run, best: Run, *, is_16_bit: bool) -> str:
    """Why ``run`` must not be kept, in words; "" where it may. ``best`` took the same steps with the best so far."""
    if run.peak_bytes > run.limit_bytes:
        return f"{format_bytes(run.peak_bytes)} of memory, and the limit is {format_bytes(run.limit_bytes)}"
    bound = ROUNDING_16_BIT if is_16_bit else ROUNDING_FLOAT32
    for number, (loss, other) in enumerate(zip(run.losses, best.losses, strict=True), start=1):
        if not math.isfinite(loss):
            return f"the loss of step {number} is not finite"
        if abs(loss - other) > bound * max(1.0, abs(other)):
            return f"the loss of step {number} is {loss:.4f} instead of {other:.4f}: more than rounding"
    return ""


def settle(
    case: Case,
    best: Sequence[Run | None],
    results: Mapping[TunedSettings, Sequence[Result | None]],
) -> tuple[list[Tried], TunedSettings | None]:
    """What became of the candidates of one stage, in their order, and the one to keep, None for the best so far.

    ``best`` and each candidate's ``results`` have an entry a round; None where it was not run or came to nothing.
    """
    tried = [_settle_one(case, settings, best, found) for settings, found in results.items()]
    winners = [one for one in tried if one.verdict == "kept"]
    if not winners:
        return tried, None
    fastest = max(winners, key=lambda one: one.gain or 0.0)
    kept = next(settings for settings, one in zip(results, tried, strict=True) if one is fastest)
    return [replace(one, verdict="beaten") if one in winners and one is not fastest else one for one in tried], kept


def _settle_one(
    case: Case, settings: TunedSettings, best: Sequence[Run | None], results: Sequence[Result | None]
) -> Tried:
    """One candidate; of several winners all are still "kept"."""
    asked = {KEYS[name]: value for name, value in settings.values().items()}
    instead = {KEYS[name]: shown_value(case.value(name)) for name in settings.values()}
    runs = [(one, found) for one, found in zip(best, results, strict=False) if one and isinstance(found, Run)]
    tried = Tried(asked, instead, "unsure", len(runs), message="there was no time for it")
    failure = next((one for one in results if isinstance(one, Failure)), None)
    if failure is not None:
        return replace(tried, verdict=failure.verdict, message=failure.message)
    if not runs:
        return tried
    ours, theirs = [one for one, _ in runs], [other for _, other in runs]
    is_16_bit = "float32" not in (case.compute_dtype, settings.compute_dtype)
    reasons = [why_unsafe(other, one, is_16_bit=is_16_bit) for one, other in runs]
    found = compare(ours, theirs)
    tried = replace(tried, gain=found.gain, noise=found.noise, message="")
    if any(reasons):
        return replace(tried, verdict="unsafe", message=next(filter(None, reasons)))
    if found.is_faster:
        return replace(tried, verdict="kept")
    least = 1 - (found.noise if found.rounds >= ROUNDS else HOPELESS)
    if found.gain < least:
        return replace(tried, verdict="slower")
    if found.rounds < ROUNDS:
        return replace(tried, message=f"there was no time for more than {found.rounds} of {ROUNDS} rounds")
    return replace(tried, verdict="tie")

"""The measuring process of a plan: ``python -m mlx_finetune.train.measure --recipe PATH --budget SECONDS``.

It leaves nothing behind. It prepares the run as training does and takes real steps on its real batches: the shortest
to warm up, the longest, because that is the peak memory, then typical ones, until the time allowed is used up. What it
found is the last line of its stdout, after the events of loading, one JSON object each; errors go to stderr as
``error:`` and ``hint:`` lines.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import psutil

from mlx_finetune.hardware.busy import Others
from mlx_finetune.hardware.planning.measured import Measured, ShapeCount, Timed
from mlx_finetune.hardware.sampling.energy import PowerMeter, open_monitor
from mlx_finetune.recipe.grpo import scorers_in
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.talking import answer, arguments_of, prepared_run, tell

if TYPE_CHECKING:  # imports mlx, which must see the BLAS loaded first
    from mlx_finetune.dataset.stream import Batch
    from mlx_finetune.train.start.prepare import Prepared

LEAST_SECONDS = 4.0  # of timed steps, so that a machine with other programs shows how it is in the mean
MAX_TIMED = 400
MAX_SEEN = 200  # steps whose microbatches are looked at for the largest
TRIES = 4  # of the largest: whether both threads of a CPU reach their peaks together is chance
NUM_FIRST = 4  # shapes timed before the validation set and an answer are
#: Of the positions of the run's microbatches, in this order.
QUANTILES = (0.5, 0.5, 0.9, 1.0, 0.2, 0.5, 0.75, 0.35, 0.6, 0.95)
ANSWER_TOKENS = 6
VALID_SHARE = 0.15  # of the budget at most for the validation set
NUM_DRAWN = 3  # times that answers are drawn to be timed
NUM_SCORED, SCORED_SECONDS = 16, 3.0  # answers that are scored of one length, and about how long that may take

Shape = tuple[int, int]


@dataclass(slots=True)
class Clock:
    """Times from the start of this process; ``time`` and ``began`` are arguments for the tests."""

    began: float
    budget: float
    time: Callable[[], float] = time.time

    @property
    def elapsed(self) -> float:
        """Seconds since the process was started, imports included."""
        return self.time() - self.began

    def allows(self, seconds: float) -> bool:
        """True where ``seconds`` more of work are done within the budget."""
        return self.elapsed + seconds <= self.budget


def measure_run(prepared: "Prepared", clock: Clock) -> Measured:
    """Take real steps with ``prepared`` until what the forecast needs is known or the time is used up.

    The weights are changed by it. ``clock`` runs since the process was started.
    """
    import mlx.core as mx

    startup, load_peak = clock.elapsed, mx.get_peak_memory()
    busy = Others()
    power = PowerMeter(open_monitor())
    shapes = count_run(prepared)
    order = choose_shapes(shapes)
    frozen = _Frozen(prepared)
    steps = _Steps(prepared, clock, frozen)
    is_complete = steps.time(order[:NUM_FIRST])
    has_longest = is_complete or len(steps.timed) > 1
    validation = _time_validation(prepared, clock, frozen) if has_longest else []
    answer_seconds = _time_answer(prepared) if has_longest else None
    score_seconds = _time_scores(prepared) if has_longest else None
    drawing_seconds = _time_drawing(prepared) if has_longest else None
    is_complete = is_complete and steps.time(order[NUM_FIRST:])
    while is_complete and len(steps.timed) < MAX_TIMED and steps.seconds < LEAST_SECONDS:
        is_complete = steps.time(order[NUM_FIRST:])
    return Measured(
        startup_seconds=startup,
        load_peak_bytes=load_peak,
        peak_bytes=mx.get_peak_memory(),
        process_bytes=_process_bytes(),
        microbatches=tuple(steps.timed),
        update_seconds=min(steps.updates),
        validation=tuple(validation),
        answer_seconds=answer_seconds,
        shapes=shapes,
        valid_shapes=_counted(Counter(batch_shape(batch) for batch in prepared.valid_batches)),
        total_steps=prepared.total_steps,
        others_share=busy.share(),
        own_share=busy.own_share(),
        watts=power.watts(),
        seconds=clock.elapsed,
        is_cut_short=not is_complete,
        pass_seconds=frozen.pass_seconds,
        has_longest=has_longest,
        score_seconds=score_seconds,
        drawing_seconds=drawing_seconds,
    )


def batch_shape(batch: "Batch") -> Shape:
    """``(B, T)``."""
    return batch.tokens.shape[0], batch.tokens.shape[1] - 1


def locate_shapes(prepared: "Prepared") -> Mapping[Shape, tuple[int, int]]:
    """Every shape of the first epoch of the run -> a step, and a microbatch in it, that has this shape."""
    steps = prepared.stream.shapes(0)[: prepared.total_steps]
    found: dict[Shape, tuple[int, int]] = {}
    for step, shapes in enumerate(steps):
        for part, shape in enumerate(shapes):
            found.setdefault(shape, (step, part))
    return found


def count_run(prepared: "Prepared") -> tuple[ShapeCount, ...]:
    """How often each shape comes in the whole run; epochs after the second count as the second does."""
    stream, left = prepared.stream, prepared.total_steps
    counts: Counter[Shape] = Counter()
    epoch = 0
    while left > 0:
        steps = stream.shapes(min(epoch, 1))
        of_epoch = Counter(shape for shapes in steps[:left] for shape in shapes)
        times = max(1, left // len(steps)) if epoch == 1 else 1
        counts.update({shape: count * times for shape, count in of_epoch.items()})
        left -= len(steps[:left]) * times
        epoch = 1 if epoch == 0 else 2
    return _counted(counts)


def _counted(counts: Counter[Shape]) -> tuple[ShapeCount, ...]:
    return tuple(ShapeCount(rows, length, count) for (rows, length), count in sorted(counts.items()))


def choose_shapes(shapes: Sequence[ShapeCount]) -> Sequence[Shape]:
    """The shapes to time, in order: the shortest to warm up, the longest, then ``QUANTILES`` of the microbatches."""
    ordered = sorted(shapes, key=lambda one: (one.rows * one.length, one.length))
    total = sum(one.count for one in shapes)

    def at(share: float) -> ShapeCount:
        passed = 0
        for one in ordered:
            passed += one.count
            if passed >= share * total:
                return one
        return ordered[-1]

    chosen = [ordered[0], ordered[-1], *(at(share) for share in QUANTILES)]
    return [(one.rows, one.length) for one in chosen]


class _Steps:
    """Microbatches and updates with their times."""

    def __init__(self, prepared: "Prepared", clock: Clock, frozen: "_Frozen") -> None:
        self.timed: list[Timed] = []
        self.updates: list[float] = []
        self._prepared = prepared
        self._clock = clock
        self._frozen = frozen
        self._located = locate_shapes(prepared)
        self._seen: set[Shape] = set()

    @property
    def seconds(self) -> float:
        """What the timed steps took."""
        return sum(one.seconds for one in self.timed) + sum(self.updates)

    def time(self, shapes: Sequence[Shape]) -> bool:
        """Time a microbatch of each shape; False where the time was up before that.

        The first is timed in any case; the second, the longest, unless not even as short a one as the first fits in.
        """
        for shape in shapes:
            if shape not in self._located:  # a shape that only later epochs have
                continue
            if self.timed and not self._clock.allows(self._least(shape)):
                return False
            self._take(shape)
        return True

    def _least(self, shape: Shape) -> float:
        """Seconds that ``shape`` will take, by those before; what the first took, cold as it was, tells no more."""
        if len(self.timed) == 1:
            return self.timed[0].seconds
        positions = shape[0] * shape[1]
        return max(one.seconds * positions / (one.rows * one.length) for one in self.timed[-3:])

    def _take(self, shape: Shape) -> None:
        """One real microbatch forward and backward, and an update."""
        prepared = self._prepared
        step, part = self._located[shape]
        batches = prepared.stream.microbatches(step)
        batch = self._frozen.known(batches[part])
        if len(self.timed) == 1:
            self._take_largest()
        began = time.perf_counter()
        gradients, _ = prepared.trainer.compute([batch], step)
        between = time.perf_counter()
        prepared.trainer.apply(gradients, learning_rate=prepared.schedule(step), step=step)
        self.updates.append(time.perf_counter() - between)
        self.timed.append(Timed(*shape, seconds=between - began, is_first=shape not in self._seen))
        self._seen.add(shape)

    def _take_largest(self) -> None:
        """The microbatch with most tokens of those before which most gradients are held, with these held.

        Packs have one shape, but on a CPU their padding is cut off.
        """
        prepared = self._prepared
        if not prepared.stream.is_packed and prepared.recipe.training.gradient_accumulation_steps == 1:
            return  # the longest shape, which is timed next
        found = [
            (part > 0, batch.num_tokens, step, part)
            for step in range(min(prepared.total_steps, MAX_SEEN))
            for part, batch in enumerate(prepared.stream.microbatches(step))
        ]
        *_, step, part = max(found)
        batches = [self._frozen.known(batch) for batch in prepared.stream.microbatches(step)]
        shortest = min(batches, key=lambda batch: batch.num_tokens)
        began = self._clock.elapsed
        for _ in range(TRIES):
            prepared.trainer.compute([*[shortest] * min(part, 2), batches[part]], step)
            if not self._clock.allows(5 * (self._clock.elapsed - began)):
                break
        self._seen |= {batch_shape(batches[part]), batch_shape(shortest)}


class _Frozen:
    """The states that batches of the run will have, where these are kept, and what computing them takes."""

    def __init__(self, prepared: "Prepared") -> None:
        self._trainer, self._kept = prepared.trainer, prepared.kept
        self._seconds, self._positions = 0.0, 0

    def known(self, batch: "Batch") -> "Batch":
        """``batch`` with states; those of packs as if each were one row, which takes as long."""
        if self._kept is None:
            return batch
        began = time.perf_counter()
        states = self._trainer.entering([batch, batch])[0]  # as before step 1: two at once
        self._seconds += time.perf_counter() - began
        self._positions += 2 * batch.num_positions
        return replace(batch, entering=states)

    @property
    def pass_seconds(self) -> float:
        """For all rows, before step 1; they are grouped by length, so without padding."""
        return self._seconds * self._kept.num_positions / self._positions if self._kept and self._positions else 0.0


def _time_validation(prepared: "Prepared", clock: Clock, frozen: _Frozen) -> list[Timed]:
    """The longest batch of the validation set, for the memory, and typical ones as long as little time has gone."""
    batches = sorted(prepared.valid_batches, key=lambda one: one.num_positions)
    chosen = [batches[-1], batches[len(batches) // 2], batches[0]] if batches else []
    timed: list[Timed] = []
    for batch in chosen:
        spent = sum(one.seconds for one in timed)
        if timed and (spent > VALID_SHARE * clock.budget or not clock.allows(spent)):
            break
        batch = frozen.known(batch)
        began = time.perf_counter()
        prepared.trainer.loss(batch)
        timed.append(Timed(*batch_shape(batch), seconds=time.perf_counter() - began, is_first=not timed))
    return timed


def _time_answer(prepared: "Prepared") -> float | None:
    """Seconds for one token of an answer, reading the prompt spread over ``max_new_tokens``; None without prompts."""
    recipe = prepared.recipe
    prompts = recipe.eval.prompts
    if not prompts:
        return None
    from mlx_finetune.dataset.template import render_prompt
    from mlx_finetune.hardware.blas import single_threaded
    from mlx_finetune.model.answers.generate import Sampling, generate_tokens

    longest = max(prompts, key=len)
    ids = render_prompt([{"role": "user", "content": longest}], prepared.tokenizer, recipe.data)
    sampling = Sampling(max_tokens=min(ANSWER_TOKENS, recipe.eval.max_new_tokens), seed=recipe.seed)
    prepared.model.eval()
    began = time.perf_counter()
    first = 0.0
    count = 0
    with single_threaded():
        for _ in generate_tokens(prepared.model, prepared.tokenizer, ids, sampling):
            first = first or time.perf_counter() - began
            count += 1
    each = (time.perf_counter() - began - first) / (count - 1) if count > 1 else first
    return each + first / recipe.eval.max_new_tokens


def _time_drawing(prepared: "Prepared") -> tuple[float, float] | None:
    """Seconds of the first tokens of as many answers as grow together, and of each later token of all of them.

    The answers are to the first problems, as a step draws them but for their length. None where nothing is drawn.
    """
    if prepared.objective.live is None:
        return None
    from mlx_finetune.train.objectives.grpo.answers import Policy

    grpo, training = prepared.recipe.grpo, prepared.recipe.training
    problems = int(training.batch_size) * training.gradient_accumulation_steps
    policy = Policy(prepared.model, prepared.tokenizer, grpo)
    rows = [prepared.rows[number % len(prepared.rows)] for number in range(problems)]
    prompts = [policy.problem(row).prompt for row in rows for _ in range(grpo.group_size)][: policy.at_once]

    def timed(num_tokens: int) -> tuple[float, int]:
        policy.settings = grpo.model_copy(update={"max_tokens": num_tokens})
        began = time.perf_counter()
        said = policy.draw(prompts, range(len(prompts)))
        return time.perf_counter() - began, max(len(one.ids) for one in said)

    timed(1)  # cold
    first = median(timed(1)[0] for _ in range(NUM_DRAWN))
    drawn = [timed(min(ANSWER_TOKENS, grpo.max_tokens)) for _ in range(NUM_DRAWN)]
    return first, max(0.0, median((seconds - first) / max(1, longest - 1) for seconds, longest in drawn))


def _time_scores(prepared: "Prepared") -> tuple[float, float] | None:
    """Seconds in which all runs that rewards name score one answer, of a word and of the longest; None without any.

    The longest is made of words of the rows.
    """
    ask, grpo, rows = prepared.score, prepared.recipe.grpo, prepared.rows
    if ask is None:
        return None
    places = [rows.where(number) for number in range(min(NUM_SCORED, len(rows)))]
    words = np.resize(np.concatenate([rows[number].ids for number in range(len(places))]), grpo.max_tokens)
    longest = prepared.tokenizer.decode(words.tolist(), skip_special_tokens=True)

    def timed(answer: str, count: int) -> float:
        began = time.perf_counter()
        for reward in scorers_in(grpo.rewards):
            ask(reward, [(place, answer) for place in places[:count]])
        return (time.perf_counter() - began) / count

    first = timed(longest, 1)  # cold: what it takes tells how many more there is time for
    count = max(1, min(len(places), int(SCORED_SECONDS / max(first, 1e-6))))
    short, long = timed("1", count), timed(longest, count)
    return short, max(short, long)


def _process_bytes() -> int:
    """The largest resident size so far."""
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    parser = arguments_of("mlx_finetune.train.measure")
    parser.add_argument("--budget", type=float, required=True)
    given = parser.parse_args(arguments)
    clock = Clock(psutil.Process().create_time(), given.budget)
    return answer(lambda: {"measured": _measure(given.recipe, given.overrides, clock).to_json()})


def _measure(path: Path, overrides: Sequence[str], clock: Clock) -> Measured:
    with prepared_run(load_recipe(path, overrides), StopRequest(), tell) as prepared:
        return measure_run(prepared, clock)


if __name__ == "__main__":
    sys.exit(main())

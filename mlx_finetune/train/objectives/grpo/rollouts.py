"""Answers of the model as it is now, with their rewards, as the batches of a step and of an evaluation.

A step takes the problems that its stream gives it and draws ``group_size`` answers to each. What comes out is a
function of (seed, step, weights) alone, so a resumed run draws what the uninterrupted one drew, and nothing of it is
saved. Where several updates learn from the same answers, those between the first and the last have other weights than
the answers were drawn by: a checkpoint there holds the answers. Groups whose rewards are all equal teach nothing: their
answers are left out and counted.

Cost: most of a step is often drawing, one forward pass for each token of the longest of some answers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.stream import Batch, length_step, make_batch, round_up
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.model.answers.sampling import seed_of
from mlx_finetune.model.inside.segments import learned_positions
from mlx_finetune.train.objective import Live, Living, Objective
from mlx_finetune.train.objectives.grpo.answers import Policy, Rollout
from mlx_finetune.train.objectives.grpo.problems import Problem
from mlx_finetune.train.objectives.grpo.values import (
    ADVANTAGE,
    DROPPED,
    MISSED,
    NUM_ANSWERS,
    NUM_VALUES,
    REWARD,
    TOKENS,
    advantages,
)


def live_batches(living: Living, log_probs: Objective | None) -> Live:
    """The steps and the evaluation batches of a run that learns from its own answers.

    ``log_probs`` gives (B, N) log-probabilities of answers, where more than one update learns from them.
    """
    policy = Policy(living.model, living.tokenizer, living.recipe.grpo, living.score)
    rollouts = Rollouts(policy, living, log_probs)
    return Live(rollouts, Evaluations(policy, living), rollouts.kept, rollouts.restore)


#: An answer that is learned, with the number of its problem.
_Drawn = tuple[int, Tokens]


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Answers by rank; the first step that learns from them is 0-based."""

    first_step: int
    shares: tuple[Sequence[_Drawn], ...]

    def share(self, rank: int, size: int) -> Sequence[_Drawn]:
        """Those of ``rank``; dealt out again where there are other ranks than when they were drawn."""
        if len(self.shares) == size:
            return self.shares[rank]
        return [drawn for share in self.shares for drawn in share][rank::size]


class Rollouts:
    """The problems of each step with answers drawn by the weights of the moment (``dataset.ahead.Steps``)."""

    #: What a step holds depends on the weights after the step before it.
    can_read_ahead = False

    def __init__(self, policy: Policy, living: Living, log_probs: Objective | None = None) -> None:
        """``log_probs`` as in ``live_batches``; it may be None where there is one update."""
        self._policy = policy
        self._stream = living.stream
        self._updates = policy.settings.updates
        self._log_probs, self._row_outputs = log_probs, living.row_outputs
        self._ranks = living.ranks
        self._drawing: _Drawing | None = None
        self._rows = living.stream.all_rows
        self._seed = living.recipe.seed
        self._microbatch = living.microbatch
        longest = int(self._rows.lengths.max()) + policy.settings.max_tokens
        self._shape_step = length_step(longest)
        learned = learned_positions(living.model)
        self._most_positions = round_up(longest, self._shape_step) if learned is None else learned.num_positions

    def rows(self, step: int) -> list[int]:
        """The problems of the step."""
        return self._stream.rows(step // self._updates)

    def progress(self, step: int) -> float:
        """Epochs done after ``step`` steps."""
        drawings, updates = divmod(step, self._updates)
        done = self._stream.progress(drawings)
        return done + updates / self._updates * (self._stream.progress(drawings + 1) - done) if updates else done

    def share(self, step: int, rank: int, size: int) -> list[Batch]:
        """The answers of this rank's problems that teach something, in microbatches; at least one answer."""
        drawn = self._drawn(step, rank, size)
        return [replace(batch, part=rank + size * place) for place, batch in enumerate(self._batches(drawn))]

    def kept(self, step: int) -> Mapping[str, object]:
        """What the step after ``step`` steps learns from, where it does not draw."""
        drawing = self._drawing
        if drawing is None or step - step % self._updates != drawing.first_step or not step % self._updates:
            return {}
        return {"first_step": drawing.first_step, "shares": [_to_json(share) for share in drawing.shares]}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on with what ``kept`` gave."""
        if kept:
            self._drawing = _Drawing(kept["first_step"], tuple(self._from_json(share) for share in kept["shares"]))

    def _drawn(self, step: int, rank: int, size: int) -> Sequence[_Drawn]:
        """What this rank learns from in ``step``: drawn now, or for an update before it."""
        first_step = step - step % self._updates
        drawing = self._drawing
        if drawing is None or drawing.first_step != first_step or self._updates == 1:
            number = step // self._updates
            problems = [row for batch in self._stream.share(number, rank, size) for row in batch.rows]
            own = self.draw(problems, number) if problems else []
            if self._updates == 1:
                return own
            own = self._with_log_probs(own)
            others = self._ranks.gather(_to_json(own)) if size > 1 else []
            shares = tuple(own if place == rank else self._from_json(one) for place, one in enumerate(others))
            self._drawing = drawing = _Drawing(first_step, shares or (own,))
        return drawing.share(rank, size)

    def _with_log_probs(self, drawn: Sequence[_Drawn]) -> list[_Drawn]:
        """Answers with the log-probabilities of their tokens behind their values: max_tokens numbers, 0 where none is.

        They go through the model as in an update, so that the ratio of the first one is 1.
        """
        assert self._log_probs is not None, "several updates compare with them"
        found: list[_Drawn] = []
        for places, batch in self._grouped(drawn):
            alone = replace(batch, rows=tuple(range(len(places))))  # a problem has several answers
            outputs = self._row_outputs(self._log_probs, alone)
            for place, numbers in zip(places, outputs, strict=True):
                row = drawn[place][1]
                found.append((drawn[place][0], replace(row, values=(*row.values, *map(float, numbers)))))
        return found

    def _from_json(self, share: Sequence[Any]) -> list[_Drawn]:
        found: list[_Drawn] = []
        for number, num_prompt, ids, values in share:
            mask = np.arange(len(ids)) >= num_prompt
            row = Tokens(np.array(ids, np.int32), mask, self._rows.where(number), 0, 1.0, tuple(values))
            found.append((number, row))
        return found

    def draw(self, numbers: Sequence[int], step: int) -> list[_Drawn]:
        """The rows that are learned from problems ``numbers``, with the number of each one's problem.

        ``step`` counts drawings.
        """
        settings, size = self._policy.settings, self._policy.settings.group_size
        problems = [self._policy.problem(self._rows[number]) for number in numbers]
        prompts = [problem.prompt for problem in problems for _ in range(size)]
        seeds = [seed_of(self._seed, "rollout", step, number, place) for number in numbers for place in range(size)]
        rollouts = self._policy.draw(prompts, seeds)
        worth = self._policy.rewards([problem for problem in problems for _ in range(size)], rollouts)
        made: list[_Drawn] = []
        spare: _Drawn | None = None
        sums = np.zeros(NUM_VALUES)
        for place, (number, problem) in enumerate(zip(numbers, problems, strict=True)):
            its = slice(place * size, (place + 1) * size)
            group, rewards = rollouts[its], worth[its]
            is_dropped = len(set(rewards)) == 1
            sums += _sums(rewards, group, is_dropped=is_dropped)
            for one, advantage in zip(group, advantages(rewards, divide_by_sd=settings.divide_by_sd), strict=True):
                row = self._tokens(number, problem, one, advantage)
                if not is_dropped:
                    made.append((number, row))
                spare = spare or (number, row)
        assert spare is not None
        made = made or [spare]  # its advantage is 0
        first_number, first = made[0]
        values = np.array(first.values) + sums
        made[0] = first_number, replace(first, values=tuple(values.tolist()))
        return made

    def _tokens(self, number: int, problem: Problem, rollout: Rollout, advantage: float) -> Tokens:
        ids = np.array([*problem.prompt, *rollout.ids], np.int32)
        mask = np.arange(len(ids)) >= len(problem.prompt)
        values = np.zeros(NUM_VALUES)
        values[ADVANTAGE] = advantage
        return Tokens(ids, mask, self._rows.where(number), 0, 1.0, tuple(values.tolist()))

    def _batches(self, drawn: Sequence[_Drawn]) -> Iterator[Batch]:
        return (batch for _, batch in self._grouped(drawn))

    def _grouped(self, drawn: Sequence[_Drawn]) -> Iterator[tuple[list[int], Batch]]:
        """Microbatches by length, each with the places of its answers in ``drawn``."""
        order = sorted(range(len(drawn)), key=lambda place: len(drawn[place][1].ids))
        for start in range(0, len(order), self._microbatch):
            chosen = order[start : start + self._microbatch]
            rows = [drawn[place][1] for place in chosen]
            most = max(len(row.ids) for row in rows) - 1
            length = min(round_up(most, self._shape_step), max(most, self._most_positions))
            group = [[place] for place in range(len(rows))]
            batch = make_batch(rows, group, num_sequences=len(rows), length=length)
            yield chosen, replace(batch, rows=tuple(drawn[place][0] for place in chosen))


def _to_json(share: Sequence[_Drawn]) -> list[object]:
    """Number of the problem, tokens of the prompt, all tokens, values, of each answer; floats to the last bit."""
    return [
        [number, int(np.argmax(row.loss_mask)), cast("list[int]", row.ids.tolist()), list(row.values)]
        for number, row in share
    ]


class Evaluations(Sequence[Batch]):
    """The likeliest answers to the validation problems, as the loss of their batches: the reward that was missed.

    A batch holds no token of the answers: nothing is learned from it, and its numbers are its values.
    """

    def __init__(self, policy: Policy, living: Living) -> None:
        self._policy = policy
        self._rows = living.valid
        size = policy.at_once
        self._groups = [range(start, min(start + size, len(self._rows))) for start in range(0, len(self._rows), size)]

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        """One batch, or a list of batches for a slice; its problems are answered now."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        group = self._groups[index]
        problems = [self._policy.problem(self._rows[number]) for number in group]
        answers = self._policy.answer([problem.prompt for problem in problems])
        rewards = self._policy.rewards(problems, answers)
        values = _sums(rewards, answers, is_dropped=None)
        values[MISSED] = len(rewards) * self._policy.best - sum(rewards)
        row = Tokens(np.zeros(9, np.int32), np.arange(9) > 7, "", 0, 1.0, tuple(values.tolist()))
        return replace(make_batch([row], [[0]], num_sequences=1, length=8), rows=tuple(group))


def _sums(rewards: Sequence[float], group: Sequence[Rollout], *, is_dropped: bool | None) -> NDArray[np.float64]:
    """``is_dropped`` is None of answers that are in no group."""
    sums = np.zeros(NUM_VALUES)
    sums[NUM_ANSWERS] = len(rewards)
    sums[REWARD] = sum(rewards)
    sums[DROPPED] = math.nan if is_dropped is None else len(rewards) * is_dropped
    sums[TOKENS] = sum(len(one.ids) for one in group)
    return sums

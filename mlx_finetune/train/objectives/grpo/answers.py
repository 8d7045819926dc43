"""What answers: the model that is being trained, as it is at the moment; and what its answers are worth.

Rewards by rules are those of ``scoring.rewards``; those of ``verifier:RUN`` and ``reward:RUN`` are asked of
who loaded the run. Answers grow together, some at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_finetune.dataset.tokens import Tokenizer, Tokens
from mlx_finetune.errors import ModelError
from mlx_finetune.hardware.blas import single_threaded
from mlx_finetune.hardware.planning.answering import CPU_AT_ONCE, GPU_AT_ONCE
from mlx_finetune.model.answers.batches import BatchDecoder, Request, check_batchable
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.recipe.grpo import GrpoRecipe, scorers_in
from mlx_finetune.scoring.json_schema import Validator, read_schema
from mlx_finetune.scoring.rewards import Rewards
from mlx_finetune.train.objective import Score
from mlx_finetune.train.objectives.grpo.problems import Problem, problem_of


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer: its tokens, the end mark included, its text, and its log-probability where that was asked for."""

    ids: tuple[int, ...]
    text: str
    logprob: float


class Policy:
    """What answers: the model that is being trained, as it is at the moment."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, settings: GrpoRecipe, score: Score | None = None
    ) -> None:
        """``score`` asks the runs that rewards name. Raises ``DataError`` for a schema that cannot be used."""
        schema = None if settings.schema is None else Validator(read_schema(Path(settings.schema)))
        weights = settings.reward_weights or (1.0,) * len(settings.rewards)
        self.settings = settings
        pairs = list(zip(settings.rewards, weights, strict=True))
        named = scorers_in(settings.rewards)
        self._scored = [pair for pair in pairs if pair[0] in named]
        self._score = score
        rules = [pair for pair in pairs if pair not in self._scored]
        #: What rules say.
        self.reward = Rewards([name for name, _ in rules], [weight for _, weight in rules], schema)
        #: The most that an answer can be rewarded; a reward model has no largest score, and counts 0.
        self.best = sum(weight for name, weight in pairs if weight > 0 and not name.startswith("reward:"))
        self._model, self._tokenizer = model, tokenizer
        #: Answers that grow together.
        self.at_once = _answers_at_once(model)

    def problem(self, row: Tokens) -> Problem:
        """The question of a row of sft and its last answer."""
        return problem_of(row, self._tokenizer)

    def rewards(self, problems: Sequence[Problem], answers: Sequence[Rollout]) -> list[float]:
        """What each answer to each problem is worth, by rules and by runs. Raises as ``Rewards`` does."""
        pairs = list(zip(problems, answers, strict=True))
        totals = [self.reward(problem.reference, answer.text) for problem, answer in pairs]
        for name, weight in self._scored:
            assert self._score is not None, "whoever names a run loads it"
            scores = self._score(name, [(problem.where, answer.text) for problem, answer in pairs])
            totals = [total + weight * score for total, score in zip(totals, scores, strict=True)]
        return totals

    def draw(self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int]) -> list[Rollout]:
        """An answer to each prompt at the temperature of the recipe, drawn by its seed."""
        settings = self.settings
        return self.say(
            [
                Request(prompt, _sampling(settings.temperature, settings.max_tokens, seed))
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
        )

    def answer(self, prompts: Sequence[tuple[int, ...]]) -> list[Rollout]:
        """The likeliest answer to each prompt."""
        sampling = _sampling(0.0, self.settings.max_tokens, 0)
        return self.say([Request(prompt, sampling) for prompt in prompts])

    def say(self, requests: Sequence[Request]) -> list[Rollout]:
        """The answers to ``requests``, in their order."""
        self._model.eval()
        growing = [_Growing() for _ in requests]
        waiting = list(range(len(requests)))[::-1]
        places: dict[int, int] = {}
        repeats = len({tuple(request.prompt_ids) for request in requests}) < len(requests)
        with single_threaded():
            decoder = BatchDecoder(self._model, self._tokenizer, max_rows=self.at_once, repeats=repeats)
            while waiting or places:
                while waiting and len(places) < self.at_once:
                    place = waiting.pop()
                    places[decoder.add(requests[place])] = place
                for number, piece in decoder.step():
                    if piece.error is not None:
                        raise piece.error
                    growing[places[number]].add(piece.token_id, piece.text, piece.logprob)
                    if piece.finish is not None:
                        del places[number]
        return [one.rollout() for one in growing]


class _Growing:
    """An answer as its tokens come."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._logprob = 0.0

    def add(self, token_id: int | None, text: str, logprob: float | None) -> None:
        if token_id is not None:
            self._ids.append(token_id)
        self._texts.append(text)
        self._logprob += logprob or 0.0

    def rollout(self) -> Rollout:
        return Rollout(tuple(self._ids), "".join(self._texts), self._logprob)


def _sampling(temperature: float, max_tokens: int, seed: int) -> Sampling:
    """The model's whole distribution: nothing is filtered out of it."""
    return Sampling(temperature=temperature, top_p=1.0, top_k=0, max_tokens=max_tokens, seed=seed)


def _answers_at_once(model: nn.Module) -> int:
    try:
        check_batchable(model)
    except ModelError:
        return 1
    return CPU_AT_ONCE if mx.default_device().type == mx.DeviceType.cpu else GPU_AT_ONCE

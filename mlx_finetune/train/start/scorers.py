"""The runs whose scores are rewards of grpo: found before anything is loaded, loaded once, asked with problems as text.

The rows of a run are tokens of its own model; who scores reads the problem in its own template. So the rows are read
once more, and their turns are kept by file and line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_finetune.dataset.conversation import prompt_and_reference
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.corrections import as_at_start, find_corrections
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.errors import DataError
from mlx_finetune.events import Phase
from mlx_finetune.hardware.blas import single_threaded
from mlx_finetune.hardware.planning.answering import scorer_bytes
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.model.files.config import read_config
from mlx_finetune.model.heads.scorer import Scorer, ScorerRun, find_scorers
from mlx_finetune.model.load import on_gpu
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.train.start.rows import Emit, TrainingRows


class Scores:
    """Scores of answers by what a reward is called (``train.objective.Score``)."""

    def __init__(self, scorers: Mapping[str, Scorer], prompts: Mapping[str, Sequence[Message]]) -> None:
        """``prompts`` are the turns before the answer, by ``file:line``."""
        self._scorers, self._prompts = scorers, prompts

    def __call__(self, reward: str, answers: Sequence[tuple[str, str]]) -> list[float]:
        """The score of each ``(file:line, answer)``; equal answers to a problem have equal scores to the last bit."""
        distinct = list(dict.fromkeys(answers))
        with single_threaded():
            scores = self._scorers[reward].scores([(self._prompts[where], answer) for where, answer in distinct])
        found = dict(zip(distinct, scores, strict=True))
        return [found[one] for one in answers]


def scorers_of(recipe: Recipe, base: Path, report: Emit) -> tuple[ScorerRun, ...]:
    """Those that ``recipe`` needs. Raises ``RunError`` or ``ModelError``."""
    return find_scorers(recipe.grpo.rewards, base=base, report=report) if recipe.task == "grpo" else ()


def with_scorers(facts: Facts, scorers: Sequence[ScorerRun], recipe: Recipe) -> Facts:
    """``facts`` with the memory that the scorers hold."""
    asked, is_gpu = recipe.hardware.compute_dtype, on_gpu()
    held = [scorer_bytes(read_config(one.local.folder), one.recipe, asked, on_gpu=is_gpu) for one in scorers]
    return replace(facts, scorer_bytes=sum(held))


def hash_all(scorers: Sequence[ScorerRun]) -> str:
    """The identity of all, "" without one."""
    return " ".join(one.hash() for one in scorers)


def load_scores(
    scorers: Sequence[ScorerRun], resolved: Recipe, rows: TrainingRows, base: Path, emit: Emit
) -> Scores | None:
    """Every scorer ready, None without one. Raises ``DataError`` for a problem that one of them cannot read."""
    if not scorers:
        return None
    loaded: dict[str, Scorer] = {}
    for one in scorers:
        emit(Phase("load", detail=one.reward))
        loaded[one.reward] = one.load(compute_dtype=resolved.hardware.compute_dtype, on_gpu=on_gpu())
    problems = _problems(resolved, rows, base)
    for where, (prompt, reference) in problems.items():
        for reward, scorer in loaded.items():
            try:
                scorer.tokens(prompt, reference)
            except DataError as error:
                raise DataError(f"{where}: {reward} cannot read this problem: {error.message}", error.hint) from None
    return Scores(loaded, {where: prompt for where, (prompt, _) in problems.items()})


def _problems(recipe: Recipe, rows: TrainingRows, base: Path) -> Mapping[str, tuple[Sequence[Message], str]]:
    """The turns before the last answer of each row, and that answer, by ``file:line``."""
    corrections = as_at_start(find_corrections(recipe, base=base), rows.corrections)
    splits = load_splits(recipe.data, base=base, task=recipe.task, corrections=corrections)
    found = {
        f"{example.source}:{example.line}": prompt_and_reference(example)
        for examples in (splits.train, splits.valid)
        for example in examples
    }
    for part in (rows.train, rows.valid):
        places = [part.where(number) for number in range(len(part))]
        if len(set(places)) < len(places):
            twice = next(one for number, one in enumerate(places) if one in places[:number])
            raise DataError(
                f"{twice}: the chat template makes several problems of this conversation, which nobody else can read",
                "give each answer a row of its own, with the turns before it",
            )
    return found

"""A finished verifier or reward run that scores answers: what ``verifier:RUN`` and ``reward:RUN`` are worth.

An answer is scored as the run was trained: prompt and answer as text, in the run's own template and tokens, the score
where the run learned to score. So a policy may have another tokenizer and another template than who judges it. One
forward pass over each answer: SmolLM2-135M scores about 40 short answers a second on two x86 cores.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune import durable, rundir
from mlx_finetune.dataset.scored import AnswerRows
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.errors import DataError, ModelError, RunError
from mlx_finetune.model.adapters.base import fetch_recorded
from mlx_finetune.model.adapters.folder import hash_adapter
from mlx_finetune.model.heads.token_scores import ScoringModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel, Report, fetch_model
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.model.trained import attach_trained, tokenizer_folder
from mlx_finetune.recipe.grpo import SCORERS, scorers_in
from mlx_finetune.recipe.load import recorded_recipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

_NAME_A_SCORER = 'name a finished run of task = "verifier" or "reward": verifier:RUN, reward:RUN'


@dataclass(frozen=True, slots=True)
class ScorerRun:
    """A run that scores, found and not loaded. ``reward`` names it in the recipe, ``folder`` has what was trained."""

    reward: str
    run: RunDir
    recipe: Recipe
    local: LocalModel
    folder: Path
    started_in: Path

    @property
    def kind(self) -> str:
        """verifier or reward."""
        return self.recipe.task

    def hash(self) -> str:
        """SHA-256 of everything that its scores depend on."""
        tokenizer = load_tokenizer(self._tokenizer_folder)
        head = self.folder / rundir.HEAD_WEIGHTS
        parts = [
            self.kind,
            self.local.sha256,
            hash_adapter(self.folder),
            durable.hash_file(head) if head.is_file() else "",
            tokenizer.settings_hash,
            self.recipe.data.model_dump_json(include={"prompt_template", "template_arguments", "max_seq_length"}),
            str(self.recipe.quantize),
        ]
        return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()

    @property
    def _tokenizer_folder(self) -> Path:
        return tokenizer_folder(self.folder, self.local.folder)

    def load(self, *, compute_dtype: str, on_gpu: bool) -> "Scorer":
        """The run's model with its score head. Raises ``ModelError`` for what is damaged."""
        is_adapter = self.recipe.lora is not None
        quantize = self.recipe.quantize if is_adapter else None
        loaded = load_model(self.local, quantize=quantize, compute_dtype=compute_dtype, on_gpu=on_gpu)
        _, head = attach_trained(loaded.model, self.folder, is_adapter=is_adapter)
        if head is None or head.num_outputs != 1:
            raise ModelError(f"{self.reward}: {self.folder} holds no score of one number", _NAME_A_SCORER)
        tokenizer = load_tokenizer(self._tokenizer_folder)
        rows = AnswerRows(tokenizer, self.recipe.data, task=self.kind, base=self.started_in)
        return Scorer(self, ScoringModel(loaded.model), rows)


class Scorer:
    """Scores answers to prompts. ``run`` is where it comes from."""

    def __init__(self, run: ScorerRun, model: ScoringModel, rows: AnswerRows) -> None:
        self.run = run
        self._model, self._rows = model, rows

    def tokens(self, prompt: Sequence[Message], answer: str) -> NDArray[np.int32]:
        """The answer behind its prompt as the run was trained on such. Raises ``DataError`` where that cannot be."""
        return self._rows.ids([dict(turn) for turn in prompt], answer)

    def scores(self, answers: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """For each prompt and answer the probability that it is right (verifier, 0 to 1), or its reward.

        What the template cannot hold, as a control marker in the answer, is worth the least: 0, of a reward the lowest
        of the others, at most 0.
        """
        places: list[int] = []
        rows: list[NDArray[np.int32]] = []
        for place, (prompt, answer) in enumerate(answers):
            try:
                rows.append(self.tokens(prompt, answer))
            except DataError:
                continue
            places.append(place)
        found = [float(one) for one in self._model.last(rows)[:, 0]] if rows else []
        if self.run.kind == "verifier":
            found = [_sigmoid(one) for one in found]
        least = 0.0 if self.run.kind == "verifier" else min([0.0, *found])
        by_place = dict(zip(places, found, strict=True))
        return [by_place.get(place, least) for place in range(len(answers))]


def find_scorers(rewards: Sequence[str], *, base: Path, report: Report) -> tuple[ScorerRun, ...]:
    """The runs that ``grpo.rewards`` names, each once. Raises ``RunError`` or ``ModelError`` for one that cannot."""
    return tuple(_find(reward, base, report) for reward in dict.fromkeys(scorers_in(rewards)))


def _find(reward: str, base: Path, report: Report) -> ScorerRun:
    kind, _, name = reward.partition(":")
    try:
        run = rundir.find_run(name, base=base)
        facts = durable.read_object(run.file(rundir.RUN_INFO))
        recipe = recorded_recipe(facts, str(run.path))
    except RunError as error:
        raise RunError(f"grpo.rewards names {reward}: {error.message}", error.hint) from None
    if recipe.task != kind:
        other = f"write {recipe.task}:{name}" if recipe.task in SCORERS else _NAME_A_SCORER
        raise RunError(f"grpo.rewards names {reward}, but {run.path} is a run of task {recipe.task!r}", other)
    if facts.get("status") != "finished":
        raise RunError(
            f"grpo.rewards names {reward}, which has not finished: its weights would change",
            f"finish it first: mlxft runs show {run.name}",
        )
    is_adapter = recipe.lora is not None
    folder = run.path if is_adapter else run.path / rundir.MODEL_FOLDER
    if not (folder / (rundir.ADAPTER_CONFIG if is_adapter else "config.json")).is_file():
        raise RunError(f"grpo.rewards names {reward}, but {folder} holds no weights", _NAME_A_SCORER)
    started_in = Path(str(facts.get("started_in", run.path)))
    return ScorerRun(reward, run, recipe, _model(reward, facts, folder, report), folder, started_in)


def _model(reward: str, facts: Mapping[str, object], folder: Path, report: Report) -> LocalModel:
    """The base of an adapter as it was then, or the fully trained model."""
    if (folder / "config.json").is_file():
        return fetch_model(str(folder), report=report)
    local = fetch_recorded(facts, str(facts.get("model")), reward, report)
    if facts.get("model_sha256", local.sha256) != local.sha256:
        raise ModelError(f"{local.folder} is not the model that {reward} was trained on", "put back the model's files")
    return local


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))

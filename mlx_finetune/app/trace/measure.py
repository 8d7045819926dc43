"""Goes through the checkpoints of a run in order: reload and check, ask the probes, compare states, measure updates.

Everything about a step is kept before the next one begins (``journal``). Beside the model there are the states of the
base and of the step before: 64 probes, 12 tokens each (SmolLM2-135M: 53 MB for each of the two).
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune import durable, rundir
from mlx_finetune.app.eval.subject import Subject, open_subject
from mlx_finetune.app.open import Report, base_model, fetch_base, open_name, start_model
from mlx_finetune.app.trace.asking import Reply, States, ask
from mlx_finetune.app.trace.journal import (
    Matrix,
    Reload,
    Sample,
    StepResult,
    key_of,
    read_result,
    remove_others,
    write_result,
)
from mlx_finetune.app.trace.layers import Lens, Reference, describe_layers
from mlx_finetune.app.trace.probes import Probe, Probes
from mlx_finetune.app.updates.geometry import Update, effective_rank, stable_rank
from mlx_finetune.app.updates.series import SavedCheckpoint, Series
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.errors import RunError
from mlx_finetune.events import Notice, Phase
from mlx_finetune.hardware.blas import single_threaded
from mlx_finetune.model.adapters.folder import adapter_folder, hash_adapter
from mlx_finetune.model.adapters.layers import dense_weight
from mlx_finetune.model.adapters.lora import adapter_layers
from mlx_finetune.model.answers.generate import generate_text
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.inside.states import final_norm
from mlx_finetune.model.reload_check import KEY, ReloadCheck, loss_of
from mlx_finetune.model.trained import attach_trained
from mlx_finetune.train.losses import chunk_rows

STEPS = "steps"  # in the trace folder
MOST_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """``has_svd``: singular values of large matrices that have no factors, too."""

    answer_tokens: int
    has_svd: bool


class Tracer:
    """One trace: the run's checkpoints, the probes, and the models that answer them."""

    def __init__(self, series: Series, subject: Subject, probes: Probes, settings: Settings, report: Report) -> None:
        self.series = series
        self.probes = probes
        self._subject = subject
        self._settings = settings
        self._report = report
        self._prompts = _prompts(subject, probes)
        self._base: Reference | None = None
        self._last: tuple[int, Reference] | None = None
        self._norms: dict[str, float] = {}
        self._begun_with: nn.Module | None = None
        self._has_lens = True
        self._start = _start_of(subject) if series[0].step != 0 else None

    @property
    def folder(self) -> Path:
        """Where everything is kept."""
        return self.series.run.file(rundir.TRACE)

    def results(self) -> Iterator[StepResult]:
        """The results in order, from the folder where they are kept. The first is that of the base or step 0."""
        previous: SavedCheckpoint | None = None
        steps = [0, *(checkpoint.step for checkpoint in self.series)]
        if self.series[0].step != 0:
            yield self._kept(0, None, None, lambda: self._base_result())
        for checkpoint in self.series:
            before = previous
            yield self._kept(
                checkpoint.step, checkpoint, before, lambda one=checkpoint, other=before: self._result(one, other)
            )
            previous = checkpoint
        remove_others(self.folder / STEPS, steps)

    def _kept(
        self,
        step: int,
        checkpoint: SavedCheckpoint | None,
        previous: SavedCheckpoint | None,
        make: Callable[[], StepResult],
    ) -> StepResult:
        key = key_of(
            self._beginning
            | {
                "checkpoint": _hash(checkpoint),
                "previous": _hash(previous),
                "model": self._subject.opened.info.sha256 if self.series.kind != "full" else "",
                "tokenizer": self._subject.opened.tokenizer.settings_hash,
                "probes": self.probes.sha256,
                "prompts": [prompt for prompt, _ in self._prompts],
                "settings": [self._settings.answer_tokens, self._settings.has_svd and self.series.kind != "lora"],
            }
        )
        kept = read_result(self.folder / STEPS, step, key)
        if kept is not None:
            return kept
        result = make()
        write_result(self.folder / STEPS, result, key)
        return result

    @cached_property
    def _beginning(self) -> dict[str, object]:
        """Hash of what the run began with, where no checkpoint and not the model at hand has that."""
        if self._start is not None:
            return {"beginning": hash_adapter(self._start)}
        if self.series.kind != "full" or self.series[0].step == 0:
            return {}
        return {"beginning": fetch_base(self._subject.opened.located, self._report).sha256}

    def _base_result(self) -> StepResult:
        """Step 0 of a run that kept no checkpoint of it: the base, or the adapter that it began with."""
        opened, start = self._subject.opened, self._start
        base = None if start is None else self._base_reference()
        with self._first_model() if start is None else start_model(opened, start) as model:
            split = SplitModel(model)
            replies, states = self._asked(split, 0)
            base = self._base = base or Reference(states)
            norm = self._norm(split)
            lens = None if norm is None else Lens(split, norm)
            layers = describe_layers(states, base, None, lens, None if lens is None else _reader(lens, base))
            samples = self._samples(model, 0)
        return StepResult(0, False, None, None, Reload(None, None), tuple(replies), tuple(layers), tuple(samples), ())

    def _result(self, checkpoint: SavedCheckpoint, previous: SavedCheckpoint | None) -> StepResult:
        step = checkpoint.step
        base = self._base_reference()
        before = None if previous is None else self._reference_at(previous)
        model = self._model_at(checkpoint)
        reload = self._reload(model, checkpoint)
        split = SplitModel(model)
        replies, states = self._asked(split, step)
        norm = self._norm(split)
        lens = None if norm is None else Lens(split, norm)
        read_base = None if lens is None else self._base_reader(base)
        layers = describe_layers(states, base, before, lens, read_base)
        samples = self._samples(model, step)
        self._last = (step, Reference(states))
        matrices = [self._matrix(path, checkpoint.update(path, has_svd=self._settings.has_svd or None))
                    for path in checkpoint.paths]  # fmt: skip
        return StepResult(
            step=step,
            is_checkpoint=True,
            loss=checkpoint.loss,
            valid_loss=checkpoint.valid_loss,
            reload=reload,
            replies=tuple(replies),
            layers=tuple(layers),
            samples=tuple(samples),
            matrices=tuple(matrices),
        )

    @contextmanager
    def _first_model(self) -> Generator[nn.Module]:
        """The model before training: the base, or of a run that trained every weight and kept step 0, that."""
        first = self.series[0]
        if self.series.kind == "full" and first.step == 0:
            self._begun_with = self._begun_with or self._model_at(first)
            yield self._begun_with
            return
        with base_model(self._subject.opened) as model:
            yield model

    def _model_at(self, checkpoint: SavedCheckpoint) -> nn.Module:
        """The model with the weights of ``checkpoint``, from its files."""
        opened = self._subject.opened
        if self.series.kind == "full":
            return open_name(str(checkpoint.folder), base=Path.cwd(), report=lambda _: None).model
        attach_trained(opened.model, checkpoint.folder, is_adapter=True)
        return opened.model

    def _reload(self, model: nn.Module, checkpoint: SavedCheckpoint) -> Reload:
        check = ReloadCheck.from_json(checkpoint.saved.state.get(KEY))
        if check is None:
            return Reload(None, None)
        with single_threaded():  # as the training computed it
            return Reload(check.loss, loss_of(model, check, chunk_rows))

    def _asked(self, split: SplitModel, step: int, *, only_states: bool = False) -> tuple[list[Reply], States]:
        probes = self.probes.probes

        def tell(done: int) -> None:
            self._report(Phase("trace", detail=f"step {step}", done=done, total=len(probes), unit="probes"))

        return ask(split, probes, tell, only_states=only_states)

    def _base_reference(self) -> Reference:
        """The states of the model before training; asked once."""
        if self._base is None:
            with self._first_model() as model:
                self._base = Reference(self._asked(SplitModel(model), 0, only_states=True)[1])
        return self._base

    def _reference_at(self, checkpoint: SavedCheckpoint) -> Reference:
        """The states of an earlier checkpoint: those of the step before are still there, others are asked again."""
        if self._last is not None and self._last[0] == checkpoint.step:
            return self._last[1]
        return Reference(self._asked(SplitModel(self._model_at(checkpoint)), checkpoint.step, only_states=True)[1])

    def _norm(self, split: SplitModel) -> nn.Module | None:
        norm = final_norm(split)
        if norm is None and self._has_lens:
            self._has_lens = False
            self._report(Notice("warning", "no final norm was found in this model: there is no logit lens"))
        return norm

    def _base_reader(self, base: Reference) -> Callable[[int], NDArray[np.float32]] | None:
        """The base's own norm and head. An adapter touches neither; a fully trained model has others."""
        if self.series.kind == "full":
            with self._first_model() as model:
                split = SplitModel(model)
        else:
            split = SplitModel(self._subject.opened.model)
        norm = final_norm(split)
        return None if norm is None else _reader(Lens(split, norm), base)

    def _samples(self, model: nn.Module, step: int) -> list[Sample]:
        sampling = Sampling(
            temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0,
            max_tokens=self._settings.answer_tokens, seed=0,
        )  # fmt: skip
        found: list[Sample] = []
        for number, (prompt, ids) in enumerate(self._prompts):
            self._report(Phase("answer", detail=f"step {step}", done=number, total=len(self._prompts), unit="prompts"))
            found.append(Sample(prompt, generate_text(model, self._subject.opened.tokenizer, ids, sampling)))
        return found

    def _matrix(self, path: str, update: Update) -> Matrix:
        parts = update.parts
        values = () if parts is None else tuple(float(value) for value in parts[1])
        base = self._base_norm(path)
        return Matrix(
            path=path,
            norm=update.norm,
            relative=update.norm / base if base else None,
            effective_rank=None if parts is None else effective_rank(values),
            stable_rank=None if parts is None else stable_rank(values),
            values=values,
        )

    def _base_norm(self, path: str) -> float:
        """``||W||_F`` of the base; computed once for each matrix."""
        if path not in self._norms:
            self._norms[path] = float(np.linalg.norm(self.base_weight(path).astype(np.float64)))
        return self._norms[path]

    def base_weight(self, path: str) -> NDArray[np.float32]:
        """The weight before training, (out, in), from the model that is loaded already."""
        if self.series.kind == "full":
            return self.series.base_weight(path)
        return np.array(dense_weight(adapter_layers(self._subject.opened.model)[path].linear))


def open_traced(series: Series, report: Report) -> Subject:
    """The model of the newest checkpoint with the run's recipe. Raises ``RunError``, ``ModelError``."""
    subject = open_subject(str(series[-1].folder), base=Path.cwd(), report=report)
    if subject.task == "seq2seq":
        raise RunError(
            "encoder-decoder models (task = seq2seq) cannot be traced: probes, lens and reload check are those of a "
            "model that predicts the next token",
            "load_series() of Python gives their updates",
        )
    if subject.recipe is not None and subject.recipe.scratch is not None and series[0].step != 0:
        raise RunError(
            "a model that began with random weights has no base to be compared with, and step 0 was not kept",
            "keep it in the next run: training.save_at = [0, 0.25, 0.5, 0.75, 1.0]",
        )
    return subject


def _start_of(subject: Subject) -> Path | None:
    """The adapter that a run began with; None where it began with the base. Raises ``RunError`` where it is gone."""
    if subject.recipe is None or not subject.recipe.adapter:
        return None
    try:
        return adapter_folder(subject.recipe.adapter, subject.folder)
    except RunError as error:
        raise RunError(
            f"what this run began with cannot be asked, and step 0 was not kept: {error.message}",
            "keep it in the next run: training.save_at = [0, 0.25, 0.5, 0.75, 1.0]",
        ) from None


def _reader(lens: Lens, reference: Reference) -> Callable[[int], NDArray[np.float32]]:
    return lambda number: lens.read(reference.last[number])


def _hash(checkpoint: SavedCheckpoint | None) -> str:
    """Of the manifest, which has the hash of every file."""
    return "" if checkpoint is None else durable.hash_file(checkpoint.folder / rundir.MANIFEST)


def _prompts(subject: Subject, probes: Probes) -> list[tuple[str, list[int]]]:
    """What is answered freely at every step: the recipe's prompts, else a probe of each category."""
    texts: Sequence[str] = subject.recipe.eval.prompts if subject.recipe else ()
    if not texts:
        firsts: dict[str, Probe] = {}
        for probe in probes.probes:
            firsts.setdefault(probe.category, probe)
        texts = [probe.question for probe in firsts.values() if probe.answers[0]]
    system = [{"role": "system", "content": subject.opened.chat.system}] if subject.opened.chat.system else []
    return [
        (text, render_prompt([*system, {"role": "user", "content": text}], subject.opened.tokenizer, subject.data))
        for text in list(texts)[:MOST_PROMPTS]
    ]

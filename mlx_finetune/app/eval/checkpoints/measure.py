"""Every point measured, and the run's prompts answered by it; each result is written as soon as it is known.

The losses of a text are known when all its windows are read, so an interruption costs at most one point.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from mlx_finetune import rundir
from mlx_finetune.app.eval.checkpoints.points import Point
from mlx_finetune.app.eval.checkpoints.setup import Course
from mlx_finetune.app.eval.journal import Journal, Measured
from mlx_finetune.app.eval.measure import Progress
from mlx_finetune.app.eval.texts import text_losses
from mlx_finetune.app.generate import answer, prompt_ids, question, sampling_of
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import MlxftError, Problem
from mlx_finetune.model.cpu.second_core import SecondCore
from mlx_finetune.model.likelihoods import LikelihoodModel, Losses, Scored
from mlx_finetune.train.losses import chunk_rows

LOSSES, SAMPLE = "losses", "sample"
Show = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt as it was answered at one point."""

    step: int
    prompt: str
    answer: str


class Measuring:
    """Fills the journal of one course."""

    def __init__(self, course: Course, journal: Journal, show: Show, report: Callable[[Problem, str], None]) -> None:
        """``report`` is told of what fails, with what was asked."""
        self._course, self._journal = course, journal
        self._show, self._report = show, report
        self._second = SecondCore()
        self._trained = trained_samples(course)

    def run(self) -> None:
        """Do what is left to do, point by point. What is there when a ``KeyboardInterrupt`` comes is in the journal."""
        with self._second:
            for point in self._course.points:
                rows, prompts = self._left(point)
                if rows or prompts:
                    self._do(point, rows, prompts)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return not any(rows or prompts for rows, prompts in map(self._left, self._course.points))

    def samples(self) -> list[Sample]:
        """The answers there are, by point and prompt: those of the training where it gave them."""
        kept = self._journal.answers(frozenset(map(_number, self._course.prompts)), SAMPLE)
        found: list[Sample] = []
        for point in self._course.points:
            for prompt in self._course.prompts:
                text = self._trained.get((point.step, prompt), kept.get((point.key, _number(prompt))))
                if text is not None:
                    found.append(Sample(point.step, prompt, text))
        return found

    def _left(self, point: Point) -> tuple[list[int], list[str]]:
        """Rows and prompts of a point that are still to be done."""
        rows = [n for n in range(len(self._course.chosen.rows)) if (LOSSES, point.key, n) not in self._journal]
        return rows, [prompt for prompt in self._course.prompts if not self._is_answered(point, prompt)]

    def _is_answered(self, point: Point, prompt: str) -> bool:
        is_known = (point.step, prompt) in self._trained
        return is_known or (SAMPLE, point.key, _number(prompt)) in self._journal

    def _do(self, point: Point, rows: Sequence[int], prompts: Sequence[str]) -> None:
        """A function, so that no name keeps the model of one point while that of the next is loaded."""
        with self._course.weights.at(point) as model:
            self._measure(model, point, rows, prompts)

    def _measure(self, model: nn.Module, point: Point, rows: Sequence[int], prompts: Sequence[str]) -> None:
        if rows:
            found = self._text(model, point) if self._course.reading else self._answers(model, point)
            for measured in found:
                if measured.key not in self._journal:
                    self._journal.add(measured)
        for done, prompt in enumerate(prompts):
            self._show(Progress(f"{point.name}, answers", done, len(prompts)))
            self._journal.add(self._sampled(model, point, prompt))

    def _text(self, model: nn.Module, point: Point) -> Iterator[Measured]:
        """The losses of every text; all are known at once."""
        course, reading = self._course, self._course.reading
        assert reading is not None
        parts = [row.part for row in course.chosen.rows]
        likelihoods = LikelihoodModel(model, chunk_rows, self._second)

        def step(done: int) -> None:
            self._show(Progress(f"{point.name}, texts", done, reading.num_windows))

        step(0)
        losses = text_losses(likelihoods, course.tokenizer, parts, reading.window, step)
        for row, one in enumerate(losses):
            yield self._summed(point, row, one.losses, one.num_bytes)

    def _answers(self, model: nn.Module, point: Point) -> Iterator[Measured]:
        """The losses of the answers, as they were trained."""
        course = self._course
        kept: dict[int, list[Tokens]] = {}
        for number, row in enumerate(course.chosen.rows):
            try:
                kept[number] = course.prompter.trained(row.example)
            except MlxftError as error:
                yield self._failed(point, number, error.message)
        pieces = [piece for tokens in kept.values() for piece in tokens]
        scored = [Scored(piece.ids, np.flatnonzero(piece.loss_mask)) for piece in pieces]

        def step(done: int) -> None:
            self._show(Progress(f"{point.name}, rows", done, len(scored)))

        step(0)
        losses = iter(LikelihoodModel(model, chunk_rows, self._second).losses(scored, step))
        for number, tokens in kept.items():
            own = np.concatenate([next(losses) for _ in tokens])
            texts = [
                course.tokenizer.decode(one.ids[one.loss_mask].tolist(), skip_special_tokens=True) for one in tokens
            ]
            yield self._summed(point, number, own, sum(len(text.encode("utf-8")) for text in texts))

    def _summed(self, point: Point, row: int, losses: Losses, num_bytes: int) -> Measured:
        nats = float(losses.sum(dtype=np.float64))
        if not np.isfinite(nats):
            return self._failed(point, row, "the loss is not a finite number")
        counts = {"loss": len(losses), "bits_per_byte": num_bytes}
        return Measured(LOSSES, point.key, row, {name: (nats, float(n)) for name, n in counts.items() if n})

    def _sampled(self, model: nn.Module, point: Point, prompt: str) -> Measured:
        """A prompt answered as the training does (``train.samples``)."""
        course, recipe, number = self._course, self._course.recipe, _number(prompt)
        chat = recipe.chat.model_copy(update={"max_tokens": recipe.eval.max_new_tokens})
        try:
            ids = prompt_ids(question(prompt, chat), course.tokenizer, recipe.data)
            reply = answer(model, course.tokenizer, ids, sampling_of(chat, recipe.seed))
        except MlxftError as error:
            self._report(Problem(point.name, error.message), prompt)
            return Measured(SAMPLE, point.key, number, {}, error=error.message, prompt=prompt)
        return Measured(
            SAMPLE, point.key, number, {}, reply.text, reply.finish, reply.prompt_tokens, reply.answer_tokens
        )

    def _failed(self, point: Point, row: int, why: str) -> Measured:
        one = self._course.chosen.rows[row]
        self._report(Problem(one.where, f"{why} ({point.name})"), one.question)
        return Measured(LOSSES, point.key, row, {}, error=why)


def _number(prompt: str) -> int:
    """Under which answers to ``prompt`` are kept: another time other prompts may be asked."""
    return int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:6], "big")


def trained_samples(course: Course) -> Mapping[tuple[int, str], str]:
    """What the training itself answered, by step and prompt: samples.jsonl, of a repeated step the last line."""
    found: dict[tuple[int, str], str] = {}
    try:
        lines = course.run.file(rundir.SAMPLES).read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            fields = json.loads(line)
            found[int(fields["step"]), str(fields["prompt"])] = str(fields["answer"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found

"""The work of an evaluation: every row on every side, a few rows at a time, each result written as soon as it is known.

Sides take turns every few rows, so that what is there after an interruption is paired. A row that fails is written down
with its reason, and the others go on. What the journal has already is not measured again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.app.eval import knowledge, measures
from mlx_finetune.app.eval.answers import Answer, answer_all
from mlx_finetune.app.eval.journal import Journal, Measured
from mlx_finetune.app.eval.preferences import preference_rows, preference_values
from mlx_finetune.app.eval.prompts import Continuation
from mlx_finetune.app.eval.references import best_values
from mlx_finetune.app.eval.score import AnswerScorer, Values, json_values, label_values
from mlx_finetune.app.eval.scored import own_side, predicted, scored_example, scored_text
from mlx_finetune.app.eval.setup import Evaluation
from mlx_finetune.app.eval.subject import Side
from mlx_finetune.app.eval.texts import Part, text_losses
from mlx_finetune.dataset.formats import Example, Preference
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import MlxftError, Problem
from mlx_finetune.model.answers.batches import Request
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.cpu.second_core import SecondCore
from mlx_finetune.model.heads.score import HeadSpec
from mlx_finetune.model.likelihoods import Ids, LikelihoodModel, Losses, Scored, window_of
from mlx_finetune.train.losses import chunk_rows

SPEED_ROWS, SPEED_WARM_UP, SPEED_TOKENS = 8, 1, 64
_LOSS_ROWS, _LABEL_ROWS, _QUESTION_ROWS = 64, 32, 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one kind of work is: ``done`` of ``total`` rows, on all sides together."""

    work: str
    done: int
    total: int


#: Measures some rows on one side.
_Do = Callable[[nn.Module, Side, Sequence[int]], Iterable[Measured]]


class Measuring:
    """Fills the journal of one evaluation."""

    def __init__(
        self,
        evaluation: Evaluation,
        journal: Journal,
        show: Callable[[Progress], None],
        report: Callable[[Problem, str], None],
    ) -> None:
        """``report`` is told of each row that fails, with what was asked."""
        self._evaluation = evaluation
        self._journal = journal
        self._show = show
        self._report = report
        self._tokenizer = evaluation.subject.opened.tokenizer
        self._second = SecondCore()
        self._scorer = AnswerScorer(evaluation.tasks, evaluation.labels, evaluation.validator)

    def run(self) -> None:
        """Do what is left to do. What was measured when a ``KeyboardInterrupt`` comes is in the journal."""
        with self._second:
            self._run()

    def _run(self) -> None:
        evaluation, rows = self._evaluation, range(len(self._evaluation.rows))
        plain = [side for side in evaluation.sides if not side.shots]
        if evaluation.has_work(measures.LOSS):
            self._each(measures.LOSS, plain, rows, _LOSS_ROWS, self._losses)
        if evaluation.has_work(measures.PREFERENCE):
            self._each(measures.PREFERENCE, plain, rows, _LOSS_ROWS, self._preferences)
        if evaluation.has_work(measures.TEXT):
            self._text(measures.TEXT, plain, [row.part for row in evaluation.rows])
        if evaluation.has_work(measures.LABELS):
            self._each(measures.LABELS, evaluation.sides, rows, _LABEL_ROWS, self._label_rows)
        at_once = 4 * evaluation.at_once
        if evaluation.has_work(measures.ANSWER):
            self._each(measures.ANSWER, evaluation.sides, rows, at_once, self._answers)
        if evaluation.has_work(measures.CONSTRAINED):
            self._each(measures.CONSTRAINED, plain, rows, at_once, self._constrained)
        if "general" in evaluation.tasks:
            self._text(measures.GENERAL_TEXT, plain, [Part(text) for text in knowledge.paragraphs()])
            questions = range(len(knowledge.questions()))
            self._each(measures.GENERAL_ANSWER, plain, questions, _QUESTION_ROWS, self._questions)
        if "speed" in evaluation.tasks:
            self._speed(plain)

    def _each(self, work: str, sides: Sequence[Side], rows: Sequence[int], size: int, do: _Do) -> None:
        """``do`` for a few rows on one side, then the same rows on the next."""
        total = len(rows) * len(sides)
        done = sum((work, side.name, row) in self._journal for side in sides for row in rows)
        if work in (measures.ANSWER, measures.CONSTRAINED) and done < total:
            self._warm_up(sides)
        for start in range(0, len(rows), size):
            for side in sides:
                left = [row for row in rows[start : start + size] if (work, side.name, row) not in self._journal]
                if not left:
                    continue
                self._show(Progress(work, done, total))
                with self._evaluation.subject.model(side) as model:
                    for measured in do(model, side, left):
                        self._keep(measured)
                        done += 1
                        self._show(Progress(work, done, total))

    def _keep(self, measured: Measured) -> None:
        """Write down one result, with the place of its row in the data."""
        is_own = measured.work not in measures.OF_GENERAL
        self._journal.add(replace(measured, where=self._evaluation.rows[measured.row].where) if is_own else measured)

    def _warm_up(self, sides: Sequence[Side]) -> None:
        """Two tokens from each side: what is done once, the first time, is no part of an answer's time."""
        request = Request([self._tokenizer.eos_token_id], Sampling(temperature=0.0, max_tokens=2))
        for side in sides:
            with self._evaluation.subject.model(side) as model:
                list(answer_all(model, self._tokenizer, [request], at_once=1))

    # --- likelihoods ---

    def _losses(self, model: nn.Module, side: Side, rows: Sequence[int]) -> Iterator[Measured]:
        """The loss of each row as it was trained, over its targets."""
        kept: list[tuple[int, list[Tokens]]] = []
        for row in rows:
            try:
                kept.append((row, self._evaluation.prompter.trained(self._evaluation.rows[row].example)))
            except MlxftError as error:
                yield self._failure(measures.LOSS, side, row, error.message)
        pieces = [piece for _, tokens in kept for piece in tokens]
        scored = [Scored(piece.ids, np.flatnonzero(piece.loss_mask)) for piece in pieces]
        losses = iter(LikelihoodModel(model, chunk_rows, self._second).losses(scored))
        for row, tokens in kept:
            found = np.concatenate([next(losses) for _ in tokens])
            targets = [piece.ids[piece.loss_mask] for piece in tokens]
            num_bytes = sum(len(self._decoded(ids).encode("utf-8")) for ids in targets)
            yield self._summed(
                measures.LOSS, side, row, {"loss": (found, len(found)), "answer_bits_per_byte": (found, num_bytes)}
            )

    def _preferences(self, model: nn.Module, side: Side, rows: Sequence[int]) -> Iterator[Measured]:
        """What each row of preferences says; the longer answers go through the model with others of their length."""
        kept: list[tuple[int, dict[str, Scored]]] = []
        for row in rows:
            example = self._evaluation.rows[row].example
            assert isinstance(example, Preference), "setup refuses the other kinds"
            try:
                kept.append((row, preference_rows(example, self._evaluation.prompter)))
            except MlxftError as error:
                yield self._failure(measures.PREFERENCE, side, row, error.message)
        for (row, _), values in zip(kept, preference_values(model, [one for _, one in kept], chunk_rows), strict=True):
            if all(np.isfinite(value[0]) for value in values.values()):
                yield Measured(measures.PREFERENCE, side.name, row, values)
            else:
                yield self._failure(measures.PREFERENCE, side, row, "a likelihood is not a finite number")

    def _text(self, work: str, sides: Sequence[Side], texts: Sequence[Part]) -> None:
        """Texts by themselves, longer ones in windows; each has the losses of its own tokens."""
        total = len(texts) * len(sides)
        for number, side in enumerate(sides):
            self._show(Progress(work, number * len(texts), total))
            if all((work, side.name, row) in self._journal for row in range(len(texts))):
                continue
            with self._evaluation.subject.model(side) as model:
                window = window_of(model, self._evaluation.subject.opened.info.context_length)
                likelihoods = LikelihoodModel(model, chunk_rows, self._second)
                found = text_losses(likelihoods, self._tokenizer, texts, window)
            for row, one in enumerate(found):
                front = "" if work == measures.TEXT else "general_"
                scored = (one.losses, len(one.losses))
                values = {f"{front}perplexity": scored, f"{front}bits_per_byte": (one.losses, one.num_bytes)}
                more = {"text_loss": scored} if work == measures.TEXT else {}
                self._keep(self._summed(work, side, row, values | more))
        self._show(Progress(work, total, total))

    def _label_rows(self, model: nn.Module, side: Side, rows: Sequence[int]) -> Iterator[Measured]:
        """The likelihood of every label with its end mark, as the whole answer: the likeliest is the prediction.

        The raw sum, not the mean over tokens: with the end mark the labels are different whole answers, so the sum is
        the probability that the model gives exactly this one; a mean would favour long labels.
        """
        head = self._evaluation.subject.opened.head
        if head is not None and own_side(side, head):
            yield from self._scored_rows(model, side, rows, head)
            return
        labels, kept = self._evaluation.labels, list[tuple[int, list[Scored]]]()
        for row in rows:
            one = self._evaluation.rows[row]
            try:
                made = [self._evaluation.prompter.continuation(one, label, self._shots(side)) for label in labels]
                kept.append((row, [_scored(continuation) for continuation in made]))
            except MlxftError as error:
                yield self._failure(measures.LABELS, side, row, error.message)
        scored = [one for _, made in kept for one in made]
        losses = iter(LikelihoodModel(model, chunk_rows, self._second).losses(scored, together=len(labels)))
        for row, made in kept:
            one = self._evaluation.rows[row]
            sums = [float(next(losses).sum(dtype=np.float64)) for _ in made]
            if not np.isfinite(sums).all():
                yield self._failure(measures.LABELS, side, row, "a likelihood is not a finite number")
                continue
            likeliest = labels[int(np.argmin(sums))]
            values: Values = label_values(labels, one.reference, likeliest, generated=False)
            nats = {f"nats:{label}": (total,) for label, total in zip(labels, sums, strict=True)}
            yield Measured(measures.LABELS, side.name, row, values | nats, answer=likeliest)

    def _scored_rows(self, model: nn.Module, side: Side, rows: Sequence[int], head: HeadSpec) -> Iterator[Measured]:
        """The class that the score head gives each row."""
        labels, kept = self._evaluation.labels, list[tuple[int, list[Ids]]]()
        for row in rows:
            try:
                kept.append((row, self._evaluation.prompter.scored(scored_example(self._evaluation.rows[row]))))
            except MlxftError as error:
                yield self._failure(measures.LABELS, side, row, error.message)
        for (row, _), found in zip(kept, predicted(model, [one for _, one in kept], head, labels), strict=True):
            if found is None:
                yield self._failure(measures.LABELS, side, row, "a score is not a finite number")
                continue
            one, (name, right) = self._evaluation.rows[row], found
            values: Values = {"accuracy": (right,)} if right is not None else {}
            values = values or label_values(labels, one.reference, name, generated=False)
            text = scored_text(one)
            yield Measured(
                measures.LABELS,
                side.name,
                row,
                values,
                answer=name,
                prompt=text,
                reference=one.reference,
            )

    # --- answers ---

    def _answers(self, model: nn.Module, side: Side, rows: Sequence[int]) -> Iterator[Measured]:
        """The answers to the rows' prompts, greedy, with what every task says about them."""

        def values(row: int, answer: Answer) -> Values:
            one = self._evaluation.rows[row]
            return best_values(self._scorer, (one.reference, *one.others), answer.text)

        return self._answered(measures.ANSWER, model, side, rows, values)

    def _constrained(self, model: nn.Module, side: Side, rows: Sequence[int]) -> Iterator[Measured]:
        """The same held to the schema. An answer that its budget cut short is not valid, and never repaired."""

        def values(row: int, answer: Answer) -> Values:
            reference, validator = self._evaluation.rows[row].reference, self._evaluation.validator
            found = json_values(reference, answer.text if answer.finish == "stop" else "", validator)
            return {f"{name}_constrained": value for name, value in found.items()}

        return self._answered(measures.CONSTRAINED, model, side, rows, values, is_constrained=True)

    def _answered(
        self,
        work: str,
        model: nn.Module,
        side: Side,
        rows: Sequence[int],
        values: Callable[[int, Answer], Values],
        *,
        is_constrained: bool = False,
    ) -> Iterator[Measured]:
        def request(row: int) -> Request:
            prompt = self._evaluation.prompter.row_prompt(self._evaluation.rows[row], self._shots(side))
            return self._request(prompt, is_constrained=is_constrained)

        return self._requested(work, model, side, rows, request, values)

    def _requested(
        self,
        work: str,
        model: nn.Module,
        side: Side,
        rows: Sequence[int],
        request: Callable[[int], Request],
        values: Callable[[int, Answer], Values],
    ) -> Iterator[Measured]:
        """What is asked about each row, answered and scored; a row that cannot be asked or answered has failed."""
        asked: list[tuple[int, Request]] = []
        for row in rows:
            try:
                asked.append((row, request(row)))
            except MlxftError as error:
                yield self._failure(work, side, row, error.message)
        at_once = self._evaluation.at_once
        for place, answer in answer_all(model, self._tokenizer, [one for _, one in asked], at_once=at_once):
            row = asked[place][0]
            if answer.error:
                yield self._failure(work, side, row, answer.error)
            else:
                yield _answer(work, side, row, answer, values(row, answer))

    def _questions(self, model: nn.Module, side: Side, rows: Sequence[int]) -> Iterator[Measured]:
        """The general questions, as a user would ask them: without any of the rows' own turns."""
        sampling = Sampling(temperature=0.0, max_tokens=knowledge.ANSWER_TOKENS)

        def request(row: int) -> Request:
            question = knowledge.questions()[row].question
            return Request(self._evaluation.prompter.prompt([{"role": "user", "content": question}]), sampling)

        def values(row: int, answer: Answer) -> Values:
            return {"general_questions": (float(knowledge.questions()[row].is_right(answer.text)),)}

        return self._requested(measures.GENERAL_ANSWER, model, side, rows, request, values)

    def _speed(self, sides: Sequence[Side]) -> None:
        """A few rows, one at a time, base and tuned in turn; the first answer of each warms up and does not count."""
        num_rows = len(self._evaluation.rows)
        step = max(1, num_rows // SPEED_ROWS)
        rows = list(range(0, num_rows, step))[:SPEED_ROWS]
        left = [row for row in rows if any((measures.SPEED, side.name, row) not in self._journal for side in sides)]
        for side in sides if left else ():
            with self._evaluation.subject.model(side) as model:
                list(self._timed(model, side, left[:SPEED_WARM_UP]))
        self._each(measures.SPEED, sides, rows, 1, self._timed)

    def _timed(self, model: nn.Module, side: Side, rows: Sequence[int]) -> Iterator[Measured]:
        for row in rows:
            try:
                request = self._request(self._evaluation.prompter.row_prompt(self._evaluation.rows[row]))
            except MlxftError as error:
                yield self._failure(measures.SPEED, side, row, error.message)
                continue
            limit = min(SPEED_TOKENS, request.sampling.max_tokens)
            request = replace(request, sampling=replace(request.sampling, max_tokens=limit))
            for _, answer in answer_all(model, self._tokenizer, [request], at_once=1):
                yield _answer(measures.SPEED, side, row, answer, {})

    def _request(self, prompt: Sequence[int], *, is_constrained: bool = False) -> Request:
        sampling = Sampling(temperature=0.0, max_tokens=self._evaluation.answer_tokens)
        has_json = "json" in self._evaluation.tasks
        return Request(
            prompt,
            sampling,
            ends_with_object=has_json,
            grammar=self._evaluation.grammar if is_constrained else None,
        )

    def _shots(self, side: Side) -> Sequence[Example]:
        return self._evaluation.chosen.shots if side.shots else ()

    def _summed(self, work: str, side: Side, row: int, losses: dict[str, tuple[Losses, int]]) -> Measured:
        """Sums over counts of a row; a row whose loss is not finite has failed, one without a count has no value."""
        values: Values = {
            name: (float(found.sum(dtype=np.float64)), float(count)) for name, (found, count) in losses.items() if count
        }
        if not all(np.isfinite(total) for total, _ in values.values()):
            return self._failure(work, side, row, "the loss is not a finite number")
        return Measured(work, side.name, row, values)

    def _failure(self, work: str, side: Side, row: int, why: str) -> Measured:
        """A row that could not be measured, which is said at once and kept with its prompt."""
        if work in measures.OF_GENERAL:
            texts = (
                knowledge.paragraphs() if work == measures.GENERAL_TEXT else [q.question for q in knowledge.questions()]
            )
            where, prompt = f"general set, {row + 1}", texts[row]
        else:
            where, prompt = self._evaluation.rows[row].where, self._evaluation.rows[row].question
        self._report(Problem(where, f"{why} ({work}, {side.name})"), prompt)
        return Measured(work, side.name, row, {}, error=why, prompt=prompt)

    def _decoded(self, ids: NDArray[np.int32]) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def _scored(continuation: Continuation) -> Scored:
    end = len(continuation.ids)
    return Scored(continuation.ids, np.arange(end - continuation.num_targets, end))


def _answer(work: str, side: Side, row: int, answer: Answer, values: Values) -> Measured:
    return Measured(
        work,
        side.name,
        row,
        values,
        answer.text,
        answer.finish,
        answer.prompt_tokens,
        answer.answer_tokens,
        round(answer.first_seconds, 6),
        round(answer.seconds, 6),
    )

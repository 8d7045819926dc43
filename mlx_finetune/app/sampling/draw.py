"""k answers to each problem with temperature, and the greedy one; each is checked by a rule as soon as it is whole.

Problems are answered in groups, several answers at once. What is drawn depends on the seed, the prompt and the
number of the answer; not on the other problems, up to the rounding of a batch's products. Prompts are those of
``mlxft eval``: the rows' own turns without their answer. Cost: see ``model.answers.batches``; SmolLM2-135M on two x86
cores says about 77 tokens a second in batches of 8.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.app.eval.answers import answer_all
from mlx_finetune.app.eval.prompts import Prompter, enough_tokens
from mlx_finetune.app.eval.rows import Chosen, EvalRow, choose_rows
from mlx_finetune.app.eval.subject import Subject
from mlx_finetune.app.sampling.folder import FORMAT_VERSION, Sample, SamplesFile
from mlx_finetune.dataset.formats import Messages
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.errors import DataError, MlxftError
from mlx_finetune.model.answers.batches import Request
from mlx_finetune.model.answers.sampling import Sampling, seed_of
from mlx_finetune.scoring.rules import Rule, choose_rule, found, is_right

#: Answers of a group over those at work at once: the last ones of a group leave places empty.
_GROUP = 4


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are drawn. ``max_tokens`` None: twice the longest reference and a few more. ``rule`` None: chosen."""

    k: int
    temperature: float
    top_p: float
    seed: int
    at_once: int
    max_rows: int
    max_tokens: int | None = None
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: answers, of ``total``."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Sampler:
    """One sampling, ready to be done. ``settings`` are everything that decides what is drawn."""

    subject: Subject
    chosen: Chosen
    prompts: tuple[tuple[int, ...], ...]
    drawing: Drawing
    rule: Rule
    max_tokens: int
    settings: Mapping[str, object]

    @property
    def groups(self) -> list[range]:
        """The problems of each group."""
        size = max(1, -(-_GROUP * self.drawing.at_once // (self.drawing.k + 1)))
        count = len(self.chosen.rows)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]


def prepare(subject: Subject, drawing: Drawing, *, given: str, base: Path) -> Sampler:
    """Read the problems of ``given`` and make their prompts. Raises ``DataError`` or ``UsageError``."""
    chosen = choose_rows(
        subject.data,
        base=base,
        training_base=subject.folder,
        given=given,
        max_rows=drawing.max_rows,
        category=None,
        shots=0,
        seed=subject.seed,
    )
    _check_problems(chosen)
    references = [row.reference for row in chosen.rows]
    rule = drawing.rule or choose_rule(references)
    strange = next((row for row in chosen.rows if found(rule, row.reference) is None), None)
    if strange is not None:
        raise DataError(
            f"{strange.where}: the rule `{rule}` finds no answer in the reference {strange.reference[:60]!r}",
            "correct the row, or judge the answers by another rule: --rule text",
        )
    prompter = Prompter(subject.opened.tokenizer, subject.data, task="sft", base=subject.folder)
    prompts = tuple(tuple(prompter.row_prompt(row)) for row in chosen.rows)
    _refuse_repeats(chosen.rows, prompts)
    max_tokens = drawing.max_tokens or enough_tokens(subject.opened.tokenizer, references)
    settings = {
        "format_version": FORMAT_VERSION,
        "name": subject.opened.name,
        **subject.hashes(),
        "data": chosen.source,
        "data_sha256": chosen.sha256,
        "rows_sha256": hashlib.sha256("\n".join(row.key for row in chosen.rows).encode()).hexdigest(),
        "prompts_sha256": hashlib.sha256(repr(prompts).encode()).hexdigest(),
        "num_problems": len(chosen.rows),
        "rule": rule,
        "k": drawing.k,
        "temperature": drawing.temperature,
        "top_p": drawing.top_p,
        "max_tokens": max_tokens,
        "seed": drawing.seed,
        "at_once": drawing.at_once,
    }
    return Sampler(subject, chosen, prompts, drawing, rule, max_tokens, settings)


def draw(sampler: Sampler, file: SamplesFile, show: Callable[[Progress], None]) -> float:
    """Draw what ``file`` does not have yet; the seconds that took. Raises ``MlxftError`` where an answer fails."""
    groups = sampler.groups
    num_whole = file.num_whole([len(group) for group in groups])
    per_problem = sampler.drawing.k + 1
    total, done = len(sampler.chosen.rows) * per_problem, sum(map(len, groups[:num_whole])) * per_problem
    started = time.perf_counter()
    show(Progress(done, total))
    for group in groups[num_whole:]:
        first = done

        def progress(number: int, first: int = first) -> None:
            show(Progress(first + number, total))

        file.add(_draw_group(sampler, group, progress))
        done += len(group) * per_problem
    return time.perf_counter() - started


def _draw_group(sampler: Sampler, group: range, show: Callable[[int], None]) -> list[Sample]:
    wanted = [(problem, number) for problem in group for number in range(sampler.drawing.k + 1)]
    requests = [_request(sampler, problem, number) for problem, number in wanted]
    opened = sampler.subject.opened
    samples: dict[int, Sample] = {}
    for place, answer in answer_all(opened.model, opened.tokenizer, requests, at_once=sampler.drawing.at_once):
        problem, number = wanted[place]
        row = sampler.chosen.rows[problem]
        if answer.error:
            raise MlxftError(f"{row.where}: {answer.error}", "leave the row out, or shorten it")
        samples[place] = Sample(
            problem=problem,
            sample=number,
            where=row.where,
            prompt=shown_prompt(row.prompt),
            reference=row.reference,
            completion=answer.text,
            right=is_right(sampler.rule, row.reference, answer.text),
            found=found(sampler.rule, answer.text),
            finish=answer.finish,
            tokens=answer.answer_tokens,
            logprob=round(answer.logprob, 4),
            temperature=requests[place].sampling.temperature,
        )
        show(len(samples))
    return [samples[place] for place in range(len(wanted))]


def _request(sampler: Sampler, problem: int, number: int) -> Request:
    drawing, prompt = sampler.drawing, sampler.prompts[problem]
    sampling = Sampling(
        temperature=drawing.temperature if number else 0.0,
        top_p=drawing.top_p,
        top_k=0,
        max_tokens=sampler.max_tokens,
        seed=seed_of(drawing.seed, " ".join(map(str, prompt)), number),
    )
    return Request(prompt, sampling, num_logprobs=1)


def shown_prompt(messages: Sequence[Message]) -> str | list[Message]:
    """The question alone, or the turns where there are more than one."""
    if len(messages) == 1 and messages[0].get("role") == "user":
        return str(messages[0]["content"])
    return [dict(message) for message in messages]


def _check_problems(chosen: Chosen) -> None:
    without = next((row for row in chosen.rows if not row.prompt or not row.reference), None)
    if without is not None:
        raise DataError(
            f"{without.where}: the row has no question with an answer",
            "problems are rows with a question and its reference answer",
        )
    tools = next((row for row in chosen.rows if isinstance(row.example, Messages) and row.example.tools), None)
    if tools is not None:
        raise DataError(f"{tools.where}: the row has tools, and sampled answers are rows without them")


def _refuse_repeats(rows: Sequence[EvalRow], prompts: Sequence[tuple[int, ...]]) -> None:
    """The answers to a problem that stands in the data twice would be the same, and count double."""
    seen: dict[tuple[int, ...], EvalRow] = {}
    for row, prompt in zip(rows, prompts, strict=True):
        if prompt in seen:
            raise DataError(f"{row.where} asks the same as {seen[prompt].where}", "leave one of the two out")
        seen[prompt] = row

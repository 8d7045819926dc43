"""Did a training change the voice? Base and tuned answers to the held-out instructions of data/voice, by category.

    python benchmarks/voice_change.py --check                # the classifiers on held-out written rows; no model, 2 s
    python benchmarks/voice_change.py adapters/voice-smollm2 [--rows N] [--tokens 112] [--seed 1] [--at-once 1]

Each instruction is answered by the run and by its base, one after the other in turns, with the run's own [chat]
settings and one seed an instruction. Answers go to a JSON Lines file as they come and are not made again: delete the
file to start anew. What is measured:

* ``voice, words alone``: mean probability of ``voice_style``'s classifier that sees no asides, figures or punctuation;
  ``voice, whole text``: of the one that sees all. First both are checked on held-out written rows: an accuracy that is
  not far above one half would make the rest of the table worthless.
* habits that can be counted, and the share of the answer that is quoted from the training texts, five words at a time;
* ``loss``: nats a token of the written held-out answer, and what the difference is over the rows;
* the length of an answer, its time, and tokens/s of one answer; where several were made at once (the text is the same)
  these are times in company, each longer than alone.

Differences are tuned minus base over the same instructions, with 95 % intervals: of a paired bootstrap, of
shares of answers Newcombe's. They say how certain it is that the sound changed, not that the answers became better.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from voice_style import (
    CATEGORIES,
    DATA,
    Rows,
    View,
    VoiceRow,
    all_runs,
    check,
    copied_share,
    habits,
    read_voice,
    train_classifier,
)

from mlx_finetune.hardware import blas
from mlx_finetune.scoring.intervals import Interval, paired_bootstrap, paired_ratio, wilson

VIEWS: Mapping[View, str] = {"words": "voice, words alone", "whole": "voice, whole text"}
SIDES = ("base", "tuned")
RATES = ("closing aside", "figure", "names the office", "ended by itself")


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer of one side, and the loss of that side on the answer in the data."""

    side: str
    category: str
    instruction: str
    answer: str
    finish: str
    at_once: int
    tokens: int
    seconds: float
    loss_sum: float
    loss_tokens: int


def main() -> None:
    """Read the options, answer what is not answered yet, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", nargs="?", help="a run that was trained on data/voice")
    options.add_argument("--check", action="store_true", help="only the classifiers, on held-out written rows")
    options.add_argument("--data", type=Path, default=DATA, help="folder with the rows")
    options.add_argument("--answers", type=Path, help="default: voice_answers.jsonl in the run's folder")
    options.add_argument("--rows", type=int, default=0, help="instructions of each category; 0 is all")
    options.add_argument("--tokens", type=int, default=112, help="longest answer")
    options.add_argument("--seed", type=int, default=1, help="fixes the draws of the answers")
    options.add_argument("--at-once", type=int, default=1, help="answers that are made together")
    given = options.parse_args()
    rows = read_voice(given.data)
    print_check(rows)
    if given.check:
        return
    if given.run is None:
        options.error("name a run, or give --check")
    path = given.answers or Path(given.run) / "voice_answers.jsonl"
    found = complete(given, held_out(rows, given.rows), path)
    print("\n".join(table(rows, found)))


def held_out(rows: Rows, each: int) -> list[VoiceRow]:
    """The test rows, one of each category in turn, ``each`` of a category (0: all).

    Fewer are the first of more, so they have the same seeds.
    """
    chosen = [[row for row in rows.voice if row.split == "test" and row.category == name] for name in CATEGORIES]
    return [row for turn in zip(*(some[: each or None] for some in chosen), strict=True) for row in turn]


def print_check(rows: Rows) -> None:
    """Accuracy of both classifiers on written rows that they have not seen."""
    for view, name in VIEWS.items():
        result = check(rows, train_classifier(rows, view))
        sure = wilson(result.right, result.total)
        parts = ", ".join(f"{category} {right}/{total}" for category, (right, total) in result.by_category.items())
        print(
            f"{name}: {result.right} of {result.total} held-out written rows right "
            f"({result.right / result.total:.3f}, {sure.low:.3f} to {sure.high:.3f}); voice {result.voice_right}, "
            f"plain {result.plain_right} of {result.num_each}; {parts}"
        )


def complete(given: argparse.Namespace, rows: Sequence[VoiceRow], path: Path) -> list[Answered]:
    """The answers in ``path``, and those that it lacks, appended as they come."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    known = {(one.side, one.instruction): one for one in (Answered(**json.loads(line)) for line in lines)}
    wanted = [(side, row) for row in rows for side in SIDES]
    if any((side, row.instruction) not in known for side, row in wanted):
        ask = asker(given)
        for side in SIDES:
            ask(side, [(0, rows[0])], 4)  # the first touches the weights
        groups = [list(enumerate(rows))[start : start + given.at_once] for start in range(0, len(rows), given.at_once)]
        with path.open("a", encoding="utf-8") as file:
            for number, group in enumerate(groups):
                for side in SIDES if number % 2 else SIDES[::-1]:
                    missing = [(place, row) for place, row in group if (side, row.instruction) not in known]
                    for one in ask(side, missing, given.tokens) if missing else ():
                        known[side, one.instruction] = one
                        file.write(json.dumps(asdict(one)) + "\n")
                    file.flush()
    return [known[side, row.instruction] for side, row in wanted]


def asker(given: argparse.Namespace) -> Callable[[str, Sequence[tuple[int, VoiceRow]], int], list[Answered]]:
    """What answers rows: (side, rows with their numbers, most tokens)."""
    print(blas.prepare().reason)  # before mlx is imported
    from mlx_finetune.app.eval.answers import answer_all
    from mlx_finetune.app.generate import prompt_ids, question, sampling_of
    from mlx_finetune.app.open import base_model, open_name
    from mlx_finetune.dataset.formats import Instruction
    from mlx_finetune.dataset.template import tokenize
    from mlx_finetune.model.answers.batches import Request

    opened = open_name(given.run, base=Path.cwd(), report=lambda _: None)

    def ask(side: str, rows: Sequence[tuple[int, VoiceRow]], most: int) -> list[Answered]:
        examples = [Instruction(row.instruction, "", row.output, "test", place) for place, row in rows]
        written = tokenize(examples, opened.tokenizer, opened.data, task="sft").rows
        ids = [prompt_ids(question(row.instruction, opened.chat), opened.tokenizer, opened.data) for _, row in rows]
        seeds = [given.seed + place for place, _ in rows]
        sampling = [replace(sampling_of(opened.chat, seed), max_tokens=most) for seed in seeds]
        requests = [Request(*pair) for pair in zip(ids, sampling, strict=True)]
        with base_model(opened) if side == "base" else nullcontext(opened.model) as model:
            with blas.single_threaded():  # as chat and generate do
                said = dict(answer_all(model, opened.tokenizer, requests, at_once=given.at_once))
            losses = [loss_of(model, one.ids, one.loss_mask) for one in written]
        return [
            Answered(
                side,
                row.category,
                row.instruction,
                said[index].text,
                said[index].finish,
                given.at_once,
                said[index].answer_tokens,
                said[index].seconds,
                losses[index],
                int(written[index].loss_mask.sum()),
            )
            for index, (_, row) in enumerate(rows)
        ]

    return ask


def loss_of(model: Any, ids: Any, loss_mask: Any) -> float:
    """Sum of ``-log p`` over the targets, in nats."""
    import mlx.core as mx

    logits = model(mx.array(ids[None, :-1]))[0].astype(mx.float32)  # (T, V)
    targets = mx.array(ids[1:])
    losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return float((losses * mx.array(loss_mask[1:])).sum())


def table(rows: Rows, found: Sequence[Answered]) -> list[str]:
    """The lines of a Markdown table for each category and for all."""
    measures = measured(rows, found)
    lines: list[str] = []
    for name in (*CATEGORIES, "all"):
        chosen = [place for place, one in enumerate(found) if name in ("all", one.category)]
        base, tuned = ([place for place in chosen if found[place].side == side] for side in SIDES)
        if not base:
            continue
        at_once = " or ".join(str(one) for one in sorted({found[place].at_once for place in chosen}))
        lines += [
            "",
            f"### {name} ({len(base)} instructions, {at_once} at once)",
            "",
            "| | base | tuned | difference (95 %) |",
        ]
        lines += ["|---|---|---|---|"]
        lines += [_row(measure, np.array(values), base, tuned) for measure, values in measures.items()]
        lines += [_loss_row(found, base, tuned), _speed_row(found, base, tuned)]
    return lines


def measured(rows: Rows, found: Sequence[Answered]) -> dict[str, list[float]]:
    """Measure -> a value for each answer."""
    texts = [one.answer for one in found]
    values: dict[str, list[float]] = {}
    for view, name in VIEWS.items():
        values[name] = train_classifier(rows, view).scores(texts).tolist()
    for name in habits(""):
        values[name] = [habits(text)[name] for text in texts]
    known = all_runs(rows.texts("train")[0])
    values["quoted from training"] = [copied_share(text, known) for text in texts]
    values["ended by itself"] = [float(one.finish == "stop") for one in found]
    values["tokens"] = [float(one.tokens) for one in found]
    values["seconds"] = [one.seconds for one in found]
    return values


def _row(name: str, values: Any, base: Sequence[int], tuned: Sequence[int]) -> str:
    before, after = values[list(base)], values[list(tuned)]
    value, interval = _rate_change(before, after) if name in RATES else _mean_change(before, after)
    sure = f"{interval.low:+.2f} to {interval.high:+.2f}"
    return f"| {name} | {before.mean():.2f} | {after.mean():.2f} | {value:+.2f} ({sure}) |"


def _mean_change(before: Any, after: Any) -> tuple[float, Interval]:
    change = paired_bootstrap(before, after, seed=0)
    return change.value, change.interval


def _rate_change(before: Any, after: Any) -> tuple[float, Interval]:
    """The change of a share of answers; a bootstrap would be sure of one that is the same in every row."""
    from mlx_finetune.app.eval.figures import paired_rates

    pairs = list(zip((before > 0).tolist(), (after > 0).tolist(), strict=True))
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
    return float(after.mean() - before.mean()), paired_rates(*counts)


def _loss_row(found: Sequence[Answered], base: Sequence[int], tuned: Sequence[int]) -> str:
    counts = [found[place].loss_tokens for place in base]
    before, after = ([found[place].loss_sum for place in side] for side in (base, tuned))
    change = paired_ratio(before, after, counts, seed=0)
    means = f"{sum(before) / sum(counts):.3f} | {sum(after) / sum(counts):.3f}"
    sure = f"{change.interval.low:+.3f} to {change.interval.high:+.3f}"
    return f"| loss of the written answers | {means} | {change.value:+.3f} ({sure}) |"


def _speed_row(found: Sequence[Answered], base: Sequence[int], tuned: Sequence[int]) -> str:
    before, after = (_tokens_a_second(found[place] for place in side) for side in (base, tuned))
    return f"| tokens/s | {before:.1f} | {after:.1f} | {after / before:.2f} times |"


def _tokens_a_second(answers: Iterable[Answered]) -> float:
    every = list(answers)
    return sum(one.tokens for one in every) / sum(one.seconds for one in every)


if __name__ == "__main__":
    main()

"""Answers in batches against answers one by one: the same greedy texts, and how many tokens a second.

    python benchmarks/batch_answers.py [--model smollm2-135m] [--rows 4] [--prompts 8] [--tokens 48] [--repeats 5]

Real questions (../shared/data/alpaca) through the chat template, greedy, every answer at most ``--tokens`` long. Sides:
``one by one`` is what ``mlxft generate --file`` does, ``batch`` the same with ``--batch``, ``mlx_lm`` its
``BatchGenerator`` with as many rows, whose tokens are compared too. One process with one copy of the weights; each
repeat runs every side, in an order that rotates; tokens per second count reading the prompts, by the clock and, in
brackets, of the processor, which others on the machine disturb less. Ratios are those of one repeat. ``--drawn`` draws
with the seed of each row instead (mlx_lm draws otherwise, so it stands out).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_finetune.hardware import blas

QUESTIONS = Path(__file__).resolve().parents[2] / "shared/data/alpaca/alpaca_2k.jsonl"
Answers = list[list[int]]


def main() -> None:
    """Read the options and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2-135m", help="catalogue name, hub id or folder of the model")
    options.add_argument("--rows", type=int, default=4, help="answers at once")
    options.add_argument("--prompts", type=int, default=8, help="how many prompts are answered")
    options.add_argument("--tokens", type=int, default=48, help="tokens of the longest answer")
    options.add_argument("--repeats", type=int, default=5, help="how often each side is measured, in turns")
    options.add_argument("--drawn", action="store_true", help="draw at temperature 0.7 instead of greedy")
    given = options.parse_args()
    print(blas.prepare().reason)
    with blas.single_threaded():  # as generate does
        print(f"BLAS threads: {blas.num_threads()}")
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Run the repeats and print the figures."""
    sides = prepare(given)
    names = list(sides)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    said: dict[str, Answers] = {}
    for repeat in range(given.repeats + 1):
        turn = repeat % len(names)
        for name in (*names[turn:], *names[:turn]):
            wall, cpu = time.perf_counter(), time.process_time()
            said[name] = sides[name]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if repeat:  # the first touches the weights
                tokens = sum(map(len, said[name]))
                rates[name].append((tokens / wall, tokens / cpu))
    one = names[0]
    for name in names:
        same = sum(ours == theirs for ours, theirs in zip(said[name], said[one], strict=True))
        walls = [wall for wall, _ in rates[name]]
        print(
            f"{name:<12} {statistics.median(walls):7.2f} tokens/s (best {max(walls):7.2f}), "
            f"{ratios(rates, name, one)} of one by one; same answers {same} of {len(said[one])}"
        )
    if "mlx_lm" in rates:
        print(f"batch / mlx_lm: {ratios(rates, 'batch', 'mlx_lm')}")


def ratios(rates: Mapping[str, Sequence[tuple[float, float]]], first: str, second: str) -> str:
    """Median and least of the ratios, repeat by repeat; in brackets those of processor time."""
    pairs = list(zip(rates[first], rates[second], strict=True))
    wall, cpu = ([ours[part] / theirs[part] for ours, theirs in pairs] for part in (0, 1))
    return f"{statistics.median(wall):.2f}x (min {min(wall):.2f}) [{statistics.median(cpu):.2f}x (min {min(cpu):.2f})]"


def read_questions(count: int) -> list[str]:
    """The first questions without an input that are one line."""
    with QUESTIONS.open(encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        texts = (row["instruction"] for row in rows if not row["input"] and "\n" not in row["instruction"])
        return [text for text, _ in zip(texts, range(count), strict=False)]


def prepare(given: argparse.Namespace) -> dict[str, Callable[[], Answers]]:
    """What each side does: the token ids of every answer."""
    from mlx_finetune.app.generate import prompt_ids, question
    from mlx_finetune.app.open import open_name
    from mlx_finetune.model.answers.batches import BatchDecoder, Request
    from mlx_finetune.model.answers.generate import generate_tokens
    from mlx_finetune.model.answers.sampling import Sampling

    opened = open_name(given.model, base=Path.cwd(), report=lambda _: None)
    model, tokenizer = opened.model, opened.tokenizer
    prompts = [
        prompt_ids(question(text, opened.chat), tokenizer, opened.data) for text in read_questions(given.prompts)
    ]
    print(f"{len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens")
    temperature = 0.7 if given.drawn else 0.0
    settings = [Sampling(temperature=temperature, max_tokens=given.tokens, seed=index) for index in range(len(prompts))]

    def one_by_one() -> Answers:
        return [
            [piece.token_id for piece in generate_tokens(model, tokenizer, ids, one) if piece.token_id is not None]
            for ids, one in zip(prompts, settings, strict=True)
        ]

    def batch() -> Answers:
        decoder = BatchDecoder(model, tokenizer, max_rows=given.rows)
        said: dict[int, list[int]] = {
            decoder.add(Request(ids, one)): [] for ids, one in zip(prompts, settings, strict=True)
        }
        while len(decoder):
            for number, piece in decoder.step():
                said[number] += [] if piece.token_id is None else [piece.token_id]
        return list(said.values())

    sides: dict[str, Callable[[], Answers]] = {"one by one": one_by_one, "batch": batch}
    if not given.drawn:
        sides["mlx_lm"] = stock(model, tokenizer, prompts, given)
    return sides


def stock(model: Any, tokenizer: Any, prompts: Sequence[list[int]], given: argparse.Namespace) -> Callable[[], Answers]:
    """mlx_lm's generator, as its ``batch_generate`` uses it."""
    from mlx_lm.generate import BatchGenerator

    ends = [[one] for one in sorted(tokenizer.stop_token_ids)]

    def run() -> Answers:
        made = BatchGenerator(
            model,
            max_tokens=given.tokens,
            stop_tokens=ends,
            completion_batch_size=given.rows,
            prefill_batch_size=given.rows,
        )
        said: dict[int, list[int]] = {number: [] for number in made.insert([list(ids) for ids in prompts])}
        while responses := made.next_generated():
            for response in responses:
                said[response.uid].append(int(response.token))
        made.close()
        return list(said.values())

    return run


if __name__ == "__main__":
    main()

"""Prefill and decode of mlx_lm and of ours, without an adapter and with one on every linear layer.

    python benchmarks/generation_speed.py [--model NAME] [--prompt 500] [--tokens 64] [--repeats 7] [--dora]

One process with one copy of the weights: both sides then have the same BLAS, the same pages and the same state of the
processor, and a repeat of one side stands a few seconds from that of the other. Each repeat runs all sides, in an order
that rotates. mlx_lm is its ``generate_step``: the loop under ``mlx_lm.generate``, without the text, which ours
includes. Prefill is the time to the first token, decode what follows. Both are greedy and must say the same tokens; the
tokens with an adapter are compared with those of mlx_lm's loop through the same layers.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from mlx_finetune.hardware import blas

SIDES = ("mlx_lm", "ours", "mlx_lm + adapter", "ours + adapter")
#: Pairs whose ratio of tokens/s is printed: the first over the second.
RATIOS = (("ours", "mlx_lm"), ("ours + adapter", "mlx_lm + adapter"), ("ours + adapter", "ours"))
TEXT = "The lighthouse keeper wrote down the weather of every hour, and nobody had ever asked to read it. "


def main() -> None:
    """Read the options and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2-135m", help="catalogue name or folder (%(default)s)")
    options.add_argument("--prompt", type=int, default=500, help="tokens of the prompt")
    options.add_argument("--tokens", type=int, default=64, help="tokens to generate")
    options.add_argument("--repeats", type=int, default=7, help="runs of each way (%(default)s)")
    options.add_argument("--rank", type=int, default=16, help="rank of the adapter (%(default)s)")
    options.add_argument("--dora", action="store_true", help="a DoRA adapter instead of LoRA")
    given = options.parse_args()
    print(blas.prepare().reason)
    with blas.single_threaded():  # as chat and generate do
        print(f"BLAS threads: {blas.num_threads()}")
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Run the repeats and print the figures."""
    runs = prepare(given)
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    said: dict[str, list[int]] = {}
    for repeat in range(given.repeats + 1):
        turn = repeat % len(SIDES)
        for side in (*SIDES[turn:], *SIDES[:turn]):
            prefill, decode, said[side] = clocked(runs[side]())
            if repeat:  # the first touches the weights
                seconds[side].append((given.prompt / prefill, (given.tokens - 1) / decode))
    for side in SIDES:
        prefills, decodes = zip(*seconds[side], strict=True)
        print(
            f"{side:<18} prefill {statistics.median(prefills):7.1f} tokens/s (best {max(prefills):7.1f}), "
            f"decode {statistics.median(decodes):6.2f} (best {max(decodes):6.2f})"
        )
    print(f"same tokens: {said['ours'] == said['mlx_lm']}, {said['ours + adapter'] == said['mlx_lm + adapter']}")
    lines = [f"{a} / {b}: {ratios(seconds, a, b, 0)} prefill, {ratios(seconds, a, b, 1)} decode" for a, b in RATIOS]
    print("; ".join(lines))


def ratios(seconds: dict[str, list[tuple[float, float]]], first: str, second: str, part: int) -> str:
    """Median and least of the ratios of tokens/s, repeat by repeat."""
    pairs = zip(seconds[first], seconds[second], strict=True)
    found = [ours[part] / theirs[part] for ours, theirs in pairs]
    return f"{statistics.median(found):.2f} (min {min(found):.2f})"


def clocked(tokens: Iterator[int]) -> tuple[float, float, list[int]]:
    """Seconds to the first token, seconds from there to the last, and the tokens."""
    started = time.perf_counter()
    said = [next(tokens)]
    first = time.perf_counter()
    said.extend(tokens)
    return first - started, time.perf_counter() - first, said


def prepare(given: argparse.Namespace) -> dict[str, Callable[[], Iterator[int]]]:
    """What each side does; the adapter's layers are put on before its turn and taken out after it."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten
    from mlx_lm.generate import generate_step

    from mlx_finetune.app.open import open_name
    from mlx_finetune.dataset.tokens import Tokenizer
    from mlx_finetune.model.adapters.lora import adapter_layers, attach_adapter, detach_adapter, fix_norms
    from mlx_finetune.model.answers.generate import generate_tokens
    from mlx_finetune.model.answers.sampling import Sampling
    from mlx_finetune.recipe.schema import LoraRecipe

    opened = open_name(given.model, base=Path.cwd(), report=lambda _: None)
    model, tokenizer = opened.model, cast(Tokenizer, Endless(opened.tokenizer))
    ids = opened.tokenizer.encode(TEXT * given.prompt).ids[: given.prompt]
    sampling = Sampling(temperature=0, max_tokens=given.tokens)
    attach_adapter(model, LoraRecipe.model_validate({"rank": given.rank, "use_dora": given.dora}), seed=0)
    layers = adapter_layers(model)
    for number, layer in enumerate(layers.values()):
        layer.lora_b = 0.02 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(number))
        mx.eval(layer.lora_b)
    model.freeze()
    model.eval()
    fix_norms(model)  # as app.open does

    def theirs() -> Iterator[int]:
        for token, _ in generate_step(mx.array(ids), model, max_tokens=given.tokens):
            yield int(token)

    def ours() -> Iterator[int]:
        for piece in generate_tokens(model, tokenizer, ids, sampling):
            assert piece.token_id is not None
            yield piece.token_id

    def without(tokens: Callable[[], Iterator[int]]) -> Callable[[], Iterator[int]]:
        def run() -> Iterator[int]:
            detach_adapter(model)
            return tokens()

        return run

    def adapted(tokens: Callable[[], Iterator[int]]) -> Callable[[], Iterator[int]]:
        def run() -> Iterator[int]:
            model.update_modules(tree_unflatten(list(layers.items())))
            return tokens()

        return run

    return dict(zip(SIDES, (without(theirs), without(ours), adapted(theirs), adapted(ours)), strict=True))


class Endless:
    """A tokenizer without end marks, so that every answer has its length."""

    stop_token_ids: Sequence[int] = ()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


if __name__ == "__main__":
    main()

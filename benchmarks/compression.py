"""Bits per byte that general compressors need for the validation text, after they have read the training text.

    python benchmarks/compression.py RECIPE [--run RUN]

``compressed(train + valid) - compressed(train)``, over the bytes of ``valid``: what bz2 -9, xz -9e and zlib -9 need for
the rows that the recipe keeps for validation. With --run the same figure for a language model trained by that recipe:
its best validation loss in nats a token, times the tokens, over ``ln 2`` times the bytes.
bz2 and zlib look back 900 kB and 32 kB at most; that is what they are.
"""

import argparse
import bz2
import json
import lzma
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.formats import Example
from mlx_finetune.events import Evaluated
from mlx_finetune.journal import read_events
from mlx_finetune.model.scratch.bpe import texts_of
from mlx_finetune.recipe.load import load_recipe

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib -9": lambda data: zlib.compress(data, 9),
    "bz2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


def text_of(examples: Sequence[Example]) -> bytes:
    """All rows one after the other; documents are kept apart by a blank line."""
    parts = [text if text.endswith("\n") else f"{text}\n\n" for text in texts_of(examples, longest=10**12)]
    return "".join(parts).encode()


def bits_per_byte(compress: Callable[[bytes], bytes], train: bytes, valid: bytes) -> float:
    """Bits for each byte of ``valid`` behind ``train``."""
    return 8 * (len(compress(train + valid)) - len(compress(train))) / len(valid)


def of_run(run: Path, num_bytes: int) -> tuple[int, float]:
    """Step and bits per byte of the best evaluation of a run whose validation text has ``num_bytes``."""
    found = [one.event for one in read_events(run / "events.jsonl") if isinstance(one.event, Evaluated)]
    best = min(found, key=lambda event: event.loss)
    return best.step, best.loss * best.num_targets / (math.log(2) * num_bytes)


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="whose rows are compressed")
    parser.add_argument("--run", type=Path, help="folder of a run of that recipe")
    parser.add_argument("--set", action="append", default=[], help="override a key of the recipe")
    asked = parser.parse_args()
    recipe = load_recipe(asked.recipe, asked.set).recipe
    splits = load_splits(recipe.data, base=Path())
    train, valid = text_of(splits.train), text_of(splits.valid)
    result: dict[str, object] = {"train_bytes": len(train), "valid_bytes": len(valid)}
    for name, compress in COMPRESSORS.items():
        result[name] = round(bits_per_byte(compress, train, valid), 4)
    if asked.run is not None:
        step, figure = of_run(asked.run, len(valid))
        result[f"{asked.run.name}, step {step}"] = round(figure, 4)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

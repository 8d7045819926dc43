"""From files to batches: speed against the tokenizer alone, time and memory for 10,000 to 1,000,000 rows, waiting.

    python benchmarks/data_path.py [--rows 10000 100000 1000000] [--repeats 5]

Three parts. `ratio`: reading texts that are rendered already with `encode_batch` and offsets, against rendering,
tokenising and masking their rows, interleaved; needed: at least 0.60 of the speed. `table`: for each size one process
for the first start (read, tokenise, keep) and one for the second (find, map) with an epoch of batches, each with its
peak memory; needed: under 1 GB, and time in proportion to the rows. `wait`: the share of its time that a loop with
steps of 60 ms of matrix products waits for batches. The rows are those of Alpaca (../shared), numbered so that no two
are the same. The model's tokenizer must be on this machine: mlxft models get smollm2-135m.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from mlx_finetune.dataset.ahead import Ahead
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.stream import Stream
from mlx_finetune.dataset.template import BATCH_ROWS, tokenize
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.dataset.walk import Walk
from mlx_finetune.model.fetch import fetch_model
from mlx_finetune.model.tokenizer import load_tokenizer
from mlx_finetune.recipe.schema import DataRecipe, Recipe
from mlx_finetune.units import format_bytes

NEEDED_RATIO, NEEDED_BYTES = 0.60, 1_000_000_000
MODEL = "smollm2-135m"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = ("alpaca/alpaca_2k.jsonl", "gsm8k/train.jsonl")
RATIO_ROWS = 6_000
PACKED_LENGTH = 2048


def main() -> int:
    """Print what was asked for; 1 where a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start)))
        return 0
    folder = fetch_model(MODEL, report=lambda phase: None).folder
    kept = [print_ratio(name, folder, options.repeats) for name in NAMES]
    kept.append(print_table(options.rows))
    return 0 if all(kept) else 1


def print_ratio(name: str, folder: Path, repeats: int) -> bool:
    """Rows a second of the tokenizer alone and of the whole path; true where the path is fast enough."""
    tokenizer, backend = load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    data = _recipe(DATA / name)
    found = load_splits(data, base=Path()).train
    examples = list(itertools.islice(itertools.cycle(found), RATIO_ROWS))
    walk = Walk(tokenizer, data, task="sft", base=None)
    texts = [draft.text for example in examples for draft in walk.drafts(example)]
    alone: list[float] = []
    path: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for start_ in range(0, len(texts), BATCH_ROWS):
            backend.encode_batch(texts[start_ : start_ + BATCH_ROWS], add_special_tokens=False)
        middle = time.perf_counter()
        tokenize(examples, tokenizer, data, task="sft")
        alone.append(middle - begin)
        path.append(time.perf_counter() - middle)
    ratio = statistics.median(a / p for a, p in zip(alone, path, strict=True))
    tokens = statistics.mean(len(backend.encode(text, add_special_tokens=False).ids) for text in texts[:500])
    print(f"ratio {name} ({tokens:.0f} tokens a row): encode_batch {_rates(alone)}, rendered and masked {_rates(path)}")
    print(
        f"ratio {name}: {min(alone) / min(path):.2f} fastest, {ratio:.2f} median of pairs; needed: {NEEDED_RATIO:.2f}"
    )
    return max(ratio, min(alone) / min(path)) >= NEEDED_RATIO


def _rates(seconds: Sequence[float]) -> str:
    best, middle = RATIO_ROWS / min(seconds), RATIO_ROWS / statistics.median(seconds)
    return f"{best:,.0f} rows/s (median {middle:,.0f})"


def print_table(sizes: Sequence[int]) -> bool:
    """One line a size; true where memory stays under the bound."""
    print("first start (clock, processor, rows/s, peak), second start (clock, processor, peak), order of an epoch")
    print("(unpacked, packed), all batches of an epoch (clock, peak), share of waiting")
    is_kept = True
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            _write_rows(path, size)
            environment = {**os.environ, "MLXFT_CACHE": folder}
            command = [sys.executable, __file__, "--start", str(path)]
            first, second = (
                json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
                for _ in range(2)
            )
        is_kept &= max(first["peak"], second["peak"], second["epoch_peak"]) < NEEDED_BYTES
        cells = [
            f"{size:,}",
            f"{first['seconds']:.1f} s",
            f"{first['processor']:.1f} s",
            f"{size / first['seconds']:,.0f}",
            format_bytes(first["peak"]),
            f"{second['seconds']:.2f} s",
            f"{second['processor']:.2f} s",
            format_bytes(second["peak"]),
            f"{second['grouping']:.2f} s",
            f"{second['packing']:.2f} s",
            f"{second['epoch']:.1f} s",
            format_bytes(second["epoch_peak"]),
            f"{100 * second['waited']:.1f} %",
        ]
        print(" | ".join(cells), flush=True)
    print(f"peak memory of a process, mapped pages included; needed: under {format_bytes(NEEDED_BYTES)}")
    return is_kept


def start(path: Path) -> Mapping[str, float]:
    """What one start of a training does with its data, then an epoch of batches."""
    from mlx_finetune.train.objective import OBJECTIVES
    from mlx_finetune.train.start.rows import read_rows

    os.environ["MLXFT_CACHE"], cache = "", os.environ["MLXFT_CACHE"]  # the model is in the user's own cache
    tokenizer = load_tokenizer(fetch_model(MODEL, report=lambda phase: None).folder)
    os.environ["MLXFT_CACHE"] = cache
    recipe = Recipe.model_validate({"model": MODEL, "output_dir": "x", "data": _recipe(path).model_dump()})
    begin, before = time.perf_counter(), time.process_time()
    rows = read_rows(recipe, OBJECTIVES["sft"], tokenizer, Path(), lambda event: None)
    found: dict[str, float] = {"seconds": time.perf_counter() - begin, "peak": _peak_bytes()}
    found["processor"] = time.process_time() - before
    for name, packed_length in (("grouping", None), ("packing", PACKED_LENGTH)):
        begin = time.perf_counter()
        _stream(rows.train, packed_length).steps_in_epoch(0)
        found[name] = time.perf_counter() - begin
    stream = _stream(rows.train, None)
    begin = time.perf_counter()
    for step in range(stream.steps_in_epoch(0)):
        stream.microbatches(step)
    found["epoch"] = time.perf_counter() - begin
    found["epoch_peak"] = _peak_bytes()
    return {**found, "waited": _share_waited(rows.train)}


def _share_waited(rows: TokenRows) -> float:
    """Share of the time of a loop with short steps; the first batches, which nothing hides, are not counted."""
    import mlx.core as mx

    square = mx.random.normal((1024, 1024))
    steps = 40
    with Ahead(_stream(rows, PACKED_LENGTH), range(steps)) as ahead:
        ahead.take(0)
        ahead.waited_seconds = 0.0
        begin = time.perf_counter()
        for step in range(1, steps):
            until = time.perf_counter() + 0.06
            while time.perf_counter() < until:
                mx.eval(square @ square)
            ahead.take(step)
        return ahead.waited_seconds / (time.perf_counter() - begin)


def _stream(rows: TokenRows, packed_length: int | None) -> Stream:
    return Stream(rows, batch_size=4, accumulation=1, packed_length=packed_length, seed=7)


def _recipe(path: Path) -> DataRecipe:
    splits = {"val_split": 0.01 if path.name == "rows.jsonl" else 0.0, "test_split": 0.0}
    return DataRecipe.model_validate({"path": str(path), "max_seq_length": PACKED_LENGTH, **splits})


def _write_rows(path: Path, num_rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in itertools.islice(_numbered(), num_rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _numbered() -> Iterator[Mapping[str, str]]:
    """The rows over and over, each with a number of its own."""
    rows = [json.loads(line) for line in (DATA / NAMES[0]).read_text("utf-8").splitlines()]
    for number, row in enumerate(itertools.cycle(rows)):
        yield {**row, "instruction": f"{number}. {row['instruction']}"}


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())

"""From files to batches: speed against the tokenizer alone, time and memory for 10,000 to 1,000,000 rows, waiting.

    python benchmarks/data_path.py [--rows 10000 100000 1000000] [--repeats 5]

Two parts. The ratio: reading texts that are rendered already with `encode_batch` and offsets, against rendering,
tokenising and masking their rows, interleaved; needed: at least 0.60 of the speed. The table: for each size one process
for the first start (read, tokenise, keep), one for the second (find, map) with an epoch of batches and a loop of steps
of 60 ms of matrix products, and one for a real training of 60 steps of a model of two blocks of width 64: time of every
stage, peak memory (needed: under 1 GB; the time is to grow with the rows), and the share of its steps that a loop waits
for batches. The rows are those of Alpaca (../shared), numbered so that no two are the same. The model's tokenizer must
be on this machine: mlxft models get smollm2-135m.
"""

import argparse
import contextlib
import itertools
import json
import os
import pkgutil
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from tokenizers import Tokenizer

from mlx_finetune.dataset.ahead import Ahead, StepBatches
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.stream import Stream
from mlx_finetune.dataset.template import BATCH_ROWS, tokenize
from mlx_finetune.dataset.token_rows import TokenRows
from mlx_finetune.dataset.walk import Walk
from mlx_finetune.events import Event, StepDone
from mlx_finetune.model.sources.fetch import fetch_model
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.units import format_bytes

NEEDED_RATIO, NEEDED_BYTES = 0.60, 1_000_000_000
MODEL = "smollm2-135m"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = ("alpaca/alpaca_2k.jsonl", "gsm8k/train.jsonl")
RATIO_ROWS = 6_000
PACKED_LENGTH = 2048
VAL_SPLIT = 0.0002
TRAINED_STEPS = 60
STAGES = {
    "hash of the files": "mlx_finetune.train.start.rows.hash_files",
    "read, check and divide": "mlx_finetune.train.start.rows.load_splits",
    "render, tokenise and mask": "mlx_finetune.train.objective.tokenize",
    "keep": "mlx_finetune.dataset.token_cache.TokenCache.store",
    "find and verify": "mlx_finetune.dataset.token_cache.TokenCache.load",
}


def main() -> int:
    """Print what was asked for; 1 where a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="*",
        default=[10_000, 100_000, 1_000_000],
        help="numbers of rows, a table line each (%(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="passes of each side of the ratio (%(default)s)")
    parser.add_argument("--only-table", action="store_true", help="leave out the comparison with the tokenizer alone")
    for name in ("--start", "--train"):  # in a process of its own
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start or options.train:
        print(json.dumps(start(options.start) if options.start else train(options.train)))
        return 0
    names = () if options.only_table else NAMES
    kept = [print_ratio(name, _model_folder(), options.repeats) for name in names]
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
    """Three lines a size; true where memory stays under the bound."""
    is_kept = True
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            _write_rows(path, size)
            first, second, trained = (_in_process(option, path) for option in ("--start", "--start", "--train"))
        is_kept &= max(one["peak"] for one in (first, second, trained)) < NEEDED_BYTES
        clock, processor = first["seconds"], first["processor"]
        print(f"{size:,} rows, first start: {clock:.1f} s, {size / clock:,.0f} rows/s, {1e6 * processor / size:.0f} us")
        print(f"  of processor a row, peak {format_bytes(first['peak'])}: {_list_stages(first)}")
        print(
            f"  second start: {second['seconds']:.2f} s, processor {second['processor']:.2f} s: {_list_stages(second)};"
            f" peak {format_bytes(second['peak'])}, {format_bytes(second['imported'])} of it before it begins"
        )
        print(
            f"  order of an epoch {second['grouping']:.2f} s, packed {second['packing']:.2f} s; all batches of an epoch"
            f" {second['epoch']:.1f} s; loop of 60 ms steps waits {100 * second['waited']:.2f} %"
        )
        print(
            f"  training of a tiny model: first step after {trained['before']:.1f} s, {trained['step'] * 1000:.0f} ms a"
            f" step, waits {100 * trained['waited']:.2f} %, peak {format_bytes(trained['peak'])} (MLX's own"
            f" {format_bytes(trained['model'])})",
            flush=True,
        )
    print(f"peak memory of a process, mapped pages included; needed: under {format_bytes(NEEDED_BYTES)}")
    return is_kept


def _in_process(option: str, path: Path) -> Mapping[str, float]:
    """What ``start`` or ``train`` finds in a process of its own, which keeps its tokens beside ``path``."""
    environment = {**os.environ, "MLXFT_CACHE": str(path.parent)}
    command = [sys.executable, __file__, option, str(path)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _list_stages(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {found[name]:.2f} s" for name in STAGES if name in found)


def start(path: Path) -> Mapping[str, float]:
    """What one start of a training does with its data, then an epoch of batches."""
    from mlx_finetune.train.objectives.next_token import next_token
    from mlx_finetune.train.start.rows import read_rows

    tokenizer = load_tokenizer(_model_folder())
    recipe = Recipe.model_validate({"model": MODEL, "output_dir": "x", "data": _recipe(path).model_dump()})
    found: dict[str, float] = {"imported": _peak_bytes()}
    with _stages(found):
        begin, before = time.perf_counter(), time.process_time()
        rows = read_rows(recipe, next_token("sft"), tokenizer, Path(), lambda event: None)
        found["seconds"], found["processor"] = time.perf_counter() - begin, time.process_time() - before
    for name, packed_length in (("grouping", None), ("packing", PACKED_LENGTH)):
        begin = time.perf_counter()
        _stream(rows.train, packed_length).steps_in_epoch(0)
        found[name] = time.perf_counter() - begin
    stream = _stream(rows.train, None)
    begin = time.perf_counter()
    for step in range(stream.steps_in_epoch(0)):
        stream.microbatches(step)
    found["epoch"] = time.perf_counter() - begin
    found["waited"] = _share_waited(rows.train)
    return {**found, "peak": _peak_bytes()}


@contextlib.contextmanager
def _stages(found: dict[str, float]) -> Generator[None]:
    """Add up in ``found`` how long each of ``STAGES`` takes meanwhile."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                found[name] = found.get(name, 0.0) + time.perf_counter() - begin

        return call

    with contextlib.ExitStack() as patches:
        for name, place in STAGES.items():
            owner, _, attribute = place.rpartition(".")
            original = getattr(pkgutil.resolve_name(owner), attribute)
            patches.enter_context(mock.patch(place, timed(name, original)))
        yield


def train(path: Path) -> Mapping[str, float]:
    """A short training of a tiny model with the tokenizer of ``MODEL`` on rows that ``start`` has read before."""
    import mlx.core as mx

    from mlx_finetune.recipe.load import load_recipe
    from mlx_finetune.train.run import train_run
    from mlx_finetune.train.signals import StopRequest
    from mlx_finetune.train.start.admission import Request, admit

    begin = time.perf_counter()
    data = _recipe(path).model_dump(mode="json", exclude_unset=True)
    lines = [f'model = "{_write_model(path.parent / "model")}"', f'output_dir = "{path.parent / "run"}"', "[lora]"]
    lines += ["[data]", *(f"{name} = {json.dumps(value)}" for name, value in data.items())]
    lines += ["[training]", f"max_steps = {TRAINED_STEPS}", f"eval_steps = {TRAINED_STEPS}"]
    recipe = path.with_name("recipe.toml")
    recipe.write_text("\n".join(lines) + "\n")
    loaded, request = load_recipe(recipe), Request(recipe)
    admission = admit(RunDir(Path(loaded.recipe.output_dir)), request)
    taken: list[float] = []

    def emit(event: Event) -> None:
        if isinstance(event, StepDone):
            taken.append(event.step_seconds)
            found.setdefault("before", time.perf_counter() - begin - event.step_seconds)

    found: dict[str, float] = {}
    watched: list[_Watched] = []
    with mock.patch("mlx_finetune.train.loop.Ahead", lambda *a, **k: watched.append(_Watched(*a, **k)) or watched[0]):
        train_run(loaded, request, admission, StopRequest(), emit, base=path.parent)
    admission.release()
    share = watched[0].waited_seconds / sum(taken[1:])
    step = statistics.median(taken)
    return {**found, "waited": share, "step": step, "peak": _peak_bytes(), "model": mx.get_peak_memory()}


class _Watched(Ahead):
    """Forgets the wait for the first batches, which no step hides."""

    def take(self, step: int) -> StepBatches:
        """The batches of ``step``."""
        batches = super().take(step)
        if step == 0:
            self.waited_seconds = 0.0
        return batches


def _write_model(folder: Path) -> Path:
    """Two blocks of width 64 with the vocabulary and the tokenizer of ``MODEL``."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    original = _model_folder()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = json.loads((original / "config.json").read_text("utf-8")) | sizes
    config |= {"num_key_value_heads": 2, "head_dim": 16, "torch_dtype": "float32"}
    config.pop("quantization", None)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(original / name, folder / name)
    model: Any = llama.Model(llama.ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    return folder


def _model_folder() -> Path:
    """The folder of ``MODEL`` in the user's own cache."""
    with mock.patch.dict(os.environ):
        os.environ.pop("MLXFT_CACHE", None)
        return fetch_model(MODEL, report=lambda phase: None).folder


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
    splits = {"val_split": VAL_SPLIT if path.name == "rows.jsonl" else 0.0, "test_split": 0.0}
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
    """Peak memory of this process. Linux's ``ru_maxrss`` would be that of the process it was forked from, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())

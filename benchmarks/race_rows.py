"""Rows and model of the race, made once: ``python benchmarks/race_rows.py --work DIR --data DIR --cell JSON``.

``model/`` is SmolLM2-135M-Instruct written out in fp32, for both sides. For a cell: ``train.jsonl``, which both sides
read; ``train-tokens.jsonl`` and ``valid-tokens.jsonl``, its rows and the validation rows as our tokens and targets,
which are the neutral counter and the neutral validation set; ``facts.json``. Only rows that fit the cell's length are
taken, so neither side cuts one, and it is checked that both sides make the same token ids of every row.
"""

import argparse
import itertools
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from race_cells import TEXT, Cell

MODEL = "smollm2-135m"
POOL_SEED = 20261126
PIECE_CHARACTERS = (2_500, 8_500)  # of articles: about 550 to 1,900 tokens
MAX_SHOTS = 6  # worked examples in front of a question: rows of 250 to 1,600 tokens

Fields = dict[str, object]


def read_json_lines(path: Path) -> list[Mapping[str, object]]:
    """Every line of a JSON Lines file; nothing where there is none. A torn last line is left out."""
    if not path.is_file():
        return []
    rows: list[Mapping[str, object]] = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def write_json_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def exchange(question: str, answer: str) -> Fields:
    """A conversation of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def alpaca_row(row: Mapping[str, object]) -> Fields:
    """An instruction with its input below it."""
    given = str(row.get("input") or "")
    return exchange(f"{row['instruction']}\n{given}" if given else str(row["instruction"]), str(row["output"]))


def pieces(text: str, rng: random.Random) -> list[Fields]:
    """One article as texts of uneven length, cut at blanks."""
    found: list[Fields] = []
    start = 0
    while start < len(text):
        end = text.find(" ", start + rng.randint(*PIECE_CHARACTERS))
        end = len(text) if end < 0 else end
        found.append({"text": text[start:end].strip()})
        start = end
    return [row for row in found if len(str(row["text"])) >= PIECE_CHARACTERS[0]]


def with_shots(rows: Sequence[Mapping[str, object]], rng: random.Random) -> list[Fields]:
    """Questions, each behind one to ``MAX_SHOTS`` worked examples in the same turn; no row is used twice."""
    left = iter(rows)
    found: list[Fields] = []
    while True:
        group = list(itertools.islice(left, rng.randint(1, MAX_SHOTS) + 1))
        if len(group) < 2:
            return found
        shots = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in group[:-1])
        found.append(exchange(f"{shots}Question: {group[-1]['question']}", str(group[-1]["answer"])))


def candidates(data: Path, name: str) -> tuple[list[Fields], list[Fields]]:
    """All rows of a data set for training and for validation, in an order fixed by a seed."""
    rng = random.Random(POOL_SEED)
    if name == "alpaca":
        rows = [alpaca_row(row) for row in read_json_lines(data / "alpaca/alpaca_2k.jsonl")]
        rng.shuffle(rows)
        return rows[200:], rows[:200]
    if name == "articles":
        articles = (data / "text/wiki_demo.txt").read_text("utf-8").splitlines()
        train = [row for text in articles[:-6] for row in pieces(text, rng)]
        valid = [row for text in articles[-6:] for row in pieces(text, rng)]
    elif name == "gsm8k":
        train, valid = (
            [
                exchange(str(row["question"]), str(row["answer"]))
                for row in read_json_lines(data / f"gsm8k/{side}.jsonl")
            ]
            for side in ("train", "test")
        )
    elif name == "gsm8k-shots":
        train, valid = (with_shots(read_json_lines(data / f"gsm8k/{side}.jsonl"), rng) for side in ("train", "test"))
    elif name == "dialogsum":
        train, valid = (
            [
                exchange(
                    f"Summarise this conversation.\n\n{row['dialogue']}", str(row.get("summary") or row["summary1"])
                )
                for row in read_json_lines(data / f"dialogsum/{side}.jsonl")
            ]
            for side in ("train", "test")
        )
    else:
        train, valid = (
            [{"text": row["text"]} for row in read_json_lines(data / f"mlx_lora_wikisql/{side}.jsonl")]
            for side in ("train", "valid")
        )
    rng.shuffle(train)
    rng.shuffle(valid)
    return train, valid


def write_model(folder: Path) -> None:
    """The quickstart's model in fp32, where it is not there yet: the same numbers, without packed weights."""
    if (folder / "model.safetensors").is_file():
        return
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from mlx_finetune.model.load import load_model
    from mlx_finetune.model.sources.fetch import fetch_model

    local = fetch_model(MODEL, report=lambda _: None)
    loaded = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(local.folder / name, part / name)
    config = json.loads((local.folder / "config.json").read_bytes())
    config.pop("quantization", None)
    config["torch_dtype"] = "float32"
    (part / "config.json").write_text(json.dumps(config, indent=1))
    weights = dict(cast("list[tuple[str, mx.array]]", tree_flatten(loaded.model.parameters())))
    mx.save_safetensors(str(part / "model.safetensors"), weights, {"format": "mlx"})
    (part / "weights.json").write_text(json.dumps({"bytes": sum(array.nbytes for array in weights.values())}))
    part.rename(folder)


def tokenised(rows: Sequence[Fields], cell: Cell, model: Path, count: int) -> list[tuple[Fields, Fields]]:
    """The first ``count`` rows that fit the cell, each with its ``ids`` and ``targets`` (their positions)."""
    from mlx_finetune.dataset.formats import Messages, Text
    from mlx_finetune.dataset.template import tokenize
    from mlx_finetune.dataset.turns import read_turns
    from mlx_finetune.model.tokens.tokenizer import load_tokenizer
    from mlx_finetune.recipe.data import DataRecipe

    data = DataRecipe.model_validate(
        {"path": "rows", "max_seq_length": cell.max_length, "mask_prompt": cell.mask_prompt, "truncation": "drop"}
    )
    examples = [
        Text(str(row["text"]), "rows", line)
        if "text" in row
        else Messages(read_turns(row["messages"], "messages"), None, "rows", line)
        for line, row in enumerate(rows)
    ]
    task = "pretrain" if cell.data in TEXT else "sft"
    made = tokenize(examples, load_tokenizer(model), data, task=task).rows[:count]
    if len(made) < count:
        raise SystemExit(f"{cell.data}: only {len(made)} rows fit {cell.max_length} tokens, {count} are wanted")
    return [
        (rows[row.line], {"ids": row.ids.tolist(), "targets": [int(place) for place in row.loss_mask.nonzero()[0]]})
        for row in made
    ]


def compare_with_stock(rows: Sequence[tuple[Fields, Fields]], cell: Cell, model: Path) -> int:
    """Targets that ``mlx_lm.lora`` means to learn in these rows (padding not counted); exits where token ids differ."""
    from mlx_lm.tuner.datasets import ChatDataset, TextDataset
    from mlx_lm.utils import load_tokenizer

    tokenizer = cast("Any", load_tokenizer(model))
    fields = cast("list[dict[str, Any]]", [dict(row) for row, _ in rows])
    if cell.data in TEXT:
        dataset = TextDataset(fields, tokenizer)
    else:
        dataset = ChatDataset(fields, tokenizer, mask_prompt=cell.mask_prompt)
    targets = 0
    for row, (_, ours) in zip(fields, rows, strict=True):
        ids, offset = dataset.process(row)
        if list(ids) != ours["ids"]:
            raise SystemExit(f"{cell.name}: the two sides tokenise a row differently:\n{ids}\n{ours['ids']}")
        targets += len(ids) - max(offset, 1)
    return targets


def prepare(work: Path, data: Path, cell: Cell) -> None:
    """Write the model and the cell's files, where they are not there."""
    model = work / "model"
    write_model(model)
    folder = work / "cells" / cell.key
    if (folder / "facts.json").is_file():
        return
    train_pool, valid_pool = candidates(data, cell.data)
    train = tokenised(train_pool, cell, model, cell.examples)
    valid = tokenised(valid_pool, cell, model, cell.valid_rows)
    stock_targets = compare_with_stock(train, cell, model)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / "train.jsonl", [row for row, _ in train])
    write_json_lines(folder / "train-tokens.jsonl", [tokens for _, tokens in train])
    write_json_lines(folder / "valid-tokens.jsonl", [tokens for _, tokens in valid])
    lengths = [len(cast("list[int]", tokens["ids"])) for _, tokens in train]
    facts = asdict(cell) | {
        "tokens": sum(lengths),
        "longest": max(lengths),
        "targets": sum(len(cast("list[int]", tokens["targets"])) for _, tokens in train),
        "stock_targets": stock_targets,
    }
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def main() -> None:
    """Prepare one cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="work folder of the race")
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--cell", type=json.loads, required=True, help="a cell of the race, as JSON")
    given = parser.parse_args()
    from mlx_finetune.hardware import blas

    blas.prepare()
    prepare(given.work, given.data, Cell(**given.cell))


if __name__ == "__main__":
    main()

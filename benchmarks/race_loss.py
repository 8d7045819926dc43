"""Validation loss by one neutral rule: ``race_loss.py --model DIR --rows FILE --out FILE --adapter CONFIG WEIGHTS``.

Base and adapter are loaded by mlx-lm, whoever trained it. Every row of the validation set goes through the model alone
(no padding, no batch), in order; the loss is the sum of the cross-entropies at the targets over their number, in fp32
on the device and float64 outside. Which tokens are targets stands in the rows, so it is the same for every adapter.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

from mlx_finetune.hardware import blas

blas.prepare()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm.tuner.utils import load_adapters  # noqa: E402
from mlx_lm.utils import load_model  # noqa: E402
from race_rows import read_json_lines  # noqa: E402


def load(model: Path, adapter: tuple[str, str] | None) -> nn.Module:
    """The base with an adapter, given by its configuration and its weights. Exits where weights have no place in it."""
    base = load_model(model)[0]
    if adapter is None:
        return base
    config, weights = adapter
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(config, f"{folder}/adapter_config.json")
        shutil.copyfile(weights, f"{folder}/adapters.safetensors")
        adapted = load_adapters(base, folder)
        mx.eval(adapted.parameters())
    names = {name for name, _ in cast("list[tuple[str, Any]]", tree_flatten(adapted.parameters()))}
    lost = sorted(set(cast("dict[str, mx.array]", mx.load(weights))) - names)
    if lost:
        raise SystemExit(f"{weights}: mlx-lm has no place for {lost[:3]}")
    adapted.eval()
    return adapted


def mean_loss(model: Any, rows: Path) -> tuple[float, int]:
    """Nats per target over all rows, and the number of targets."""
    total, count = 0.0, 0
    for row in read_json_lines(rows):
        ids = mx.array(cast("list[int]", row["ids"]))[None]
        places = mx.array(cast("list[int]", row["targets"]))
        logits = model(ids[:, :-1])[0].astype(mx.float32)  # (T, V)
        losses = nn.losses.cross_entropy(logits[places - 1], ids[0, places])
        total += sum(cast("list[float]", losses.tolist()))
        count += places.size
    return total / count, count


def main() -> None:
    """Write the losses in the order of the adapters, the base's first with ``--base``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--rows", type=Path, required=True, help="valid-tokens.jsonl of race_rows.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the losses")
    parser.add_argument("--base", action="store_true", help="also the base without an adapter")
    parser.add_argument(
        "--adapter",
        nargs=2,
        action="append",
        default=[],
        metavar=("CONFIG", "WEIGHTS"),
        help="adapter_config.json and weights; may be repeated",
    )
    given = parser.parse_args()
    adapters = [*([None] if given.base else []), *(tuple(pair) for pair in given.adapter)]
    losses = [mean_loss(load(given.model, adapter), given.rows)[0] for adapter in adapters]
    given.out.write_text(json.dumps(losses))


if __name__ == "__main__":
    main()

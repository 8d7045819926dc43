"""Run ``mlx_lm.lora``, unmodified, with OpenBLAS and flush-to-zero as ours has them, and note what it does.

    python benchmarks/race_stock.py --out FIGURES.json --config lora.json [--trainer mlx-lm]

What is watched: the dictionaries of its own ``on_train_loss_report`` with one report a step, the shapes of the batches
that its own iterator yields, and the rows it asked its data set for. Its iterator runs between two steps, where its
clock stands still, so the watching costs its figures nothing. The interpreter may be another one, of an environment
with mlx-lm-lora or mlx-tune in it (``--trainer``).
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_finetune.hardware import blas

#: Distribution -> the module that is watched, the function in it that trains, the module whose ``main`` is run.
TRAINERS = {
    "mlx-lm": ("mlx_lm.lora", "train", "mlx_lm.lora"),
    "mlx-lm-lora": ("mlx_lm_lora.train", "train_sft", "mlx_lm_lora.train"),
    "mlx-tune": ("mlx_tune.sft_trainer", "mlx_train", "race_tune"),
}
PRODUCT = 1024  # rows and columns of the matrix product that shows which BLAS is at work


class Watcher:
    """Stands in for the trainer's callback and its batch iterator, and passes everything through."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.shapes: list[Sequence[int]] = []
        self.rows: list[list[int]] = []
        self.asked: list[int] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """One step, because there is one report a step."""
        self.steps.append(train_info)

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        """Nothing is validated."""

    def iterating(self, iterate: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """``iterate`` with the shapes and rows of its batches noted."""

        def watched(*args: Any, **options: Any) -> Iterator[Any]:
            for batch in iterate(*args, **options):
                self.shapes.append(batch[0].shape)
                self.rows.append(self.asked.copy())
                self.asked.clear()
                yield batch

        return watched


def watch(module: Any, train_name: str, watcher: Watcher) -> None:
    """Let ``watcher`` see the training of ``module``, a command line of the stock or of a peer that follows it."""
    train, cached = getattr(module, train_name), module.CacheDataset
    iterate = sys.modules[train.__module__].iterate_batches

    class Watched(cached):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            watcher.asked.append(index)
            return super().__getitem__(index)

    def train_watched(*args: Any, **options: Any) -> Any:
        options["training_callback"] = watcher
        return train(*args, **options, iterate_batches=watcher.iterating(iterate))

    module.CacheDataset = Watched
    setattr(module, train_name, train_watched)


def supply_metal_limits() -> None:
    """mlx-lm-lora asks for Metal's limits without looking whether there is a GPU; without one it gets zeros."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.gpu:
        return
    info = mx.device_info
    mx.device_info = lambda *args: {"max_recommended_working_set_size": 0, **info(*args)}  # type: ignore[assignment]
    mx.set_wired_limit = lambda limit: 0  # type: ignore[assignment]


def measure_product() -> float:
    """GFLOP/s of an fp32 matrix product: 5 with the wheel's own BLAS, 60 and more with OpenBLAS."""
    import mlx.core as mx

    left = mx.random.normal((PRODUCT, PRODUCT))
    mx.eval(left)
    seconds: list[float] = []
    for _ in range(4):
        started = time.perf_counter()
        mx.eval(left @ left)
        seconds.append(time.perf_counter() - started)
    return 2 * PRODUCT**3 / min(seconds) / 1e9


def main() -> None:
    """Train, then write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--config", required=True, help="configuration of mlx_lm.lora")
    parser.add_argument("--trainer", default="mlx-lm", choices=list(TRAINERS), help="whose trainer it is (%(default)s)")
    given = parser.parse_args()
    report = blas.prepare()
    import mlx.core as mx

    if given.trainer == "mlx-lm-lora":
        supply_metal_limits()
    module_name, train_name, main_name = TRAINERS[given.trainer]
    watcher = Watcher()
    watch(importlib.import_module(module_name), train_name, watcher)
    sys.argv = [main_name, "--config", given.config]
    importlib.import_module(main_name).main()
    peak = mx.get_peak_memory()
    figures = {
        "seconds": [1 / step["iterations_per_second"] for step in watcher.steps],
        "losses": [step["train_loss"] for step in watcher.steps],
        "counted_targets": [step["trained_tokens"] for step in watcher.steps],
        "shapes": [list(shape) for shape in watcher.shapes],
        "rows": watcher.rows,
        "mlx_peak_bytes": peak,
        "blas": report.reason,
        "flush_to_zero": report.flush_to_zero,
        "product_gflops": measure_product(),
        "versions": {
            name: metadata.version(name) for name in ("mlx", given.trainer.partition(".")[0].replace("_", "-"))
        },
    }
    given.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

"""Adapter folders that are broken or made for something else, each from a good one in PEFT's and mlx-lm's layouts."""

import json
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bad_models import Bad, Canary, edit_header, edit_tensors
from safetensors.numpy import save_file

PEFT, MLX, CONFIG = "adapter_model.safetensors", "adapters.safetensors", "adapter_config.json"
Q = "model.layers.0.self_attn.q_proj"
PEFT_A, MLX_A = f"base_model.model.{Q}.lora_A.weight", f"{Q}.lora_a"
Tensors = dict[str, np.ndarray]


def peft_only(folder: Path) -> None:
    """Leave what PEFT would have written."""
    (folder / MLX).unlink()
    fields = json.loads((folder / CONFIG).read_text())
    for key in ("lora_parameters", "fine_tune_type", "num_layers"):
        fields.pop(key)
    (folder / CONFIG).write_text(json.dumps(fields))


def mlx_only(folder: Path) -> None:
    """Leave what mlx-lm would have written."""
    (folder / PEFT).unlink()
    fields = json.loads((folder / CONFIG).read_text())
    kept = {key: fields[key] for key in ("lora_parameters", "fine_tune_type", "num_layers")}
    (folder / CONFIG).write_text(json.dumps(kept | {"model": fields["base_model_name_or_path"]}))


def peft(change: Callable[[Tensors], object], names: str) -> Bad:
    def make(folder: Path, _: Path) -> None:
        peft_only(folder)
        edit_tensors(folder / PEFT, change)

    return Bad(make, names)


def mlx(change: Callable[[Tensors], object], names: str) -> Bad:
    def make(folder: Path, _: Path) -> None:
        mlx_only(folder)
        edit_tensors(folder / MLX, change)

    return Bad(make, names)


def peft_config(names: str, **fields: object) -> Bad:
    def make(folder: Path, _: Path) -> None:
        peft_only(folder)
        old = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(old | fields))

    return Bad(make, names)


def mlx_config(names: str, **parameters: object) -> Bad:
    def make(folder: Path, _: Path) -> None:
        mlx_only(folder)
        old = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(old | {"lora_parameters": old["lora_parameters"] | parameters}))

    return Bad(make, names)


def at(key: str, number: float) -> Callable[[Tensors], object]:
    return lambda found: found[key].__setitem__((0, 0), number)


def without(part: str) -> Callable[[Tensors], object]:
    return lambda found: [found.pop(key) for key in list(found) if part in key]


def pickled(folder: Path, canary: Path) -> None:
    peft_only(folder)
    (folder / PEFT).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))


def renamed(folder: Path, canary: Path) -> None:
    peft_only(folder)
    (folder / PEFT).write_bytes(pickle.dumps(Canary(canary)))


def million_ranks(folder: Path, _: Path) -> None:
    """Rank 10^6 in the configuration and in a header that says so over data that are not there."""
    peft_only(folder)
    old = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(old | {"r": 10**6}))
    size = 10**6 * 64 * 4

    def change(found: dict[str, Any]) -> str:
        return json.dumps({PEFT_A: {"dtype": "F32", "shape": [10**6, 64], "data_offsets": [0, size]}})

    edit_header(folder / PEFT, change)
    length = struct.unpack("<Q", (folder / PEFT).read_bytes()[:8])[0]
    with (folder / PEFT).open("r+b") as file:
        file.truncate(8 + length + size)


def other_shapes(folder: Path, _: Path) -> None:
    """As if the base were twice as wide."""
    peft_only(folder)
    edit_tensors(
        folder / PEFT,
        lambda found: found.update(
            {key: np.concatenate([a, a], axis=1) for key, a in found.items() if key.endswith("lora_A.weight")}
        ),
    )


def large_and_wrong(folder: Path, _: Path) -> None:
    """A gigabyte of another model's weights, which nobody needs to read to see that."""
    peft_only(folder)
    save_file({"base_model.model.other.lora_A.weight": np.zeros((4, 64), np.float32)}, folder / PEFT)
    name = "base_model.model.other.lora_A.weight"
    edit_header(
        folder / PEFT,
        lambda _: json.dumps({name: {"dtype": "F32", "shape": [2**12, 2**16], "data_offsets": [0, 2**30]}}),
    )
    length = struct.unpack("<Q", (folder / PEFT).read_bytes()[:8])[0]
    with (folder / PEFT).open("r+b") as file:
        file.truncate(8 + length + 2**30)


ADAPTERS: Mapping[str, Bad] = {
    "pickle only": Bad(pickled, "adapter_model.bin"),
    "pickle renamed": Bad(renamed, PEFT),
    "peft: truncated": Bad(lambda folder, _: (folder / PEFT).write_bytes((folder / PEFT).read_bytes()[:-100]), PEFT),
    "peft: NaN": peft(at(PEFT_A, np.nan), f"{Q}.lora_a"),
    "peft: infinite": peft(at(PEFT_A, np.inf), f"{Q}.lora_a"),
    "peft: one tensor missing": peft(lambda found: found.pop(PEFT_A), "lora_a"),
    "peft: one layer missing": peft(without(Q), Q),
    "peft: one kind of layer missing": peft(without("q_proj"), "q_proj"),
    "peft: extra base weights": peft(
        lambda found: found.update({"base_model.model.lm_head.weight": np.ones((299, 64), np.float32)}),
        "lm_head.weight, a weight of the base",
    ),
    "peft: extra layer": peft(
        lambda found: found.update({PEFT_A.replace("layers.0", "layers.7"): found[PEFT_A]}), "layers.7"
    ),
    "peft: nothing": peft(lambda found: found.clear(), "holds no adapter weights"),
    "peft: a number without shape": peft(lambda found: found.update({PEFT_A: np.array(1, np.float32)}), "lora_a"),
    "peft: F64": peft(lambda found: found.update({PEFT_A: found[PEFT_A].astype(np.float64)}), "F64"),
    "peft: other shapes": Bad(other_shapes, "the model needs"),
    "peft: a gigabyte of other weights": Bad(large_and_wrong, "other"),
    "peft: scale NaN": peft_config("lora_alpha is nan", lora_alpha=float("nan")),
    "peft: scale 1e30": peft_config("scale is", lora_alpha=1e30),
    "peft: alpha infinite": peft_config("lora_alpha is inf", lora_alpha=float("inf")),
    "peft: alpha negative": peft_config("scale is", lora_alpha=-1),
    "peft: rank 10^6": Bad(million_ranks, "1000000"),
    "peft: rank 0": peft_config("rank is 0", r=0),
    "peft: rank negative": peft_config("rank is -4", r=-4),
    "peft: rank of a pattern": peft_config("1000000", rank_pattern={".*q_proj": 10**6}),
    "peft: endless pattern": peft_config("for ever", target_modules="(.*)*(.*)*x"),
    "peft: endless rank pattern": peft_config("for ever", rank_pattern={"(.|.)*(.|.)*x": 4}),
    "peft: 20,000 patterns": peft_config("20000 patterns", alpha_pattern={f"a{n}": 4 for n in range(20_000)}),
    "peft: config of another kind": peft_config("VERA", peft_type="VERA"),
    "peft: config is a list": Bad(lambda folder, _: (folder / CONFIG).write_text("[1]"), CONFIG),
    "peft: config is deep": Bad(lambda folder, _: (folder / CONFIG).write_text("[" * 100_000), CONFIG),
    "mlx: NaN": mlx(at(MLX_A, np.nan), MLX_A),
    "mlx: infinite": mlx(at(MLX_A, -np.inf), MLX_A),
    "mlx: one tensor missing": mlx(lambda found: found.pop(MLX_A), "lora_a"),
    "mlx: one layer missing": mlx(without(Q), Q),
    "mlx: extra base weights": mlx(
        lambda found: found.update({"lm_head.weight": np.ones((299, 64), np.float32)}), "lm_head.weight"
    ),
    "mlx: extra layer": mlx(
        lambda found: found.update({MLX_A.replace("layers.0", "layers.7"): found[MLX_A]}), "layers.7"
    ),
    "mlx: a number without shape": mlx(lambda found: found.update({MLX_A: np.array(1, np.float32)}), "lora_a"),
    "mlx: scale NaN": mlx_config("scale is nan", scale=float("nan")),
    "mlx: scale 1e30": mlx_config("scale is 1e+30", scale=1e30),
    "mlx: scale infinite": mlx_config("scale is inf", scale=float("inf")),
    "mlx: rank 10^6": mlx_config("rank is 1000000", rank=10**6),
    "mlx: rank 0": mlx_config("rank is 0", rank=0),
    "mlx: rank negative": mlx_config("rank is -1", rank=-1),
    "mlx: keys that are no names": mlx_config("does not adapt", keys=[[], {}, 3]),
}

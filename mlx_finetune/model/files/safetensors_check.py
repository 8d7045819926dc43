"""Safetensors files checked by the rules of the reference library before MLX opens them.

MLX accepts negative offsets, overlaps, holes, duplicate names and trailing bytes (RELIABILITY.md row 78); the reference
refuses all five, and so does this, from the header alone: 0.01 s for a model of any size. Nothing that the reference
refuses is accepted (``tests/model/files/test_safetensors_check.py`` compares both on mutated headers); a few things it
allows are refused here too, such as types of less than a byte, unknown keys, and headers that would take 1 GB to read.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.errors import ModelError

MAX_HEADER_BYTES = 16_000_000  # the reference allows 100 MB; 20,000 tensors, more than any model has, need 3 MB
_MAX_TENSORS = 100_000
_MAX_INDEX_BYTES = 32_000_000
_INDEX = "model.safetensors.index.json"
_SHARD_NUMBER = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Type and shape of one tensor, as the header says and the offsets confirm."""

    dtype: str
    shape: tuple[int, ...]


def check_weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a model folder, each one checked, in name order.

    Raises ``ModelError`` for a damaged file, a missing or additional shard, an index that does not tell the truth or
    names a file elsewhere, and folders that hold pickles only.
    """
    index = folder / _INDEX
    files = _indexed_files(folder, index) if index.is_file() else sorted(folder.glob("model*.safetensors"))
    if not files:
        raise _no_weights(folder)
    _check_shard_numbers(folder, files)
    seen: dict[str, Path] = {}
    for file in files:
        for name in check_safetensors(file):
            if name in seen:
                raise ModelError(f"{file}: the tensor {name!r} is in {seen[name].name} too", _AGAIN)
            seen[name] = file
    if index.is_file():
        _check_index(index, seen)
    return tuple(files)


def check_safetensors(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one file. Raises ``ModelError`` with the rule that is broken."""
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file", _AGAIN)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise ModelError(f"{path} is a pickle or zip archive, not safetensors; it is never opened", _SAFE)
        if len(start) < 8:
            raise _damaged(path, "it has no header")
        header_bytes = int.from_bytes(start, "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise _damaged(path, f"its header claims {header_bytes:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
        if header_bytes > size - 8:
            raise _damaged(path, f"its header claims {header_bytes} bytes; the file has {size}")
        header = _parse(path, file.read(header_bytes))
    return _check_header(path, header, size - 8 - header_bytes)


def file_stamps(paths: Sequence[Path]) -> dict[Path, tuple[int, ...]]:
    """Device, inode, size and times of each file, for ``check_stamps`` after it has been read."""
    found: dict[Path, tuple[int, ...]] = {}
    for path in paths:
        stat = path.stat()
        found[path] = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return found


def check_stamps(stamps: Mapping[Path, tuple[int, ...]]) -> None:
    """Raise ``ModelError`` for a file that is another now: what was checked is not what was loaded."""
    for path, stamp in stamps.items():
        if not path.is_file() or file_stamps([path])[path] != stamp:
            raise ModelError(
                f"{path} was changed while it was being loaded", "let the other program finish, then retry"
            )


_AGAIN = "fetch or copy the model again"
_SAFE = "use the model's safetensors files, or convert them with a tool you trust"


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is damaged: {what}", _AGAIN)


def _parse(path: Path, content: bytes) -> dict[str, object]:
    """Strict JSON with an object on top: no duplicate keys, no NaN, no lone surrogates."""

    def refuse(what: str) -> object:
        raise ValueError(f"{what} is not JSON")

    if content.count(b"[") + content.count(b"{") > 3 * _MAX_TENSORS + 2:
        raise _damaged(path, f"it lists more than {_MAX_TENSORS:,} tensors")
    try:
        if not content.startswith(b"{"):
            raise ValueError("it does not begin with {")
        header = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=refuse, parse_int=_whole_number
        )
        json.dumps(header, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise _damaged(path, "its header is nested too deeply") from error
    except ValueError as error:
        raise _damaged(path, f"its header is not what the format asks for: {error}") from error
    return header


def _whole_number(text: str) -> int:
    """The reference reads ``-0`` as a float and refuses it; Python reads 0."""
    if text == "-0":
        raise ValueError("-0 is not a whole number")
    return int(text)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{twice!r} occurs twice")
    return unique


def _check_header(path: Path, header: dict[str, object], data_bytes: int) -> dict[str, TensorInfo]:
    metadata = header.pop("__metadata__", None)
    if metadata is None:  # mlx writes null where there is none
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata is not a table of texts")
    if len(header) > _MAX_TENSORS:
        raise _damaged(path, f"it lists {len(header)} tensors; at most {_MAX_TENSORS} are allowed")
    ranges: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        tensors[name], start, end = _check_entry(path, name, entry)
        ranges.append((start, end, name))
    position = 0
    for start, end, name in sorted(ranges):
        if start != position:
            what = "overlaps the one before" if start < position else "leaves a hole before it"
            raise _damaged(path, f"tensor {name!r} at bytes {start} to {end} {what}")
        position = end
    if position != data_bytes:
        raise _damaged(path, f"its tensors end at byte {position} of {data_bytes}")
    return tensors


def _check_entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, int, int]:
    """Type, shape and byte range of one tensor; the three must agree."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], _counts(entry["shape"]), _counts(entry["data_offsets"])
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise ModelError(f"{path}: tensor {name!r} has the type {dtype!r}, which is not supported", _SAFE)
    if shape is None or offsets is None or len(offsets) != 2:
        raise _damaged(path, f"tensor {name!r} has an impossible shape or position")
    start, end = offsets
    if end - start != math.prod(shape) * _DTYPE_BYTES[dtype] or math.prod(max(n, 1) for n in shape) >= 2**63:
        raise _damaged(path, f"tensor {name!r} of {dtype} {list(shape)} does not fill its {end - start} bytes")
    return TensorInfo(dtype, shape), start, end


def _counts(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers in 0 .. 2^63 as a tuple, else None."""
    if not isinstance(value, list) or len(value) > 64:
        return None
    if not all(type(item) is int and 0 <= item < 2**63 for item in value):
        return None
    return tuple(value)


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"{folder} has its weights as {pickles[0]} only, which can run code when opened; it is never opened",
            "ask for a revision with safetensors, or save the model with safe_serialization in transformers",
        )
    return ModelError(f"{folder} holds no model*.safetensors", "give a folder with config.json and safetensors weights")


def _indexed_files(folder: Path, index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or "\\" in name or "\0" in name:
            raise ModelError(f"{index} names {name!r}, which is not a safetensors file of this folder", _AGAIN)
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is incomplete: {name} is missing", _AGAIN)
    extra = [file.name for file in sorted(folder.glob("model*.safetensors")) if file.name not in names]
    if extra:
        raise ModelError(f"{folder} holds {extra[0]}, which {_INDEX} does not name", "remove it or the index")
    return [folder / name for name in names]


def _weight_map(index: Path) -> Mapping[str, str]:
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise _damaged(index, f"it is larger than {_MAX_INDEX_BYTES // 10**6} MB")
    weight_map = _parse(index, index.read_bytes().lstrip()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(index, "it has no weight_map")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise _damaged(index, "its weight_map is not a table of file names")
    return weight_map


def _check_index(index: Path, seen: Mapping[str, Path]) -> None:
    weight_map = _weight_map(index)
    for name in sorted({*weight_map, *seen}):
        said, found = weight_map.get(name), seen[name].name if name in seen else None
        if said != found:
            raise _damaged(index, f"it says tensor {name!r} is in {said}; it is in {found}")


def _check_shard_numbers(folder: Path, files: Sequence[Path]) -> None:
    """``model-00002-of-00003.safetensors`` asks for all three, whether or not there is an index."""
    for file in files:
        match = _SHARD_NUMBER.fullmatch(file.name)
        if match is not None:
            missing = int(match[2]) - sum(_SHARD_NUMBER.fullmatch(other.name) is not None for other in files)
            if missing:
                raise ModelError(
                    f"{folder} is incomplete: {missing} of {int(match[2])} weight files are missing", _AGAIN
                )

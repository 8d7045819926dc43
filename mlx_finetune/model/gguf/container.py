"""The GGUF container: metadata and tensors, read with every length and offset checked against the file.

MLX has a GGUF reader too; it is not used, because reading a file from a stranger with it has gone out of bounds more
than once (mlx issues 4213, 4244). numpy on a read-only memory map cannot. Blocks of Q4_0, Q4_1 and Q8_0 become MLX's
affine layout bit for bit as ``mx.load`` makes it (``tests/model/gguf/test_container.py`` compares); the file is read
once, tensor by tensor. Other block types are refused by name.
"""

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.errors import ModelError

Array = NDArray[np.generic]
Value = bool | int | float | str | list["Value"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_METADATA, _MAX_TENSORS, _MAX_ITEMS, _MAX_NAME = 100_000, 100_000, 10_000_000, 1024
#: ggml type number -> name, elements in a block, bytes of a block.
_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}
_OTHER_TYPES = {
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
#: Bits and group size of the affine layout that a block type becomes.
AFFINE_BITS: Mapping[str, int] = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies. ``shape`` is row-major (out, in); ``start`` and ``num_bytes`` are inside the file."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A checked GGUF file: ``metadata`` by key, ``tensors`` by name, ``buffer`` the whole file as bytes."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    buffer: NDArray[np.uint8]


def read_gguf(path: Path) -> Gguf:
    """Read and check everything but the weights' values. Raises ``ModelError`` for a file that lies about itself."""
    if not path.is_file():
        raise ModelError(f"{path} is not a file", "give the path of a .gguf file")
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise ModelError(f"{path} is too short to be a GGUF file")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(path, content)
    if reader.take(4) != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    version = reader.number("I")
    if version not in (2, 3):
        raise ModelError(f"{path}: GGUF version {version} is not supported; versions 2 and 3 are")
    num_tensors, num_metadata = reader.number("Q"), reader.number("Q")
    if num_tensors > _MAX_TENSORS or num_metadata > _MAX_METADATA:
        raise reader.damaged(f"it announces {num_tensors} tensors and {num_metadata} metadata entries")
    metadata: dict[str, Value] = {}
    for _ in range(num_metadata):
        key = reader.string(65535)
        if key in metadata:
            raise reader.damaged(f"metadata key {key!r} occurs twice")
        metadata[key] = reader.value(reader.number("I"))
    return Gguf(path, metadata, _read_tensors(reader, num_tensors, metadata), np.frombuffer(content, np.uint8))


def _read_tensors(reader: "_Reader", num_tensors: int, metadata: Mapping[str, Value]) -> dict[str, Tensor]:
    infos: list[tuple[str, str, tuple[int, ...], int, int]] = []
    for _ in range(num_tensors):
        name = reader.string(_MAX_NAME)
        num_dims = reader.number("I")
        if not 1 <= num_dims <= 4:
            raise reader.damaged(f"tensor {name!r} has {num_dims} dimensions")
        shape = tuple(reader.number("Q") for _ in range(num_dims))[::-1]
        type_number, offset = reader.number("I"), reader.number("Q")
        infos.append((name, *_size_of(reader, name, shape, type_number), offset))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise reader.damaged(f"general.alignment is {alignment!r}")
    data_start = -(-reader.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    end = data_start
    for name, type_name, shape, num_bytes, offset in sorted(infos, key=lambda info: info[-1]):
        start = data_start + offset
        if offset % alignment or start < end or start + num_bytes > reader.size:
            raise reader.damaged(
                f"tensor {name!r} claims bytes {start} to {start + num_bytes}; the file has {reader.size}"
                if start + num_bytes > reader.size
                else f"tensor {name!r} overlaps its neighbour or is not aligned"
            )
        if name in tensors:
            raise reader.damaged(f"tensor {name!r} occurs twice")
        tensors[name] = Tensor(name, type_name, shape, start, num_bytes)
        end = start + num_bytes
    return tensors


def _size_of(
    reader: "_Reader", name: str, shape: tuple[int, ...], type_number: int
) -> tuple[str, tuple[int, ...], int]:
    """``type name, shape, number of bytes``; only the last dimension is cut into blocks."""
    if type_number not in _TYPES:
        named = _OTHER_TYPES.get(type_number, f"number {type_number}")
        raise ModelError(
            f"{reader.path}: tensor {name!r} has the block type {named}, which is not supported",
            f"use a file with {', '.join(known for known, _, _ in _TYPES.values())}, or the model's safetensors",
        )
    type_name, block_elements, block_bytes = _TYPES[type_number]
    num_elements = math.prod(shape)
    if num_elements == 0 or num_elements > 2**48 or shape[-1] % block_elements:
        raise reader.damaged(f"tensor {name!r} has the shape {list(shape)}")
    return type_name, shape, num_elements // block_elements * block_bytes


class _Reader:
    """A position in the file; every read past its end is a ``ModelError``."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.size, self.position = path, len(content), 0
        self._content = content

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is damaged: {what}", "fetch or copy the file again")

    def take(self, num_bytes: int) -> bytes:
        start = self.position
        if num_bytes > self.size - start:
            raise self.damaged(f"at byte {start} it announces {num_bytes} more bytes, {self.size - start} are left")
        self.position = start + num_bytes
        return self._content[start : self.position]

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self, limit: int) -> str:
        length = self.number("Q")
        if length > limit:
            raise self.damaged(f"a name of {length} bytes at byte {self.position}")
        return self._text(self.take(length))

    def _text(self, content: bytes) -> str:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"text before byte {self.position} is not UTF-8") from error

    def value(self, type_number: int) -> Value:
        if type_number == _STRING:
            return self.string(self.size)
        if type_number == _ARRAY:
            return self._array()
        if type_number not in _SCALARS:
            raise self.damaged(f"metadata type {type_number} at byte {self.position}")
        return struct.unpack("<" + (code := _SCALARS[type_number]), self.take(struct.calcsize("<" + code)))[0]

    def _array(self) -> list[Value]:
        item_type, length = self.number("I"), self.number("Q")
        if length > _MAX_ITEMS:
            raise self.damaged(f"a list of {length} items at byte {self.position}")
        if item_type == _STRING:
            return [self.string(self.size) for _ in range(length)]
        if item_type not in _SCALARS:
            raise self.damaged(f"a list of metadata type {item_type} at byte {self.position}")
        code = _SCALARS[item_type]
        return list(struct.unpack(f"<{length}{code}", self.take(length * struct.calcsize("<" + code))))


def unpack_tensor(gguf: Gguf, name: str) -> dict[str, Array]:
    """Arrays of one tensor: ``{"": values}``, or ``weight`` (uint32), ``scales``, ``biases`` (fp16) where it is packed.

    ``values`` has the tensor's shape and type F32 or F16; BF16 comes as its raw uint16.
    """
    tensor = gguf.tensors[name]
    content = gguf.buffer[tensor.start : tensor.start + tensor.num_bytes]
    plain = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    if tensor.type_name in plain:
        return {"": content.view(plain[tensor.type_name]).reshape(tensor.shape)}
    *rows, width = tensor.shape
    blocks = content.reshape(-1, _BLOCK_BYTES[tensor.type_name])
    weight, scales, biases = _UNPACK[tensor.type_name](blocks)
    num_groups = width // GROUP_SIZE
    return {
        "weight": weight.reshape(*rows, width * AFFINE_BITS[tensor.type_name] // 32),
        "scales": scales.reshape(*rows, num_groups),
        "biases": biases.reshape(*rows, num_groups),
    }


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """16 bytes that hold elements i (low half) and i + 16 (high half) -> 4 words with 8 elements each in order."""
    halves = np.concatenate((packed & 0x0F, packed >> 4), axis=1)  # (blocks, 32)
    pairs = halves[:, 0::2] | (halves[:, 1::2] << 4)  # (blocks, 16): byte k holds elements 2k and 2k + 1
    return np.ascontiguousarray(pairs).view("<u4")  # (blocks, 4)


def _unpack_q4_0(blocks: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
    """``w = d (q - 8)``: scale d, bias -8 d."""
    scales = np.ascontiguousarray(blocks[:, 0:2]).view("<f2")
    return _nibbles(blocks[:, 2:]), scales, _multiplied(-8, scales)


def _unpack_q4_1(blocks: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
    """``w = d q + m``: scale d, bias m."""
    header = np.ascontiguousarray(blocks[:, 0:4]).view("<f2")
    return _nibbles(blocks[:, 4:]), header[:, 0:1], header[:, 1:2]


def _unpack_q8_0(blocks: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
    """``w = d q`` with signed q: stored as q + 128 with scale d, bias -128 d."""
    scales = np.ascontiguousarray(blocks[:, 0:2]).view("<f2")
    return np.ascontiguousarray(blocks[:, 2:] ^ 0x80).view("<u4"), scales, _multiplied(-128, scales)


def _multiplied(factor: int, scales: Array) -> Array:
    """``factor * scales`` in fp16. Damaged scales may overflow: infinity is refused by name at loading."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.multiply(np.float16(factor), scales, dtype=np.float16)


_BLOCK_BYTES = {name: num_bytes for name, _, num_bytes in _TYPES.values()}
_UNPACK: Mapping[str, Callable[[NDArray[np.uint8]], tuple[Array, Array, Array]]] = {
    "Q4_0": _unpack_q4_0,
    "Q4_1": _unpack_q4_1,
    "Q8_0": _unpack_q8_0,
}

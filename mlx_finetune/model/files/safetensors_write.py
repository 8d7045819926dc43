"""Arrays as the bytes of a safetensors file, one array at a time: a file of any size costs the memory of one array.

The reference library builds the whole file in memory first, and ``mx.save_safetensors`` opens the file itself, does not
try again where a write was interrupted, and tells nobody what it wrote. The same arrays give the same bytes.
"""

import json
from collections.abc import Iterator, Mapping

import mlx.core as mx
import numpy as np

_DTYPES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.uint8: "U8",
}


def safetensors_chunks(arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Header, then the bytes of each array in the order of names. Raises ``KeyError`` for a type not listed above."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name in sorted(arrays):
        array = arrays[name]
        end = position + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight
    yield len(text).to_bytes(8, "little") + text
    for name in sorted(arrays):
        array = arrays[name]
        plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array  # numpy has no bfloat16
        yield np.ascontiguousarray(np.array(plain, copy=False)).reshape(-1).view(np.uint8).data

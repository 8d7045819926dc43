import struct
from pathlib import Path

import gguf_writer
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlx_finetune.errors import ModelError
from mlx_finetune.model.gguf.container import read_gguf, unpack_tensor


def written(path: Path, **more: object) -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": (rng.normal(size=(6, 64)).astype(np.float32), "Q4_0"),
        "b.weight": (rng.normal(size=(5, 96)).astype(np.float32), "Q4_1"),
        "c.weight": (rng.normal(size=(3, 32)).astype(np.float32), "Q8_0"),
        "d.weight": (rng.normal(size=7).astype(np.float32), "F32"),
        "e.weight": (rng.normal(size=(2, 3)).astype(np.float32), "F16"),
    }
    return gguf_writer.write_gguf(path, {"general.architecture": "llama", **more}, tensors)


def test_every_block_type_is_unpacked_bit_for_bit_as_mlx_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    expected = mx.load(str(path))
    assert isinstance(expected, dict)
    gguf = read_gguf(path)
    ours = {
        (name if part == "" else name.replace("weight", part)): array
        for name in gguf.tensors
        for part, array in unpack_tensor(gguf, name).items()
    }
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        reference = np.array(expected[name])
        assert array.dtype == reference.dtype
        np.testing.assert_array_equal(array, reference, err_msg=name)


def test_bfloat16_comes_as_its_bits(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3e38], np.float32)
    gguf = read_gguf(gguf_writer.write_gguf(tmp_path / "m.gguf", {}, {"x": (values, "BF16")}))
    bits = unpack_tensor(gguf, "x")[""]
    assert bits.tolist() == [0x3F80, 0xC020, 0x7F61]


def test_metadata_of_every_kind_is_read(tmp_path: Path) -> None:
    more = {"i": 7, "f": 0.5, "b": True, "s": "\u0120t", "ls": ["a", ""], "li": [1, -2], "lf": [0.25]}
    metadata = read_gguf(written(tmp_path / "m.gguf", **more)).metadata
    assert {key: metadata[key] for key in more} == more


HEADER = 24  # magic, version, number of tensors, number of metadata entries


@pytest.mark.parametrize(
    ("position", "content", "what"),
    [
        (0, b"GGUX", "does not begin with"),
        (4, struct.pack("<I", 1), "version 1"),
        (8, struct.pack("<Q", 2**62), "announces"),
        (8, struct.pack("<Q", 6), "damaged"),  # one tensor more than there is
        (16, struct.pack("<Q", 2**40), "announces"),
        (HEADER, struct.pack("<Q", 2**62), "a name of"),
        (HEADER, struct.pack("<Q", 60_000), "announces 60000 more bytes"),
        (HEADER + 8, b"\xff", "not UTF-8"),
        (HEADER + 8 + len("general.architecture"), struct.pack("<I", 99), "metadata type 99"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, position: int, content: bytes, what: str) -> None:
    path = written(tmp_path / "m.gguf")
    whole = bytearray(path.read_bytes())
    whole[position : position + len(content)] = content
    path.write_bytes(whole)
    with pytest.raises(ModelError, match=what):
        read_gguf(path)


@pytest.mark.parametrize(
    ("shape", "type_number", "offset", "what"),
    [
        ((32,), 0, 2**40, "claims bytes"),
        ((32,), 0, 2**64 - 32, "claims bytes"),
        ((2**40,), 0, 0, "claims bytes"),
        ((2**40, 2**40), 0, 0, "has the shape"),
        ((33,), 2, 0, "has the shape"),
        ((0,), 0, 0, "has the shape"),
        ((8,), 0, 7, "not aligned"),
        ((1, 1, 1, 1, 1), 0, 0, "5 dimensions"),
        ((256,), 12, 0, "Q4_K"),
        ((32,), 77, 0, "number 77"),
    ],
)
def test_tensors_that_lie_are_refused(
    tmp_path: Path, shape: tuple[int, ...], type_number: int, offset: int, what: str
) -> None:
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + gguf_writer.text("w") + struct.pack("<I", len(shape))
    head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", type_number, offset)
    path = tmp_path / "m.gguf"
    path.write_bytes(head + b"\0" * (-len(head) % 32) + b"\0" * 128)
    with pytest.raises(ModelError, match=what):
        read_gguf(path)


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = written(tmp_path / "m.gguf").read_bytes()
    last_byte_of_data = len(whole) - 20  # the last tensor has 12 bytes and 20 of padding
    path = tmp_path / "short.gguf"
    for length in range(0, last_byte_of_data, 13):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_gguf(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 420), st.integers(0, 255)), min_size=1, max_size=4))
@example([(321, 112)])  # another place of the data: scales whose product with -8 overflows
def test_any_change_of_the_header_is_read_or_refused_but_never_breaks(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path / "m.gguf"
    whole = bytearray(written(path).read_bytes())
    for position, value in changes:
        whole[position] = value
    path.write_bytes(whole)
    try:
        gguf = read_gguf(path)
    except ModelError:
        return
    for name, tensor in gguf.tensors.items():
        parts = unpack_tensor(gguf, name)
        assert tensor.start + tensor.num_bytes <= len(whole)
        assert sum(part.nbytes for part in parts.values()) <= 2 * len(whole)

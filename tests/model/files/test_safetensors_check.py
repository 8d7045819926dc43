import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlx_finetune.errors import ModelError
from mlx_finetune.model.files.safetensors_check import TensorInfo, check_safetensors, check_weight_files

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
}


def with_header(path: Path, header: bytes, data: bytes = b"\0" * 26, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def changed(**entry: object) -> bytes:
    return json.dumps(GOOD | {"b": GOOD["b"] | entry}).encode()


def reference_accepts(path: Path) -> bool:
    try:
        with safe_open(path, "np"):
            return True
    except SafetensorError:
        return False


def test_names_types_and_shapes_of_a_good_file(tmp_path: Path) -> None:
    path = with_header(
        tmp_path / "m.safetensors", json.dumps(GOOD | {"__metadata__": {"format": "pt"}}).encode() + b"   "
    )
    assert reference_accepts(path)
    assert check_safetensors(path) == {"a": TensorInfo("F32", (2, 3)), "b": TensorInfo("BF16", ())}


REFUSED = {
    "negative offset": (changed(data_offsets=[-2, 0]), "impossible"),
    "offset past the end": (changed(data_offsets=[1000, 1002]), "leaves a hole"),
    "overlap": (changed(data_offsets=[22, 24]), "overlaps"),
    "duplicate tensor": (b'{"a":' + json.dumps(GOOD["a"]).encode() + b"," + changed()[1:], "'a' occurs twice"),
    "shape overflow": (changed(shape=[2**62, 2**62]), "does not fill"),
    "shape overflow hidden by a zero": (changed(shape=[2**62, 2**62, 0]), "does not fill"),
    "wrong product": (changed(shape=[2]), "does not fill"),
    "reversed offsets": (changed(data_offsets=[26, 24]), "does not fill"),
    "unknown type": (changed(dtype="F17"), "'F17', which is not supported"),
    "type of another kind": (changed(dtype=3), "not supported"),
    "true as a number": (changed(shape=[True]), "impossible"),
    "float as a number": (changed(shape=[1.0]), "impossible"),
    "minus zero": (json.dumps(GOOD).replace("[0, 24]", "[-0, 24]").encode(), "-0 is not a whole number"),
    "unknown key": (changed(more=1), "not described by"),
    "missing key": (json.dumps({"a": {"dtype": "F32", "shape": [2, 3]}}).encode(), "not described by"),
    "metadata number": (json.dumps(GOOD | {"__metadata__": {"x": 1}}).encode(), "metadata is not"),
    "metadata list": (json.dumps(GOOD | {"__metadata__": ["x"]}).encode(), "metadata is not"),
    "metadata empty list": (json.dumps(GOOD | {"__metadata__": []}).encode(), "metadata is not"),
    "deep nesting": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "damaged"),
    "no object": (b"[]", "begin with"),
    "leading space": (b" " + json.dumps(GOOD).encode(), "begin with"),
    "not UTF-8": (b'{"\xff": 1}', "damaged"),
    "lone surrogate": (b'{"\\ud800": 1}', "damaged"),
    "NaN": (b'{"a": NaN}', "not JSON"),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", "damaged"),
    "rest after the object": (json.dumps(GOOD).encode() + b"{}", "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_headers_that_break_a_rule_are_refused(case: str, tmp_path: Path) -> None:
    header, what = REFUSED[case]
    path = with_header(tmp_path / "m.safetensors", header)
    with pytest.raises(ModelError, match=what):
        check_safetensors(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no header"),
        (b"1234567", "no header"),
        (struct.pack("<Q", 2**62) + b"{}", "header claims 4,611,686,018,427,387,904"),
        (struct.pack("<Q", 100_000_001) + b"{}", "at most 16,000,000"),
        (struct.pack("<Q", 3) + b"{}", "header claims 3 bytes"),
        (b"PK\x03\x04" + b"\0" * 40, "pickle or zip"),
        (b"\x80\x04\x95" + b"\0" * 40, "pickle or zip"),
    ],
)
def test_files_that_are_something_else_are_refused(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=what):
        check_safetensors(path)


def test_holes_and_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    header = json.dumps(GOOD).encode()
    with pytest.raises(ModelError, match="end at byte 26 of 30"):
        check_safetensors(with_header(tmp_path / "m.safetensors", header, b"\0" * 30))
    with pytest.raises(ModelError, match="end at byte 26 of 25"):
        check_safetensors(with_header(tmp_path / "m.safetensors", header, b"\0" * 25))
    moved = changed(data_offsets=[25, 27])
    with pytest.raises(ModelError, match="hole"):
        check_safetensors(with_header(tmp_path / "m.safetensors", moved, b"\0" * 27))


def test_a_header_of_a_million_tensors_is_refused(tmp_path: Path) -> None:
    header = "{" + ",".join(f'"{n}":0' for n in range(100_001)) + "}"
    with pytest.raises(ModelError, match="lists 100001 tensors"):
        check_safetensors(with_header(tmp_path / "m.safetensors", header.encode()))
    header = "{" + ",".join(f'"{n}":[[]]' for n in range(160_000)) + "}"
    with pytest.raises(ModelError, match="lists more than 100,000 tensors"):
        check_safetensors(with_header(tmp_path / "m.safetensors", header.encode()))


def test_metadata_that_mlx_writes_as_null_is_none(tmp_path: Path) -> None:
    path = with_header(tmp_path / "m.safetensors", json.dumps(GOOD | {"__metadata__": None}).encode())
    assert reference_accepts(path)
    assert set(check_safetensors(path)) == {"a", "b"}


def test_a_name_that_occurs_twice_among_many_is_found_at_once(tmp_path: Path) -> None:
    header = "{" + ",".join(f'"{n}":0' for n in range(99_999)) + ',"99998":0}'
    with pytest.raises(ModelError, match="'99998' occurs twice"):
        check_safetensors(with_header(tmp_path / "m.safetensors", header.encode()))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from(list(b'{}[]":,0123456789-.eE \\uaF\x00\xff'))), max_size=4
    ),
    cut=st.integers(0, 12),
    more=st.binary(max_size=3),
)
@example(changes=[], cut=0, more=b"")
def test_nothing_is_accepted_that_the_reference_refuses(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    path = with_header(tmp_path / "m.safetensors", json.dumps(GOOD).encode())
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(bytes(content[: len(content) - cut]) + more)
    try:
        check_safetensors(path)
    except ModelError:
        return
    assert reference_accepts(path)


numbers = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**63 - 1, 2**64, 1.0, True, None, "1"]))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F8_E4M3", "C64", "f32", ""]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    }
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=3), entries, max_size=3), size=st.integers(0, 40))
@example(header={"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, size=2)
@example(header={"x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, size=0)
def test_no_built_header_is_accepted_that_the_reference_refuses(
    tmp_path: Path, header: dict[str, object], size: int
) -> None:
    path = with_header(tmp_path / "m.safetensors", json.dumps(header).encode(), b"\0" * size)
    try:
        check_safetensors(path)
    except ModelError:
        return
    assert reference_accepts(path)


def sharded(folder: Path, names: tuple[str, ...] = ("model-00001-of-00002", "model-00002-of-00002")) -> Path:
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for number, name in enumerate(names):
        save_file({f"w{number}": np.zeros(3, np.float32)}, folder / f"{name}.safetensors")
        weight_map[f"w{number}"] = f"{name}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def change_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_of_an_index_are_found_in_order(tmp_path: Path) -> None:
    files = check_weight_files(sharded(tmp_path))
    assert [file.name for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "..", "a\0.safetensors"]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    change_index(sharded(tmp_path), {"w0": name})
    with pytest.raises(ModelError, match="not a safetensors file of this folder"):
        check_weight_files(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        check_weight_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match="1 of 2 weight files are missing"):
        check_weight_files(tmp_path)


def test_an_additional_shard_is_named(tmp_path: Path) -> None:
    save_file({"x": np.zeros(1, np.float32)}, sharded(tmp_path) / "model-extra.safetensors")
    with pytest.raises(ModelError, match=r"model-extra\.safetensors, which"):
        check_weight_files(tmp_path)


def test_an_index_that_puts_a_tensor_into_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    change_index(sharded(tmp_path), {"w0": second, "w1": first})
    with pytest.raises(ModelError, match="tensor 'w0' is in model-00002"):
        check_weight_files(tmp_path)
    change_index(tmp_path, {"w0": first, "w1": second, "w2": second})
    with pytest.raises(ModelError, match=r"tensor 'w2' is in model-00002.* it is in None"):
        check_weight_files(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}])
def test_an_index_without_a_table_is_refused(tmp_path: Path, weight_map: object) -> None:
    change_index(sharded(tmp_path), weight_map)
    with pytest.raises(ModelError, match="weight_map"):
        check_weight_files(tmp_path)


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("model-a", "model-b"):
        save_file({"w": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match=r"'w' is in model-a\.safetensors too"):
        check_weight_files(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "last.ckpt"])
def test_pickles_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="can run code when opened") as caught:
        check_weight_files(tmp_path)
    assert "safetensors" in caught.value.hint


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model\*\.safetensors"):
        check_weight_files(tmp_path)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelError, match="not a regular file"):
        check_weight_files(tmp_path)

"""What is written in pieces is a safetensors file like any other: MLX and the reference library read it back."""

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file, save

from mlx_finetune import durable
from mlx_finetune.model.files.safetensors_check import TensorInfo, check_safetensors
from mlx_finetune.model.files.safetensors_write import safetensors_chunks

ARRAYS = {
    "b.half": mx.arange(7).astype(mx.bfloat16),
    "a": mx.array(np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)),
    "turned": mx.array(np.arange(24, dtype=np.float32).reshape(4, 6)).T,
    "scalar": mx.array(2.5),
    "empty": mx.zeros((0, 3)),
    "f16": mx.ones((2,), dtype=mx.float16),
    "count": mx.array([1, 2], dtype=mx.uint32),
}


def test_every_array_comes_back_with_shape_type_and_bits(tmp_path):
    path = tmp_path / "x.safetensors"
    durable.write_new(path, safetensors_chunks(ARRAYS, {"format": "mlx"}))
    assert check_safetensors(path)["b.half"] == TensorInfo("BF16", (7,))
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (loaded[name].shape, loaded[name].dtype) == (array.shape, array.dtype), name
        assert mx.array_equal(loaded[name], array), name


def test_the_reference_library_reads_it_and_would_write_the_same_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {name: ARRAYS[name] for name in ("a", "turned", "empty")}
    durable.write_new(path, safetensors_chunks(arrays, {"format": "mlx"}))
    read = load_file(path)
    assert {name: value.tolist() for name, value in read.items()} == {n: a.tolist() for n, a in arrays.items()}
    assert path.read_bytes() == save({name: read[name] for name in sorted(read)}, {"format": "mlx"})


def test_the_order_of_the_arrays_changes_no_byte():
    forward = b"".join(safetensors_chunks(ARRAYS, {}))
    backward = b"".join(safetensors_chunks(dict(reversed(ARRAYS.items())), {}))
    assert forward == backward

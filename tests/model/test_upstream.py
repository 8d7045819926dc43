"""What is copied from mlx-lm is still the same there, and the package is not run before it is needed."""

import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm import utils

from mlx_finetune.model.upstream import REMAPPED, find_architecture, packing_of

LAZY = """
import sys
import mlx_finetune.model.load, mlx_finetune.model.adapters.lora, mlx_finetune.model.answers.generate
import mlx_finetune.train.run
from mlx_finetune.model.upstream import find_architecture
assert find_architecture("qwen3") is not None
assert "transformers" not in sys.modules, "a training must not pay for transformers"
import mlx_lm
assert not hasattr(mlx_lm, "__warningregistry__") and not hasattr(mlx_lm, "__wrapped__")
assert "transformers" not in sys.modules, "looking at a module is no use of it"
from mlx_lm import load
assert load is mlx_lm.utils.load and "generate" in mlx_lm.__all__ and mlx_lm.__version__
assert mlx_lm.models.qwen3 is sys.modules["mlx_lm.models.qwen3"]
try:
    mlx_lm.nothing
except AttributeError:
    print("good")
"""


def test_mlx_lm_runs_only_when_something_of_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("good\n", 0), done.stderr


def test_the_names_of_architectures_are_mlx_lms():
    assert REMAPPED == utils.MODEL_REMAPPING


def test_an_architecture_is_found_under_both_of_its_names_and_unknown_ones_are_not():
    assert find_architecture("mistral") is find_architecture("llama")
    assert find_architecture("no_such_architecture") is None


@pytest.mark.parametrize(("bits", "group_size", "mode"), [(4, 64, "affine"), (8, 32, "affine"), (3, 128, "affine")])
def test_affine_packings_are_read_as_mlx_lm_reads_them(bits, group_size, mode):
    compare(bits, group_size, mode)


@pytest.mark.parametrize(("bits", "group_size", "mode"), [(4, 32, "mxfp4"), (8, 32, "mxfp8"), (4, 16, "nvfp4")])
def test_packings_with_scales_of_bytes_are_read_as_mlx_lm_reads_them(bits, group_size, mode):
    compare(bits, group_size, mode)


def compare(bits: int, group_size: int, mode: str) -> None:
    linear = nn.Linear(256, 8, bias=False)
    packed = mx.quantize(linear.weight, bits=bits, group_size=group_size, mode=mode)
    weights = {"a.weight": packed[0], "a.scales": packed[1]}
    theirs = utils.infer_quant_config("a", linear, weights)
    assert packing_of("a", linear, weights) == (theirs["bits"], theirs["group_size"], theirs["mode"])
    assert packing_of("a", linear, weights) == (bits, group_size, mode)


def test_a_packing_that_mlx_does_not_have_is_refused_with_mlx_lms_words():
    weights = {"a.weight": mx.zeros((8, 32), mx.uint32), "a.scales": mx.zeros((8, 1), mx.uint8)}
    linear = nn.Linear(256, 8, bias=False)
    with pytest.raises(ValueError, match="Cannot infer") as theirs:
        utils.infer_quant_config("a", linear, weights)
    with pytest.raises(ValueError, match="Cannot infer") as ours:
        packing_of("a", linear, weights)
    assert str(ours.value) == str(theirs.value)

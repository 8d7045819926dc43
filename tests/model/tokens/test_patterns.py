"""Patterns of adapters: those that PEFT's users write are taken, those that could take for ever refused."""

import time

import pytest

from mlx_finetune.errors import ModelError
from mlx_finetune.model.adapters.peft_names import parse_peft_config
from mlx_finetune.model.tokens.patterns import compile_pattern

PATH = "language_model.model.layers.11.self_attn.q_proj"
USED = [
    "q_proj",
    r".*\.(q_proj|v_proj)",
    r"model\.layers\.(0|1|2|10|11)\..*",
    r".*layers\.\d+\.self_attn\.(q|k|v|o)_proj$",
    r"^(?!.*vision).*(?:q_proj|v_proj)$",
    r"(.*\.)?layers\.[0-9]{1,2}\.(self_attn|mlp)\.\w+",
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj)))",  # as Unsloth writes it
]
ENDLESS = [
    r"(.+)+x",
    r"(.*)*x",
    r"(.|.)*x",
    r"(?:.{1,3}){1,40}x",
    r"(?:(?:.?){9}){9}x",
    r".*.*.*.*.*.*.*.*x",
    r".?" * 100 + "x",
    r"(?:.|.)" * 40 + "x",
    r"(?:m|mo|mod)(?:.|..|...|....)" * 12 + "x",
    r"(.)\1*.*x",
    r"(?=.*.*.*.*.*.*x).*",
    "a" * 2_001,
    "((",
    "(" * 1_000 + ")" * 1_000,
    "a{99999999999}",
]


@pytest.mark.parametrize("pattern", USED)
def test_patterns_in_use_are_compiled(pattern: str) -> None:
    compile_pattern(pattern)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_that_could_take_for_ever_are_refused_by_name(pattern: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match="has a pattern") as caught:
        compile_pattern(pattern)
    assert len(caught.value.message) < 250
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("pattern", [".*.*.*.*x", "(?:.*?a)?.*l.*e.*x", ".?" * 22 + ".*x", r".*(?:\w|\d).*(?:e|.).*x"])
def test_the_worst_that_is_taken_ends_in_a_moment(pattern: str) -> None:
    try:
        compiled = compile_pattern(pattern)
    except ModelError:
        return
    start = time.monotonic()
    for _ in range(5):
        compiled.fullmatch(PATH)
    assert time.monotonic() - start < 5


def test_many_patterns_may_each_be_less() -> None:
    one = {".*a.*b": 4}
    many = {f".*a{n}.*b": 4 for n in range(1_000)}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    parse_peft_config(config | {"rank_pattern": one})
    with pytest.raises(ModelError, match="could take for ever"):
        parse_peft_config(config | {"rank_pattern": many})
    plain = {f"layers.{n}.self_attn.q_proj": 4 for n in range(5_000)}
    start = time.monotonic()
    assert parse_peft_config(config | {"rank_pattern": plain}).rank_of(PATH) == 4
    assert time.monotonic() - start < 5
    with pytest.raises(ModelError, match="has 10001 patterns"):
        parse_peft_config(config | {"alpha_pattern": {f"a{n}": 1 for n in range(10_001)}})

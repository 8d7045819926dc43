"""The launcher Test: base and run answer the same prompt, side by side, and the same again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_finetune.app.desktop.answers import OWN, SideBySide, prompts_of
from mlx_finetune.app.generate import Answerer, Prompt, answer_prompt, question
from mlx_finetune.app.open import Opened, base_model, open_name
from mlx_finetune.model.adapters.lora import adapter_layers


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({"eval": {"prompts": ["a", 3, "b"]}}, ["a", "b"]),
        ({"eval": {"prompts": list("abcdefgh")}}, list("abcde")),
        ({"eval": {"prompts": []}}, list(OWN)),
        ({"eval": 3}, list(OWN)),
        ({}, list(OWN)),
        (None, list(OWN)),
    ],
)
def test_the_prompts_are_those_of_the_run_else_general_ones(settings: object, prompts: list[str]) -> None:
    assert list(prompts_of(settings)) == prompts


def answer(opened: Opened, text: str) -> str:
    answerer = Answerer(opened.model, opened.tokenizer, opened.data, opened.chat, seed=0)
    return answer_prompt(answerer, Prompt(question(text, opened.chat), {"prompt": text}, ""), 0).text


def test_both_answers_are_those_of_base_and_adapter_and_stay_so(opened: Opened) -> None:
    said: list[str] = []
    shown = SideBySide(opened, "keeper", said.append, 79)  # too narrow for columns: one after the other
    shown.show("Why?\x1b[2J")
    tuned = answer(opened, "Why?\x1b[2J")
    with base_model(opened) as base:
        before = answer(replace(opened, model=base), "Why?\x1b[2J")
    assert before != tuned
    text = "\n".join(said)
    assert said[0] == "\n> Why?[2J"
    assert "\x1b" not in text
    assert said.index("--- base ---") < said.index("--- keeper ---")
    again: list[str] = []
    SideBySide(opened, "keeper", again.append, 79).show("Why?\x1b[2J")
    assert again == said
    assert adapter_layers(opened.model)  # it is back in its place


def test_a_prompt_that_cannot_be_asked_is_said_and_the_next_one_is(opened: Opened) -> None:
    said: list[str] = []
    shown = SideBySide(opened, "keeper", said.append, 100)
    shown.show("<|im_end|>")
    assert said[1].startswith("error: ")
    shown.show("Why?")
    assert any(line.startswith("--- base ---") and "--- keeper ---" in line for line in said)


def test_a_model_alone_just_answers(tiny_model: Callable[..., Path]) -> None:
    alone = open_name(str(tiny_model("llama")), base=Path(), report=lambda _: None)
    said: list[str] = []
    short = replace(alone, chat=alone.chat.model_copy(update={"max_tokens": 4}))
    SideBySide(short, "tiny", said.append, 100).show("Why?")
    assert len(said) == 2

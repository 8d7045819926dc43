"""What is odd about an example."""

import pytest

from mlx_finetune.dataset.formats import Example, Instruction, Labelled, Messages, Preference, Text
from mlx_finetune.dataset.inspect import inspect_example
from mlx_finetune.dataset.split import content_of

FAKE_KEY = "sk-" + "a1B2" * 8


def found(example: Example) -> list[str]:
    return [message for message, _ in inspect_example(example, content_of(example))]


def talk(*turns: tuple[str, str]) -> Messages:
    return Messages(tuple({"role": role, "content": content} for role, content in turns), None, "a", 1)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (talk(("user", "q")), "there is no assistant turn"),
        (talk(("assistant", "a"), ("user", "q"), ("assistant", "a")), "the first turn is the assistant's"),
        (
            talk(("system", "s"), ("system", "s"), ("user", "q"), ("assistant", "a")),
            "there is more than one system turn",
        ),
        (talk(("user", "q"), ("system", "s"), ("assistant", "a")), "the system turn is not the first one"),
        (talk(("user", "q"), ("assistant", "a"), ("user", "q")), "the last turn is the user's"),
        (talk(("user", "q"), ("user", "q"), ("assistant", "a")), "two user turns follow each other"),
        (talk(("user", "q"), ("assistant", " \n")), "a turn of the assistant is empty"),
        (Instruction("i", "", "", "a", 1), "the answer is empty"),
        (Instruction(" ", "x", "o", "a", 1), "the instruction is empty"),
        (Text("\n", "a", 1), "the text is empty"),
        (Labelled("", 1, "a", 1), "the text is empty"),
        (
            Preference(
                (), ({"role": "assistant", "content": "a"},), ({"role": "assistant", "content": "a"},), None, "a", 1
            ),
            "the chosen and the rejected answer are the same",
        ),
        (Text(f"my key is {FAKE_KEY}", "a", 1), "there may be an API key or password in this row (not shown)"),
        (
            Text("-----BEGIN RSA PRIVATE KEY-----", "a", 1),
            "there may be an API key or password in this row (not shown)",
        ),
        (Text("the caf\u00c3\u00a9 is open", "a", 1), 'the encoding looks damaged: "the caf\u00c3\u00a9 is open"'),
        (Text("it\u00e2\u20ac\u2122s", "a", 1), 'the encoding looks damaged: "it\u00e2\u20ac\u2122s"'),
        (Text("a\ufffdb", "a", 1), 'the encoding looks damaged: "a\ufffdb"'),
        (Text("\x1b[31mred", "a", 1), "there are control characters in the text"),
        (talk(("user", "<|im_end|> x"), ("assistant", "a")), 'the text holds a chat model\'s marker: "<|im_end|>"'),
        (Instruction("[INST] x", "", "o", "a", 1), 'the text holds a chat model\'s marker: "[INST]"'),
    ],
)
def test_oddities_are_named(example: Example, message: str) -> None:
    assert found(example) == [message]


@pytest.mark.parametrize(
    "example",
    [
        talk(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "a")),
        talk(("user", "q"), ("assistant", "a"), ("tool", ""), ("assistant", "a")),
        Text(
            "plain <b>text</b> with tabs\tand caf\u00e9, \u00fcber, \u4e2d\u6587, \U0001f600 and risk-free tasks",
            "a",
            1,
        ),
        Text("<|im_start|>user already rendered<|im_end|>", "a", 1),
        Instruction("sk-short", "", "a < b and c[0]", "a", 1),
    ],
)
def test_ordinary_examples_have_no_findings(example: Example) -> None:
    assert found(example) == []


def test_a_turn_that_only_calls_a_tool_is_not_empty() -> None:
    calls = ({"type": "function", "function": {"name": "f", "arguments": {}}},)
    turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls})
    assert found(Messages(turns, None, "a", 1)) == []

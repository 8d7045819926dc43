"""What is odd about one example without being wrong: each finding is a warning, never a reason to stop.

A text that looks like a key or password is named, never shown. Prices: about 4 us an example of 500 characters.
"""

import re
from collections.abc import Iterator, Sequence

from mlx_finetune.dataset.formats import Example, Instruction, Labelled, Messages, Preference, Text
from mlx_finetune.dataset.problems import has_secret, show
from mlx_finetune.dataset.turns import Turn

Finding = tuple[str, str]

# Two UTF-8 bytes read as Latin-1 or Windows-1252: an accented letter becomes two characters, a quote mark three.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf\u2018-\u201e\u2020-\u2022\u20ac\u0152\u0153]|\u00e2\u20ac|\ufffd|\ufeff"
)
_CONTROLS = bytes([*range(9), *range(14, 28), 127])
_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start_of_turn|end_of_turn|/?s|eos|bos)>|\[/?INST\]")


def inspect_example(example: Example, content: str) -> Iterator[Finding]:
    """``(message, hint)`` for everything odd; ``content`` is ``split.content_of(example)``."""
    if isinstance(example, Messages):
        yield from _inspect_turns(example.messages)
    elif isinstance(example, Instruction):
        if not example.output or example.output.isspace():
            yield "the answer is empty", "the model learns to answer nothing"
        if not example.instruction or example.instruction.isspace():
            yield "the instruction is empty", ""
    elif isinstance(example, Preference):
        if example.chosen is not None and example.chosen == example.rejected:
            yield "the chosen and the rejected answer are the same", "such a pair teaches nothing"
    elif not example.text or example.text.isspace():
        yield "the text is empty", ""
    yield from _inspect_content(content, is_rendered=isinstance(example, Text | Labelled))


def _inspect_turns(turns: Sequence[Turn]) -> Iterator[Finding]:
    roles = [turn["role"] for turn in turns]
    if "assistant" not in roles:
        yield "there is no assistant turn", "nothing is learned from this row unless mask_prompt = false"
        return
    num_systems = roles.count("system")
    if num_systems > 1:
        yield "there is more than one system turn", "many chat templates refuse that; join them"
    elif num_systems and roles[0] != "system":
        yield "the system turn is not the first one", "many chat templates refuse that"
    rest = [role for role in roles if role != "system"] if num_systems else roles
    if rest[0] == "assistant":
        yield "the first turn is the assistant's", "many chat templates refuse that; begin with a user turn"
    if rest[-1] != "assistant":
        yield f"the last turn is the {rest[-1]}'s", "it is not learned; end with an assistant turn"
    before = ""
    for turn in turns:
        role, content = turn["role"], turn["content"]
        assert isinstance(content, str)
        if role == before == "user":
            yield "two user turns follow each other", "many chat templates refuse that; join them"
        if (not content or content.isspace()) and "tool_calls" not in turn and role != "tool":
            yield f"a turn of the {role} is empty", "the model learns to answer nothing" if role == "assistant" else ""
        before = role


def _inspect_content(content: str, *, is_rendered: bool) -> Iterator[Finding]:
    if has_secret(content):
        yield (
            "there may be an API key or password in this row (not shown)",
            "a model can be made to repeat what it learned",
        )
    if not content.isascii() and (match := _MOJIBAKE.search(content)):
        what = show(content[max(0, match.start() - 10) : match.end() + 10])
        yield f"the encoding looks damaged: {what}", "a file in another encoding was read as UTF-8 once too often"
    encoded = content.encode("utf-8")
    if len(encoded.translate(None, _CONTROLS)) != len(encoded):
        yield "there are control characters in the text", "terminal colours or binary data? remove them"
    if not is_rendered and ("<" in content or "[" in content) and (match := _MARKER.search(content)):
        marker = show(match.group())
        yield f"the text holds a chat model's marker: {marker}", "it is never learned as a control token; is it meant?"

"""Which characters of a rendered conversation the assistant said, and which tokens that makes targets.

Three ways, in this order (ALGORITHMS.md 5):

1. generation tags: the template marks the assistant's words itself;
2. text prefix: for each assistant turn, the rendering of everything before it with the generation prompt, and of
   everything up to it, must both be beginnings of the whole rendering; the difference is the turn;
3. turn by turn: a template that rewrites earlier turns makes one sequence of each assistant turn, and only its last
   turn is learned. Where 2 holds, 3 gives the same targets after the same tokens, only with more computing.

The whole text is tokenised once; a token is a target if it starts inside a span. Lengths of token lists are never
subtracted, because tokens merge across borders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.tokens import Encoded, Message, Span, Tokenizer
from mlx_finetune.errors import DataError

GENERATION_TAGS = "generation tags"
TEXT_PREFIX = "text prefix"
TURN_BY_TURN = "text prefix, turn by turn"

_ANOTHER = "choose another template with data.chat_template"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text, the spans to learn, and how they were found. ``messages`` is what was rendered."""

    text: str
    spans: tuple[Span, ...]
    method: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Renderer:
    """A tokenizer's chat template with the arguments of one run."""

    tokenizer: Tokenizer
    arguments: Mapping[str, object]

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, *, only_last: bool = False
    ) -> list[Rendering]:
        """One rendering with every assistant turn, or one for each where the template rewrites earlier turns.

        With ``only_last`` there is a span for the last assistant turn alone. Empty where there is no assistant turn.
        Raises ``DataError`` where the template refuses the conversation or none of the three ways applies.
        """
        turns = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
        if not turns:
            return []
        earlier = turns[:-1] if only_last else []
        turns = turns[-1:] if only_last else turns
        tagged = self.tokenizer.assistant_spans(messages, tools=tools, arguments=self.arguments)
        if tagged is not None:
            text, spans = tagged
            if earlier:
                before = self.tokenizer.assistant_spans(messages[: turns[0]], tools=tools, arguments=self.arguments)
                spans = spans[len(before[1]) if before else 0 :]
            if not any(end > start for start, end in spans):
                raise DataError("the generation tags of the chat template mark nothing in this conversation")
            for turn in turns:
                _check_written(messages[turn], text, turn)
            return [Rendering(text, tuple(spans), GENERATION_TAGS, tuple(messages))]
        whole = self._render(messages, tools)
        found = self._spans(messages, tools, whole, turns)
        if found is not None:
            return [Rendering(whole, found, TEXT_PREFIX, tuple(messages))]
        return [self._last_turn(messages[: turn + 1], tools) for turn in turns]

    def last_turn(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, method: str, *, only_last: bool = False
    ) -> Rendering:
        """The conversation again after a cut, its mask made as before (see ``Rendering.method``)."""
        if method == TURN_BY_TURN:
            return self._last_turn(messages, tools)
        renderings = self.conversation(messages, tools, only_last=only_last)
        if len(renderings) != 1:
            raise DataError("the chat template rewrites earlier turns of this conversation")
        return renderings[0]

    def _last_turn(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> Rendering:
        whole = self._render(messages, tools)
        found = self._spans(messages, tools, whole, [len(messages) - 1])
        if found is None:
            raise DataError(
                f"the chat template writes turn {len(messages)} (assistant) otherwise than its generation prompt does",
                "what is learned would not be what is generated; a template that thinks may need "
                "enable_thinking = true or false in [data.template_arguments], others need another data.chat_template",
            )
        return Rendering(whole, found, TURN_BY_TURN, tuple(messages))

    def _spans(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, whole: str, turns: Sequence[int]
    ) -> tuple[Span, ...] | None:
        spans: list[Span] = []
        for turn in turns:
            before = self._render(messages[:turn], tools, add_generation_prompt=True)
            after = whole if turn == len(messages) - 1 else self._render(messages[: turn + 1], tools)
            if not (whole.startswith(before) and whole.startswith(after) and len(before) <= len(after)):
                return None
            spans.append((len(before), len(after)))
        for turn, (start, end) in zip(turns, spans, strict=True):
            _check_written(messages[turn], whole[start:end], turn)
        return tuple(spans)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, *, add_generation_prompt: bool = False
    ) -> str:
        return self.tokenizer.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, arguments=self.arguments
        )


def _check_written(message: Message, text: str, turn: int) -> None:
    """Raise ``DataError`` where the template left out what the assistant said or which tool it called."""
    content = message.get("content")
    if isinstance(content, str) and "</think>" not in content and content.strip() not in text:
        raise DataError(f"the chat template leaves out or changes the words of turn {turn + 1} (assistant)", _ANOTHER)
    calls = message.get("tool_calls")
    for call in cast("Sequence[Mapping[str, Mapping[str, object]]]", calls or ()):
        name = call["function"]["name"] if "function" in call else call.get("name")
        if str(name) not in text:
            raise DataError(f"the chat template leaves out the tool call of turn {turn + 1} (assistant)", _ANOTHER)


def target_mask(
    text: str, encoding: Encoded, spans: Sequence[Span], end_ids: frozenset[int] = frozenset()
) -> NDArray[np.bool_]:
    """Mask ``(n,)`` of the tokens that start inside a span, up to and with the end-of-turn token of each.

    Without ``end_ids`` a span is taken whole. Raises ``DataError`` where a span has no end token.
    """
    mask = np.zeros(len(encoding.ids), dtype=np.bool_)
    for start, end in spans:
        first, stop = encoding.first_from(start), encoding.first_from(end)
        if end_ids:
            stop = _after_end_token(text, encoding, first, stop, end_ids)
        mask[first:stop] = True
    return mask


def _after_end_token(text: str, encoding: Encoded, first: int, stop: int, end_ids: frozenset[int]) -> int:
    """Index after the end token of the turn in ``first:stop``; blanks and further end tokens behind it are left out."""
    ids = encoding.ids
    if stop < len(ids) and ids[stop] in end_ids and (stop == first or ids[stop - 1] not in end_ids):
        return stop + 1  # generation tags that close just before the end token
    found = 0
    for index in range(stop - 1, first - 1, -1):
        if ids[index] in end_ids:
            found = index + 1
        elif text[slice(*encoding.span(index))].strip():
            break
    if not found:
        shown = text[encoding.span(max(first, stop - 4))[0] : encoding.span(stop - 1)[1]] if stop > first else ""
        raise DataError(
            f"the chat template ends an assistant turn without an end-of-turn token (it ends in {shown!r})",
            f"generation would never stop; {_ANOTHER}",
        )
    return found

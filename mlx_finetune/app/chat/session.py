"""What a chat holds while it lasts: the opened model, the conversation, the settings, the cache; and asking the model.

Only tokens that are new since the last reply are read by the model (PromptCache). A reply that is interrupted is kept
as far as it came; a question that cannot be asked leaves the conversation as it was.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.nn as nn

from mlx_finetune.app.chat.conversation import Conversation
from mlx_finetune.app.generate import Form, Reply, answer, prompt_ids, sampling_of
from mlx_finetune.app.open import Opened
from mlx_finetune.dataset.control import ControlMarkers
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.errors import DataError
from mlx_finetune.model.answers.constrain import Grammar
from mlx_finetune.model.answers.generate import PromptCache
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.recipe.schema import ChatRecipe
from mlx_finetune.scoring.json_schema import Validator


class Screen(Protocol):
    """Where a chat is shown."""

    def talk(self, text: str) -> None:
        """One line about the chat."""
        ...

    def data(self, text: str) -> None:
        """Part of a reply, as it comes."""
        ...

    def stopping(self) -> AbstractContextManager[Callable[[], bool] | None]:
        """A context in which Ctrl-C sets a flag, which the function tells; None where Ctrl-C ends the program."""
        ...

    def edit(self, text: str) -> str:
        """``text`` as a person leaves it in an editor. Raises ``UsageError`` where there is none, or it fails."""
        ...

    @property
    def width(self) -> int:
        """Columns of the terminal, 0 where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """How an answer of this chat was drawn; ``schema`` is the file it was held to, None for a free one."""

    turn: Message
    sampling: Sampling
    schema: Path | None


class Session:
    """One chat with one opened model. ``seed`` plus the number of replies so far fixes the draws of the next one.

    ``clock`` gives seconds since 1970. ``schema`` is the file of ``grammar`` and ``validator``; all None while free.
    ``drafts`` are texts from an editor that could not be used, by command, each behind what it was made of.
    ``replaced`` are the turns before the last edit. ``num_corrections`` counts those that were kept in this chat.
    """

    def __init__(
        self, opened: Opened, screen: Screen, *, chat: ChatRecipe, seed: int, clock: Callable[[], float]
    ) -> None:
        self.opened = opened
        self.screen = screen
        self.chat = chat
        self.clock = clock
        self.conversation = Conversation(chat.system)
        self.markers = ControlMarkers(opened.tokenizer)
        self.seed = seed
        self.num_draws = 0
        self.grammar: Grammar | None = None
        self.schema: Path | None = None
        self.validator: Validator | None = None
        self.drafts: dict[str, tuple[str, str]] = {}
        self.replaced: list[Message] | None = None
        self.saved_to: Path | None = None
        self.num_corrections = 0
        self._drawn: list[Drawn] = []
        self._cache = PromptCache(opened.model)
        self._remembers = opened.tokenizer.has_chat_template

    def ask(self, text: str) -> bool:
        """Ask the model; were question and reply kept? A reply that was stopped before its first word is not."""
        reply, sampling = self._answer(self.messages(text))
        kept = self._without_markers(reply.text)
        if reply.answer_tokens:
            self.conversation.add(text, kept)
            self._drawn.append(Drawn(self.conversation.turns[-1], sampling, self.schema))
        if note := _note(reply, self.chat, is_free=self.grammar is None):
            self.screen.talk(note)
        return bool(reply.answer_tokens)

    def drawn(self, turn: Message) -> Drawn | None:
        """How ``turn`` was drawn; None for one that was loaded or written by a person."""
        return next((drawn for drawn in self._drawn if drawn.turn is turn), None)

    def is_as_asked_now(self) -> bool:
        """Whether the last answer is the model's own, drawn with the settings and the schema of now."""
        drawn = self.drawn(self.conversation.turns[-1]) if self.conversation.turns else None
        return drawn is not None and (drawn.sampling, drawn.schema) == (
            sampling_of(self.chat, drawn.sampling.seed),
            self.schema,
        )

    def check_text(self, text: str, what: str, *, is_assistant: bool = False) -> None:
        """Refuse what can stand in no turn: control markers, and what is not Unicode. Raises ``DataError``."""
        if marker := self.markers.find(text, is_assistant=is_assistant):
            raise DataError(f"{what} holds the control marker {marker!r}", "write it in other words")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{what} is not UTF-8 at character {error.start + 1}") from None

    def messages(self, question: str) -> list[Message]:
        """What the model is asked; without a chat template that is the last question alone."""
        if self._remembers:
            return self.conversation.messages(question)
        return Conversation(self.conversation.system).messages(question)

    def last_messages(self) -> list[Message]:
        """What the model was asked for its last answer, which is the last turn."""
        turns = self.conversation.turns
        if not self._remembers:
            return Conversation(self.conversation.system, turns[-2:-1]).messages()
        return Conversation(self.conversation.system, turns[:-1]).messages()

    def answer_quietly(self, what: str, model: nn.Module, messages: Sequence[Message]) -> str | None:
        """A whole answer, None where it was stopped; the cache of the conversation is left alone."""
        if self.screen.width:
            self.screen.talk(what)
        ids = prompt_ids(messages, self.opened.tokenizer, self.opened.data)
        sampling = sampling_of(self.chat, self.seed + self.num_draws)
        with self.screen.stopping() as stop:
            reply = answer(model, self.opened.tokenizer, ids, sampling, stop=stop, form=Form(grammar=self.grammar))
        return None if reply.finish == "cancelled" else reply.text

    def _answer(self, messages: Sequence[Message]) -> tuple[Reply, Sampling]:
        ids = prompt_ids(messages, self.opened.tokenizer, self.opened.data)
        sampling = sampling_of(self.chat, self.seed + self.num_draws)
        self.num_draws += 1
        with self.screen.stopping() as stop:
            reply = answer(
                self.opened.model,
                self.opened.tokenizer,
                ids,
                sampling,
                cache=self._cache,
                show=self.screen.data,
                stop=stop,
                form=Form(grammar=self.grammar),
            )
        self.screen.data("\n")
        return reply, sampling

    def _without_markers(self, text: str) -> str:
        """A reply as it may stand in the next prompt: markers that would become control tokens are cut out."""
        while marker := self.markers.find(text, is_assistant=True):
            text = text.replace(marker, "")
        return text


def _note(reply: Reply, chat: ChatRecipe, *, is_free: bool) -> str:
    """What to say after a reply that did not end by itself."""
    cut = "cut" if is_free else "the JSON is not whole: cut"
    match reply.finish:
        case "length":
            return f"({cut} after {chat.max_tokens} tokens; /set max_tokens {2 * chat.max_tokens} allows more)"
        case "context":
            return "(the model has no room left; /new starts afresh)"
        case "cancelled":
            return "(stopped)" if reply.answer_tokens else "(stopped before the first word; the question was not kept)"
        case _:
            return ""

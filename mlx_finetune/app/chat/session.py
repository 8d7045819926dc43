"""What a chat holds while it lasts: the opened model, the conversation, the settings, the cache; and asking the model.

Only tokens that are new since the last reply are read by the model (PromptCache). A reply that is interrupted is kept
as far as it came; a question that cannot be asked leaves the conversation as it was.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import mlx.nn as nn

from mlx_finetune.app.chat.conversation import Conversation, Message
from mlx_finetune.app.generate import Reply, answer, prompt_ids, sampling_of
from mlx_finetune.app.open import Opened
from mlx_finetune.dataset.control import ControlMarkers
from mlx_finetune.model.generate import PromptCache
from mlx_finetune.recipe.schema import ChatRecipe


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

    @property
    def width(self) -> int:
        """Columns of the terminal, 0 where there is none."""
        ...


class Session:
    """One chat with one opened model. ``seed`` plus the number of replies so far fixes the draws of the next one."""

    def __init__(self, opened: Opened, screen: Screen, *, chat: ChatRecipe, seed: int) -> None:
        self.opened = opened
        self.screen = screen
        self.chat = chat
        self.conversation = Conversation(chat.system)
        self.markers = ControlMarkers(opened.tokenizer)
        self.seed = seed
        self.num_draws = 0
        self.saved_to: Path | None = None
        self._cache = PromptCache(opened.model)
        self._remembers = opened.tokenizer.has_chat_template

    def ask(self, text: str) -> None:
        """Ask the model and keep question and reply; a reply that was stopped before its first word is not kept."""
        reply = self._answer(self.messages(text))
        kept = self._without_markers(reply.text)
        if reply.answer_tokens:
            self.conversation.add(text, kept)
        if note := _note(reply, self.chat):
            self.screen.talk(note)

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
            reply = answer(model, self.opened.tokenizer, ids, sampling, stop=stop)
        return None if reply.finish == "cancelled" else reply.text

    def _answer(self, messages: Sequence[Message]) -> Reply:
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
            )
        self.screen.data("\n")
        return reply

    def _without_markers(self, text: str) -> str:
        """A reply as it may stand in the next prompt: markers that would become control tokens are cut out."""
        while marker := self.markers.find(text, is_assistant=True):
            text = text.replace(marker, "")
        return text


def _note(reply: Reply, chat: ChatRecipe) -> str:
    """What to say after a reply that did not end by itself."""
    match reply.finish:
        case "length":
            return f"(cut after {chat.max_tokens} tokens; /set max_tokens {2 * chat.max_tokens} allows more)"
        case "context":
            return "(the model has no room left; /new starts afresh)"
        case "cancelled":
            return "(stopped)" if reply.answer_tokens else "(stopped before the first word; the question was not kept)"
        case _:
            return ""

"""Chats without a terminal: a screen that remembers, and inputs one by one."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from mlx_finetune.app.chat.repl import Chat
from mlx_finetune.app.open import Opened
from mlx_finetune.errors import MlxftError

#: What the clock of these chats says: 2026-11-26 12:00:00 UTC.
NOON = 1795694400.0


class Recorder:
    """A screen that remembers; ``stop_after`` pieces of text it asks the reply to stop.

    ``edits`` are what comes out of the editor, one after the other; ``offered`` is what went in.
    """

    def __init__(self, width: int = 0, stop_after: int | None = None) -> None:
        self.width = width
        self.stop_after = stop_after
        self.said: list[str] = []
        self.pieces: list[str] = []
        self.edits: list[str | MlxftError] = []
        self.offered: list[str] = []

    def talk(self, text: str) -> None:
        self.said.append(text)

    def data(self, text: str) -> None:
        self.pieces.append(text)

    @contextmanager
    def stopping(self) -> Generator[Callable[[], bool] | None]:
        before = len(self.pieces)
        yield lambda: self.stop_after is not None and len(self.pieces) - before >= self.stop_after

    def edit(self, text: str) -> str:
        self.offered.append(text)
        made = self.edits.pop(0)
        if isinstance(made, MlxftError):
            raise made
        return made


def start(opened: Opened, screen: Recorder | None = None) -> tuple[Chat, Recorder]:
    """A chat whose draws repeat, and its screen."""
    screen = screen or Recorder()
    return Chat(opened, screen, chat=opened.chat, seed=1, clock=lambda: NOON), screen


def contents(chat: Chat) -> list[str]:
    """The words of every turn."""
    return [str(turn["content"]) for turn in chat.session.conversation.turns]

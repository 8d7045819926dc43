"""Chats for tests: inputs one by one and a screen that remembers, or a terminal of its own."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT

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


class TerminalChat:
    """``mlxft chat`` in a terminal of its own."""

    def __init__(self, place: Path, *arguments: str, **environment: str) -> None:
        self._leader, follower = pty.openpty()
        fixed = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": str(ROOT)}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "mlx_finetune", "chat", *arguments],
            stdin=follower, stdout=follower, stderr=follower, cwd=place, env=os.environ | fixed | environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(follower)
        self._seen = ""

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Read until ``text`` was shown; what came before it."""
        end = time.monotonic() + seconds
        while text not in self._seen:
            assert time.monotonic() < end, f"{text!r} never came: {self._seen!r}"
            if select.select([self._leader], [], [], 0.1)[0]:
                self._seen += os.read(self._leader, 65536).decode("utf-8", "replace")
        before, _, self._seen = self._seen.partition(text)
        return before

    def type(self, keys: str) -> None:
        """Wait for the prompt, then press ``keys``."""
        self.wait_for(">\x08")
        os.write(self._leader, keys.encode())

    def close(self) -> None:
        """End it, however far it is."""
        self.child.kill()
        self.child.wait()
        os.close(self._leader)

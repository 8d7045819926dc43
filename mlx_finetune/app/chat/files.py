"""Commands that keep a conversation: /save and /load."""

import shlex
from pathlib import Path

from mlx_finetune.app.chat.conversation import load_conversation, save_conversation
from mlx_finetune.app.chat.session import Session
from mlx_finetune.app.text import shorten
from mlx_finetune.errors import UsageError


def save(session: Session, rest: str) -> None:
    """/save: append the conversation to a file as a row. Raises ``MlxftError`` where that cannot be done."""
    path = _file(rest, "save")
    rows = save_conversation(session.conversation, path)
    session.saved_to = path
    session.screen.talk(f"saved as row {rows} of {path}")


def load(session: Session, rest: str) -> None:
    """/load: go on with the last conversation in a file. Raises ``DataError`` where there is none."""
    path = _file(rest, "load")
    session.conversation = load_conversation(path)
    exchange = session.conversation.last_exchange()
    session.screen.talk(f"{len(session.conversation.turns)} turns from {path}")
    if exchange:
        session.screen.talk(f"  > {shorten(exchange[0])}")
        session.screen.talk(f"  {shorten(exchange[1])}")


def _file(rest: str, command: str) -> Path:
    """The one file name after a command; ``.jsonl`` is added to a name without an ending."""
    try:
        names = shlex.split(rest)
    except ValueError:
        names = [rest]
    if len(names) != 1:
        raise UsageError(f"/{command} needs one file name", f"for instance /{command} talks.jsonl")
    path = Path(names[0]).expanduser()
    return path if path.suffix else path.with_suffix(".jsonl")

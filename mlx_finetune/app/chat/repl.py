"""What each input of a chat does: text asks the model, a word after a slash is a command.

Terminals and pipes are in ``commands.chat``.
"""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from mlx_finetune.app.chat import files, settings, talking
from mlx_finetune.app.chat.editing import edit, show_history
from mlx_finetune.app.chat.fixing import fix
from mlx_finetune.app.chat.session import Screen, Session
from mlx_finetune.app.open import Opened
from mlx_finetune.errors import MlxftError, UsageError
from mlx_finetune.recipe.schema import ChatRecipe


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: what it takes, what it does, and the function that does it with what follows its name."""

    takes: str
    does: str
    run: Callable[[Session, str], None]


def _help(session: Session, rest: str) -> None:
    del rest
    width = max(len(f"/{name} {command.takes}") for name, command in COMMANDS.items())
    columns = max(session.screen.width or 1000, width + 24)  # lines of a pipe are not wrapped
    for name, command in COMMANDS.items():
        head = f"  {f'/{name} {command.takes}':<{width}}  "
        for line in textwrap.wrap(command.does, columns, initial_indent=head, subsequent_indent=" " * len(head)):
            session.screen.talk(line)
    for line in INPUT_HELP:
        session.screen.talk(line)


def _stay(session: Session, rest: str) -> None:
    """/exit ends the loop before anything is run."""
    del session, rest


#: Slash command -> what it does.
COMMANDS: Mapping[str, Command] = {
    "help": Command("", "this list", _help),
    "new": Command("", "forget the conversation; the system message stays", talking.start_anew),
    "system": Command("[TEXT]", "show or set the system message; /system - removes it", talking.set_system),
    "set": Command("[NAME VALUE]", "show the settings, or change one: /set temperature 0.2", settings.set_one),
    "params": Command("[NAME=VALUE ...]", "the settings and what they mean, or change several", settings.set_several),
    "schema": Command("[FILE|off]", "hold answers to a JSON Schema, or let them be free again", settings.set_schema),
    "history": Command("[N|all]", "the turns with their numbers in short; turn N, or all, whole", show_history),
    "edit": Command("[N|undo]", "write the next question, or change turn N, in $VISUAL or $EDITOR", edit),
    "fix": Command("[TEXT]", "put the last answer right, here or in the editor: a row to train on", fix),
    "undo": Command("", "take back the last question and its reply", talking.undo),
    "retry": Command("", "answer the last question again, with other draws", talking.retry),
    "compare": Command("[TEXT]", "TEXT, or the last question, answered by base and adapter", talking.compare),
    "save": Command("FILE", "append the conversation to a .jsonl file, as a row to train on", files.save),
    "load": Command("FILE", "go on with the last conversation in a .jsonl file", files.load),
    "exit": Command("", "leave; Ctrl-D does too", _stay),
}
INPUT_HELP = (
    "A line that ends in \\ goes on in the next; triple quotes hold several lines.",
    '//text asks the model "/text". Ctrl-C stops a reply and keeps what came so far.',
)
_LEAVING = ("exit", "quit", "bye")


class Chat:
    """One session, input by input. ``failures`` counts inputs that could not be done."""

    def __init__(
        self, opened: Opened, screen: Screen, *, chat: ChatRecipe, seed: int, clock: Callable[[], float]
    ) -> None:
        self.session = Session(opened, screen, chat=chat, seed=seed, clock=clock)
        self.failures = 0

    def take(self, text: str) -> bool:
        """Do what one input says; False to leave. Errors are shown and counted."""
        text = text.strip()
        if not text:
            return True
        try:
            if text.startswith("/") and not text.startswith("//"):
                return self._command(text)
            self.session.ask(text.removeprefix("/") if text.startswith("//") else text)
        except MlxftError as error:
            self.failures += 1
            self.session.screen.talk(f"error: {error.message}")
            if error.hint:
                self.session.screen.talk(f"hint: {error.hint}")
        return True

    def _command(self, text: str) -> bool:
        name, *more = text[1:].split(None, 1)
        name, rest = name.lower(), more[0] if more else ""
        if name in _LEAVING:
            return False
        if name not in COMMANDS:
            near = get_close_matches(name, COMMANDS, 1)
            guess = f"did you mean /{near[0]}? " if near else ""
            raise UsageError(f"there is no command /{name}", f"{guess}/help lists them; //{name} asks the model")
        COMMANDS[name].run(self.session, rest)
        return True

"""A conversation with a model, line by line: what each input does. Terminals and pipes are in ``commands.chat``.

Only tokens that are new since the last reply are read by the model (PromptCache). A reply that is interrupted is kept
as far as it came; a question that cannot be asked leaves the conversation as it was.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import mlx.nn as nn

from mlx_finetune.app.conversation import Conversation, Message, load_conversation, save_conversation
from mlx_finetune.app.generate import Reply, answer, prompt_ids, question, sampling_of
from mlx_finetune.app.open import Opened, base_model
from mlx_finetune.app.text import shorten, side_by_side
from mlx_finetune.dataset.control import ControlMarkers
from mlx_finetune.errors import DataError, MlxftError, UsageError
from mlx_finetune.model.generate import PromptCache
from mlx_finetune.recipe.sampling import change_setting, setting_key
from mlx_finetune.recipe.schema import ChatRecipe

#: Slash command -> what it takes, what it does.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "help": ("", "this list"),
    "new": ("", "forget the conversation; the system message stays"),
    "system": ("[TEXT]", "show or set the system message; /system - removes it"),
    "set": ("[NAME VALUE]", "show the settings, or change one: /set temperature 0.2"),
    "undo": ("", "take back the last question and its reply"),
    "retry": ("", "answer the last question again, with other draws"),
    "compare": ("[TEXT]", "TEXT, or the last question, answered by base and adapter"),
    "save": ("FILE", "append the conversation to a .jsonl file, as a row to train on"),
    "load": ("FILE", "go on with the last conversation in a .jsonl file"),
    "exit": ("", "leave; Ctrl-D does too"),
}
INPUT_HELP = (
    "A line that ends in \\ goes on in the next; triple quotes hold several lines.",
    '//text asks the model "/text". Ctrl-C stops a reply and keeps what came so far.',
)


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


class Chat:
    """One session with one opened model. ``failures`` counts inputs that could not be done."""

    def __init__(self, opened: Opened, screen: Screen, *, chat: ChatRecipe, seed: int) -> None:
        self.chat = chat
        self.conversation = Conversation(chat.system)
        self.failures = 0
        self.saved_to: Path | None = None
        self._opened = opened
        self._screen = screen
        self._seed = seed
        self._num_draws = 0
        self._cache = PromptCache(opened.model)
        self._markers = ControlMarkers(opened.tokenizer)
        self._remembers = opened.tokenizer.has_chat_template

    def take(self, text: str) -> bool:
        """Do what one input says; False to leave. Errors are shown and counted."""
        text = text.strip()
        if not text:
            return True
        try:
            if text.startswith("/") and not text.startswith("//"):
                return self._command(text)
            self._ask(text.removeprefix("/") if text.startswith("//") else text)
        except MlxftError as error:
            self.failures += 1
            self._screen.talk(f"error: {error.message}")
            if error.hint:
                self._screen.talk(f"hint: {error.hint}")
        return True

    def _command(self, text: str) -> bool:
        name, _, rest = text[1:].partition(" ")
        name, rest = name.lower(), rest.strip()
        if name in ("exit", "quit", "bye"):
            return False
        actions: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "new": self._new,
            "system": self._system,
            "set": self._set,
            "undo": self._undo,
            "retry": self._retry,
            "compare": self._compare,
            "save": self._save,
            "load": self._load,
        }
        if name not in actions:
            near = get_close_matches(name, COMMANDS, 1)
            guess = f"did you mean /{near[0]}? " if near else ""
            raise UsageError(f"there is no command /{name}", f"{guess}/help lists them; //{name} asks the model")
        actions[name](rest)
        return True

    def _ask(self, text: str) -> None:
        reply = self._answer(self._messages(text))
        kept = self._without_markers(reply.text)
        if reply.answer_tokens:
            self.conversation.add(text, kept)
        if note := _note(reply, self.chat):
            self._screen.talk(note)

    def _messages(self, text: str) -> list[Message]:
        """What the model is asked; without a chat template that is the last question alone."""
        if self._remembers:
            return self.conversation.messages(text)
        return Conversation(self.conversation.system).messages(text)

    def _answer(self, messages: Sequence[Message]) -> Reply:
        ids = prompt_ids(messages, self._opened.tokenizer, self._opened.data)
        sampling = sampling_of(self.chat, self._seed + self._num_draws)
        self._num_draws += 1
        with self._screen.stopping() as stop:
            reply = answer(
                self._opened.model,
                self._opened.tokenizer,
                ids,
                sampling,
                cache=self._cache,
                show=self._screen.data,
                stop=stop,
            )
        self._screen.data("\n")
        return reply

    def _without_markers(self, text: str) -> str:
        """A reply as it may stand in the next prompt: markers that would become control tokens are cut out."""
        while marker := self._markers.find(text, is_assistant=True):
            text = text.replace(marker, "")
        return text

    def _help(self, rest: str) -> None:
        del rest
        width = max(len(f"/{name} {takes}") for name, (takes, _) in COMMANDS.items())
        for name, (takes, does) in COMMANDS.items():
            self._screen.talk(f"  {f'/{name} {takes}':<{width}}  {does}")
        for line in INPUT_HELP:
            self._screen.talk(line)

    def _new(self, rest: str) -> None:
        del rest
        self.conversation.clear()
        self._screen.talk("a new conversation")

    def _system(self, rest: str) -> None:
        if rest:
            system = "" if rest == "-" else rest
            if marker := self._markers.find(system):
                raise DataError(f"the system message holds the control marker {marker!r}", "write it in other words")
            self.conversation.system = system
        shown = self.conversation.system
        self._screen.talk(f"system: {shown}" if shown else "no system message")

    def _set(self, rest: str) -> None:
        if not rest:
            for name, value in self.chat.model_dump().items():
                if name != "system":
                    self._screen.talk(f"  {name} = {value}")
            self._screen.talk(f"  seed = {self._seed}")
            return
        name, _, text = rest.replace("=", " ", 1).partition(" ")
        if not text.strip():
            raise UsageError(f"/set {name} needs a value", f"for instance /set {name} {self._example(name)}")
        if name == "seed":
            self._set_seed(text.strip())
        elif name == "system":
            self._system(text.strip())
            return
        else:
            self.chat = change_setting(self.chat, name, text)
        value = self._seed if name == "seed" else self.chat.model_dump()[setting_key(name)]
        self._screen.talk(f"{name} = {value}")

    def _set_seed(self, text: str) -> None:
        if not text.isdecimal() or int(text) >= 2**31:
            raise UsageError(f"`seed` = {text}: a whole number from 0 to {2**31 - 1}")
        self._seed, self._num_draws = int(text), 0

    def _example(self, name: str) -> object:
        return self.chat.model_dump().get(name, 0)

    def _undo(self, rest: str) -> None:
        del rest
        taken = self.conversation.take_back()
        if taken is None:
            raise UsageError("there is nothing to take back")
        self._screen.talk(f"taken back: {shorten(taken)}")

    def _retry(self, rest: str) -> None:
        del rest
        exchange = self.conversation.last_exchange()
        if exchange is None:
            raise UsageError("there is no question to answer again")
        turns = list(self.conversation.turns)
        asked = self.conversation.take_back()
        assert asked is not None
        try:
            self._ask(asked)
        finally:
            if len(self.conversation.turns) < len(turns):
                self.conversation.turns = turns

    def _compare(self, rest: str) -> None:
        """Base and adapter on the same messages, with the same draws; the conversation stays as it is."""
        if not self._opened.has_base:
            raise UsageError(f"{self._opened.name} is a model without an adapter: there is nothing to compare")
        exchange = self.conversation.last_exchange()
        if not rest and exchange is None:
            raise UsageError("there is no question yet", "/compare TEXT asks base and adapter")
        if rest:
            messages = list(question(rest, self.chat.model_copy(update={"system": self.conversation.system})))
        else:
            messages = self._last_messages()
        with base_model(self._opened) as model:
            base = self._answer_quietly("the base answers ...", model, messages)
        if rest or exchange is None:
            tuned = self._answer_quietly("the adapter answers ...", self._opened.model, messages)
        else:
            tuned = exchange[1]
        self._num_draws += 1
        if base is None or tuned is None:
            self._screen.talk("(stopped)")
            return
        label = "adapter" if self._opened.spec is not None else "trained model"
        for line in side_by_side(("base", base), (label, tuned), width=self._screen.width):
            self._screen.data(line + "\n")

    def _answer_quietly(self, what: str, model: nn.Module, messages: Sequence[Message]) -> str | None:
        """A whole answer, None where it was stopped; the cache of the conversation is left alone."""
        if self._screen.width:
            self._screen.talk(what)
        ids = prompt_ids(messages, self._opened.tokenizer, self._opened.data)
        sampling = sampling_of(self.chat, self._seed + self._num_draws)
        with self._screen.stopping() as stop:
            reply = answer(model, self._opened.tokenizer, ids, sampling, stop=stop)
        return None if reply.finish == "cancelled" else reply.text

    def _last_messages(self) -> list[Message]:
        turns = self.conversation.turns
        if not self._remembers:
            return Conversation(self.conversation.system, turns[-2:-1]).messages()
        return Conversation(self.conversation.system, turns[:-1]).messages()

    def _save(self, rest: str) -> None:
        path = _file(rest, "save")
        rows = save_conversation(self.conversation, path)
        self.saved_to = path
        self._screen.talk(f"saved as row {rows} of {path}")

    def _load(self, rest: str) -> None:
        path = _file(rest, "load")
        self.conversation = load_conversation(path)
        exchange = self.conversation.last_exchange()
        self._screen.talk(f"{len(self.conversation.turns)} turns from {path}")
        if exchange:
            self._screen.talk(f"  > {shorten(exchange[0])}")
            self._screen.talk(f"  {shorten(exchange[1])}")


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

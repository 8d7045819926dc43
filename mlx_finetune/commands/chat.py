"""``mlxft chat``: a terminal with history and editing, or a pipe that answers line by line."""

import io
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_finetune.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from mlx_finetune.app.chat.repl import Chat
    from mlx_finetune.app.open import Opened


@click.command()
@click.argument("name", metavar="RUN_OR_MODEL")
@click.option("--system", metavar="TEXT", help="System message, in place of the recipe's.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any key of [chat], e.g. temperature=0.")
@click.option(
    "--schema", type=click.Path(path_type=Path), metavar="FILE", help="Hold answers to this JSON Schema (/schema)."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Fixes the draws; a new one each time without it.")
def command(name: str, system: str | None, settings: tuple[str, ...], schema: Path | None, seed: int | None) -> int:
    """Talk with a run, a checkpoint, an adapter folder or a model.

    /help lists the commands of a chat: /fix puts the last answer right, and it becomes a row to train on. Ctrl-C stops
    a reply, Ctrl-D leaves. Without a terminal, each line of stdin is a message and the replies go to stdout.
    """
    from mlx_finetune.commands.opening import open_for_answers
    from mlx_finetune.recipe.asking import has_conversation
    from mlx_finetune.rundir import refuse_pipeline, task_of

    refuse_pipeline(name, base=Path.cwd(), among=lambda run: has_conversation(task_of(run)))
    changes = [*settings, *([f"system={system}"] if system is not None else [])]
    if schema is not None:
        from mlx_finetune.scoring.json_schema import read_schema

        read_schema(schema)  # a slip is found before the model is loaded
    opened = open_for_answers(name, changes)
    from mlx_finetune.app.classify import check_answers

    check_answers(opened, "chat with")
    if opened.tokenizer.start_token_id is not None:
        raise UsageError(
            f"{opened.name} is an encoder-decoder model, which answers one prompt and keeps no conversation",
            f"mlxft generate {shlex.quote(name)} --prompt TEXT",
        )
    from mlx_finetune.app.chat.repl import Chat
    from mlx_finetune.app.chat.settings import hold_to_schema

    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = TerminalScreen() if is_terminal else PipeScreen()
    seed = int.from_bytes(os.urandom(4)) >> 1 if seed is None else seed
    chat = Chat(opened, screen, chat=opened.chat, seed=seed, clock=time.time)
    if schema is not None:
        hold_to_schema(chat.session, schema)
    if is_terminal:
        for line in banner(opened):
            screen.talk(line)
        _serve_terminal(chat)
    else:
        _serve_pipe(chat)
    _say_next(name, chat)
    return 1 if chat.failures and not is_terminal else 0


class PipeScreen:
    """Replies on stdout, talk on stderr, no colours. Ctrl-C ends the command."""

    width = 0

    def talk(self, text: str) -> None:
        """One line on stderr."""
        click.echo(text, err=True)

    def data(self, text: str) -> None:
        """Part of a reply, at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    @contextmanager
    def stopping(self) -> Generator[Callable[[], bool] | None]:
        """A reply without a way to stop it."""
        yield None

    def edit(self, text: str) -> str:
        """There is nobody to edit ``text``."""
        del text
        raise UsageError("there is no terminal to edit in", "/fix TEXT gives the right answer in the same line")


class TerminalScreen:
    """Replies as they come, without control characters; talk is dimmed where colours are wanted."""

    def talk(self, text: str) -> None:
        """One line about the chat."""
        from mlx_finetune.app.text import printable

        shown = printable(text)
        click.echo(shown if "NO_COLOR" in os.environ else click.style(shown, dim=True), err=True)

    def data(self, text: str) -> None:
        """Part of a reply, at once."""
        from mlx_finetune.app.text import printable

        sys.stdout.write(printable(text))
        sys.stdout.flush()

    @contextmanager
    def stopping(self) -> Generator[Callable[[], bool] | None]:
        """Ctrl-C sets the flag while the block runs; a second one raises KeyboardInterrupt."""
        pressed: list[int] = []

        def on_signal(number: int, frame: object) -> None:
            del frame
            pressed.append(number)
            if len(pressed) > 1:
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, on_signal)
        try:
            yield lambda: bool(pressed)
        finally:
            signal.signal(signal.SIGINT, before)

    def edit(self, text: str) -> str:
        """What a person makes of ``text`` in the editor. Raises ``UsageError``."""
        from mlx_finetune.commands.editor import edit_text

        return edit_text(text)

    @property
    def width(self) -> int:
        """Columns of the terminal now."""
        return shutil.get_terminal_size((80, 24)).columns


def banner(opened: "Opened") -> Iterator[str]:
    """What answers, and how to begin."""
    from mlx_finetune.units import format_count

    size = format_count(opened.info.num_parameters)
    if opened.spec is not None:
        yield f"{opened.name}: adapter of rank {opened.spec.rank} on {opened.info.name} ({size} parameters)"
    else:
        yield f"{opened.name}: {size} parameters"
    if not opened.tokenizer.has_chat_template:
        yield "a base model without a chat template: every question is asked by itself, through the prompt template"
    if opened.chat.system:
        yield f"system: {opened.chat.system}"
    compare = ", /compare TEXT asks base and adapter" if opened.has_base else ""
    fix = ",\n/fix puts an answer right" if opened.located.run is not None else ""  # in 80 columns
    yield from f"/help lists the commands{compare}{fix}, Ctrl-D leaves".splitlines()


def _serve_terminal(chat: "Chat") -> None:
    from mlx_finetune.app.text import join_input

    session = _prompt_session()
    while True:
        click.echo(err=True)
        try:
            text = session.prompt("> ")
        except KeyboardInterrupt:
            click.echo("(Ctrl-D or /exit leaves)", err=True)
            continue
        except EOFError:
            return
        if not chat.take(join_input(text)):
            return


def _serve_pipe(chat: "Chat") -> None:
    from mlx_finetune.app.text import join_input, needs_more

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused by itself
    text = ""
    for line in sys.stdin:
        text += line.rstrip("\r\n")
        if needs_more(text):
            text += "\n"
            continue
        if not chat.take(join_input(text)):
            return
        text = ""
    if text.strip():
        chat.take(join_input(text))


def _prompt_session() -> "PromptSession[str]":
    """A line editor: Enter sends, unless the text goes on; commands complete with Tab; history is kept."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from mlx_finetune.app.chat.repl import COMMANDS
    from mlx_finetune.app.text import needs_more

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if needs_more(buffer.text):
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    path = _history_file()
    return PromptSession(
        history=FileHistory(str(path)) if path else InMemoryHistory(),
        key_bindings=keys,
        multiline=True,
        prompt_continuation=". ",
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
    )


def _history_file() -> Path | None:
    """Where questions are remembered, readable by their owner alone; None where nothing can be written there."""
    import platformdirs

    moved = os.environ.get("MLXFT_CACHE")
    folder = Path(moved).expanduser() if moved else platformdirs.user_state_path("mlxft")
    path = folder / "chat_history"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return None
    return path


def _say_next(name: str, chat: "Chat") -> None:
    from mlx_finetune.commands.runs import example_prompt
    from mlx_finetune.rundir import RESOLVED

    session = chat.session
    run = session.opened.located.run
    if session.num_corrections and run is not None:
        here = Path.cwd().resolve()
        shown = run.path.relative_to(here) if run.path.is_relative_to(here) else run.path
        recipe, corrections = (shlex.quote(str(path)) for path in (shown / RESOLVED, shown))
        what = f"--set data.corrections={corrections} --set output_dir={corrections}-next"
        click.echo(f"next: train on what you put right: mlxft train {recipe} {what}", err=True)
    elif session.saved_to is not None:
        path = shlex.quote(str(session.saved_to))
        click.echo(f"next: train on what you saved: mlxft train RECIPE --set data.path={path}", err=True)
    else:
        click.echo(f"next: mlxft generate {shlex.quote(name)} --prompt {example_prompt(run)}", err=True)

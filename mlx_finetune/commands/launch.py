"""``mlxft launch VERB``: what the double-click launchers call. Hands the dialogues what they touch outside."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.desktop.desk import Desk, Ran

VERBS = ("setup", "train", "overnight", "monitor", "test", "chat", "evaluate", "stop")
INTERRUPTED = 130
_LOG_BYTES = 1_000_000
_MLXFT = (sys.executable, "-m", "mlx_finetune")


@click.command(short_help="What the double-click launchers call.")
@click.argument("verb", type=click.Choice(VERBS), metavar="VERB")
@click.argument("names", nargs=-1, metavar="[RECIPE|RUN]...")
@click.option("--queue", type=click.Path(path_type=Path), hidden=True)  # the process that works through a night
def command(verb: str, names: tuple[str, ...], queue: Path | None) -> int:
    """Do what a launcher does, in this window: VERB is setup, train, overnight, monitor, test, chat, evaluate or stop.

    What is not named is asked for: in a dialog of the system, else as a numbered menu. A recipe can be dragged in.
    """
    from mlx_finetune.app.desktop.desk import Cancelled
    from mlx_finetune.errors import MlxftError

    desk = make_desk(os.environ)
    if queue is not None:
        return _work(desk, queue)
    started, code = time.time(), 1
    problem = ""
    try:
        code = _verbs()[verb](desk, names)
    except Cancelled:
        desk.say("\nNothing more was done.")
        code = 0
    except (KeyboardInterrupt, click.Abort):
        desk.say("\nInterrupted; nothing more was done.")
        code = INTERRUPTED
    except MlxftError as error:
        problem, code = error.message, error.exit_code
        raise
    except Exception:
        problem = traceback.format_exc()
        raise
    finally:
        _note(desk.logs, f"{verb} {list(names)}: code {code}, {time.time() - started:.0f} s. {problem}".strip())
    return code


def _verbs() -> "Mapping[str, Callable[[Desk, Sequence[str]], int]]":
    from mlx_finetune.app.desktop import overnight, training, verbs
    from mlx_finetune.commands.launchers import desktop_folder, launcher_target

    return {
        "setup": lambda desk, names: verbs.set_up(desk, launcher_target(), desktop_folder()),
        "train": training.train,
        "overnight": overnight.overnight,
        "monitor": verbs.monitor,
        "test": _test,
        "chat": verbs.chat,
        "evaluate": verbs.evaluate,
        "stop": verbs.stop,
    }


def make_desk(environment: Mapping[str, str]) -> "Desk":
    """What a dialogue in this window touches. Dialogs need ``osascript`` and a login at the screen."""
    import shutil

    from mlx_finetune.app.desktop.desk import Desk

    is_remote = "SSH_CONNECTION" in environment or "SSH_TTY" in environment
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    return Desk(
        folder=Path.cwd(),
        mlxft=run_here,
        read_mlxft=lambda arguments: _read([*_MLXFT, *arguments]),
        start=start_alone,
        program=run_program,
        say=lambda text: click.echo(text, err=True),
        ask=ask_line,
        has_dialogs=can_ask and not is_remote and shutil.which("osascript") is not None,
        can_ask=can_ask,
        now=time.time,
        sleep=time.sleep,
    )


def run_here(arguments: Sequence[str]) -> int:
    """Run ``mlxft ARGUMENTS`` in this window; Ctrl-C is for it alone. The exit code, 128 + N for a signal."""
    with _deaf():
        code = subprocess.Popen([*_MLXFT, *arguments]).wait()
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _deaf() -> Generator[None]:
    """Inside, Ctrl-C does nothing here. A handler, as a signal that is ignored would be ignored by the child too."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _read(command: Sequence[str]) -> "Ran":
    from mlx_finetune.app.desktop.desk import Ran

    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    return Ran(done.returncode, done.stdout, done.stderr)


def run_program(command: Sequence[str]) -> "Ran | None":
    """One of the Mac's own programs, by its name on PATH; None where it is missing. Dialogs may stay open for hours."""
    try:
        return _read(command)
    except (OSError, ValueError):  # ValueError: a NUL in an argument
        return None


def start_alone(arguments: Sequence[str], log: Path) -> int:
    """Start ``mlxft ARGUMENTS`` in a session of its own, what it says added to ``log``; its process id."""
    from mlx_finetune.errors import RunError

    try:
        with log.open("ab") as file:
            started = subprocess.Popen(
                [*_MLXFT, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
    except OSError as error:
        raise RunError(f"{error.filename or log}: {error.strerror}", "mlxft doctor") from error
    started.returncode = 0  # nobody here waits for it
    return started.pid


def ask_line(prompt: str) -> str:
    """Show ``prompt`` and read a line, without its end. Raises ``Cancelled`` at Ctrl-C and Ctrl-D."""
    from mlx_finetune.app.desktop.desk import Cancelled

    click.echo(prompt, err=True, nl=False)
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        line = ""
    except UnicodeDecodeError:
        return "\ufffd"
    if not line:
        click.echo(err=True)
        raise Cancelled
    return line.removesuffix("\n")


def _test(desk: "Desk", names: Sequence[str]) -> int:
    """Answers of a run beside those of its base, for the run's own prompts and then for those that are typed."""
    import shutil

    from mlx_finetune.app.desktop.asking import ask_text
    from mlx_finetune.app.desktop.desk import Cancelled
    from mlx_finetune.app.desktop.next_steps import suggest
    from mlx_finetune.app.desktop.runs import pick_run
    from mlx_finetune.commands.opening import open_for_answers
    from mlx_finetune.commands.runs import read_settings

    run = pick_run(desk, names, "Which run is to be tested?")
    desk.say(f"Loading {run.path.name} ...")
    opened = open_for_answers(str(run.path), [])
    from mlx_finetune.app.desktop.answers import SideBySide, prompts_of

    answers = SideBySide(opened, desk.say, shutil.get_terminal_size((80, 24)).columns)
    for prompt in prompts_of(read_settings(run)):
        answers.show(prompt)
    if desk.can_ask:
        with contextlib.suppress(Cancelled):
            while text := ask_text(desk, "\nYour own question (Return alone ends): "):
                answers.show(text)
    suggest(desk, chat="to talk with it", evaluate="to measure it", train="to train further")
    return 0


def _work(desk: "Desk", folder: Path) -> int:
    """Be the process that works through a night: SIGTERM and SIGINT end it, and reach the training at work."""
    from mlx_finetune.app.desktop.queue import Worker, work

    asked: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def on_signal(number: int, frame: object) -> None:
        del frame
        asked.append(number)
        if children:
            children[-1].send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def train(arguments: Sequence[str]) -> int:
        children.append(subprocess.Popen([*_MLXFT, *arguments], stdin=subprocess.DEVNULL))
        if asked:  # it came before the child was there
            children[-1].send_signal(signal.SIGTERM)
        code = children[-1].wait()
        return code if code >= 0 else 128 - code

    return work(folder, Worker(train, lambda: bool(asked), _notify(desk), _keep_awake, time.time))


def _notify(desk: "Desk") -> "Callable[[str, str], None]":
    """Best effort: macOS shows it as from Script Editor, or not at all."""
    from mlx_finetune.app.desktop.asking import NOTIFY

    return lambda title, text: desk.program(["osascript", "-e", NOTIFY, title, text]) and None


def _keep_awake() -> None:
    """Hold off sleep until this process ends, where there is ``caffeinate``."""
    from mlx_finetune.app.desktop.power import awake_command
    from mlx_finetune.hardware.awake import spawn_alone

    with contextlib.suppress(OSError):
        spawn_alone(awake_command(os.getpid()))


def _note(logs: Path, line: str) -> None:
    """Add a line to the launchers' log, which begins anew when it has grown large; a full disk costs only the line."""
    path = logs / "launchers.log"
    with contextlib.suppress(OSError):
        logs.mkdir(exist_ok=True)
        is_large = path.is_file() and path.stat().st_size > _LOG_BYTES
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with path.open("w" if is_large else "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{stamp} {line}\n")

"""``mlxft launch VERB``: what the double-click launchers call. Hands the dialogues what they touch outside."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.desktop.desk import Desk

VERBS = ("setup", "train", "overnight", "monitor", "test", "chat", "evaluate", "stop")
INTERRUPTED = 130
_LOG_BYTES = 1_000_000


@click.command(short_help="What the double-click launchers call.")
@click.argument("verb", type=click.Choice(VERBS), metavar="VERB")
@click.argument("names", nargs=-1, metavar="[RECIPE|RUN]...")
@click.option("--queue", type=click.Path(path_type=Path), hidden=True)  # the process that works through a night
def command(verb: str, names: tuple[str, ...], queue: Path | None) -> int:
    """Do what a launcher does, in this window: VERB is setup, train, overnight, monitor, test, chat, evaluate or stop.

    What is not named is asked for: in a dialog of the system, else as a numbered menu. A recipe can be dragged in.
    """
    from mlx_finetune.app.desktop.desk import Cancelled
    from mlx_finetune.commands.window import make_desk
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
        import traceback

        problem = traceback.format_exc()
        raise
    finally:
        _note(desk.logs, f"{verb} {list(names)}: code {code}, {time.time() - started:.0f} s. {problem}".strip())
    return code


def _verbs() -> "Mapping[str, Callable[[Desk, Sequence[str]], int]]":
    from mlx_finetune.app.desktop import verbs
    from mlx_finetune.app.desktop.overnight.dialogue import overnight
    from mlx_finetune.app.desktop.training.dialogue import train
    from mlx_finetune.commands.launchers import desktop_folder, launcher_target

    return {
        "setup": lambda desk, names: verbs.set_up(desk, launcher_target(), desktop_folder()),
        "train": train,
        "overnight": overnight,
        "monitor": verbs.monitor,
        "test": _test,
        "chat": verbs.chat,
        "evaluate": verbs.evaluate,
        "stop": verbs.stop,
    }


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
    from mlx_finetune.app.classify import check_answers

    check_answers(opened, "answer")
    from mlx_finetune.app.desktop.answers import SideBySide, prompts_of

    answers = SideBySide(opened, run.path.name, desk.say, shutil.get_terminal_size((80, 24)).columns)
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
    import signal
    import subprocess

    from mlx_finetune.app.desktop.overnight.queue import Worker, work
    from mlx_finetune.commands.window import MLXFT

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
        children.append(subprocess.Popen([*MLXFT, *arguments], stdin=subprocess.DEVNULL))
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
    from mlx_finetune.app.desktop.overnight.power import awake_command
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

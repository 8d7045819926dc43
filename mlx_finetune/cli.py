"""The command ``mlxft``: finds the subcommand's module, runs it, prints errors as a sentence and a way out.

Help costs click and one small module; mlx, transformers and mlx-lm are imported by the commands themselves, inside
their functions (``benchmarks/help_cost.py`` measures it).
"""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import click

from mlx_finetune.errors import DataError, MlxftError, Problem, RecipeError, UsageError, further_problems

#: Subcommand -> what its one line of help says. The module is ``mlx_finetune.commands.NAME`` with a ``command`` in it.
COMMANDS: dict[str, str] = {
    "train": "Train from a recipe; resume, extend or fork a run.",
    "monitor": "Watch a run and steer it; come and go at any time.",
    "stop": "Let a run finish its step, save and leave.",
    "plan": "What a recipe will cost, before anything is loaded.",
    "sweep": "A better learning rate and rank: at most 8 short trainings.",
    "data": "Check, preview, count or split training data.",
    "chat": "Talk with an adapter or a model.",
    "generate": "Answer one prompt or a file of prompts.",
    "eval": "What a run learned and forgot: base beside tuned, with intervals.",
    "sample": "Many answers a problem, checked by a rule; rows to train on.",
    "microscope": "What was learned, token by token, under base and adapter.",
    "trace": "What changed inside, checkpoint by checkpoint, and when it was learned.",
    "serve": "Answer over HTTP as OpenAI does, on this machine.",
    "pipeline": "Stages of trainings, each from the last one's result, with one report.",
    "report": "A run as one page for any browser: curves, answers, verdict.",
    "runs": "List, show, compare or remove runs.",
    "recipe": "List, show, copy or check recipes.",
    "models": "List, fetch or remove models.",
    "tune": "Measure this machine, and keep its fastest settings.",
    "launch": "What the double-click launchers call.",
    "launchers": "Write, check or remove the launchers on the Desktop.",
    "doctor": "What is missing or wrong here, and the command that mends it.",
}


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are called, never to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mlx_finetune.commands.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, 1)
            raise UsageError(f"there is no command `{name}`", f"did you mean `{near[0]}`?" if near else "mlxft --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlx-finetune", prog_name="mlxft")
def root() -> None:
    """Fine-tune language models on Apple silicon: a recipe in, an adapter you can chat with out.

    \b
    First time:   mlxft train recipes/quickstart.toml
    Then:         mlxft chat quickstart
    """


def print_error(error: MlxftError) -> None:
    """Write ``error:`` and ``hint:`` lines to stderr; every problem of a recipe or data error gets its own pair."""
    problems: Sequence[Problem] = (
        error.problems if isinstance(error, RecipeError) else (Problem("", error.message, error.hint),)
    )
    for problem in problems:
        _print_problem(problem)
    if isinstance(error, DataError):
        said = {error.hint}
        for problem in further_problems(error):
            _print_problem(problem if problem.hint not in said else replace(problem, hint=""))
            said.add(problem.hint)


def _print_problem(problem: Problem) -> None:
    where = f"{problem.where}: " if problem.where else ""
    click.echo(f"error: {where}{problem.message}", err=True)
    if problem.hint:
        click.echo(f"hint: {problem.hint}", err=True)


def _print_click_error(error: click.ClickException) -> None:
    """A slip on the command line as an ``error:`` and a ``hint:``; a group alone is answered with its help."""
    message = error.format_message()
    if message.startswith("Usage:"):
        click.echo(message, err=True)
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    _print_problem(Problem("", message, f"{context.command_path} --help" if context else ""))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``mlxft`` and leave with its exit code."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it tells who lacks PyTorch, which nobody needs
    try:
        code = root.main(
            args=list(arguments) if arguments is not None else None, prog_name="mlxft", standalone_mode=False
        )
        sys.exit(code if isinstance(code, int) else 0)
    except MlxftError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        _print_click_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)

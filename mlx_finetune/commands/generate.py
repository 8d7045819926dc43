"""``mlxft generate``: answers on stdout, talk on stderr."""

import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from mlx_finetune.errors import Problem, RunError, UsageError

if TYPE_CHECKING:
    from mlx_finetune.app.generate import Answerer, Prompt, Reply
    from mlx_finetune.app.open import Opened


@click.command()
@click.argument("name", metavar="RUN_OR_MODEL")
@click.option("--prompt", help="One prompt; its answer is printed as it comes.")
@click.option(
    "--file",
    "prompts_file",
    type=click.Path(path_type=Path),
    help="Prompts: a text file with one a line, or JSON Lines with `prompt` or `messages`; answers are JSON Lines.",
)
@click.option("--system", metavar="TEXT", help="System message, in place of the recipe's.")
@click.option("--max-tokens", metavar="N", help="Longest answer in tokens.")
@click.option("--temperature", metavar="T", help="0 always takes the likeliest token.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any key of [chat], e.g. top_p=0.5.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Fixes the draws; row i uses seed + i.")
@click.option("--base", "use_base", is_flag=True, help="Let the base model answer, with the adapter off.")
@click.option("--json", "as_json", is_flag=True, help="The answer to --prompt as JSON, with token counts.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the answers to FILE.")
def command(
    name: str,
    prompt: str | None,
    prompts_file: Path | None,
    system: str | None,
    max_tokens: str | None,
    temperature: str | None,
    settings: tuple[str, ...],
    seed: int,
    use_base: bool,
    as_json: bool,
    output: Path | None,
) -> int:
    """Answer one prompt or a file of prompts with a run, a checkpoint, an adapter folder or a model."""
    if (prompt is None) == (prompts_file is None):
        raise UsageError("give either --prompt or --file", f"mlxft generate {name} --prompt 'Why is the sky blue?'")
    if output and prompts_file and output.exists() and output.samefile(prompts_file):
        raise UsageError(f"{output} is the file the prompts are in", "choose another name for -o")
    from mlx_finetune.commands.opening import open_for_answers

    given = (("system", system), ("max_tokens", max_tokens), ("temperature", temperature))
    changes = [*settings, *(f"{key}={value}" for key, value in given if value is not None)]
    opened = open_for_answers(name, changes)
    with _answering(opened, seed, use_base=use_base) as answerer, _output(output) as stream:
        if prompt is not None:
            failures, replies = 0, [_answer_one(answerer, prompt, stream, as_json=as_json)]
        else:
            assert prompts_file is not None
            failures, replies = _answer_file(answerer, prompts_file, stream)
    _say_summary(name, replies, failures, output)
    return 1 if failures else 0


@contextmanager
def _answering(opened: "Opened", seed: int, *, use_base: bool) -> Generator["Answerer"]:
    """What answers; the adapter is off while ``use_base``."""
    from mlx_finetune.app.generate import Answerer
    from mlx_finetune.app.open import base_model

    with base_model(opened) if use_base else nullcontext(opened.model) as model:
        yield Answerer(model, opened.tokenizer, opened.data, opened.chat, seed)


@contextmanager
def _output(path: Path | None) -> Generator[TextIO]:
    """stdout, or the file ``path``; what was answered before an interruption stays in it."""
    if path is None:
        yield sys.stdout
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None
    with file:
        yield file


def _answer_one(answerer: "Answerer", text: str, stream: TextIO, *, as_json: bool) -> "Reply":
    """Answer ``--prompt``: text as it comes, or one JSON object."""
    from mlx_finetune.app.generate import Prompt, answer_prompt, question, reply_fields, to_line
    from mlx_finetune.app.text import printable

    def show(piece: str) -> None:
        stream.write(printable(piece) if stream.isatty() else piece)
        stream.flush()

    if not text.strip():
        raise UsageError("the prompt is empty", "write it after --prompt, in quotes")
    prompt = Prompt(question(text, answerer.chat), {"prompt": text}, "")
    reply = answer_prompt(answerer, prompt, 0, None if as_json else show)
    stream.write(to_line({**prompt.shown, **reply_fields(reply)}) + "\n" if as_json else "\n")
    return reply


def _answer_file(answerer: "Answerer", path: Path, stream: TextIO) -> tuple[int, list["Reply"]]:
    """Answer every prompt of ``path``; the number of rows that failed, and the replies."""
    from mlx_finetune.app.generate import answer_rows, read_prompts, to_line

    failed: list[Problem] = []

    def report(problem: Problem) -> None:
        failed.append(problem)
        click.echo(f"error: {problem.where}: {problem.message}", err=True)
        if problem.hint:
            click.echo(f"hint: {problem.hint}", err=True)

    prompts: Sequence[Prompt] = read_prompts(path, answerer.chat, report)
    replies: list[Reply] = []
    is_shown = sys.stderr.isatty() and not stream.isatty()
    for number, (fields, reply) in enumerate(answer_rows(answerer, prompts, report), 1):
        stream.write(to_line(fields) + "\n")
        stream.flush()
        if reply is not None:
            replies.append(reply)
        if is_shown:
            click.echo(f"\r{number} of {len(prompts)} prompts", err=True, nl=number == len(prompts))
    return len(failed), replies


def _say_summary(name: str, replies: Sequence["Reply"], failures: int, output: Path | None) -> None:
    from mlx_finetune.units import format_seconds

    tokens, seconds = sum(reply.answer_tokens for reply in replies), sum(reply.seconds for reply in replies)
    rate = f", {tokens / seconds:.0f} tokens/s" if seconds else ""
    answers = "1 answer" if len(replies) == 1 else f"{len(replies)} answers"
    failed = f"; {failures} rows failed" if failures else ""
    where = f" in {output}" if output else ""
    click.echo(f"{answers}{where}: {tokens} tokens in {format_seconds(seconds)}{rate}{failed}", err=True)
    cut = sum(reply.finish == "length" for reply in replies)
    if cut:
        which = f"{cut} of them were" if len(replies) > 1 else "it was"
        click.echo(f"{which} cut at the token limit; --max-tokens raises it", err=True)
    click.echo(f"next: mlxft chat {shlex.quote(name)}", err=True)

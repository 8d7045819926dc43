"""``mlxft generate``: answers on stdout, talk on stderr."""

import shlex
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from mlx_finetune.errors import Problem, RunError, UsageError

if TYPE_CHECKING:
    from mlx_finetune.app.generate import Answerer, Prompt, Reply
    from mlx_finetune.app.open import Opened

#: Labels of a text that are printed; JSON has all.
_SHOWN_LABELS = 5


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
@click.option("--batch", type=click.IntRange(1, 256), metavar="N", help="Answer N prompts of --file at once.")
@click.option(
    "--schema",
    "schema_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON Schema that every answer keeps to; one that runs out of tokens is marked truncated.",
)
@click.option("--clean", type=click.Choice(["json"]), help="json: stop at the first JSON object, print only that.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Text that ends an answer and is not shown; repeatable.")
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
    batch: int | None,
    schema_file: Path | None,
    clean: str | None,
    stop: tuple[str, ...],
    use_base: bool,
    as_json: bool,
    output: Path | None,
) -> int:
    """Answer one prompt or a file of prompts with a run, a checkpoint, an adapter folder or a model."""
    given = click.get_current_context().params
    check_options(given)
    wanted = _wanted(schema_file, clean, stop)
    from mlx_finetune.commands.opening import open_for_answers

    opened = open_for_answers(name, _changes(given))
    if opened.head is not None and opened.head.task == "classify" and not use_base:
        return _label(opened, prompt, prompts_file, output, as_json=as_json)
    if not use_base:
        from mlx_finetune.app.classify import check_answers

        check_answers(opened, "generate")
    with _answering(opened, seed, wanted, use_base=use_base) as answerer, _output(output) as stream:
        started = time.perf_counter()
        if prompt is not None:
            failures, replies = _answer_one(answerer, prompt, stream, as_json=as_json)
        else:
            assert prompts_file is not None
            failures, replies = _answer_file(answerer, prompts_file, stream, max_rows=batch or 1)
        seconds = time.perf_counter() - started
    _say_summary(replies, failures, output, seconds, answerer)
    is_two_sided = opened.tokenizer.start_token_id is not None
    click.echo(f"next: mlxft {'eval' if is_two_sided else 'chat'} {shlex.quote(name)}", err=True)
    return 1 if failures else 0


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse what can be seen before a model is loaded. Raises ``UsageError`` or ``DataError``."""
    from mlx_finetune.recipe.sampling import change_settings
    from mlx_finetune.recipe.schema import ChatRecipe

    prompt, prompts_file, output = given["prompt"], given["prompts_file"], given["output"]
    if (prompt is None) == (prompts_file is None):
        raise UsageError("give either --prompt or --file", _example(given["name"]))
    if output and prompts_file and output.exists() and prompts_file.exists() and output.samefile(prompts_file):
        raise UsageError(f"{output} is the file the prompts are in", "choose another name for -o")
    if given["batch"] is not None and prompts_file is None:
        raise UsageError("--batch answers the prompts of a file", "give them with --file")
    _wanted(given["schema_file"], given["clean"], given["stop"])
    change_settings(ChatRecipe.model_validate({}), _changes(given))


def _changes(given: Mapping[str, Any]) -> list[str]:
    """NAME=VALUE of [chat] for the options that stand for a key of it."""
    named = [f"{key}={given[key]}" for key in ("system", "max_tokens", "temperature") if given[key] is not None]
    return [*given["settings"], *named]


def _label(opened: "Opened", prompt: str | None, file: Path | None, output: Path | None, *, as_json: bool) -> int:
    """What a classifier says: the label and its probabilities for ``--prompt``, JSON Lines for a file."""
    from mlx_finetune.app.classify import TextRow, label_texts, read_texts
    from mlx_finetune.app.generate import to_line
    from mlx_finetune.units import counted

    failed: list[Problem] = []

    def report(problem: Problem) -> None:
        failed.append(problem)
        click.echo(f"error: {problem.where}: {problem.message}".replace("error: : ", "error: "), err=True)

    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty", "write it after --prompt, in quotes")
    rows = [TextRow(prompt)] if prompt is not None else read_texts(cast(Path, file), opened, report)
    count, num_cut = 0, 0
    with _output(output) as stream:
        for found in label_texts(opened, rows, report):
            count, num_cut = count + 1, num_cut + found.is_cut
            if as_json or file is not None:
                stream.write(to_line(found.to_json()) + "\n")
            else:
                shown = list(found.probabilities.items())[:_SHOWN_LABELS]
                stream.writelines(f"{label}\t{share:.4f}\n" for label, share in shown)
                if more := len(found.probabilities) - len(shown):
                    click.echo(f"{counted(more, 'label')} more, less likely: --json prints all", err=True)
    if num_cut:
        which = "the text is" if len(rows) == 1 else f"{num_cut} of them {'is' if num_cut == 1 else 'are'}"
        click.echo(
            f"{which} longer than max_seq_length = {opened.data.max_seq_length}: only the end was read", err=True
        )
    where = f" in {output}" if output else ""
    click.echo(f"{counted(count, 'text')} labelled{where}" + (f"; {len(failed)} failed" if failed else ""), err=True)
    click.echo(f"next: mlxft eval {shlex.quote(opened.name)}", err=True)
    return 1 if failed else 0


def _example(name: str) -> str:
    """The command with a prompt, one of the run's own where ``name`` is a run."""
    from mlx_finetune.commands.runs import example_prompt
    from mlx_finetune.rundir import find_run

    try:
        run = find_run(name, base=Path.cwd())
    except RunError:
        run = None
    return f"mlxft generate {shlex.quote(name)} --prompt {example_prompt(run)}"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the options say about the form of an answer."""

    stop: tuple[str, ...]
    cleaned: bool
    schema: Mapping[str, object] | bool | None


def _wanted(schema_file: Path | None, clean: str | None, stop: tuple[str, ...]) -> _Wanted:
    """The options, checked before a model is loaded."""
    if "" in stop:
        raise UsageError("--stop is empty", "write the text at which an answer ends")
    if schema_file is None:
        return _Wanted(stop, clean is not None, None)
    for option, value in (("--clean", clean), ("--stop", stop)):
        if value:
            raise UsageError(
                f"--schema and {option} do not go together",
                f"leave {option} out: an answer to a schema is JSON from its first character to its last",
            )
    from mlx_finetune.scoring.json_schema import read_schema

    return _Wanted((), False, read_schema(schema_file))


@contextmanager
def _answering(opened: "Opened", seed: int, wanted: _Wanted, *, use_base: bool) -> Generator["Answerer"]:
    """What answers; the adapter is off while ``use_base``."""
    from mlx_finetune.app.generate import Answerer, Form
    from mlx_finetune.app.open import base_model
    from mlx_finetune.model.answers.constrain import Grammar

    penalty = opened.chat.repetition_penalty
    if wanted.schema is not None and penalty != 1:
        raise UsageError(
            f"--schema and repetition_penalty = {penalty:g} do not go together: it falls on brackets and quotes first",
            "--set repetition_penalty=1",
        )
    grammar = None if wanted.schema is None else Grammar(opened.tokenizer, wanted.schema)
    form = Form(wanted.stop, wanted.cleaned, grammar)
    with base_model(opened) if use_base else nullcontext(opened.model) as model:
        yield Answerer(model, opened.tokenizer, opened.data, opened.chat, seed, form)


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


def _answer_one(answerer: "Answerer", text: str, stream: TextIO, *, as_json: bool) -> tuple[int, list["Reply"]]:
    """Answer ``--prompt``: text as it comes, or one JSON object. 1 where ``--clean`` found nothing, and the reply."""
    from mlx_finetune.app.generate import Prompt, answer_prompt, question, reply_fields, to_line
    from mlx_finetune.app.text import printable, shorten

    def show(piece: str) -> None:
        stream.write(printable(piece) if stream.isatty() else piece)
        stream.flush()

    if not text.strip():
        raise UsageError("the prompt is empty", "write it after --prompt, in quotes")
    prompt = Prompt(question(text, answerer.chat), {"prompt": text}, "")
    reply = answer_prompt(answerer, prompt, 0, None if as_json or answerer.form.cleaned else show)
    fields = reply_fields(reply, answerer.form)
    if as_json:
        stream.write(to_line({**prompt.shown, **fields}) + "\n")
    elif "error" not in fields:
        show(f"{fields['answer']}\n" if answerer.form.cleaned else "\n")
    if "error" in fields:
        click.echo(f"error: {fields['error']}: {shorten(reply.text)}", err=True)
    return int("error" in fields), [reply]


def _answer_file(answerer: "Answerer", path: Path, stream: TextIO, *, max_rows: int) -> tuple[int, list["Reply"]]:
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
    for number, (fields, reply) in enumerate(answer_rows(answerer, prompts, report, max_rows=max_rows), 1):
        stream.write(to_line(fields) + "\n")
        stream.flush()
        if reply is not None:
            replies.append(reply)
        if is_shown:
            click.echo(f"\r{number} of {len(prompts)} prompts", err=True, nl=number == len(prompts))
    return len(failed), replies


def _say_summary(
    replies: Sequence["Reply"], failures: int, output: Path | None, seconds: float, answerer: "Answerer"
) -> None:
    from mlx_finetune.units import format_seconds

    tokens = sum(reply.answer_tokens for reply in replies)
    rate = f", {tokens / seconds:.0f} tokens/s" if replies else ""
    answers = "1 answer" if len(replies) == 1 else f"{len(replies)} answers"
    failed = f"; {failures} rows failed" if failures else ""
    where = f" in {output}" if output else ""
    click.echo(f"{answers}{where}: {tokens} tokens in {format_seconds(seconds)}{rate}{failed}", err=True)
    is_free = answerer.form.grammar is None
    cut = sum(reply.finish == "length" or (not is_free and reply.finish != "stop") for reply in replies)
    if not cut:
        return
    which = f"{cut} of them were" if len(replies) > 1 else "it was"
    if is_free:
        click.echo(f"{which} cut at the token limit; --max-tokens raises it", err=True)
        return
    click.echo(f"{which} truncated before the JSON was whole", err=True)
    click.echo("hint: --max-tokens allows more; maxLength and maxItems in the schema bound an answer", err=True)

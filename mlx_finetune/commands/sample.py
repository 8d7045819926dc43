"""``mlxft sample``: many answers to each problem, checked by a rule; rows for rejection sampling and for a verifier."""

import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlx_finetune.app.sampling.draw import Progress, Sampler
    from mlx_finetune.app.sampling.rows import Kept

INTERRUPTED = 130


@click.command()
@click.argument("name", metavar="RUN_OR_MODEL")
@click.option("--data", required=True, metavar="FILE", help="Problems with their reference answers.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the answers go; the same command goes on where it was interrupted.",
)
@click.option("-k", "--answers", "k", type=click.IntRange(1, 256), default=8, help="Answers drawn for each problem.")
@click.option("--temperature", type=click.FloatRange(0.01, 10), default=0.8, help="Of the drawn answers.")
@click.option("--top-p", type=click.FloatRange(0.01, 1), default=1.0, help="Draw from the likeliest tokens only.")
@click.option(
    "--rule",
    type=click.Choice(["number", "text", "exact"]),
    help="What is right: the same final number, the same words, every character. Chosen by the references.",
)
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Longest answer in tokens.")
@click.option("--max-rows", type=click.IntRange(1), default=10_000, metavar="N", help="Most problems; always the same.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Fixes the draws.")
@click.option("--batch", type=click.IntRange(1, 256), metavar="N", help="Answers at once (16, or 8 on a GPU).")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def command(
    name: str,
    data: str,
    out: Path,
    k: int,
    temperature: float,
    top_p: float,
    rule: str | None,
    max_tokens: int | None,
    max_rows: int,
    seed: int,
    batch: int | None,
    as_json: bool,
) -> int:
    """Draw k answers to each problem, check them by a rule, and keep what can be trained on.

    Writes samples.jsonl (every answer), sft/ (right ones, each once, at most 4 a problem: rejection sampling) and
    verifier/ (every answer with whether it is right); the last two are the data.path of a recipe. Prints how often the
    greedy answer, a random one, the majority and the best of k are right. The greedy answer is drawn beside the k.
    """
    from mlx_finetune.commands.evaluating import open_for_eval

    check_options(click.get_current_context().params)
    subject = open_for_eval(name)
    from mlx_finetune.app.classify import check_answers
    from mlx_finetune.app.eval.run import rows_at_once
    from mlx_finetune.app.sampling.draw import Drawing, prepare

    check_answers(subject.opened, "draw")
    drawing = Drawing(
        k=k,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        at_once=rows_at_once(subject, batch, _say),
        max_rows=max_rows,
        max_tokens=max_tokens,
        rule=rule,  # pyright: ignore[reportArgumentType]
    )
    sampler = prepare(subject, drawing, given=data, base=Path.cwd())
    if not _draw(sampler, out):
        _say(f"\ninterrupted; the same command goes on from there ({out})")
        return INTERRUPTED
    _finish(sampler, out, name, as_json=as_json)
    return 0


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse what can be seen before a model is loaded. Raises ``RunError``."""
    from mlx_finetune.app.sampling.folder import check_samples_folder

    check_samples_folder(given["out"])


def _say(text: str) -> None:
    click.echo(text, err=True)


def _draw(sampler: "Sampler", out: Path) -> bool:
    """Draw what is missing; False after a Ctrl-C."""
    import os

    from mlx_finetune import durable
    from mlx_finetune.app.sampling.draw import draw
    from mlx_finetune.app.sampling.folder import SamplesFile
    from mlx_finetune.errors import RunError
    from mlx_finetune.rundir import LOCK, take_lock
    from mlx_finetune.units import counted, format_seconds

    chosen, drawing = sampler.chosen, sampler.drawing
    for problem in chosen.notices:
        _say(f"warning: {problem.where}: {problem.message}")
    problems = f"{counted(len(chosen.rows), 'problem')} of {chosen.source}"
    _say(f"{problems}, {drawing.k} answers each, right by the rule: {sampler.rule}")
    durable.make_folder(out)
    lock = take_lock(out / LOCK)
    if lock is None:
        raise RunError(f"another sampling is at work in {out}", "wait for it, or choose another --out folder")
    bar = _Bar()
    try:
        file = SamplesFile(out, sampler.settings, per_problem=drawing.k + 1)
        try:
            with suppress(KeyboardInterrupt):
                seconds = draw(sampler, file, bar)
                bar.clear()
                if bar.num_drawn:
                    rate = bar.num_drawn / max(seconds, 1e-9)
                    _say(f"{bar.num_drawn} answers drawn in {format_seconds(seconds)}, {rate:.1f} a second")
                return True
            return False
        finally:
            bar.clear()
            file.close()
    finally:
        os.close(lock)


class _Bar:
    """How far it is, on one line of a terminal that is overwritten; nothing elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._first = -1
        self.num_drawn = 0

    def __call__(self, progress: "Progress") -> None:
        if self._first < 0:
            self._first = progress.done
            if progress.done:
                _say(f"{progress.done} of {progress.total} answers were there already")
        self.num_drawn = progress.done - self._first
        if self._is_terminal:
            click.echo(f"\r\x1b[K{progress.done} of {progress.total} answers", err=True, nl=False)

    def clear(self) -> None:
        """Take the line away."""
        if self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


def _finish(sampler: "Sampler", out: Path, name: str, *, as_json: bool) -> None:
    """Write the rows to train on and print the comparison."""
    from mlx_finetune import durable
    from mlx_finetune.app.sampling.best_of import compare, lines, to_json
    from mlx_finetune.app.sampling.folder import COMPARISON, read_problems
    from mlx_finetune.app.sampling.rows import write_rows

    problems = read_problems(out)
    sft, verifier = write_rows(out, problems)
    found = compare(problems, None, seed=sampler.drawing.seed)
    facts = {**sampler.settings, "samples": sampler.chosen.source, "sft_rows": sft.num_train + sft.num_valid}
    plain = to_json(found, facts)
    durable.write_json(out / COMPARISON, plain)
    if as_json:
        click.echo(json.dumps(plain, ensure_ascii=False))
    else:
        for line in lines(found):
            click.echo(line)
    _say_rows(sft, verifier, num_right=sum(sample.right for problem in problems for sample in problem.drawn))
    if sft.folder is not None:
        _say(f"next: mlxft train RECIPE --set data.path={shlex.quote(str(sft.folder))}   (rejection sampling)")
    if verifier.folder is not None and verifier.num_right:
        _say(f"next: mlxft train RECIPE --set data.path={shlex.quote(str(verifier.folder))}   (a verifier)")
        others = f"mlxft sample {shlex.quote(name)} --data OTHER_PROBLEMS --out OTHER_FOLDER"
        _say(f"      {others}   (it is judged by problems that did not teach it)")
        _say("      mlxft eval VERIFIER_RUN --samples OTHER_FOLDER")


def _say_rows(sft: "Kept", verifier: "Kept", *, num_right: int) -> None:
    if not num_right:
        _say("\nno answer is right, so there is nothing to train on: take easier problems or a better model")
        return
    if sft.folder is None:
        _say("\nevery right answer was cut at the limit, so none is kept for rejection sampling: raise --max-tokens")
    else:
        _say(f"\n{sft.folder}: {sft.num_train} right answers to train on, {sft.num_valid} for validation")
    if verifier.folder is None:
        return
    total = verifier.num_train + verifier.num_valid
    share = f"{verifier.num_right} of {total} right"
    _say(f"{verifier.folder}: {verifier.num_train} different answers to train on, {verifier.num_valid} for validation")
    if verifier.num_right == total:
        _say(f"every different answer is right ({share}): a verifier has nothing to tell apart; take harder problems")

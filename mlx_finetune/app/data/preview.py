"""``mlxft data preview``: rows as the model sees them, each token learned, only read, or cut.

In a terminal with colours learned tokens are green, cut ones red and struck out, and every second token is underlined
so that borders can be seen; elsewhere a learned token stands in ``[ ]`` and a cut one in ``{ }``. Characters that a
terminal could act upon are written as escapes.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text as RichText

from mlx_finetune.dataset.corpus import Splits, find_format, load_splits
from mlx_finetune.dataset.corrections import find_corrections
from mlx_finetune.dataset.explain import ExplainedRow, ExplainedToken, State, explain
from mlx_finetune.dataset.kinds import task_for, words_for
from mlx_finetune.dataset.pairs import tokenize_rows
from mlx_finetune.dataset.tokens import TokenizedSplit, Tokenizer, TokenizeReport
from mlx_finetune.dataset.visible import harmless
from mlx_finetune.errors import UsageError
from mlx_finetune.events import Phase
from mlx_finetune.model.scratch.begin import recipe_model
from mlx_finetune.model.sources.catalogue import cache_folder, cached_models, find_entry, hub_cache_folder
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.overrides import train_command
from mlx_finetune.recipe.schema import Recipe

#: Training rows that the counts are made of; a preview of a large file stays a matter of seconds.
COUNTED_ROWS = 2000
#: Whose tokens bare data is shown in: the quickstart's model.
DEFAULT_MODEL = "smollm2-135m"

#: Task of bare data -> the recipe that comes with mlxft and is most like one for it.
_EXAMPLES = {"sft": "quickstart", "dpo": "dpo-rules", "kto": "dpo-rules", "classify": "classify-sst2"}

_STYLES: dict[State, str] = {"learned": "bold green", "read": "dim", "cut": "red strike"}
_BRACKETS: dict[State, tuple[str, str]] = {"learned": ("[", "]"), "read": ("", ""), "cut": ("{", "}")}


def show_preview(
    target: str,
    *,
    rows: int,
    overrides: Sequence[str] = (),
    model: str | None = None,
    as_json: bool = False,
    base: Path | None = None,
) -> None:
    """Print the first ``rows`` training rows of a recipe, or of bare data, to stdout. Paths count from ``base``.

    ``model`` makes the tokens of bare data; without it the quickstart's does, where that is on this disk. Raises
    ``UsageError`` where no model can be had or one too many is named, and whatever the data or model raise.
    """
    is_recipe = target.endswith(".toml")
    folder = base or Path()
    recipe = _recipe_of(target, overrides, model) if is_recipe else _bare_recipe(target, overrides, model, folder)
    splits = load_splits(recipe.data, base=folder, task=recipe.task, corrections=find_corrections(recipe, base=folder))
    notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    local = recipe_model(recipe, base=folder, report=lambda phase: _note_phase(notes, phase))
    tokenizer = load_tokenizer(local.folder, chat_template=recipe.data.chat_template)
    shown = list(explain(splits.train[:rows], tokenizer, recipe.data, task=recipe.task, base=folder))
    counted = _count(splits, tokenizer, recipe, folder)
    if as_json:
        print(json.dumps(_as_json(recipe, shown, counted.report), ensure_ascii=False))  # noqa: T201 - stdout is data
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for row in shown:
        console.print(row_text(row, in_colour=_has_colour(console)))
    for line in summary_lines(recipe, counted.report, len(splits.train), in_colour=_has_colour(console)):
        console.print(line)
    if is_recipe:
        notes.print(f"next: {train_command(Path(target), overrides, recipe.run_folder)}")
    else:
        if recipe.task != "sft":
            notes.print(words_for(splits.format, recipe.task))
        notes.print(f"tokens and template of {recipe.model}; a recipe, or --model NAME, shows those of another")
        more = ', and write task = "kto" into it' if recipe.task == "kto" else ""
        notes.print(f"next: mlxft recipe copy {_EXAMPLES[recipe.task]} mine.toml{more}")


def _recipe_of(path: str, overrides: Sequence[str], model: str | None) -> Recipe:
    if model is not None:
        raise UsageError(f"{path} names its model; --model is for bare data", f"--set model={model}")
    return load_recipe(Path(path), overrides).recipe


def _bare_recipe(path: str, overrides: Sequence[str], model: str | None, base: Path) -> Recipe:
    """What a recipe with nothing but this data says, and the task that its rows are for.

    No rows are set aside, so that they come in the file's order.
    """
    if overrides:
        raise UsageError(f"--set changes a recipe, and {path!r} is none", "a recipe ends in .toml")
    if model is None and not _is_here(DEFAULT_MODEL):
        raise UsageError(
            f"{path}: a preview in tokens needs a model's tokenizer, and {DEFAULT_MODEL} is not on this disk yet",
            f"mlxft data preview {shlex.quote(path)} --model {DEFAULT_MODEL} fetches it; "
            "a recipe in the place of the data names its own; mlxft data stats counts without one",
        )
    data = {"path": path, "val_split": 0.0, "test_split": 0.0}
    values = {"model": model or DEFAULT_MODEL, "output_dir": "adapters/preview", "data": data}
    task = task_for(find_format(DataRecipe.model_validate(data), base))
    return Recipe.model_validate(values if task == "sft" else values | {"task": task})


def _is_here(model: str) -> bool:
    """Is this model of the catalogue in one of the caches, under its short name or its hub id?"""
    entry = find_entry(model)
    return any(find_entry(cached.name) is entry for cached in cached_models(cache_folder(), hub_cache_folder()))


def row_text(row: ExplainedRow, *, in_colour: bool) -> RichText:
    """One row: a head line with its place and counts, the tokens, and what happens to the row."""
    counts = Counter(token.state for token in row.tokens)
    cut = f", {counts['cut']} cut" if counts["cut"] else ""
    place = f"{row.source}:{row.line}" if row.source else "row"
    head = f"{harmless(place)}  {len(row.tokens)} tokens, {counts['learned']} learned{cut}"
    text = RichText(f"{head}  ({row.method})\n" if row.method else f"{harmless(place)}  no tokens\n")
    for number, token in enumerate(row.tokens):
        text.append_text(_token_text(token, number, in_colour=in_colour))
    if row.tokens and not row.tokens[-1].text.endswith("\n"):
        text.append("\n")
    for note in row.notes:
        text.append(f"  -> {harmless(note)}\n")
    return text


def _token_text(token: ExplainedToken, number: int, *, in_colour: bool) -> RichText:
    """A token in its state; line breaks are written as an escape and made, so that nothing hides in them."""
    left, right = ("", "") if in_colour else _BRACKETS[token.state]
    shown = harmless(token.text).replace("\n", "\\n\n" if in_colour or token.state == "read" else "\\n")
    if right and token.text.endswith("\n"):
        right += "\n"
    style = Style.parse(_STYLES[token.state]) + Style(underline=number % 2 == 1) if in_colour else Style.null()
    return RichText(left + shown + right, style=style)


def summary_lines(recipe: Recipe, report: TokenizeReport, num_rows: int, *, in_colour: bool) -> Iterator[str]:
    """How masks were made, counts, the share of targets, rows lost or changed, and the next command."""
    legend = "green: learned, dim: read, red and struck out: cut" if in_colour else "[learned] read {cut}"
    yield f"key: {legend}"
    yield f"mask: {report.method or 'none'}; template: {harmless(report.template)}"
    whole = "" if report.num_examples == num_rows else f" (first {report.num_examples} of {num_rows})"
    yield (
        f"training rows{whole}: {report.num_examples} rows become {report.num_rows} sequences, "
        f"{report.num_tokens} tokens, {report.num_targets} learned ({report.target_share:.1%}); "
        f"longest {report.longest} of {recipe.data.max_seq_length}"
    )
    for name, outcome in report.outcomes.items():
        first = outcome.rows[0]
        rows = f"{outcome.count} {'row' if outcome.count == 1 else 'rows'}"
        yield f"warning: {name.replace('_', ' ')}: {rows}; first {harmless(first.where)}: {harmless(first.message)}"
    for note in report.notes:
        yield f"note: {note}"


def _count(splits: Splits, tokenizer: Tokenizer, recipe: Recipe, base: Path) -> TokenizedSplit:
    return tokenize_rows(splits.train[:COUNTED_ROWS], tokenizer, recipe.data, task=recipe.task, base=base)


def _as_json(recipe: Recipe, rows: Sequence[ExplainedRow], report: TokenizeReport) -> dict[str, object]:
    return {
        "model": recipe.model,
        "task": recipe.task,
        "template": report.template,
        "methods": dict(report.methods),
        "rows": [
            {
                "source": row.source,
                "line": row.line,
                "method": row.method,
                "notes": list(row.notes),
                "tokens": [token._asdict() for token in row.tokens],
            }
            for row in rows
        ],
        "counted_rows": report.num_examples,
        "sequences": report.num_rows,
        "tokens": report.num_tokens,
        "targets": report.num_targets,
        "outcomes": {name: outcome.count for name, outcome in report.outcomes.items()},
    }


def _has_colour(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _note_phase(console: Console, phase: Phase) -> None:
    if not phase.done:
        console.print(f"{phase.name} {phase.detail}".rstrip())

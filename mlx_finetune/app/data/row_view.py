"""Rows of a run's data in tokens, a few at a time: what ``mlxft data preview`` shows, for the monitor's page.

The recipe, the folder that paths count from and the tokenizer are those of the run. Nothing is fetched: a tokenizer
that is not on this disk is said to be missing. The last run's rows stay read.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import durable, rundir
from mlx_finetune.dataset.corpus import Splits, load_splits
from mlx_finetune.dataset.corrections import find_corrections
from mlx_finetune.dataset.explain import ExplainedRow, explain
from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.visible import harmless
from mlx_finetune.errors import RunError
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.load import recorded_recipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir

#: Of a row that is longer only the beginning is sent.
MAX_TOKENS = 4000


@dataclass(frozen=True, slots=True)
class _Read:
    """One run's data. ``key`` is its folder and when its run.json was written."""

    key: tuple[Path, int]
    recipe: Recipe
    base: Path
    splits: Splits
    tokenizer: ModelTokenizer


class RowViewer:
    """Shows rows of runs; safe for several threads, one of which reads at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: _Read | None = None

    def rows(self, run: RunDir, split: str, first: int, count: int) -> Mapping[str, object]:
        """``count`` rows of ``split`` from number ``first`` on, as plain values.

        Raises ``MlxftError`` where the run, its data or its tokenizer cannot be read.
        """
        with self._lock:
            read = self._open(run)
        named: Mapping[str, Sequence[Example]] = {
            "train": read.splits.train,
            "valid": read.splits.valid,
            "test": read.splits.test,
        }
        examples = named[split][first : first + count]
        recipe = read.recipe
        found = explain(examples, read.tokenizer, recipe.data, task=recipe.task, base=read.base)
        return {
            "model": recipe.model,
            "template": read.tokenizer.template_name,
            "max_seq_length": recipe.data.max_seq_length,
            "splits": {name: len(rows) for name, rows in named.items()},
            "rows": [_row_json(row) for row in found],
        }

    def _open(self, run: RunDir) -> _Read:
        path = run.file(rundir.RUN_INFO)
        try:
            key = (path.resolve(), path.stat().st_mtime_ns)
            if self._read is not None and self._read.key == key:
                return self._read
        except FileNotFoundError:
            raise RunError(f"{run.name} has not come to its first step yet", "look again in a moment") from None
        facts = durable.read_object(path)
        recipe = recorded_recipe(facts, run.name)
        base = Path(str(facts.get("started_in", ".")))
        tokenizer = _load_tokenizer(run, facts, recipe)
        splits = load_splits(recipe.data, base=base, task=recipe.task, corrections=find_corrections(recipe, base=base))
        self._read = _Read(key, recipe, base, splits, tokenizer)
        return self._read


def _load_tokenizer(run: RunDir, facts: Mapping[str, object], recipe: Recipe) -> ModelTokenizer:
    """The one kept with the run, else the one of its base where that was recorded."""
    kept = [run.path, *reversed(run.checkpoints())]
    for folder in kept:
        if (folder / "tokenizer.json").is_file():
            return load_tokenizer(folder)
    recorded = facts.get("model_folder")
    if isinstance(recorded, str) and (Path(recorded) / "tokenizer.json").is_file():
        return load_tokenizer(Path(recorded), chat_template=recipe.data.chat_template)
    raise RunError(f"the tokenizer of {recipe.model} is not on this disk", f"mlxft models get {recipe.model}")


def _row_json(row: ExplainedRow) -> Mapping[str, object]:
    tokens = [(token.id, harmless(token.text), token.state) for token in row.tokens[:MAX_TOKENS]]
    return {
        "where": f"{row.source}:{row.line}" if row.source else "",
        "method": row.method,
        "notes": list(row.notes),
        "num_tokens": len(row.tokens),
        "num_learned": sum(token.state == "learned" for token in row.tokens),
        "num_cut": sum(token.state == "cut" for token in row.tokens),
        "tokens": tokens,
    }

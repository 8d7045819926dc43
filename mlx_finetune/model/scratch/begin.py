"""The model that a recipe trains: one that exists, or a new one that [scratch] describes, as an ordinary folder.

A new model is written into our cache once and found there again by what it is made from: its shape, the seed, and its
tokenizer or the data that is made from. Everything after that is full fine-tuning of a folder.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from mlx_finetune.dataset.corpus import hash_files, load_splits, locate_sources
from mlx_finetune.dataset.token_cache import cache_key
from mlx_finetune.events import Phase
from mlx_finetune.model.scratch.bpe import CONTROL, END, END_OF_TEXT, texts_of, train_bpe, write_tokenizer
from mlx_finetune.model.scratch.weights import num_parameters, write_weights
from mlx_finetune.model.sources.fetch import LocalModel, Report, fetch_model, make_once, path_of
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.recipe.scratch import TRAINED_HERE, ScratchRecipe
from mlx_finetune.units import format_count

FACTS = "mlxft-scratch.json"  # in the folder of a model whose tokenizer was made here
_VERSION = 1  # of how weights are drawn and tokenizers made
#: Keys of [scratch] that say how it is trained or named, not what it is.
_NOT_SHAPE = frozenset({"z_loss", "balance_loss", "tokenizer", "vocab_size"})
#: Keys of [data] that do not decide which text is trained on.
_NOT_TEXT = frozenset({"packing", "max_seq_length", "truncation", "mask_prompt", "chat_template", "prompt_template"})


def recipe_model(recipe: Recipe, *, base: Path, report: Report) -> LocalModel:
    """The folder of the model that ``recipe`` trains; what is missing is fetched, or made. Paths count from ``base``.

    Raises ``ModelError`` or ``DoesNotFitError`` as ``fetch_model`` does, and ``DataError`` where a tokenizer is to be
    made of data that cannot be read.
    """
    if recipe.scratch is None:
        return fetch_model(recipe.model, revision=recipe.revision, report=report)
    if recipe.scratch.tokenizer == TRAINED_HERE:
        return _with_own_tokenizer(recipe, recipe.scratch, base, report)
    return _with_tokenizer_of(recipe.scratch, recipe.seed, base, report)


def _with_own_tokenizer(recipe: Recipe, scratch: ScratchRecipe, base: Path, report: Report) -> LocalModel:
    """A new model whose tokenizer is made from the training rows."""
    files = [
        (split, file)
        for source in locate_sources(recipe.data, base)
        for split, its in source.located.items()
        for file in its
    ]
    parts = _shape_parts(scratch, recipe.seed) | {
        "vocab_size": scratch.vocab_size,
        "data": recipe.data.model_dump(mode="json", exclude=set(_NOT_TEXT)),
        "splits": [split for split, _ in files],
        "content": hash_files([file for _, file in files]),
    }

    def make(folder: Path) -> None:
        report(Phase("read", detail=recipe.data.path or recipe.data.train or "sources"))
        texts = texts_of(load_splits(recipe.data, base=base, task=recipe.task).train)
        report(Phase("tokenizer", detail=f"{scratch.vocab_size} tokens"))
        made = train_bpe(texts, scratch.vocab_size)
        write_tokenizer(made.tokenizer, folder)
        ends = [CONTROL.index(END_OF_TEXT), CONTROL.index(END)]
        write_weights(folder, scratch, made.tokenizer.get_vocab_size(), recipe.seed, ends)
        facts = {"vocab_size": made.tokenizer.get_vocab_size(), "bytes_per_token": made.bytes_per_token}
        (folder / FACTS).write_text(json.dumps(facts), "utf-8")

    size = format_count(num_parameters(scratch, scratch.vocab_size))
    return _kept(size, parts, make)


def _with_tokenizer_of(scratch: ScratchRecipe, seed: int, base: Path, report: Report) -> LocalModel:
    """A new model for a tokenizer that exists."""
    tokenizer = load_tokenizer(_tokenizer_folder(scratch.tokenizer, base, report))
    vocab_size = 1 + max(tokenizer.largest_id(), *tokenizer.control_tokens.values())

    def make(folder: Path) -> None:
        for name, text in tokenizer.files().items():
            (folder / name).write_text(text, "utf-8")
        write_weights(folder, scratch, vocab_size, seed, sorted(tokenizer.stop_token_ids))

    parts = _shape_parts(scratch, seed) | {"tokenizer": tokenizer.settings_hash}
    return _kept(format_count(num_parameters(scratch, vocab_size)), parts, make)


def about_tokenizer(folder: Path) -> str:
    """A sentence on the tokenizer that was made for the model in ``folder``; "" where it has another."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        return (
            f"tokenizer made from the training rows: {facts['vocab_size']:,} tokens, "
            f"{facts['bytes_per_token']:.2f} bytes of text each on average"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _shape_parts(scratch: ScratchRecipe, seed: int) -> dict[str, object]:
    return {"version": _VERSION, "seed": seed, "scratch": scratch.model_dump(mode="json", exclude=set(_NOT_SHAPE))}


def _kept(size: str, parts: Mapping[str, object], make: Callable[[Path], None]) -> LocalModel:
    return make_once(f"scratch-{size}", cache_key(parts), "random weights", make)


def _tokenizer_folder(name: str, base: Path, report: Report) -> Path:
    """The folder of the tokenizer that [scratch] names: one that has only a tokenizer will do."""
    for folder in (base / path_of(name), path_of(name)):
        if (folder / "tokenizer.json").is_file():
            return folder
    return fetch_model(name, report=report).folder

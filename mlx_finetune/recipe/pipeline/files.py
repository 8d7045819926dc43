"""Files that the commands and evaluations of a pipeline read: missed before the first stage, not hours later."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from mlx_finetune.errors import Problem
from mlx_finetune.recipe.pipeline.load import LoadedPipeline
from mlx_finetune.recipe.pipeline.rules import placeholders

_READS, _WRITES = ("--data", "--file", "--probes", "--samples", "--schema"), ("--out", "-o", "--output", "--export")
_STDIN = "-"


def missing_files(loaded: LoadedPipeline, here: Path) -> Iterator[Problem]:
    """Each file that is missing in ``here`` and that no stage can make."""
    for who, name in _named(loaded):
        if not (here / Path(name).expanduser()).exists() and not is_made(name, loaded, here):
            yield Problem(
                str(loaded.path), f"{who} reads {name}, and there is no such file", f"paths count from {here}"
            )


def is_made(name: str, loaded: LoadedPipeline, here: Path) -> bool:
    """True for a path below what stages write: it need not be there before they have run."""
    path = (here / Path(name).expanduser()).resolve()
    made = (loaded.folder, *_written(loaded))
    return any(path.is_relative_to((here / Path(folder).expanduser()).resolve()) for folder in made)


def sampled_part(name: str, loaded: LoadedPipeline, here: Path) -> str:
    """Which part of what a stage samples is below the path: ``sft`` or ``verifier``; "" for any other path."""
    path = (here / Path(name).expanduser()).resolve()
    outs = (options for stage in loaded.stages if stage.words[:1] == ("sample",) for options in _options(stage.words))
    for folder in ((here / Path(value).expanduser()).resolve() for option, value in outs if option in _WRITES):
        if path != folder and path.is_relative_to(folder):
            return path.relative_to(folder).parts[0]
    return ""


def _written(loaded: LoadedPipeline) -> Iterator[str]:
    """Where commands write to outside of the pipeline's folder."""
    for stage in loaded.stages:
        yield from (value for option, value in _options(stage.words) if option in _WRITES)


def _named(loaded: LoadedPipeline) -> Iterator[tuple[str, str]]:
    """Who reads which file."""
    for stage in loaded.stages:
        for option, value in _options(stage.words):
            if option in _READS and value not in ("", _STDIN) and not placeholders(value):
                yield f"stage {stage.name}", value
    for one in loaded.pipeline.evaluations:
        if one.data is not None and not placeholders(one.data):
            yield f"evaluation {one.name}", one.data


def value_of(word: str) -> str:
    """The value in ``--option=VALUE``; any other word itself."""
    return word.partition("=")[2] if word.startswith("--") and "=" in word else word


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every word with the one after it, and option and value where both are written as one."""
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        is_whole = value_of(word) != word
        yield (word.partition("=")[0], value_of(word)) if is_whole else (word, following)

"""Files that the commands and evaluations of a pipeline read: missed before the first stage, not hours later."""

from collections.abc import Iterator
from pathlib import Path

from mlx_finetune.errors import Problem, RecipeError
from mlx_finetune.recipe.pipeline.load import LoadedPipeline
from mlx_finetune.recipe.pipeline.rules import placeholders

_READS, _WRITES = "--data", ("--out", "-o", "--export")


def check_files(loaded: LoadedPipeline, here: Path) -> None:
    """Raises ``RecipeError`` with each file that is missing in ``here`` and that no stage can make."""
    made = [(here / Path(name).expanduser()).resolve() for name in (loaded.folder, *_written(loaded))]
    missing = [
        Problem(str(loaded.path), f"{who} reads {name}, and there is no such file", f"paths count from {here}")
        for who, name in _named(loaded)
        if not (path := here / Path(name).expanduser()).exists()
        and not any(path.resolve().is_relative_to(folder) for folder in made)
    ]
    if missing:
        raise RecipeError(missing)


def _written(loaded: LoadedPipeline) -> Iterator[str]:
    """Where commands write to outside of the pipeline's folder."""
    for stage in loaded.stages:
        yield from (value for option, value in zip(stage.words, stage.words[1:], strict=False) if option in _WRITES)


def _named(loaded: LoadedPipeline) -> Iterator[tuple[str, str]]:
    """Who reads which file."""
    for stage in loaded.stages:
        for option, value in zip(stage.words, stage.words[1:], strict=False):
            if option == _READS:
                yield f"stage {stage.name}", value
    for one in loaded.pipeline.evaluations:
        if one.data is not None and not placeholders(one.data):
            yield f"evaluation {one.name}", one.data

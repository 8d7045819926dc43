"""What the result of a stage depends on, as text by name: two equal fingerprints mean that nothing need be done again.

Files count by their bytes, never by their times. What an earlier stage made counts by the SHA-256 of its result, so
that a stage whose repetition gave the same bytes is no reason to repeat what follows. Reads every data file once.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.dataset.corpus import locate_sources
from mlx_finetune.dataset.stream import ORDER_ID
from mlx_finetune.errors import DataError
from mlx_finetune.model.sources.fetch import fetch_model, path_of
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.paths import data_paths
from mlx_finetune.recipe.pipeline.files import value_of
from mlx_finetune.recipe.pipeline.load import LoadedPipeline, Stage
from mlx_finetune.recipe.pipeline.record import FILE
from mlx_finetune.recipe.pipeline.schema import EvaluationRecipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import LOG

#: What never differs by name of the pipeline's folder: it stands in the place of that folder in values.
_HERE = "{pipeline}"
#: Recipe -> every key that its weights depend on, flat (``train.start.identity``).
RecipeIdentity = Callable[[Recipe], Mapping[str, object]]
_DEFAULT = {"model": "-", "output_dir": "-", "data": {"path": "-"}, "lora": {}}


def training_fingerprint(
    stage: Stage, pipeline: LoadedPipeline, results: Mapping[str, str], identity: RecipeIdentity, base: Path
) -> dict[str, str]:
    """That of a stage that trains; ``results`` has the SHA-256 of each earlier result that it takes.

    Raises ``DataError`` where its data is not there.
    """
    assert stage.loaded is not None
    recipe = stage.loaded.recipe
    found = {key: _text(value, pipeline) for key, value in identity(recipe).items()}
    if stage.asked.start_from is not None:
        found = {key: value for key, value in found.items() if key not in ("model", "revision", "adapter")}
        found["start"] = results[stage.asked.start_from]
    elif recipe.scratch is None and path_of(recipe.model).exists():
        found["model files"] = fetch_model(recipe.model, report=lambda _: None).sha256
    data = _data_files(recipe.data, base)
    found["data files"] = _joined((split, sha256) for split, _, sha256 in data)
    found |= _each((path, sha256) for _, path, sha256 in data)
    templates = [
        base / Path(name).expanduser()
        for name in (recipe.data.chat_template, recipe.data.prompt_template)
        if (base / Path(name).expanduser()).is_file()
    ]
    if templates:
        hashes = [(path, durable.hash_file(path)) for path in templates]
        found["template files"] = _joined((path.name, sha256) for path, sha256 in hashes)
        found |= _each(hashes)
    return found | {"order": ORDER_ID}


def check_rows(stage: Stage, pipeline: LoadedPipeline, base: Path) -> None:
    """Refuse data that is not there, but for what an earlier stage will make. Raises ``DataError``."""
    if stage.loaded is None:
        return
    data = stage.loaded.recipe.data
    if not any(_is_below(text, pipeline.folder) for _, text in data_paths(data)):
        _data_files(data, base)


def command_fingerprint(
    stage: Stage, pipeline: LoadedPipeline, results: Mapping[str, str], base: Path
) -> dict[str, str]:
    """That of a stage that runs a command: its words, the files that they name, and the results that it takes."""
    words = [_text(word, pipeline) for word in stage.words]
    values = [value_of(word) for word in stage.words]
    own = [base / Path(value).expanduser() for value in values if not _is_below(value, pipeline.folder)]
    named = [(path, hash_path(path)) for path in own if path.exists()]
    found = {"command": " ".join(words), "files": _joined((path.name, sha256) for path, sha256 in named)}
    return found | _each(named) | {f"result of {name}": results[name] for name in stage.needs}


def evaluation_fingerprint(one: EvaluationRecipe, data: str | None, result: str, base: Path) -> dict[str, str]:
    """That of an evaluation of a result; ``data`` is where its rows are, with the names of stages filled in."""
    found = {
        key: json.dumps(value) for key, value in one.model_dump(mode="json").items() if key not in ("stages", "name")
    }
    if data is not None and (base / Path(data).expanduser()).exists():
        found["data files"] = hash_path(base / Path(data).expanduser())
    return found | {"result": result}


def default_values(identity: RecipeIdentity) -> dict[str, str]:
    """What the keys of a recipe are where an older version of mlxft did not know them."""
    return {key: json.dumps(value) for key, value in identity(Recipe.model_validate(_DEFAULT)).items()}


def _data_files(data: DataRecipe, base: Path) -> list[tuple[str, Path, str]]:
    """Weight and split, path and SHA-256 of each file that [data] names. Raises ``DataError``."""
    return [
        (f"{source.weight} {split}", file.path, hash_path(file.path))
        for source in locate_sources(data, base)
        for split, files in source.located.items()
        for file in files
    ]


def _each(hashes: Iterable[tuple[Path, str]]) -> dict[str, str]:
    """Each file by its name, for a person who is told what has changed; of two of one name both count."""
    found: dict[str, str] = {}
    for path, sha256 in hashes:
        key = f"{FILE}{path.name}"
        found[key] = f"{found[key]} {sha256}" if key in found else sha256
    return found


def hash_result(stage: Stage) -> str:
    """SHA-256 of what others take from a stage: weights, configuration and tokenizer, or all files of a command.

    "" where there is none.
    """
    if stage.loaded is None:
        return hash_path(stage.folder) if stage.folder.is_dir() else ""
    names = ("*.safetensors", "config.json", "tokenizer.json")
    files = sorted({path for name in names for path in stage.result.glob(name)})
    weights = [path for path in files if path.suffix == ".safetensors"]
    return _joined((path.name, durable.hash_file(path)) for path in files) if weights else ""


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of all files in a folder but hidden ones and logs.

    Raises ``DataError`` for what cannot be read.
    """
    try:
        if not path.is_dir():
            return durable.hash_file(path)
        return _joined((str(one.relative_to(path)), durable.hash_file(one)) for one in _files(path))
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", "check the name; relative paths count from here") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if path.is_file() and path.name != LOG and not any(part.startswith(".") for part in inner):
            yield path


def _joined(pairs: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, sha256 in pairs:
        digest.update(f"{name} {sha256}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _text(value: object, pipeline: LoadedPipeline) -> str:
    """A value as text; a path below the pipeline's folder is the same wherever that folder is."""
    text = json.dumps(value, sort_keys=True)
    return text.replace(f'"{pipeline.folder}/', f'"{_HERE}/')


def _is_below(word: str, folder: Path) -> bool:
    path = Path(word)
    return path == folder or folder in path.parents

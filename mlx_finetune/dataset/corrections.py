"""Answers that a person put right in a chat, as rows to train on: which files they stand in, and what a row is.

``/fix`` in ``mlxft chat`` adds a line to the corrections.jsonl of the run that answered: ``messages`` up to the right
answer, and ``origin``, which says where it comes from and is not trained on. Chats add lines at any time, so a training
notes how many bytes it began with, and these are its rows until it ends, however often it is resumed.

Only the last answer of a row is learned: what the model said before was not put right, and nobody said it was.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_finetune.dataset.conversation import instruction_turns
from mlx_finetune.dataset.formats import Example, Instruction, Messages
from mlx_finetune.dataset.problems import RowError, show, show_names
from mlx_finetune.dataset.read import read_lines_of
from mlx_finetune.dataset.row import DataFile, Report, Row
from mlx_finetune.dataset.split import content_of
from mlx_finetune.dataset.turns import Turn, TurnError, read_tools, read_turns
from mlx_finetune.durable import count_bytes
from mlx_finetune.errors import DataError, Problem
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import CORRECTIONS

KEY = "data.corrections"
_MEND = "mend that line, or take it out"


def find_corrections(recipe: Recipe, *, base: Path) -> tuple[DataFile, ...]:
    """The files of corrections that ``recipe`` includes, each with the bytes it has now; those without any left out.

    ``true`` stands for the run whose adapter the training starts from, and the one in output_dir. Anything else is a
    run folder, a run's name, or a file, which must be there. Of two corrections of the same prompt the one in the later
    file counts. Relative paths count from ``base``. Raises ``DataError``.
    """
    asked = recipe.data.corrections
    if asked is False:
        return ()
    if asked is True:
        runs = [_of_run(recipe.adapter, base) if recipe.adapter else None, _in_folder(recipe.output_dir, base)]
        found = [file for file in runs if file is not None]
    else:
        found = [_named(name, base) for name in ([asked] if isinstance(asked, str) else asked)]
    files: dict[Path, DataFile] = {}
    for path, source in found:
        try:
            num_bytes = count_bytes(path)
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}") from None
        if num_bytes:
            files.setdefault(path.resolve(), DataFile(path, source, num_bytes=num_bytes))
    return tuple(files.values())


def as_at_start(files: Sequence[DataFile], noted: Mapping[str, int]) -> tuple[DataFile, ...]:
    """What a training that is resumed takes of ``files``: the bytes that were there when it began (``noted``)."""
    return tuple(replace(file, num_bytes=noted[file.source]) for file in files if file.source in noted)


def note_sizes(files: Sequence[DataFile]) -> dict[str, int]:
    """What ``as_at_start`` needs to know of ``files``: name to bytes."""
    return {file.source: file.num_bytes or 0 for file in files}


def corrections_sentence(files: Sequence[DataFile]) -> str:
    """How many lines of corrections are trained on, and where they stand. Raises ``OSError``."""
    if not files:
        return f"{KEY}: there are none yet; /fix in a chat with the run writes them"
    counts = [sum(1 for line in first_bytes(file).splitlines() if line.strip()) for file in files]
    return f"{KEY}: " + ", ".join(f"{count} in {file.source}" for count, file in zip(counts, files, strict=True))


def read_corrections(file: DataFile, report: Report) -> Iterator[Row]:
    """The rows in the bytes of ``file`` that count; what is no JSON object goes to ``report`` with its line."""
    try:
        content = first_bytes(file)
    except OSError as error:
        report(Problem(file.source, f"cannot be read: {error.strerror}"))
        return
    yield from read_lines_of(io.BytesIO(content), file.source, report)


def first_bytes(file: DataFile) -> bytes:
    """The bytes of a file of corrections that count. Raises ``OSError``."""
    with file.path.open("rb") as stream:
        return stream.read(file.num_bytes)


def correction_of(row: Row) -> Messages:
    """The conversation in ``row``, of which the last answer is learned. Raises ``RowError`` with ``file:line``."""
    if "messages" not in row.fields:
        message = f"a correction needs `messages`; the row has {show_names(list(row.fields))}"
        raise RowError(Problem(row.where, message, _MEND))
    try:
        turns = read_turns(row.fields["messages"], "messages")
        tools = read_tools(row.fields.get("tools"))
        _check(turns)
    except TurnError as error:
        raise RowError(Problem(row.where, error.message, error.hint or _MEND)) from None
    except RecursionError:
        raise RowError(Problem(row.where, "nested too deeply", _MEND)) from None
    return Messages(turns, tools, row.source, row.line, row.weight, only_last=True)


def prompt_of(example: Messages) -> Messages:
    """What was asked: two corrections of the same are two tries, of which the later one counts."""
    return replace(example, messages=example.messages[:-1])


def contradicted(rows: Iterable[Example], corrections: Sequence[Example]) -> Iterator[Problem]:
    """One warning where ``rows`` teach another answer to the prompt of a correction, word for word."""
    right = {content_of(prompt_of(one)): content_of(one) for one in corrections if isinstance(one, Messages)}
    found: list[Messages] = []
    for row in rows:
        one = Messages(instruction_turns(row), None, row.source, row.line) if isinstance(row, Instruction) else row
        if isinstance(one, Messages) and right.get(content_of(prompt_of(one)), content_of(one)) != content_of(one):
            found.append(one)
    if found:
        what = "a training row answers" if len(found) == 1 else f"{len(found)} training rows answer"
        place = f"{found[0].source}:{found[0].line}"
        yield Problem(place, f"{what} the question of a correction otherwise", "mend the data too, or take them out")


def _check(turns: Sequence[Turn]) -> None:
    last = turns[-1]
    if last["role"] != "assistant":
        raise TurnError(f"a correction ends with the right answer; this one ends with a turn of {show(last['role'])}")
    if not last["content"] and not last.get("tool_calls"):
        raise TurnError("the right answer of this correction is empty")
    if not any(turn["role"] in ("user", "tool") for turn in turns):
        raise TurnError("a correction needs the question that was answered")


def _in_folder(written: str, base: Path) -> tuple[Path, str] | None:
    """The corrections in a run folder, or in the one around a checkpoint."""
    folder = base / Path(written).expanduser()
    if (folder / CORRECTIONS).is_file():
        return folder / CORRECTIONS, str(Path(written) / CORRECTIONS)
    if folder.name.startswith("checkpoint-") and (folder.parent / CORRECTIONS).is_file():
        return folder.parent / CORRECTIONS, str(Path(written).parent / CORRECTIONS)
    return None


def _of_run(name: str, base: Path) -> tuple[Path, str] | None:
    """The corrections of a run by its folder or its name."""
    return _in_folder(name, base) or _in_folder(f"adapters/{name}", base)


def _named(name: str, base: Path) -> tuple[Path, str]:
    path = base / Path(name).expanduser()
    if path.is_file():
        return path, name
    found = _of_run(name, base)
    if found is not None:
        return found
    is_there = path.is_dir() or (base / "adapters" / name).is_dir()
    what = f"holds no {CORRECTIONS}" if is_there else "is neither a run nor a file"
    raise DataError(
        f"{KEY} = {name!r} {what}", f"/fix in a chat with a run writes its {CORRECTIONS}; leave the key out until then"
    )

"""What of a run may be shown to others: its recipe without texts, numbers of its journal, known lines of its log.

``training_of`` reads what must not be shown, so that the rest can be searched for it: prompts, answers, and the rows of
data files that are text (the first 20 MB of each; 0.1 s for 5 MB).
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from mlx_finetune.app.doctor.redact import Redactor, Training, windows_of
from mlx_finetune.app.doctor.runs import tail_of
from mlx_finetune.events import (
    CheckpointSaved,
    Continued,
    Evaluated,
    Notice,
    Paused,
    Record,
    Resources,
    Restarted,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    StepDone,
    TimeJump,
)
from mlx_finetune.recipe.values import toml_value
from mlx_finetune.rundir import CORRECTIONS, LOG, RECIPE, RESOLVED, RUN_INFO, SAMPLES, RunDir
from mlx_finetune.units import format_bytes, format_step

MAX_LOG_LINES = 80
MAX_EVENTS = 30
_MAX_FILE_BYTES = 1 << 20
_MAX_DATA_BYTES = 20 * 10**6
_MAX_SAMPLES = 300

#: Keys of a recipe whose texts are names of models, files and layers; people's names in them go as everywhere.
NAMED = frozenset(
    {"model", "revision", "adapter", "output_dir", "path", "train", "valid", "test", "corrections", "target_modules"}
    | {"chat_template", "prompt_template"}
)
_DATA_ENDINGS = (".jsonl", ".json", ".txt", ".md", ".csv", ".tsv")


def run_parts(run: RunDir, redactor: Redactor) -> Iterator[tuple[str, list[str]]]:
    """Headings and lines about ``run``: its last events, its log, its resolved recipe."""
    try:
        records = tail_of(run)
    except OSError as error:
        yield "Newest run", [f"its journal cannot be read: {error.strerror}"]
        return
    checkpoints = ", ".join(path.name for path in run.checkpoints()[-5:]) or "none"
    lines = [line for record in records if (line := _event_line(record, redactor)) is not None]
    yield "Newest run", [f"checkpoints: {checkpoints}", *lines[-MAX_EVENTS:], *_last_resources(records)]
    log = _read(run.file(LOG)).splitlines()[-MAX_LOG_LINES:]
    yield "Its log", redactor.log(log) or ["empty"]
    text = _read(run.file(RESOLVED))
    yield "Its recipe, resolved", [redact_key(line, redactor) for line in text.splitlines()] or ["none"]


def _event_line(record: Record, redactor: Redactor) -> str | None:
    """Numbers and our own sentences; never a prompt, an answer or a name."""
    event = record.event
    match event:
        case RunStarted():
            said = (
                f"started at step {event.first_step} of {event.total_steps}: {event.task}, {event.train_rows} rows, "
                f"{event.trainable_parameters} of {event.total_parameters} parameters, {event.compute_dtype}"
            )
        case StepDone():
            said = (
                f"step {event.step}: loss {_short(event.loss)}, norm {_short(event.grad_norm)}, "
                f"{format_step(event.step_seconds)}, {format_bytes(event.active_memory_bytes)}, "
                f"peak {format_bytes(event.peak_memory_bytes)}"
            )
        case Evaluated():
            said = f"step {event.step}: validation loss {_short(event.loss)}"
        case CheckpointSaved():
            said = f"step {event.step}: saved {format_bytes(event.num_bytes)} in {event.seconds:.1f} s"
        case Restarted():
            said = f"restarted from step {event.step}, attempt {event.attempt}: {redactor.sentence(event.message)}"
        case Paused():
            said = f"paused at step {event.step}: {redactor.sentence(event.reason)}"
        case Continued() | TimeJump():
            said = f"{event.kind} {event.seconds:.0f} s"
        case Notice():
            said = f"{event.level}: {redactor.sentence(event.message)}"
        case RunFinished():
            said = (
                f"finished at step {event.step} after {event.train_seconds:.0f} s: {redactor.sentence(event.planned)}"
            )
        case RunStopped():
            said = f"stopped after step {event.step} by signal {event.signal_number}"
        case RunFailed():
            said = f"failed with {event.exit_code}: {redactor.sentence(event.message)}"
        case _:
            return None
    return f"{datetime.fromtimestamp(record.time, UTC):%m-%d %H:%M:%S} {said}"


def _short(number: float | None) -> str:
    """Null in the journal is a number that was not finite."""
    return "not finite" if number is None else f"{number:.5g}"


def _last_resources(records: Sequence[Record]) -> Iterator[str]:
    """What the machine did at the last look; what no source told is left out."""
    found = next((one.event for one in reversed(records) if isinstance(one.event, Resources)), None)
    if found is not None:
        known = {name: value for name, value in asdict(found).items() if value is not None}
        yield "the machine: " + ", ".join(f"{name} {_plain_number(value)}" for name, value in known.items())


def _plain_number(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else f"{value}"


def redact_key(line: str, redactor: Redactor) -> str:
    """One line of a resolved recipe: numbers, switches and known words stay, texts go unless they are only names."""
    if not line.strip() or line.startswith("#") or re.fullmatch(r"\[[\w.]+\]", line):
        return redactor.sentence(line)
    try:
        ((key, value),) = tomllib.loads(line).items()
    except (tomllib.TOMLDecodeError, ValueError):
        return "[a line left out]"
    if _is_plain(key, value):
        reason = line.removeprefix(f"{key} = {toml_value(value)}").strip() if "#" in line else ""
        return redactor.text(f"{key} = {toml_value(value)}") + (f"  {redactor.sentence(reason)}" if reason else "")
    redactor.counts["text of the recipe"] = redactor.counts.get("text of the recipe", 0) + 1
    size = f"{len(value)} entries" if isinstance(value, list | dict) else f"{len(str(value))} characters"
    return f"{key} = [removed: {size}]"


def _is_plain(key: str, value: object) -> bool:
    if isinstance(value, str):
        return not value or key in NAMED or value in _known_words()
    if isinstance(value, list):
        return all(_is_plain(key, one) for one in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return all(_is_plain(str(inner), one) and str(inner) in NAMED | {"weight"} for inner, one in value.items())  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    return True


@cache
def _known_words() -> frozenset[str]:
    """Every word that the schema names as a choice."""
    from mlx_finetune.recipe.schema import Recipe

    found: set[str] = set()
    rest: list[object] = [Recipe.model_json_schema()]
    while rest:
        node = rest.pop()
        if isinstance(node, dict):
            words = [*node.get("enum", []), node.get("const"), node.get("default")]  # pyright: ignore[reportUnknownMemberType]
            found |= {word for word in words if isinstance(word, str)}
            rest += node.values()
        elif isinstance(node, list):
            rest += node
    return frozenset(found)


def training_of(run: RunDir, base: Path) -> Training:
    """What ``run`` was trained on, asked and answered.

    Relative paths of its recipe count from the folder it was started in, else from ``base``.
    """
    texts: list[str] = []
    windows: set[str] = set(_windows_of_file(run.file(CORRECTIONS)))
    with suppress(ValueError, TypeError, KeyError):
        base = Path(json.loads(_read(run.file(RUN_INFO)))["started_in"])
    for line in _read(run.file(SAMPLES)).splitlines()[-_MAX_SAMPLES:]:
        with suppress(ValueError):
            texts += _texts(json.loads(line))
    for name in (RESOLVED, RECIPE):
        with suppress(tomllib.TOMLDecodeError):
            values = tomllib.loads(_read(run.file(name)))
            for section in ("eval", "chat", "serve"):
                texts += _texts(values.get(section, {}))
            for path in _data_files(values.get("data", {}), base):
                windows.update(_windows_of_file(path))
    # Single words would take too much of everything else away.
    several = {text for text in texts if " " in text.strip() or len(text) > 20}
    return Training(tuple(several), frozenset(windows))


def _texts(value: object) -> list[str]:
    """Every text in a value of JSON or TOML, keys left out."""
    found: list[str] = []
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            rest += one.values()
        elif isinstance(one, list):
            rest += one
    return found


def _data_files(data: object, base: Path) -> Iterator[Path]:
    """Files of text that a [data] section names, or that lie in the folders it names."""
    for text in _texts(data):
        with suppress(OSError, ValueError, RuntimeError):
            path = base / Path(text).expanduser()
            files = sorted(path.iterdir())[:50] if path.is_dir() else [path]
            yield from (file for file in files if file.suffix in _DATA_ENDINGS and file.is_file())


def _windows_of_file(path: Path) -> Iterator[str]:
    with suppress(OSError), path.open("rb") as file:
        for line in file.read(_MAX_DATA_BYTES).decode("utf-8", "replace").splitlines():
            try:
                rows = _texts(json.loads(line)) if line.lstrip().startswith(("{", "[", '"')) else [line]
            except (ValueError, RecursionError):
                rows = [line]
            for row in rows:
                yield from windows_of(row)


def _read(path: Path) -> str:
    """The end of a small text file; "" where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MAX_FILE_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""

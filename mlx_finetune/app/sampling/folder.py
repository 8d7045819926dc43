"""A folder of sampled answers: samples.jsonl, one answer a line as it is drawn, and sampling.json, what drew them.

Lines are for people and for later stages alike. Answer 0 to a problem is the likeliest one (greedy), 1 to k are drawn.
An interrupted sampling goes on: the lines of a group of problems are written together, and of a group that is not whole
none is kept, so that what comes out is the same as without the interruption, bit for bit.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

from mlx_finetune import durable
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import LOCK, LOG, check_folder

SETTINGS, LINES, COMPARISON = "sampling.json", "samples.jsonl", "comparison.json"
FORMAT_VERSION = 1

#: Words for what two samplings may differ in.
_WORDS = {"model_sha256": "model", "adapter_sha256": "adapter", "rows_sha256": "problems", "data_sha256": "data",
          "prompts_sha256": "prompts", "name": "model", "data": "data", "num_problems": "problems"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to problem ``problem`` (from 0). ``where`` is the problem's file and line.

    ``prompt`` is its question, or its turns where there are several. ``found`` is what the answer says by the rule;
    ``tokens`` counts the end mark, and ``logprob`` is the sum over them under the model itself, whatever the
    temperature. ``finish`` as in ``Piece``.
    """

    problem: int
    sample: int
    where: str
    prompt: str | list[Message]
    reference: str
    completion: str
    right: bool
    found: str | None
    finish: str
    tokens: int
    logprob: float
    temperature: float

    @property
    def is_greedy(self) -> bool:
        """Whether it is the likeliest answer."""
        return self.sample == 0


_FIELDS = tuple(one.name for one in fields(Sample))


@dataclass(frozen=True, slots=True)
class SampledProblem:
    """The answers to one problem; ``greedy`` is None where only draws were kept."""

    number: int
    where: str
    prompt: str | list[Message]
    reference: str
    greedy: Sample | None
    drawn: tuple[Sample, ...]


def check_samples_folder(folder: Path) -> Mapping[str, object] | None:
    """What the answers in ``folder`` were drawn with, None where none are there yet.

    Raises ``RunError`` where it cannot be a folder of samples, or holds anything else.
    """
    check_folder(folder, "--out")
    if (folder / SETTINGS).exists():
        return read_settings(folder)
    if (folder / LINES).exists():
        raise RunError(f"{folder / LINES} is there, but no {SETTINGS} beside it", "choose another --out folder")
    others = sorted(one.name for one in folder.iterdir() if one.name not in (LOCK, LOG)) if folder.exists() else []
    if others:
        raise RunError(
            f"{folder} is no folder of samples: it holds {others[0]}", "choose another --out folder, a new one"
        )
    return None


class SamplesFile:
    """samples.jsonl of one sampling, which only grows."""

    def __init__(self, folder: Path, settings: Mapping[str, object], *, per_problem: int) -> None:
        """Take up what is in ``folder`` where it was drawn with the same ``settings``; begin it where it is empty.

        ``per_problem`` lines belong to a problem. Raises ``RunError`` where it holds anything else.
        """
        self.path = folder / LINES
        self._per_problem = per_problem
        found = check_samples_folder(folder)
        durable.make_folder(folder)
        settings = cast("dict[str, object]", json.loads(json.dumps(settings)))
        if found is None:
            durable.write_json(folder / SETTINGS, settings)
        elif found != settings:
            other = dict.fromkeys(_difference(key, found.get(key), settings[key]) for key in settings)
            what = f"other settings: {', '.join(filter(None, other))}" if any(other) else "another version"
            raise RunError(f"{folder} holds a sampling with {what}", "choose another --out folder; nothing is replaced")
        self._descriptor = durable.open_append(self.path)

    def num_whole(self, groups: Sequence[int]) -> int:
        """How many of the groups, of so many problems each, are there whole; what stands behind them is taken away."""
        content = self.path.read_bytes()
        ends = [place for place, octet in enumerate(content) if octet == 10]  # newlines
        whole, num_lines = 0, 0
        for size in groups:
            if num_lines + size * self._per_problem > len(ends):
                break
            num_lines += size * self._per_problem
            whole += 1
        kept = ends[num_lines - 1] + 1 if num_lines else 0
        if kept < len(content):
            descriptor = durable.open_update(self.path)
            try:
                durable.cut(self.path, descriptor, kept)
            finally:
                os.close(descriptor)
        return whole

    def add(self, samples: Sequence[Sample]) -> None:
        """Keep the answers of one group."""
        text = "".join(json.dumps(asdict(one), ensure_ascii=True, allow_nan=False) + "\n" for one in samples)
        durable.append(self.path, self._descriptor, text.encode("ascii"))

    def close(self) -> None:
        """Flush everything to the disk."""
        durable.sync_file(self._descriptor)
        os.close(self._descriptor)


def _difference(key: str, then: object, now: object) -> str:
    """``k was 8, is now 4``; only the name for what is no number or short text; "" where both are equal."""
    if then == now:
        return ""
    if key in _WORDS:
        return _WORDS[key]
    name = key.replace("_", " ")
    is_short = all(isinstance(one, int | float) or (isinstance(one, str) and len(one) < 30) for one in (then, now))
    return f"{name} was {then}, is now {now}" if is_short else name


def read_settings(folder: Path) -> Mapping[str, object]:
    """What the answers in ``folder`` were drawn with. Raises ``RunError`` where it is no folder of samples."""
    path = folder / SETTINGS
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{folder} holds no sampled answers: it has no {SETTINGS}",
            "mlxft sample RUN_OR_MODEL --data FILE --out FOLDER makes one",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}", "sample again into another folder") from None
    if not isinstance(value, dict) or cast("dict[str, object]", value).get("format_version") != FORMAT_VERSION:
        raise RunError(f"{path} was written by another version of mlxft", "sample again into another folder")
    return cast("dict[str, object]", value)


def read_problems(folder: Path) -> list[SampledProblem]:
    """Every problem with its answers, in order. Raises ``RunError`` for lines that are none, or no line at all."""
    grouped: dict[int, list[Sample]] = {}
    for sample in _read_lines(folder / LINES):
        grouped.setdefault(sample.problem, []).append(sample)
    if not grouped:
        raise RunError(f"{folder / LINES} holds no answers", "run the mlxft sample command that made it again")
    problems: list[SampledProblem] = []
    for number, samples in sorted(grouped.items()):
        first = samples[0]
        greedy = next((one for one in samples if one.is_greedy), None)
        drawn = tuple(sorted((one for one in samples if not one.is_greedy), key=lambda one: one.sample))
        if not drawn:
            raise RunError(f"{folder / LINES}: problem {number} has no drawn answer", "sample again")
        problems.append(SampledProblem(number, first.where, first.prompt, first.reference, greedy, drawn))
    return problems


def _read_lines(path: Path) -> Iterator[Sample]:
    """Every whole line; a last one without its end was never finished."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", "sample again into another folder") from None
    for number, line in enumerate(lines, 1):
        try:
            yield _sample(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}:{number} cannot be read: {error}", "sample again into another folder") from None


def _sample(value: object) -> Sample:
    """Raises ``ValueError`` for what is no line of ours."""
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    known = cast("dict[str, object]", value)
    missing = [name for name in _FIELDS if name not in known]
    if missing:
        raise ValueError(f"it has no `{missing[0]}`")
    kinds = {"problem": int, "sample": int, "completion": str, "reference": str, "where": str, "right": bool}
    for name, kind in kinds.items():
        if not isinstance(known[name], kind):
            raise ValueError(f"`{name}` is no {kind.__name__}")
    return Sample(**{name: known[name] for name in _FIELDS})  # pyright: ignore[reportArgumentType]

"""pipeline.json: what a pipeline did so far, stage by stage; the only link from running it to whoever looks at it.

A fingerprint is everything that a stage's result depends on, as text by name. A stage whose fingerprint is the recorded
one is not done again. Written whole after every change; read by the report and by ``runs``.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from mlx_finetune import durable
from mlx_finetune.errors import RunError
from mlx_finetune.rundir import FORMAT_VERSION, PIPELINE

Status = Literal["waiting", "begun", "stopped", "failed", "finished"]
Kind = Literal["train", "command"]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage. ``what`` is its recipe's file or its command; ``seconds`` is the time at work over all starts.

    ``result_sha256`` is of the files that others start from, ``step`` is that of its weights, None of a command;
    ``started`` is when it last began, ``ended`` when it last left off (seconds since 1970). ``taken`` is the same hash
    of each earlier result that it was made from, by stage.
    ``was_skipped``: the last start of the pipeline found it done.
    """

    name: str
    kind: Kind
    what: str
    needs: tuple[str, ...] = ()
    status: Status = "waiting"
    fingerprint: Mapping[str, str] = field(default_factory=dict[str, str])
    result_sha256: str = ""
    step: int | None = None
    taken: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0
    started: float | None = None
    ended: float | None = None
    message: str = ""
    was_skipped: bool = False

    def made_from(self, name: str) -> str:
        """Hash of the result of the stage ``name`` that this one was made from; "" where that is not known."""
        older = self.fingerprint.get("start", "") if self.needs[:1] == (name,) else ""
        return self.taken.get(name) or self.fingerprint.get(f"result of {name}") or older


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One evaluation of the result of a stage; its figures are in the stage's eval/NAME.json."""

    stage: str
    name: str
    status: Status = "waiting"
    fingerprint: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class PipelineRecord:
    """A whole pipeline. ``file``, ``started_in`` and ``overrides`` are what it takes to go on with it.

    ``former`` are stages that were taken out of the file, ``former_evaluations`` likewise. ``options`` are those of the
    last start while that has not come to its end, and ``redone`` the stages that it has made so far.
    """

    created: str
    file: str
    started_in: str
    overrides: tuple[str, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = ()
    former: tuple[StageRecord, ...] = ()
    former_evaluations: tuple[EvaluationRecord, ...] = ()
    options: tuple[str, ...] = ()
    redone: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    @property
    def all_evaluations(self) -> tuple[EvaluationRecord, ...]:
        """Those of the file and those that were taken out of it."""
        return (*self.former_evaluations, *self.evaluations)

    def stage(self, name: str) -> StageRecord | None:
        """The record of a stage; None where the pipeline had no such stage yet."""
        return next((one for one in (*self.stages, *self.former) if one.name == name), None)

    def evaluation(self, stage: str, name: str) -> EvaluationRecord | None:
        """The record of an evaluation; None where there was none yet."""
        return next((one for one in self.evaluations if (one.stage, one.name) == (stage, name)), None)

    def outdated(self) -> Mapping[str, str]:
        """Stage -> the earlier one whose result has been made anew, or is gone, since it was made from that."""
        found: dict[str, str] = {}
        for one in self.stages:
            for name in one.needs if one.fingerprint else ():
                before, then = self.stage(name), one.made_from(name)
                if then and before is not None and before.result_sha256 != then:
                    found.setdefault(one.name, name)
                elif name in found:
                    found.setdefault(one.name, found[name])
        return found

    def is_measured(self, one: EvaluationRecord) -> bool:
        """True where the figures of an evaluation are of the result that its stage has now."""
        stage = self.stage(one.stage)
        now = stage.result_sha256 if stage is not None else ""
        return one.status == "finished" and one.fingerprint.get("result", now) == now

    def redone_by(self, options: Sequence[str], overrides: Sequence[str]) -> Sequence[str]:
        """Stages that this start has made already before it was interrupted; none of another start."""
        return self.redone if (self.options, self.overrides) == (tuple(options), tuple(overrides)) else ()

    def with_stage(self, changed: StageRecord) -> "PipelineRecord":
        """The same with another record of that stage."""
        return replace(self, stages=tuple(changed if one.name == changed.name else one for one in self.stages))

    def with_evaluation(self, changed: EvaluationRecord) -> "PipelineRecord":
        """The same with another record of that evaluation, whether there was one or not."""
        others = [one for one in self.evaluations if (one.stage, one.name) != (changed.stage, changed.name)]
        return replace(self, evaluations=(*others, changed))


def read_record(folder: Path) -> PipelineRecord | None:
    """The record in the folder of a pipeline; None where there is none. Raises ``RunError`` for a damaged one."""
    path = folder / PIPELINE
    try:
        value = json.loads(path.read_bytes())
        return TypeAdapter(PipelineRecord).validate_python(value)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is damaged, or of another version"
        raise RunError(f"{path} cannot be read: {what}", "start the pipeline with another output_dir") from None


def write_record(folder: Path, record: PipelineRecord) -> None:
    """Replace pipeline.json whole."""
    durable.write_json(folder / PIPELINE, asdict(record))


def differences(old: Mapping[str, str], new: Mapping[str, str], defaults: Mapping[str, str]) -> Sequence[str]:
    """What differs between two fingerprints, a phrase each.

    For a key that one of them does not have ``defaults`` count: a version that knew more, or fewer, keys wrote it.
    Single files only say which of them it was.
    """
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        default = defaults.get(key, _NOTHING)
        before, after = old.get(key, default), new.get(key, default)
        if before != after and not key.startswith(FILE):
            found.append(_phrase(key, before, after, _changed_files(old, new)))
    return found


#: Begins the key of a single file, which counts among those of its kind.
FILE = "file "
_NOTHING = "null"
_RESULT = "result of "
_FILES: Mapping[str, str] = {
    "data files": "the data files have changed",
    "template files": "the template has changed",
    "files": "the files that its command names have changed",
}
_WORDS: Mapping[str, str] = {
    "start": "what it starts from is another",
    "model files": "the files of the model have changed",
    "order": "this version orders rows in another way",
    "result": "what is measured is another",
}


def _phrase(key: str, before: str, after: str, files: Sequence[str]) -> str:
    if key in _FILES:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        return f"{_FILES[key]}{': ' if files else ''}{', '.join(files[:3])}{more}"
    if key.startswith(_RESULT):
        return f"the {key} is another"
    if key == "command":
        before, after = _without_common(_words(before), _words(after))
    return _WORDS.get(key) or f"{key}: was {_short(before)}, is now {_short(after)}"


def _changed_files(old: Mapping[str, str], new: Mapping[str, str]) -> Sequence[str]:
    """Names of files, where both fingerprints have some."""
    before, after = ({key for key in one if key.startswith(FILE)} for one in (old, new))
    if not before or not after:
        return []
    return [key.removeprefix(FILE) for key in sorted(before | after) if old.get(key) != new.get(key)]


def _words(command: str) -> Sequence[str]:
    """Those of a command in a fingerprint, where each is in quotes."""
    return [json.loads(word) for word in re.findall(r'"(?:[^"\\]|\\.)*"', command)]


def _without_common(old: Sequence[str], new: Sequence[str]) -> tuple[str, str]:
    """The words between the first and the last that two commands do not share, and the one before: its option."""
    length = min(len(old), len(new))
    start = next((at for at in range(length) if old[at] != new[at]), length)
    end = next((at for at in range(length - start) if old[-1 - at] != new[-1 - at]), length - start)
    start = max(start - 1, 0)
    return shlex.join(old[start : len(old) - end]), shlex.join(new[start : len(new) - end])


def _short(value: str) -> str:
    return "not there" if value == _NOTHING else value if len(value) <= 160 else f"{value[:157]}..."

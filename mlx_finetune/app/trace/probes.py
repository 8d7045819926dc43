"""Which questions a trace asks: held-out rows of the run, each with its right answer and wrong ones of the same kind.

The wrong answers stand in the column ``wrong`` (or ``candidates``, ``distractors``) of a row; where there is none, they
are answers of other held-out rows of the same category. A row that names its right answer as a wrong one is refused
in a file for probes, and else not asked. A text without a question has none: the loss of its first
tokens is followed. Where nothing can be asked, the weights are compared all the same.
"""

import hashlib
import heapq
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mlx_finetune.app.eval.rows import data_of
from mlx_finetune.app.eval.subject import Subject, has_no_data
from mlx_finetune.dataset.conversation import prompt_and_reference
from mlx_finetune.dataset.corpus import load_splits, locate_sources
from mlx_finetune.dataset.examples import read_file
from mlx_finetune.dataset.formats import Example, Instruction, Messages, Preference, Text
from mlx_finetune.dataset.problems import Findings, RowError, show
from mlx_finetune.dataset.split import content_key
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import DataError, Problem, UsageError
from mlx_finetune.recipe.data import DataRecipe

WRONG_COLUMNS = ("wrong", "candidates", "distractors")
_OF_ALL = "candidates"  # those hold the right answer too
MOST_WRONG = 7
DRAWN_WRONG = 3
MOST_CATEGORIES = 50
TEXT_TOKENS = 256  # of a text without a question
ALL = "all"
ASK_OTHERS = "name questions with answers that it was not trained on: --probes FILE (docs/trace.md)"
FORM = 'a row is {"prompt": "Is it red?", "completion": "yes", "wrong": ["no"]}; docs/trace.md says more'


class NoProbesError(DataError):
    """The run's own rows have nothing that can be asked."""


@dataclass(frozen=True, slots=True)
class Probe:
    """``rows`` are the tokens with the right answer first, then with each wrong one; ``answers`` are their texts."""

    where: str
    category: str
    question: str
    answers: tuple[str, ...]
    rows: tuple[Tokens, ...]

    @property
    def chance(self) -> float:
        """How often a guess is right."""
        return 1 / len(self.rows)


@dataclass(frozen=True, slots=True)
class Probes:
    """The probes in their order, and where they are from: ``split`` is test, validation or all. ``lack`` says why
    questions are missing, or why everything is."""

    probes: tuple[Probe, ...]
    split: str
    source: str
    lack: str = ""

    @property
    def sha256(self) -> str:
        """Over everything that is asked."""
        digest = hashlib.sha256()
        for probe in self.probes:
            rows = [(row.ids.tolist(), row.loss_mask.tolist()) for row in probe.rows]
            digest.update(json.dumps([probe.category, probe.question, probe.answers, rows]).encode())
        return digest.hexdigest()

    @property
    def categories(self) -> tuple[str, ...]:
        """By name."""
        return tuple(sorted({probe.category for probe in self.probes}))


@dataclass(frozen=True, slots=True)
class _Asked:
    example: Example
    category: str
    wrong: tuple[str, ...]


def choose_probes(subject: Subject, given: str | None, *, per_category: int, category: str, base: Path,
                  is_asked: bool = False) -> Probes:  # fmt: skip
    """At most ``per_category`` held-out rows of each value of the column ``category``, always the same ones.

    ``given`` names a file in the place of the run's held-out rows. Where the column ``is_asked`` for, a row must have
    it. Raises ``UsageError`` or ``DataError``; ``NoProbesError`` where those of the run are none.
    """
    data, folder = subject.data, subject.folder
    if given is not None:
        if not (base / Path(given).expanduser()).exists():
            raise UsageError(f"there is no {given} for --probes", f"name a file or folder; paths count from {base}")
        data, folder = data_of(given, data), base
    elif has_no_data(subject):
        raise NoProbesError(f"the rows of {subject.opened.name} are not known", ASK_OTHERS)
    is_given = given is not None
    splits = load_splits(data, base=folder, task="sft" if is_given else subject.task, is_given=is_given)
    name = "test" if splits.test else "valid" if splits.valid else "train"
    if name == "train" and given is None:
        raise NoProbesError("nothing is held out: the data of this run has no test and no validation rows", ASK_OTHERS)
    examples: Sequence[Example] = splits.test or splits.valid or splits.train
    columns = _read_columns(data, folder, examples)
    asked, findings = list[_Asked](), Findings()
    for example in examples:
        try:
            one = ask_about(example, columns.get((example.source, example.line), {}), category)
        except RowError as error:
            findings(error.problem)
            continue
        asked += [] if one is None else [one]
    if findings.count and is_given:
        raise DataError(*_contradicting(findings), problems=findings.problems())
    if not asked:
        raise _unusable(given, f"are no questions with answers (task = {subject.task!r})")
    if is_asked and not any(category in fields for fields in columns.values()):
        known = dict.fromkeys(name for fields in columns.values() for name in fields)
        raise UsageError(f"no row has the column {category!r}", f"columns are {', '.join(known)}")
    chosen = _with_drawn(_smallest(asked, per_category), asked)
    probes = _tokenized(chosen, subject, data, folder)
    if not probes:
        raise _unusable(given, "can be no probes: all are too long, or have no answer")
    lack = "" if any(probe.answers[0] for probe in probes) else "the rows are texts, whose loss is followed"
    lack = _contradicting(findings)[0] if findings.count else lack
    return Probes(
        tuple(probes), {"test": "test", "valid": "validation", "train": "all"}[name], data.source_of(name), lack
    )


def _contradicting(findings: Findings) -> tuple[str, str]:
    """What is wrong with the rows that contradict themselves, and how to mend it."""
    first, count = findings.problems()[0], findings.count
    one, more = (
        f"{first.where}: {first.message}",
        f"{count} rows name the right answer as a wrong one, first {first.where}",
    )
    return one if count == 1 else more, "take it out of the wrong answers"


def _unusable(given: str | None, why: str) -> DataError:
    if given is not None:
        return DataError(f"the rows of {given} {why}", FORM)
    return NoProbesError(f"the held-out rows {why}", ASK_OTHERS)


def _read_columns(
    data: DataRecipe, base: Path, examples: Sequence[Example]
) -> Mapping[tuple[str, int], Mapping[str, object]]:
    """The fields of the rows that ``examples`` came from: examples keep what is learned and no other column."""
    wanted = {(example.source, example.line) for example in examples}
    found: dict[tuple[str, int], Mapping[str, object]] = {}
    for source in locate_sources(data, base):
        for file in (file for files in source.located.values() for file in files):
            for row in read_file(file, Findings()):
                if (row.source, row.line) in wanted:
                    found[row.source, row.line] = row.fields
    return found


def ask_about(example: Example, fields: Mapping[str, object], category: str) -> _Asked | None:
    """What is asked about a row with the columns ``fields``, without tokens; None for rows of other kinds.

    The rejected answer of a preference is its wrong one. Raises ``RowError`` where the right answer is among the wrong.
    """
    if isinstance(example, Preference):
        return _asked_pair(example, _category(fields, category))
    if not isinstance(example, Text | Instruction | Messages):
        return None
    right = prompt_and_reference(example)[1].strip()
    column = next((column for column in WRONG_COLUMNS if isinstance(fields.get(column), str | list)), "")
    value = fields.get(column, [])
    listed = cast("list[object]", [value] if isinstance(value, str) else value)
    texts = [text for text in listed if isinstance(text, str) and text.strip()]
    wrong = tuple(dict.fromkeys(text for text in texts if text.strip() != right))
    if column != _OF_ALL and len(wrong) < len(set(texts)):
        raise RowError(Problem(f"{example.source}:{example.line}", f"`{column}` holds the right answer {show(right)}"))
    return _Asked(example, _category(fields, category), wrong[:MOST_WRONG])


def _category(fields: Mapping[str, object], column: str) -> str:
    value = fields.get(column)
    return " ".join(str(value).split())[:60] if isinstance(value, str | int) and str(value).strip() else ALL


def _asked_pair(pair: Preference, category: str) -> _Asked | None:
    """The chosen answer as the right one, the rejected as the wrong one; None where one of them is missing."""
    if not pair.chosen or not pair.rejected:
        return None
    turns = (*pair.prompt, *pair.chosen)
    example = Messages(turns, pair.tools, pair.source, pair.line, only_last=True)
    rejected = str(pair.rejected[-1]["content"])
    return _Asked(example, category, (rejected,) if rejected.strip() else ())


def _smallest(asked: Sequence[_Asked], per_category: int) -> list[_Asked]:
    """Different ones of each category whose content hashes are smallest, as if drawn; by category, then in order."""
    chosen: list[_Asked] = []
    names = sorted({one.category for one in asked})
    if len(names) > MOST_CATEGORIES:
        raise DataError(
            f"the column has {len(names)} different values; a trace is split by {MOST_CATEGORIES} at most",
            "name a column with a kind of question: --category COLUMN",
        )
    for name in names:
        first: dict[tuple[int, tuple[str, ...]], int] = {}
        for place, one in enumerate(asked):
            if one.category == name and _is_answerable(one.example):
                first.setdefault((content_key(one.example, salt="trace"), one.wrong), place)
        keyed = heapq.nsmallest(per_category, ((key, place) for (key, _), place in first.items()))
        chosen += [asked[place] for place in sorted(place for _, place in keyed)]
    return chosen


def _is_answerable(example: Example) -> bool:
    return isinstance(example, Text) or bool(prompt_and_reference(example)[1].strip())


def _with_drawn(chosen: Sequence[_Asked], every: Sequence[_Asked]) -> list[_Asked]:
    """Answers of other rows of the same category for those that name no wrong ones."""
    made: list[_Asked] = []
    answers: dict[str, list[str]] = {}
    for one in every:
        answers.setdefault(one.category, []).append(prompt_and_reference(one.example)[1])
    for one in chosen:
        if one.wrong or isinstance(one.example, Text):
            made.append(one)
            continue
        right = prompt_and_reference(one.example)[1]
        others = sorted({text for text in answers[one.category] if text.strip() and text != right})
        draw = random.Random(f"wrong {content_key(one.example)}")
        made.append(replace(one, wrong=tuple(draw.sample(others, min(DRAWN_WRONG, len(others))))))
    return made


def _tokenized(chosen: Sequence[_Asked], subject: Subject, data: DataRecipe, folder: Path) -> list[Probe]:
    """Every probe with its answers as rows of tokens; one whose rows were cut, split or dropped is left out. A
    text is its first tokens."""
    examples: list[Example] = []
    for number, one in enumerate(chosen):
        answered = [one.example, *(_with_answer(one.example, text) for text in one.wrong)]
        first = number * (MOST_WRONG + 1) + 1
        examples += [replace(each, source="probe", line=first + place) for place, each in enumerate(answered)]
    if all(isinstance(example, Text) for example in examples):
        limit = min(TEXT_TOKENS, data.max_seq_length)
        data = data.model_copy(update={"max_seq_length": limit, "truncation": "split"})
    made = tokenize(examples, subject.opened.tokenizer, data, task=_task(subject), base=folder)
    by_line: dict[int, list[Tokens]] = {}
    for row in made.rows:
        by_line.setdefault(row.line, []).append(row)
    probes: list[Probe] = []
    for number, one in enumerate(chosen):
        first = number * (MOST_WRONG + 1) + 1
        rows = [by_line.get(first + place, []) for place in range(1 + len(one.wrong))]
        if isinstance(one.example, Text):
            rows = [found[:1] for found in rows]
        if all(len(found) == 1 for found in rows) and rows[0][0].loss_mask[1:].any():
            where = f"{one.example.source}:{one.example.line}"
            right = prompt_and_reference(one.example)[1]
            rows_of = tuple(found[0] for found in rows)
            probes.append(Probe(where, one.category, _question(one.example), (right, *one.wrong), rows_of))
    return probes


def _question(example: Example) -> str:
    """The last turn before the answer, or the text."""
    turns = prompt_and_reference(example)[0]
    return example.text if isinstance(example, Text) else str(turns[-1]["content"]) if turns else ""


def _task(subject: Subject) -> str:
    """Preference and other rows are asked about as sft would learn them."""
    return "pretrain" if subject.task == "pretrain" else "sft"


def _with_answer(example: Example, text: str) -> Example:
    if isinstance(example, Instruction):
        return replace(example, output=text)
    assert isinstance(example, Messages)
    last = max(place for place, turn in enumerate(example.messages) if turn["role"] == "assistant")
    turns = list(example.messages[: last + 1])
    turns[last] = {**turns[last], "content": text}  # pyright: ignore[reportArgumentType]
    return replace(example, messages=tuple(turns), only_last=True)

"""Scores of sampled answers by a verifier or a reward model, and what its pick is worth beside the other ways to pick.

An answer is scored as the model was trained: prompt and answer in its own template, the score at the token that it
learned to score at. Equal answers to a problem are scored once. One forward pass over each answer: SmolLM2-135M scores
about 40 short answers a second on two x86 cores.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune import durable, rundir
from mlx_finetune.app.eval.subject import Subject
from mlx_finetune.app.sampling.best_of import BestOf, compare, csv_text, key_of, to_json
from mlx_finetune.app.sampling.folder import LINES, Sample, SampledProblem, read_problems, read_settings
from mlx_finetune.app.sampling.learned import choose_problems
from mlx_finetune.dataset.scored import AnswerRows
from mlx_finetune.dataset.turns import read_turns
from mlx_finetune.errors import DataError, RunError, UsageError
from mlx_finetune.model.heads.token_scores import ScoringModel
from mlx_finetune.scoring.picks import scorer_of

_NAME = re.compile(r"[^A-Za-z0-9._-]+")
#: Of an answer that the model's template cannot hold: it is never picked before one that has a score.
NO_SCORE = -math.inf

#: What a file of a comparison ends in.
JSON_END, CSV_END, SCORES_END = ".json", ".csv", ".scores.jsonl"


@dataclass(frozen=True, slots=True)
class Judged:
    """A comparison with its scores; ``path`` is where it is kept, without an ending, None where it is not.

    ``remark`` is what must be known of its problems, or "". ``unscored`` counts answers without a score by the reason.
    """

    found: BestOf
    remark: str
    facts: Mapping[str, object]
    path: Path | None
    unscored: Mapping[str, int]


def judge(subject: Subject, samples: Path, *, out: Path | None, step: Callable[[int, int], None]) -> Judged:
    """Score the drawn answers in the folder ``samples``, compare the ways to pick one, and keep the result.

    It is kept in the run folder, or in ``out``. ``step`` is told (done, all). Raises ``UsageError`` where
    the subject gives no single score, ``RunError`` where the folder holds no samples or not all of them.
    """
    head = subject.opened.head
    if head is None or head.num_outputs != 1:
        raise UsageError(
            f"{subject.opened.name} gives no verdict on an answer",
            'name a run of task = "verifier" or "reward"; mlxft sample has compared the other ways already',
        )
    settings, problems = read_settings(samples), read_problems(samples)
    wanted = settings.get("num_problems")
    if wanted != len(problems):
        raise RunError(
            f"{samples} is not drawn to its end: {len(problems)} of {settings.get('num_problems')} problems are there",
            "the command that began it goes on: mlxft sample ... --out " + str(samples),
        )
    chosen = choose_problems(subject, problems)
    scores, unscored = score(subject, chosen.problems, step)
    found = compare(chosen.problems, scores, seed=subject.seed, scorer=scorer_of(subject.task))
    known = {"num_sampled": len(problems), "num_learned": chosen.num_learned, "remark": chosen.remark}
    facts = _facts(subject, samples, settings) | known
    folder = out or (subject.run.file(rundir.BEST_OF) if subject.run is not None else None)
    path = None if folder is None else _free_path(folder, samples, facts)
    if path is not None:
        _keep(path, chosen.problems, scores, found, facts)
    return Judged(found, chosen.remark, facts, path, unscored)


def score(
    subject: Subject, problems: Sequence[SampledProblem], step: Callable[[int, int], None]
) -> tuple[list[list[float]], Mapping[str, int]]:
    """For each problem the score of each drawn answer, in their order, and how many have none for which reason."""
    answers = AnswerRows(subject.opened.tokenizer, subject.data, task=subject.task, base=subject.folder)
    places: dict[tuple[int, str], int] = {}
    rows: list[NDArray[np.int32]] = []
    reasons: dict[tuple[int, str], str] = {}
    for number, problem in enumerate(problems):
        for sample in problem.drawn:
            key = (number, sample.completion)
            if key not in places:
                try:
                    rows.append(_tokens(answers, sample))
                    places[key] = len(rows) - 1
                except DataError as error:
                    reasons[key] = _reason(error, subject.data.max_seq_length)
    last = ScoringModel(subject.opened.model).last(rows, lambda done: step(done, len(rows)))[:, 0] if rows else ()
    found = [float(one) for one in last]

    reasons |= {key: "its score is not a number" for key, place in places.items() if math.isnan(found[place])}
    keys = [[(number, sample.completion) for sample in problem.drawn] for number, problem in enumerate(problems)]
    unscored = Counter(reasons[key] for mine in keys for key in mine if key in reasons)
    return [[NO_SCORE if key in reasons else found[places[key]] for key in mine] for mine in keys], unscored


def _reason(error: DataError, limit: int) -> str:
    """Why an answer has no score, alike for all that are too long."""
    is_long = f"max_seq_length = {limit}" in error.message
    return f"longer than the model's max_seq_length = {limit}" if is_long else error.message


def _tokens(answers: AnswerRows, sample: Sample) -> NDArray[np.int32]:
    """The answer behind its prompt as training renders it, up to its last token. Raises ``DataError``."""
    turns = [{"role": "user", "content": sample.prompt}] if isinstance(sample.prompt, str) else sample.prompt
    return answers.ids(read_turns(turns, "prompt"), sample.completion)


def _free_path(folder: Path, samples: Path, facts: Mapping[str, object]) -> Path:
    """The name of the samples' folder, with a number where another comparison has it; the same one is renewed."""
    name = _NAME.sub("-", samples.resolve().name).strip("-.") or "samples"
    for number in count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        kept = path.with_name(path.name + JSON_END)
        if not kept.exists() or _is_same(kept, facts):
            return path
    raise AssertionError


def _is_same(kept: Path, facts: Mapping[str, object]) -> bool:
    return _hashes(facts).items() <= _hashes(durable.read_object_if_any(kept)).items()


def _hashes(facts: Mapping[str, object]) -> dict[str, object]:
    """Those of the samples and of the scorer, which every one was called a verifier in comparisons kept before."""
    scorers = [f"{key_of(scorer_of(task))}_" for task in ("reward", "verifier")]
    named = {name: value for name, value in facts.items() if name.endswith("_sha256")}
    return {
        next((name.removeprefix(one) for one in scorers if name.startswith(one)), name): named[name] for name in named
    }


def _facts(subject: Subject, samples: Path, settings: Mapping[str, object]) -> dict[str, object]:
    kept = ("name", "data", "rule", "temperature", "top_p", "seed", "max_tokens", "model_sha256", "adapter_sha256")
    scorer = key_of(scorer_of(subject.task))
    hashes = {f"{scorer}_{name}": value for name, value in subject.hashes().items()}
    return {
        scorer: subject.opened.name,
        "step": subject.step,
        "samples": str(samples),
        "samples_sha256": durable.hash_file(samples / LINES),
        "sampled": {name: settings[name] for name in kept if name in settings},
        **hashes,
    }


def _keep(
    path: Path,
    problems: Sequence[SampledProblem],
    scores: Sequence[Sequence[float]],
    found: BestOf,
    facts: Mapping[str, object],
) -> None:
    """NAME.json, NAME.csv and NAME.scores.jsonl, each whole or not at all."""
    durable.make_folder(path.parent)
    lines = [
        json.dumps(
            {
                "problem": problem.number,
                "sample": sample.sample,
                "score": None if one == NO_SCORE else round(one, 6),
                "right": sample.right,
            }
        )
        + "\n"
        for problem, mine in zip(problems, scores, strict=True)
        for sample, one in zip(problem.drawn, mine, strict=True)
    ]
    durable.write_text(path.with_name(path.name + SCORES_END), "".join(lines))
    durable.write_text(path.with_name(path.name + CSV_END), csv_text(found))
    measured = datetime.now(UTC).isoformat(timespec="seconds")
    fields = to_json(found, {**facts, "name": path.name, "measured": measured})
    durable.write_json(path.with_name(path.name + JSON_END), fields)

"""Sampled answers as rows to train on: the right ones for sft (rejection sampling), all with a label for a verifier.

Two folders that a recipe names as its ``data.path``, each with train.jsonl and valid.jsonl. A problem is in one of the
two with all of its answers, by a hash of its question: the same problem stands on the same side in every sampling.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.app.sampling.folder import SampledProblem

SFT, VERIFIER = "sft", "verifier"
#: The format of the rows in each of the folders (conversations where prompts are some, which fit the same tasks).
ROW_FORMATS = {SFT: "prompt-completion", VERIFIER: "unpaired-preference"}
#: Right answers that are kept of a problem: easy problems would outweigh the others.
MOST_RIGHT = 4
#: Share of the problems that are set aside for validation, where there are enough.
VALID_SHARE = 0.1
_FEWEST_PROBLEMS = 10

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Kept:
    """What was written: the folder (None where there was no row) and the rows of its files."""

    folder: Path | None
    num_train: int
    num_valid: int
    num_right: int = 0


def sft_rows(problem: SampledProblem) -> Iterator[Row]:
    """The right answers to a problem that ended by themselves: each once, the first four."""
    kept: set[str] = set()
    for sample in problem.drawn:
        text = sample.completion
        if sample.right and sample.finish == "stop" and text not in kept and len(kept) < MOST_RIGHT:
            kept.add(text)
            yield _row(problem, text)


def verifier_rows(problem: SampledProblem) -> Iterator[Row]:
    """Every different answer to a problem, with whether it is right; empty ones are left out."""
    seen: set[str] = set()
    for sample in problem.drawn:
        if sample.completion.strip() and sample.completion not in seen:
            seen.add(sample.completion)
            yield _row(problem, sample.completion) | {"label": sample.right}


def _row(problem: SampledProblem, completion: str) -> Row:
    """Question and answer, or a conversation where the prompt is one."""
    if isinstance(problem.prompt, str):
        return {"prompt": problem.prompt, "completion": completion}
    return {"messages": [*problem.prompt, {"role": "assistant", "content": completion}]}


def write_rows(folder: Path, problems: Sequence[SampledProblem]) -> tuple[Kept, Kept]:
    """Write ``sft`` and ``verifier`` in ``folder``; what they hold. Raises ``OSError``."""
    return _write(folder / SFT, problems, sft_rows), _write(folder / VERIFIER, problems, verifier_rows)


def _write(
    folder: Path, problems: Sequence[SampledProblem], rows_of: Callable[[SampledProblem], Iterable[Row]]
) -> Kept:
    made = [(problem, list(rows_of(problem))) for problem in problems]
    made = [(problem, rows) for problem, rows in made if rows]
    sides: dict[str, list[Row]] = {"train": [], "valid": []}
    for problem, rows in made:
        is_valid = len(made) >= _FEWEST_PROBLEMS and _position(problem.prompt) < VALID_SHARE
        sides["valid" if is_valid else "train"] += rows
    if not sides["train"]:
        return Kept(None, 0, 0)
    durable.make_folder(folder)
    for name, rows in sides.items():
        path = folder / f"{name}.jsonl"
        if rows:
            durable.write_text(path, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
        else:
            path.unlink(missing_ok=True)
    num_right = sum(bool(row.get("label", True)) for rows in sides.values() for row in rows)
    return Kept(folder, len(sides["train"]), len(sides["valid"]), num_right)


def _position(prompt: object) -> float:
    """A number in [0, 1) that the question alone decides."""
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

"""Problems of a sampling that a verifier knows: their questions stand in rows that taught it.

On those its pick says what it remembers. They are left out where enough others are left, and it is said either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_finetune.app.eval.rows import data_changed
from mlx_finetune.app.eval.seen import teachers
from mlx_finetune.app.eval.subject import Subject, has_no_data
from mlx_finetune.app.sampling.folder import SampledProblem
from mlx_finetune.dataset.conversation import prompt_and_reference
from mlx_finetune.dataset.tokens import Message
from mlx_finetune.scoring.picks import scorer_of
from mlx_finetune.units import counted

#: With fewer new problems than these the figures are of all of them.
_FEWEST_NEW = 10


@dataclass(frozen=True, slots=True)
class Chosen:
    """The problems that figures are made of; ``num_learned`` of all are known to the verifier, None: not known here.

    ``remark`` says what a reader of the figures must know, or "".
    """

    problems: Sequence[SampledProblem]
    num_learned: int | None
    remark: str


def choose_problems(subject: Subject, problems: Sequence[SampledProblem]) -> Chosen:
    """The problems that the verifier ``subject`` has not learned from, where they are enough, else all."""
    total, scorer = len(problems), scorer_of(subject.task)
    if has_no_data(subject):
        remark = f"What this {scorer} learned from is not known here: figures on problems that taught it flatter it."
        return Chosen(problems, None, remark)
    found, unknown = teachers(subject)
    doubts = "".join(f" {one[0].upper()}{one[1:]}." for one in unknown)
    if not found:
        return Chosen(problems, None, doubts.strip())
    rows = (row for one in found for rows in (one.splits.train, one.splits.valid) for row in rows)
    known = {_question(prompt_and_reference(row)[0]) for row in rows}
    new = [problem for problem in problems if _question(problem.prompt) not in known]
    num_learned = total - len(new)
    changed = data_changed([one.name for one in found if one.is_other]) + doubts
    if not num_learned:
        return Chosen(problems, 0, changed.strip())
    are = "is" if num_learned == 1 else "are"
    share = f"{num_learned} of {counted(total, 'problem')} {are} among the rows that taught this {scorer}"
    if len(new) >= _FEWEST_NEW:
        return Chosen(new, num_learned, f"{share} and left out: the figures are of the others.{changed}")
    remark = f"{share}: these figures flatter it. Judge it by a sampling of other problems.{changed}"
    return Chosen(problems, num_learned, remark)


def _question(prompt: str | Sequence[Message]) -> str:
    """The turns but for instructions of a system; white space in runs counts as one space."""
    turns = [prompt] if isinstance(prompt, str) else [one["content"] for one in prompt if one.get("role") != "system"]
    return "\n".join(" ".join(str(turn).split()) for turn in turns)

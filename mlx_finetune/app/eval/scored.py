"""Runs whose model scores rows instead of writing: a classifier beside the language model it began as, a verifier.

The classifier's own side is the label with the highest score. The other sides are baselines: the language model is
asked for the label in words, without and with training rows as examples, and the likeliest label is its answer
(``measure``). A verifier and a reward model have their verdicts alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import mlx.nn as nn
import numpy as np

from mlx_finetune.app.eval.fits import check_scored_tasks
from mlx_finetune.app.eval.measures import LABELS, Measure, measures_of
from mlx_finetune.app.eval.rows import Ask, EvalRow
from mlx_finetune.app.eval.subject import Side, Subject
from mlx_finetune.app.eval.verdict import TUNED
from mlx_finetune.dataset.formats import Example, Instruction, Labelled, Preference
from mlx_finetune.errors import UsageError
from mlx_finetune.model.heads.score import HeadSpec
from mlx_finetune.model.heads.token_scores import ScoringModel
from mlx_finetune.model.likelihoods import Ids
from mlx_finetune.recipe.evaluation import EvalRecipe
from mlx_finetune.scoring.picks import share_right

#: With more labels the language model is not asked: each costs it a pass over the row.
MOST_ASKED = 50
#: What the two classes of a task are called: score below and above 0, or below and above the other answer's.
_VERDICTS = {"verifier": ("wrong", "right"), "reward": ("rejected", "chosen")}
_TIE = "neither"  # of two answers with one score
_TITLES = {"classify": "right label", "verifier": "right verdict", "reward": "chosen answer is above"}


def class_names(head: HeadSpec, recipe: EvalRecipe) -> tuple[str, ...]:
    """What each class is called in an evaluation: a label's word, or the label itself; of a verifier its verdicts.

    Words for labels that the run does not have are left alone: its recipe can no longer be changed.
    """
    if head.task == "classify":
        return tuple(recipe.label_words.get(label, label) for label in head.labels)
    return _VERDICTS[head.task]


def check_scored(head: HeadSpec, recipe: EvalRecipe, *, has_tasks: bool) -> None:
    """Raise ``UsageError`` for what does not go with a model that scores."""
    if head.task != "classify" and head.task not in _VERDICTS:
        raise UsageError(f"nothing is known about the scores of a model of task {head.task!r}", "update mlxft")
    if has_tasks:
        check_scored_tasks(recipe.tasks)
    names = class_names(head, recipe)
    if len(set(names)) < len(names):
        raise UsageError("[eval] label_words gives two labels the same word", "each label needs its own")


def scored_measures(head: HeadSpec) -> tuple[Measure, ...]:
    """Accuracy and macro F1 of the class that was chosen; of pairs, whose right class is always one, accuracy alone."""
    accuracy, macro_f1 = (one for one in measures_of(("labels",), has_schema=False) if one.work == LABELS)
    accuracy, macro_f1 = replace(accuracy, title=_TITLES[head.task]), replace(macro_f1, title="macro F1")
    return (accuracy,) if head.task == "reward" else (accuracy, macro_f1)


def scored_sides(subject: Subject, head: HeadSpec, shots: int) -> tuple[Side, ...]:
    """The model's own side, behind those of the language model where that can be asked."""
    sides = subject.sides(shots)
    if head.task == "classify" and head.num_outputs <= MOST_ASKED:
        return sides
    return tuple(side for side in sides if side.name == TUNED) or (Side(TUNED, is_base=False),)


def question_of(head: HeadSpec, recipe: EvalRecipe) -> Ask:
    """What makes of a row the question a language model is asked, with the class as the answer."""
    names = class_names(head, recipe)
    words = dict(zip(head.labels, names, strict=True)) if head.labels else {}
    listed = ", ".join(names)

    def ask(example: Example) -> Example:
        if isinstance(example, Labelled):
            question = recipe.label_question.replace("{labels}", listed).replace("{text}", example.text)
            word = words.get(str(example.label), str(example.label))
            return Instruction(question, "", word, example.source, example.line)
        assert isinstance(example, Preference), "load_splits refuses the other kinds"
        question = str(example.prompt[-1]["content"]) if example.prompt else ""
        return Instruction(question, "", names[example.chosen is not None], example.source, example.line)

    return ask


def predicted(
    model: nn.Module, rows: Sequence[Sequence[Ids]], head: HeadSpec, names: Sequence[str]
) -> list[tuple[str, float | None] | None]:
    """The class that the head gives each of ``rows``: one sequence, or those of a chosen and a rejected answer.

    Behind the class of two answers how right it is (``share_right``), None behind others, which the row itself can be
    compared with. Nothing for a row with a score that is no finite number.
    """
    width = head.num_outputs * (2 if head.task == "reward" else 1)
    scores = ScoringModel(model).last([ids for row in rows for ids in row]).reshape(len(rows), width)
    found: list[tuple[str, float | None]]
    if head.task == "reward":
        signs = map(float, np.sign(scores[:, 0] - scores[:, 1]))
        found = [(names[1] if sign > 0 else names[0] if sign < 0 else _TIE, share_right(sign)) for sign in signs]
    else:
        places = scores.argmax(axis=1) if head.task == "classify" else (scores[:, 0] > 0).astype(np.int64)
        found = [(names[int(place)], None) for place in places]
    return [one if np.isfinite(own).all() else None for one, own in zip(found, scores, strict=True)]


def own_side(side: Side, head: HeadSpec | None) -> bool:
    """True where the head answers, not the language model."""
    return head is not None and not side.is_base and not side.shots


def scored_example(row: EvalRow) -> Example:
    """The row as it was trained on."""
    assert row.scored is not None, "rows of a run that scores keep what is scored"
    return row.scored


def scored_text(row: EvalRow) -> str:
    """What stands in the row itself: a text, or the question whose answer is judged."""
    return row.scored.text if isinstance(row.scored, Labelled) else row.question

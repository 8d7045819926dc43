"""What a task learns from and what its losses mean, in words for people: reports, monitors and plans ask here.

``unit`` is one of what a step counts, as ``Objective.count`` of the task does; a test holds the two together.
"""

from dataclasses import dataclass

from mlx_finetune.recipe.preference import PAIRED_TASKS


@dataclass(frozen=True, slots=True)
class Judged:
    """A metric that says whether a run has learned where its validation loss does not; ``title`` is what it is called,
    ``says`` what it tells of ``{on}``, some validation rows."""

    metric: str
    title: str
    says: str
    is_higher_better: bool = False


@dataclass(frozen=True, slots=True)
class Learned:
    """Of one task.

    ``says`` is what its validation loss says of ``{on}``, some validation rows. ``of_a_row`` is a sentence where
    something else is learned of a row than its tokens, "" elsewhere. ``judged`` stands in for the validation loss.
    ``lead`` is the metric whose course tells of success where training and validation loss are not one measure: "" is
    the loss itself.
    """

    unit: str
    says: str
    of_a_row: str = ""
    judged: Judged | None = None
    lead: str = ""

    @property
    def units(self) -> str:
        """What a speed counts: targets, pairs, rows, answers."""
        return f"{self.unit}s"

    @property
    def what(self) -> str:
        """One of them in a sentence: a target is a token."""
        return "token" if self.unit == "target" else self.unit

    def loss_means(self, on: str) -> str:
        """A sentence about the validation loss; ``on`` names the rows."""
        return f"Validation loss says {self.says.format(on=on)}; lower is better."


_CHOSEN = "how clearly it prefers the chosen answers of {on} to the rejected ones"
_THAN_BEFORE = f"{_CHOSEN}, compared with the model before training"

_ANSWERS = Learned("target", "how much the right answers of {on} still surprise the model")
_LEARNED = {
    "pretrain": Learned("target", "how much the text of {on} still surprises the model"),
    "classify": Learned(
        "row",
        "how unlikely the right labels of {on} still seem to it",
        of_a_row="What is learned of a row is its label.",
    ),
    "reward": Learned(
        "pair",
        "how clearly it scores the chosen answers of {on} above the rejected ones",
        of_a_row="What is learned of a row is which of its two answers is the better one.",
    ),
    "verifier": Learned(
        "answer",
        "how far its verdicts on the answers of {on} are from right ones, and how unlikely their words are",
        judged=Judged(
            "verdict_loss",
            "the loss of its verdicts",
            "It says how far its verdicts on the answers of {on} are from right ones; lower is better. Validation loss "
            "has that of the answers' words in it, as far as the recipe weighs it.",
        ),
    ),
    "grpo": Learned(
        "answer",
        "what the rewards of its likeliest answers to {on} lack to the largest reward",
        of_a_row="What is learned from are its own answers; those of the rows are only there for rewards that compare.",
        judged=Judged(
            "reward",
            "the mean reward",
            "It is the mean over its likeliest answers to {on} one to each; higher is better. Validation loss is what "
            "it lacks to the largest reward.",
            is_higher_better=True,
        ),
        lead="reward",
    ),
    **dict.fromkeys(PAIRED_TASKS, Learned("pair", _THAN_BEFORE)),
    "ipo": Learned("pair", "how far the margins between the two answers of {on} are from what it aims at"),
    "simpo": Learned("pair", _CHOSEN),
    "orpo": Learned("pair", "how unlikely the chosen answers of {on} are, alone and beside the rejected ones"),
    "kto": Learned("answer", "how clearly it tells the good answers of {on} from the bad ones"),
}


def learned_by(task: str) -> Learned:
    """What is true of ``task``; an unknown one, as of a run that has not started, learns answers."""
    return _LEARNED.get(task, _ANSWERS)


#: Sections and keys of one task, which say nothing about a run of another.
_OF_ONE_TASK = {
    "verifier": "verifier",
    "grpo": "grpo",
    "data.text_template": "classify",
    "data.max_target_length": "seq2seq",
    "eval.label_question": "classify",
}


def applies(section: str, key: str, task: str) -> bool:
    """Whether ``[section] key`` says anything about a run of ``task``."""
    return all(_OF_ONE_TASK.get(name, task) == task for name in (section, f"{section}.{key}"))

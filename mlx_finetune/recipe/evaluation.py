"""[eval]: the prompts shown during a training, and what ``mlxft eval`` measures afterwards.

The words for tasks and gates are checked here, so that a slip is found before a training and not after it. What a task
measures is in ``app/eval``, its name and those of its measures in ``measured``.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mlx_finetune.errors import UsageError
from mlx_finetune.recipe.data import TEXT_IN_TEMPLATE
from mlx_finetune.recipe.fields import Auto, Count, Section, Text, Texts, refuse
from mlx_finetune.recipe.measured import CHECKS, MEASURES, TASK_LIST, TASKS
from mlx_finetune.recipe.values import shown_name

#: Measures that are no share of the rows: any number may be asked of them.
_UNBOUNDED = {name for name in MEASURES if name.endswith(("loss", "perplexity", "bits_per_byte", "_over_bad"))}
_GATE = re.compile(r"\s*(?P<measure>\S.*?)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*")

Sign = Literal[">=", "<=", ">", "<"]


@dataclass(frozen=True, slots=True)
class Gate:
    """What a figure must reach: ``measure sign bound``."""

    measure: str
    sign: Sign
    bound: float

    def __str__(self) -> str:
        return f"{self.measure} {self.sign} {self.bound:g}"

    def is_met(self, value: float) -> bool:
        """Whether ``value`` is on the right side of the bound; a value that is not a number never is."""
        return {
            ">=": value >= self.bound,
            "<=": value <= self.bound,
            ">": value > self.bound,
            "<": value < self.bound,
        }[self.sign]


def split_task(task: str) -> tuple[str, str]:
    """The name of a task and what stands behind its colon: ``regex:^A`` is regex and ^A; "" where there is none."""
    name, mark, argument = task.partition(":")
    return (name, argument) if mark else (task, "")


def task_problem(task: str) -> str:
    """What is wrong with the name of a task, ``problem; way out`` on one line; "" for a good one."""
    name, argument = split_task(task)
    task = _word(task)
    known = f"tasks are {', '.join(TASKS)}, and regex:, contains:, max_length:"
    if name in CHECKS:
        if not argument:
            return f"the task `{task}` needs {CHECKS[name]} behind the colon; write for instance {_example(name)}"
        return _argument_problem(name, argument)
    if name in TASKS and ":" in task:
        return f"the task `{name}` takes nothing behind a colon; write {name}"
    if name in TASKS:
        return ""
    near = get_close_matches(name, [*TASKS, *CHECKS], 1)
    return f"there is no task `{_word(name)}`; {f'did you mean {near[0]}? ' if near else ''}{known}"


def _argument_problem(name: str, argument: str) -> str:
    if name == "max_length" and not (argument.isascii() and argument.isdigit() and 0 < int(argument) <= 10**9):
        return (
            f"the task `max_length:{_word(argument)}` needs a number of characters; write for instance max_length:280"
        )
    if name == "regex":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a pattern that a later Python reads otherwise is no slip of today
                re.compile(argument)
        except (re.error, RecursionError, OverflowError) as error:
            return f"the pattern of `regex:{_word(argument)}` cannot be read: {error}; see Python's re for the syntax"
    return ""


def _word(text: str) -> str:
    """A word of the recipe as it may stand in a rule: on one line, without the marks that rules are split by."""
    return shown_name(text).replace("; ", ";").replace("`", "'")


def _example(name: str) -> str:
    return {"regex": "regex:^Aye", "contains": "contains:Aye", "max_length": "max_length:280"}[name]


def parse_gate(text: str) -> Gate | None:
    """The gate in ``json_valid >= 0.95``; None where it has another form."""
    match = _GATE.fullmatch(text)
    if match is None:
        return None
    sign: Sign = match["sign"]  # pyright: ignore[reportAssignmentType]
    return Gate(match["measure"], sign, float(match["bound"]))


def gate_problem(text: str) -> str:
    """What is wrong with a gate, ``problem; way out`` on one line; "" for a good one."""
    gate, text = parse_gate(text), _word(text)
    if gate is None or gate.measure[-1] in "<>=":
        return f"the gate `{text}` is not of the form measure >= number; write for instance json_valid >= 0.95"
    if gate.measure in MEASURES and gate.measure not in _UNBOUNDED and not _can_be_met(gate):
        return f"the gate `{text}` can never be met; {gate.measure} is a share between 0 and 1: write 0.95 for 95 %"
    if gate.measure in MEASURES or split_task(gate.measure)[0] in CHECKS:
        return ""
    near = get_close_matches(gate.measure, MEASURES, 1)
    hint = f"did you mean {near[0]}?" if near else f"measures are {', '.join(MEASURES)}, and any check"
    return f"the gate `{text}` names no measure; {hint}"


def _can_be_met(gate: Gate) -> bool:
    return any(gate.is_met(value) for value in (0.0, 1.0))


LABEL_QUESTION = "{text}\n\nWhich of these labels fits the text: {labels}? Answer with the label alone."

with warnings.catch_warnings():
    # ``schema`` is also the name of a method of pydantic that was replaced by another; nothing here calls it.
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class EvalRecipe(Section):
        """[eval]: what is looked at during training, and what ``mlxft eval`` measures afterwards."""

        prompts: Texts = Field((), description="Prompts answered before, during and after training (samples.jsonl).")
        max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = Field(
            64, description="Longest answer to one of these prompts, in tokens."
        )
        microscope_rows: Annotated[int, Field(ge=0, le=64)] = Field(
            4,
            description="Validation rows whose tokens get a loss under base and result when the training has ended "
            "(microscope.json, in report and monitor); 0 is off.",
        )
        tasks: Texts = Field(
            (),
            description=f"What mlxft eval measures, the one that matters most first: {TASK_LIST}. Left out, the rows "
            "decide.",
        )
        max_rows: Count = Field(
            200, description="Most held-out rows that are evaluated; of more, always the same ones are taken."
        )
        gates: Texts = Field(
            (),
            description='What mlxft eval must find, such as "json_valid >= 0.95"; it exits with 4 where it does not. '
            "docs/recipe.md has the measures of each task.",
        )
        schema: Text | None = Field(  # pyright: ignore[reportIncompatibleMethodOverride]
            None, description="JSON Schema file for the task json: validity is measured free and constrained by it."
        )
        category: Text | None = Field(
            None, description="Column of the rows that splits every figure, such as a topic or a kind of request."
        )
        references: Texts = Field(
            (),
            description="Columns of the rows with further right answers: of all, exact_match, token_f1, rouge and bleu "
            "count the best.",
        )
        shots: Annotated[int, Field(ge=0, le=64)] = Field(
            0, description="Training rows put in front of each prompt, for one more baseline: the base with examples."
        )
        labels: Texts = Field((), description="The classes of the task labels; left out, the answers of the rows.")
        label_words: dict[str, str] = Field(
            {},
            description="Of a classifier: a word for each label, in which the language model beside it is asked and "
            'answers, for instance 0 = "negative".',
        )
        label_question: Annotated[str, Field(pattern=TEXT_IN_TEMPLATE, max_length=10_000)] = Field(
            LABEL_QUESTION,
            description="Of a classifier: the question that the language model beside it is asked; {text} stands for a "
            "row's text, {labels} for the words of all labels.",
        )
        answer_tokens: Auto | Annotated[int, Field(ge=1, le=65536)] = Field(
            "auto",
            description="Longest answer in an evaluation, in tokens; auto is twice the longest reference and 16 more.",
        )

        @model_validator(mode="after")
        def _words(self) -> Self:
            rows = [("`tasks`: ", task_problem(task)) for task in self.tasks]
            rows += [("`gates`: ", gate_problem(gate)) for gate in self.gates]
            return refuse(self, [where + problem for where, problem in rows if problem])


def change_recipe(recipe: EvalRecipe, changes: Mapping[str, object]) -> EvalRecipe:
    """[eval] with some keys changed, as a command line does. Raises ``UsageError`` with the first problem."""
    try:
        return EvalRecipe.model_validate(recipe.model_dump() | dict(changes))
    except ValidationError as error:
        first = error.errors()[0]
        rules = str(first.get("ctx", {}).get("error", "")).splitlines()
        if not rules:  # a rule of the field itself: pydantic's sentence, behind the name of the key
            key, rule = ".".join(map(str, first["loc"])), first["msg"]
            raise UsageError(
                f"`{key}`: {rule[:1].lower()}{rule[1:]}", f"leave it out, or see [eval] {key} in a recipe"
            ) from None
        message, _, hint = rules[0].rpartition("; ")
        raise UsageError(message.partition("`: ")[2] or rules[0], hint if message else "") from None

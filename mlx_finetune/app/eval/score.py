"""An answer beside its reference, as numbers: what each task says about one row.

A value is a tuple: ``(0 or 1,)`` or ``(score,)``, ``(sum, count)`` of a ratio, ``(right class, named class)`` by their
numbers, -1 where the answer names none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_finetune.recipe.evaluation import split_task
from mlx_finetune.scoring.bleu import bleu
from mlx_finetune.scoring.json_schema import Validator, field_accuracy
from mlx_finetune.scoring.json_text import NotJsonError, first_object, parse
from mlx_finetune.scoring.labels import named_label
from mlx_finetune.scoring.numbers import final_number
from mlx_finetune.scoring.rouge import rouge
from mlx_finetune.scoring.text import contains, exact_match, is_within, matches, token_f1

Values = dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class AnswerScorer:
    """Scores answers by the tasks of one evaluation."""

    tasks: Sequence[str]
    labels: Sequence[str]
    validator: Validator | None

    def values(self, reference: str, answer: str) -> Values:
        """Every measure of the answer. Raises ``MlxftError`` for a pattern that takes too long."""
        found: Values = {}
        for task in self.tasks:
            name, argument = split_task(task)
            match name:
                case "exact_match":
                    found[task] = _right(exact_match(reference, answer))
                case "token_f1":
                    found[task] = (token_f1(reference, answer),)
                case "labels":
                    found |= label_values(self.labels, reference, named_label(answer, self.labels), generated=True)
                case "rouge":
                    score = rouge(reference, answer)
                    found |= {"rouge1": (score.rouge1,), "rouge2": (score.rouge2,)}
                    found |= {"rougeL": (score.rouge_l,), "rougeLsum": (score.rouge_lsum,)}
                case "bleu":
                    found[task] = (bleu(reference, answer),)
                case "number":
                    number = final_number(answer)
                    found["number"] = _right(number is not None and number == final_number(reference))
                    found["number_found"] = _right(number is not None)
                case "json":
                    found |= json_values(reference, answer, self.validator)
                case _:
                    found |= _check(task, name, argument, answer)
        return found


def label_values(
    labels: Sequence[str], reference: str, named: str | None, *, generated: bool
) -> dict[str, tuple[float, ...]]:
    """Accuracy and the pair of classes; ``generated`` where the class was written and not the likeliest one."""
    gold = reference if reference in labels else named_label(reference, labels)
    end = "_generated" if generated else ""
    right = labels.index(gold) if gold is not None else -1
    guess = labels.index(named) if named is not None else -1
    return {f"accuracy{end}": _right(gold is not None and gold == named), f"macro_f1{end}": (right, guess)}


def json_values(reference: str, answer: str, validator: Validator | None) -> Values:
    """Of the first balanced object of the answer: does it parse, does it fit, how many fields are those wanted."""
    value = _object(answer)
    expected = _object(reference)
    found: Values = {"json_parses": _right(value is not None)}
    if validator is not None:
        found["json_valid"] = _right(value is not None and validator.is_valid(value))
    if expected is not None:
        found["json_fields"] = (0.0 if value is None else field_accuracy(expected, value),)
    return found


def is_json_object(text: str) -> bool:
    """Whether the text holds an object that parses."""
    return _object(text) is not None


def _object(text: str) -> object | None:
    piece = first_object(text)
    if piece is None:
        return None
    try:
        return parse(piece)
    except NotJsonError:
        return None


def _check(task: str, name: str, argument: str, answer: str) -> Mapping[str, tuple[float, ...]]:
    match name:
        case "regex":
            return {task: _right(matches(argument, answer))}
        case "contains":
            return {task: _right(contains(answer, argument))}
        case "max_length":
            return {task: _right(is_within(answer, int(argument)))}
        case _:
            return {}


def _right(is_right: bool) -> tuple[float]:
    return (float(is_right),)

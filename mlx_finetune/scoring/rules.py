"""Whether an answer is right, by a rule: the same final number, the same text, or the same text word for word.

What an answer says (``found``) is a text of its own, so that answers can be counted: equal texts are one vote. An
answer in which the rule finds nothing says nothing, is wrong and votes for nothing; report how many there are.
"""

import re
from collections.abc import Iterable
from typing import Literal

from mlx_finetune.scoring.numbers import final_number
from mlx_finetune.scoring.text import nfc, normalise

#: ``number``: the number it ends with (``numbers``). ``text``: SQuAD's normalisation (``text``). ``exact``: every
#: character but white space at the ends.
Rule = Literal["number", "text", "exact"]

_BARE_NUMBER = re.compile(r"[^\w\s]{0,3}[0-9][0-9.,]*[^0-9\s]{0,3}")


def found(rule: Rule, answer: str) -> str | None:
    """What the answer says, None where it says nothing: ``"The sum is 12.0."`` says ``"12"`` as a number."""
    match rule:
        case "number":
            number = final_number(answer)
            if number is None:
                return None
            text = format(number, "f")
            text = text.rstrip("0").rstrip(".") if "." in text else text
            return "0" if text in ("-0", "") else text
        case "text":
            return normalise(answer) or None
        case "exact":
            return nfc(answer).strip() or None


def is_right(rule: Rule, reference: str, answer: str) -> bool:
    """Whether the answer says what the reference says; False where either says nothing."""
    expected = found(rule, reference)
    return expected is not None and expected == found(rule, answer)


def choose_rule(references: Iterable[str]) -> Rule:
    """``number`` where every reference ends with ``#### NUMBER`` or is one number alone, else ``text``."""
    kept = list(references)
    is_number = all(
        found("number", one) is not None and ("####" in one or _BARE_NUMBER.fullmatch(one.strip())) for one in kept
    )
    return "number" if kept and is_number else "text"

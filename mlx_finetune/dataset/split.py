"""Which rows are for training, validation and test: decided by each row's content alone.

``position(example)`` is the first 64 bits of a SHA-256 over the content, as a number in [0, 1): below ``val_split`` is
validation, below ``val_split + test_split`` test, the rest training. So a row keeps its place when rows are added,
removed or reordered, whatever the recipe's seed, and rows equal but for white space are never on two sides. Shares
are met up to chance: 10 % of 1,000 rows is 100 +- 9. In a tiny set a wanted side may come out empty; then the content
with the lowest position that is left goes there. Training keeps at least one row, and where rows have labels at least
one of each: a class that no training row has could not be learned.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from mlx_finetune.dataset.formats import Example, Instruction, Labelled, Messages, Preference, Text, Tools
from mlx_finetune.dataset.turns import Turn

TRAIN, VALID, TEST = 0, 1, 2

_FIELD = "\x1f"
_TURN = "\x1e"
_PART = "\x1d"


def content_of(example: Example) -> str:
    """The content that decides whether two examples are the same: white space in runs counts as one space."""
    if isinstance(example, Messages):
        tools = _tools(example.tools) if example.tools else ""
        return tools + _PART + _turns(example.messages)
    if isinstance(example, Instruction):
        return _FIELD.join((_squeeze(example.instruction), _squeeze(example.input), _squeeze(example.output)))
    if isinstance(example, Text):
        return _squeeze(example.text)
    if isinstance(example, Preference):
        parts = (example.prompt, example.chosen or (), example.rejected or ())
        return _PART.join((_tools(example.tools), *(_turns(part) for part in parts)))
    assert isinstance(example, Labelled)
    return f"{_squeeze(example.text)}{_FIELD}{example.label}"


def judgement_of(example: Example, content: str) -> tuple[str, str] | None:
    """What a row judges and its verdict: a text and its label, an answer and its mark, two answers and the better one.

    ``content`` is that of the example. None where it judges nothing, as two answers that are the same.
    """
    if isinstance(example, Labelled):
        label = str(example.label)
        return content[: -len(label) - 1], label
    if not isinstance(example, Preference):
        return None
    *asked, chosen, rejected = content.split(_PART)
    if example.chosen is None or example.rejected is None:
        return _PART.join((*asked, chosen + rejected)), group_of(example)
    return None if chosen == rejected else (_PART.join((*asked, *sorted((chosen, rejected)))), chosen)


def key_of(content: str) -> int:
    """The first 64 bits of the SHA-256 of ``content``."""
    return int.from_bytes(hashlib.sha256(content.encode("utf-8")).digest()[:8], "big")


def content_key(example: Example, *, salt: str = "") -> int:
    """64 bits that are equal for equal contents; ``salt`` draws other splits."""
    return key_of(salt + content_of(example))


def position(key: int) -> float:
    """``key`` as a number in [0, 1)."""
    return key / 2**64


def group_of(example: Example) -> str:
    """The label of a labelled row or of an answer marked by itself, of which training keeps at least one; all other
    rows are of one group."""
    if isinstance(example, Preference) and (example.chosen is None or example.rejected is None):
        return "good" if example.rejected is None else "bad"
    return str(example.label) if isinstance(example, Labelled) else ""


def choose_sides(
    keys: Sequence[int], val_split: float, test_split: float, groups: Sequence[Hashable] = ()
) -> list[int]:
    """For each content key TRAIN, VALID or TEST; see the module for small sets.

    ``groups`` has the group of each key, equal for equal keys; without it there is one.
    """
    low, high = int(val_split * 2**64), int((val_split + test_split) * 2**64)
    sides = [VALID if key < low else TEST if key < high else TRAIN for key in keys]
    groups = groups or [0] * len(keys)
    is_missing = any(share > 0 and side not in sides for side, share in ((VALID, val_split), (TEST, test_split)))
    learned = {group for group, side in zip(groups, sides, strict=True) if side == TRAIN}
    if is_missing or not learned.issuperset(groups):
        return _choose_few(dict(zip(keys, groups, strict=True)), keys, sides, val_split, test_split)
    return sides


def _choose_few(
    group_of_key: Mapping[int, Hashable],
    keys: Sequence[int],
    sides: Sequence[int],
    val_split: float,
    test_split: float,
) -> list[int]:
    """Every wanted side gets a content where there are enough: training first, then validation, then test."""
    side_of = dict(sorted(zip(keys, sides, strict=True)))
    learned = Counter(group_of_key[key] for key, side in side_of.items() if side == TRAIN)
    last = {group_of_key[key]: key for key in side_of}
    for group, key in last.items():
        if not learned[group]:
            side_of[key], learned[group] = TRAIN, 1
    for side, share in ((VALID, val_split), (TEST, test_split)):
        held = Counter(side_of.values())
        if share > 0 and not held[side]:
            spare = [
                key for key, at in side_of.items() if (learned[group_of_key[key]] if at == TRAIN else held[at]) > 1
            ]
            only_test = [key for key, at in side_of.items() if side == VALID and at == TEST]
            if donors := sorted(spare, key=lambda key: side_of[key]) or only_test:
                learned[group_of_key[donors[0]]] -= side_of[donors[0]] == TRAIN
                side_of[donors[0]] = side
    return [side_of[key] for key in keys]


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _turns(turns: Sequence[Turn]) -> str:
    parts: list[str] = []
    for turn in turns:  # written out: half of the time of a check is spent here and in the decoder
        content = turn["content"]
        assert isinstance(content, str)
        parts.append(f"{turn['role']}{_FIELD}{' '.join(content.split())}" + (_rest(turn) if len(turn) > 2 else ""))
    return _TURN.join(parts)


def _rest(turn: Turn) -> str:
    rest = {name: value for name, value in turn.items() if name not in ("role", "content")}
    return f"{_FIELD}{json.dumps(rest, sort_keys=True, ensure_ascii=False)}"


def _tools(tools: Tools | None) -> str:
    return json.dumps(tools, sort_keys=True, ensure_ascii=False) if tools else ""

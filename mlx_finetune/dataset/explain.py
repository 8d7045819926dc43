"""Rows token by token, for people: which tokens are learned, which are only read, which are cut, and why.

The same walk as in training (``template.py``), one row at a time; what is shown is what would be trained.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.formats import Example, Labelled, Preference, Text
from mlx_finetune.dataset.pairs import Fate, answer_draft, pair_fate, row_fate
from mlx_finetune.dataset.problems import show
from mlx_finetune.dataset.tokens import Encoded, Tokenizer
from mlx_finetune.dataset.walk import Draft, Walk
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.preference import TWO_ANSWER_TASKS

State = Literal["learned", "read", "cut"]


class ExplainedToken(NamedTuple):
    """One token: its id, its text (empty for the later tokens of a character that needs several), and its state."""

    id: int
    text: str
    state: State


@dataclass(frozen=True, slots=True)
class ExplainedRow:
    """One sequence of a row; ``tokens`` is empty where the row is refused. ``notes`` says what happens to the row."""

    source: str
    line: int
    method: str
    tokens: tuple[ExplainedToken, ...]
    notes: tuple[str, ...]


_Explained = tuple[list[tuple[str, tuple[ExplainedToken, ...]]], list[str]]


def explain(
    examples: Iterable[Example], tokenizer: Tokenizer, data: DataRecipe, *, task: str, base: Path | None = None
) -> Iterator[ExplainedRow]:
    """One or more explained rows for each example, in order."""
    for example in examples:
        walk = Walk(tokenizer, data, task=task, base=base)
        if isinstance(example, Preference) and task in TWO_ANSWER_TASKS:
            rows, said = _explain_answers(walk, example, tokenizer, data)
        else:
            rows, said = _explain_sequences(walk, example, tokenizer)
        notes = tuple(dict.fromkeys((*(problem.message for problem in walk.problems()), *said, *_told(example))))
        for method, tokens in rows or [("", ())]:
            yield ExplainedRow(example.source, example.line, method, tokens, notes)


def _told(example: Example) -> tuple[str, ...]:
    """What is learned of a row beside its tokens: its label, or the verdict on its answer."""
    if isinstance(example, Labelled):
        return (f"its label is {show(example.label)}: the state of the last token before the end is scored",)
    if isinstance(example, Preference) and (example.chosen is None) != (example.rejected is None):
        return (f"the answer is {'wrong' if example.chosen is None else 'right'}",)
    return ()


def _explain_sequences(walk: Walk, example: Example, tokenizer: Tokenizer) -> _Explained:
    """Each sequence that is made of a row, by itself."""
    rows: list[tuple[str, tuple[ExplainedToken, ...]]] = []
    said: list[str] = []
    for draft in walk.drafts(example):
        try:
            sequence = _read(walk, draft, tokenizer)
        except DataError as error:
            said.append(error.message)
            continue
        ids, mask = sequence.ids, sequence.mask
        keeps = np.ones(len(ids), dtype=np.bool_)
        kept = walk.fitted(draft, ids, mask)
        if len(kept) != 1 or len(kept[0][0]) != len(ids):
            keeps[:] = len(kept) > 1  # split: every token is in one of the pieces
            if len(kept) == 1:
                keeps = _kept(ids, kept[0][0], tokenizer)
        rows.append((draft.method, sequence.explained(keeps)))
    return rows, said


def _explain_answers(walk: Walk, example: Preference, tokenizer: Tokenizer, data: DataRecipe) -> _Explained:
    """Each answer with its prompt; what becomes of one becomes of the other."""
    is_pair = example.chosen is not None and example.rejected is not None
    answers = zip(
        ("chosen", "rejected") if is_pair else ("good", "bad"), (example.chosen, example.rejected), strict=True
    )
    found: list[tuple[str, _Sequence]] = []
    said: list[str] = []
    for name, answer in answers:
        try:
            draft = None if answer is None else answer_draft(walk, example, answer)
            if draft is not None:
                found.append((f"{name}; {draft.method}", _read(walk, draft, tokenizer)))
        except DataError as error:
            said.append(error.message)
    fate = Fate("refused")
    if len(found) == 1 + is_pair:
        first, second = ((one.ids, one.mask) for _, one in (found[0], found[-1]))
        fate = (pair_fate if is_pair else row_fate)(first, second, data, tokenizer.bos_token_id)
    rows = [(method, one.explained(fate.kept(len(one.ids)))) for method, one in found]
    return rows, [*said, *([fate.message] if fate.message else [])]


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A whole sequence, however long, with the text of each token. The one more token of a judged answer, which is
    never read, has no text."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    texts: Sequence[str]

    def explained(self, keeps: NDArray[np.bool_]) -> tuple[ExplainedToken, ...]:
        """The tokens with their states, those cut that are not kept."""
        states: list[State] = [
            "cut" if not k else "learned" if m else "read" for m, k in zip(self.mask, keeps, strict=True)
        ]
        return tuple(ExplainedToken(*token) for token in zip(self.ids.tolist(), self.texts, states, strict=False))


def _read(walk: Walk, draft: Draft, tokenizer: Tokenizer) -> _Sequence:
    """Raises ``DataError`` where the sequence is refused."""
    encoding = walk.without_merged_border(draft, tokenizer.encode(draft.text))
    ids, mask = walk.ids_and_mask(draft, encoding)
    texts = _texts(draft.text, encoding)
    if draft.is_document:
        before, after = walk.edge_texts()
        goes_on = isinstance(draft.example, Text) and draft.example.continues
        texts = ([before] if before else []) + texts + ([] if goes_on else [after])
    if walk.behind_prompt and draft.spans:
        cut = encoding.first_from(draft.spans[0][0])
        texts[cut:cut] = [tokenizer.decode([token]) for token in walk.behind_prompt]
    return _Sequence(ids, mask, texts[: len(ids) - draft.is_judged])


def _texts(text: str, encoding: Encoded) -> list[str]:
    """The characters of each token; those of a shared span stand with its first token alone."""
    texts: list[str] = []
    done = 0
    for start, end in encoding.offsets:
        texts.append(text[max(start, done) : end])
        done = max(done, end)
    return texts


def _kept(ids: NDArray[np.int32], kept: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which of ``ids`` remain in ``kept``: a common beginning (the system turn, say) and a common end.

    Where several borders would do, the one before a marker that opens a turn.
    """
    longest_tail = _common(ids[::-1], kept[::-1])
    borders = range(len(kept) - longest_tail, min(_common(ids, kept), len(kept) - 1) + 1)
    opening = frozenset(tokenizer.control_tokens.values()) - tokenizer.stop_token_ids
    head = next((border for border in reversed(borders) if int(kept[border]) in opening), borders[0])
    keeps = np.zeros(len(ids), dtype=np.bool_)
    keeps[:head] = True
    keeps[len(ids) - (len(kept) - head) :] = True
    return keeps


def _common(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length

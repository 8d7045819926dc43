"""Preferences to tokens: one row for two answers, the tokens of their prompt once.

A row is prefix + first + second: what both token sequences begin with (at most up to the first target), the rest of the
chosen answer's sequence, the rest of the rejected one's. Its values say how long the three are and what its loss is
multiplied by. Template and mask are those of ``walk``, applied to each sequence by itself, so the prefix is found by
comparing tokens, never by counting those of a prompt. In unpaired data the second answer is that of the next row, for
KTO's estimate of how far the policy has moved, and a fifth value says whether the own answer is good.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.formats import Example, Messages, Preference
from mlx_finetune.dataset.template import BATCH_ROWS, tokenize
from mlx_finetune.dataset.token_rows import RowsBuilder, TokenRows
from mlx_finetune.dataset.tokens import Encoded, Tally, TokenizedSplit, Tokenizer, TokenizeReport, Tokens, Totals
from mlx_finetune.dataset.turns import Turn
from mlx_finetune.dataset.two_sides import check_task
from mlx_finetune.dataset.walk import Draft, Walk, where
from mlx_finetune.errors import DataError, Problem
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.recipe.preference import TWO_ANSWER_TASKS

#: Columns of a row's values.
PREFIX, FIRST, SECOND, WEIGHT, IS_GOOD = 0, 1, 2, 3, 4

TokenSequence = tuple[NDArray[np.int32], NDArray[np.bool_]]
_Asked = tuple[Preference, tuple[Turn, ...]]


def tokenize_preferences(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    data: DataRecipe,
    *,
    task: str,
    progress: Callable[[int, int], None] | None = None,
    base: Path | None = None,
) -> TokenizedSplit:
    """Rows of pairs, or of single answers for ``kto``, in the order of ``examples``.

    Each sequence has at most ``data.max_seq_length`` tokens; a row that is longer in one of them is dropped or loses
    the beginning of its prompt. Raises ``DataError`` for rows of another kind, naming the task that they fit.
    """
    rows = _PreferenceRows(tokenizer, data, task=task, base=base)
    builder, totals = RowsBuilder(), Totals()
    done = 0
    for batch in _batches(examples):
        pairs = [_of_task(example, task) for example in batch]
        made = rows.unpaired(pairs) if task == "kto" else rows.paired(pairs)
        builder.add(made)
        totals.add(made, len(made))
        done += len(batch)
        if progress is not None:
            progress(done, len(examples))
    found = builder.finish()
    totals.longest = int(longest_sequences(found).max(initial=0)) if len(found) else 0
    report = rows.report(totals, done)
    return TokenizedSplit(found if totals.num_rows else (), report)


def tokenize_rows(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    data: DataRecipe,
    *,
    task: str,
    progress: Callable[[int, int], None] | None = None,
    base: Path | None = None,
) -> TokenizedSplit:
    """Rows as ``task`` learns from them, whichever task that is. Raises ``ModelError`` for a model of another kind."""
    check_task(task, tokenizer, "this model")
    make = tokenize_preferences if task in TWO_ANSWER_TASKS else tokenize
    return make(examples, tokenizer, data, task=task, progress=progress, base=base)


def sequence_lengths(rows: TokenRows, task: str) -> NDArray[np.int64]:
    """Tokens of every row's longest sequence, which ``max_seq_length`` is about."""
    return longest_sequences(rows) if task in TWO_ANSWER_TASKS and len(rows) else rows.lengths


def num_read(num_tokens: int, task: str) -> int:
    """Of the tokens of a sequence those that the model reads: all but the last, which a reward model reads too."""
    return num_tokens if task == "reward" else num_tokens - 1


def longest_sequences(rows: TokenRows) -> NDArray[np.int64]:
    """Tokens of the longer of the two sequences of every row."""
    values = rows.values.astype(np.int64)
    return values[:, PREFIX] + np.maximum(values[:, FIRST], values[:, SECOND])


def answer_sequences(walk: Walk, example: Preference) -> dict[str, TokenSequence]:
    """Ids and mask of the answers of one example, ``chosen`` before ``rejected``, each whole.

    Raises ``DataError`` with the reason where one of them is refused.
    """
    walk.take_tally()
    found: dict[str, TokenSequence] = {}
    for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
        if answer is None:
            continue
        draft = answer_draft(walk, example, answer)
        if draft is None:
            raise walk.refusal()
        found[name] = walk.ids_and_mask(draft, walk.encoded(draft))
    return found


def fitted_sequences(walk: Walk, example: Preference, data: DataRecipe, bos: int | None) -> dict[str, TokenSequence]:
    """``answer_sequences``, cut as in training. Raises ``DataError`` too where training leaves the row out."""
    found = answer_sequences(walk, example)
    first, last = next(iter(found.values())), list(found.values())[-1]
    fate = row_fate(first, last, data, bos)
    if fate.is_left_out:
        raise DataError(fate.message)
    prefix = shared_length(first, last)
    kept = fate.kept(prefix)
    unlearned = np.zeros(np.count_nonzero(kept), np.bool_)
    return {
        name: (np.concatenate([ids[:prefix][kept], ids[prefix:]]), np.concatenate([unlearned, mask[prefix:]]))
        for name, (ids, mask) in found.items()
    }


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a row: its outcome and the sentence about it, "" where it is taken as it is.

    Of its prompt the tokens from ``begin`` to ``end`` are cut: all that are too many, behind the token that begins
    every text.
    """

    outcome: str = ""
    message: str = ""
    begin: int = 0
    end: int = 0

    @property
    def is_left_out(self) -> bool:
        """True where nothing of the row is trained on."""
        return self.outcome not in ("", "cut")

    def kept(self, length: int) -> NDArray[np.bool_]:
        """Which of the first ``length`` tokens of both sequences remain."""
        place = np.arange(length)
        return np.full(length, not self.is_left_out) & ((place < self.begin) | (place >= self.end))


def pair_fate(first: TokenSequence, second: TokenSequence, data: DataRecipe, bos: int | None) -> Fate:
    """What becomes of a pair of answers, each with its prompt."""
    if np.array_equal(first[0], second[0]):
        return Fate("same_answers", "chosen and rejected are the same")
    return row_fate(first, second, data, bos)


def row_fate(first: TokenSequence, second: TokenSequence, data: DataRecipe, bos: int | None) -> Fate:
    """What becomes of a row of two sequences; ``bos`` is the token that begins every text, None where none does."""
    if not first[1].any() or not second[1].any():
        return Fate("no_target", "an answer without a token")
    length = max(len(first[0]), len(second[0]))
    cut = length - data.max_seq_length
    if cut <= 0:
        return Fate()
    what = f"{length} tokens are more than max_seq_length = {data.max_seq_length}"
    begin = int(bos is not None and first[0][0] == bos)
    if data.truncation == "drop" or begin + cut >= shared_length(first, second):
        return Fate("too_long", f"{what}: dropped")
    return Fate("cut", f"{what}: {cut} tokens of the prompt were cut at the front", begin, begin + cut)


class _PreferenceRows:
    """Makes rows, and counts what happens on the way."""

    def __init__(self, tokenizer: Tokenizer, data: DataRecipe, *, task: str, base: Path | None) -> None:
        self.walk = Walk(tokenizer, data, task=task, base=base)
        self.methods: dict[str, int] = {}
        self._tokenizer = tokenizer
        self._data = data
        self._bos = tokenizer.bos_token_id
        self._tally = Tally()
        self._refused: Example | None = None
        self._noted: tuple[Example | None, str, str] = (None, "", "")

    def paired(self, examples: Sequence[Preference]) -> list[Tokens]:
        """One row for each pair that can be used."""
        asked = [(example, answer) for example in examples for answer in (example.chosen, example.rejected) if answer]
        found = self.sequences(asked)
        rows: list[Tokens] = []
        for example, first, second in zip(examples, found[::2], found[1::2], strict=True):
            if first is None or second is None:
                continue
            row = self._row(example, first, second, (), pair_fate(first, second, self._data, self._bos))
            rows += [row] if row else []
        return rows

    def unpaired(self, examples: Sequence[Preference]) -> list[Tokens]:
        """One row for each answer, with the answer of the next one that can be used as the second."""
        found = self.sequences([(example, _only_answer(example)) for example in examples])
        usable = [(example, one) for example, one in zip(examples, found, strict=True) if one is not None]
        others = [_only_answer(example) for example, _ in [*usable[1:], *usable[:1]]]
        mismatched = self.sequences([(example, other) for (example, _), other in zip(usable, others, strict=True)])
        rows: list[Tokens] = []
        for (example, own), found in zip(usable, mismatched, strict=True):
            ids, mask = found or own
            # What is longer than max_seq_length is cut at the front of both, or dropped for its own length.
            limit = max(self._data.max_seq_length, len(own[0]))
            other = (ids[:limit], mask[:limit])
            fate = row_fate(own, other, self._data, self._bos)
            row = self._row(example, own, other, (float(example.chosen is not None),), fate)
            rows += [row] if row else []
        return rows

    def sequences(self, asked: Sequence[_Asked]) -> list[TokenSequence | None]:
        """Ids and mask of each example with one of its answers; None where it is refused (tallied)."""
        drafts = [self._draft(example, answer) for example, answer in asked]
        encodings = iter(self._tokenizer.encode_batch([draft.text for draft in drafts if draft]))
        return [self._whole(draft, next(encodings)) if draft else None for draft in drafts]

    def report(self, totals: Totals, num_examples: int) -> TokenizeReport:
        """Counts over everything seen."""
        self._tally.add_all(self.walk.take_tally())
        return self.walk.report(totals, num_examples, self.methods, self._tally)

    def _whole(self, draft: Draft, encoding: Encoded) -> TokenSequence | None:
        """Ids and mask, however long; None where the row is refused (tallied)."""
        try:
            return self.walk.ids_and_mask(draft, self.walk.without_merged_border(draft, encoding))
        except DataError as error:
            self._note("refused", draft.example, error.message, error.hint)
            return None

    def _note(self, outcome: str, example: Example, message: str, hint: str = "") -> None:
        """Count a row, and once where both of its answers have the same fault."""
        if self._noted[0] is example and self._noted[1:] == (outcome, message):
            return
        self._noted = (example, outcome, message)
        self._tally.add(outcome, Problem(where(example), message, hint))

    def _draft(self, example: Preference, answer: tuple[Turn, ...]) -> Draft | None:
        """``answer_draft``, with the way its mask is made counted; a row is refused once, for its first answer."""
        if example is self._refused:
            return None
        try:
            draft = answer_draft(self.walk, example, answer)
        except DataError as error:
            self._note("refused", example, error.message, error.hint)
            draft = None
        if draft is None:
            self._refused = example
            return None
        self.methods[draft.method] = self.methods.get(draft.method, 0) + 1
        return draft

    def _row(
        self,
        example: Preference,
        first: TokenSequence,
        second: TokenSequence,
        more: tuple[float, ...],
        fate: Fate,
    ) -> Tokens | None:
        """Prefix, first and second in one row; None where it is left out. What becomes of it is tallied."""
        if fate.outcome:
            self._note(fate.outcome, example, fate.message)
        if fate.is_left_out:
            return None
        prefix = shared_length(first, second)
        front = first[0][:prefix][fate.kept(prefix)]
        ids = np.concatenate([front, first[0][prefix:], second[0][prefix:]])
        mask = np.concatenate([np.zeros(len(front), np.bool_), first[1][prefix:], second[1][prefix:]])
        lengths = (float(len(front)), float(len(first[0]) - prefix), float(len(second[0]) - prefix))
        values = (*lengths, example.loss_weight, *more)
        return Tokens(ids, mask, example.source, example.line, example.weight, values)


def answer_draft(walk: Walk, example: Preference, answer: tuple[Turn, ...]) -> Draft | None:
    """The rendered conversation with one answer, and the spans of this answer alone; None where ``walk`` refuses it.

    Raises ``DataError`` for an answer that cannot be told from its prompt.
    """
    num_replies = sum(turn.get("role") == "assistant" for turn in answer)
    if not num_replies:
        raise DataError("an answer without an assistant turn")
    turns, is_single = example.prompt + answer, num_replies == 1
    drafts = walk.drafts(Messages(turns, example.tools, example.source, example.line, only_last=is_single))
    if not drafts:
        return None
    if len(drafts) > 1:
        raise DataError("the chat template rewrites earlier turns of an answer of several")
    draft = drafts[0]
    return draft if is_single or draft.spans is None else replace(draft, spans=draft.spans[-num_replies:])


def shared_length(first: TokenSequence, second: TokenSequence) -> int:
    """Tokens that two sequences begin with alike, at most up to the first target of either; at least 1."""
    length = min(len(first[0]), len(second[0]))
    differing = np.flatnonzero(first[0][:length] != second[0][:length])
    common = int(differing[0]) if len(differing) else length
    return max(1, min(common, int(first[1].argmax()), int(second[1].argmax())))


def _only_answer(example: Preference) -> tuple[Turn, ...]:
    answer = example.chosen if example.chosen is not None else example.rejected
    assert answer is not None, "formats gives one of them"
    return answer


def _of_task(example: Example, task: str) -> Preference:
    """``example`` where it is of the kind that ``task`` learns from. Raises ``DataError``."""
    if not isinstance(example, Preference):
        raise DataError(
            f"{where(example)}: task = {task!r} needs rows with preferences; this one has no answer to compare",
            'write chosen and rejected answers (task = "dpo"), answers with a label (task = "kto"), or task = "sft"',
        )
    is_pair = example.chosen is not None and example.rejected is not None
    if is_pair and task == "kto":
        raise DataError(
            f"{where(example)}: task = 'kto' learns from single answers marked good or bad; these rows are pairs",
            'write task = "dpo" (or cdpo, rdpo, ipo, simpo, orpo)',
        )
    if not is_pair and task != "kto":
        raise DataError(
            f"{where(example)}: task = {task!r} learns from pairs of a chosen and a rejected answer; these rows have "
            "one answer each, marked good or bad",
            'write task = "kto"',
        )
    return example


def _batches(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Parts of at least ``BATCH_ROWS``, so that a row of unpaired data has another one beside it."""
    count = max(1, len(examples) // BATCH_ROWS)
    ends = [len(examples) * number // count for number in range(count + 1)]
    for start, end in itertools.pairwise(ends):
        yield examples[start:end]

"""What template and mask code needs from a tokenizer, and what rows become: ids, mask, and a report on every row."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.problems import SHOWN_PER_KIND
from mlx_finetune.errors import Problem

Span = tuple[int, int]
Message = Mapping[str, object]


class Encoded(Protocol):
    """Token ids and, for each, the character span ``[start, end)`` of the text it came from.

    A mask asks for a few spans of a text. A list of all of them costs more than the mask, so ``offsets`` is only for
    who needs every one.
    """

    @property
    def ids(self) -> list[int]:
        """One id for each token."""
        ...

    @property
    def offsets(self) -> list[Span]:
        """The span of each token."""
        ...

    def span(self, index: int) -> Span:
        """``offsets[index]``."""
        ...

    def first_from(self, position: int) -> int:
        """The first token that starts at ``position`` or after it; the number of tokens where none does."""
        ...


class Encoding(NamedTuple):
    """``Encoded`` with everything in two lists."""

    ids: list[int]
    offsets: list[Span]

    def span(self, index: int) -> Span:
        """``offsets[index]``."""
        return self.offsets[index]

    def first_from(self, position: int) -> int:
        """The first token that starts at ``position`` or after it; the number of tokens where none does."""
        return bisect_left(self.offsets, (position, 0))


class Tokenizer(Protocol):
    """A tokenizer with its chat template. ``model.tokens.tokenizer.load_tokenizer`` makes one."""

    @property
    def eos_token_id(self) -> int:
        """Ends a document."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """Begins a document, where the vocabulary has such a token."""
        ...

    @property
    def pad_token_id(self) -> int:
        """Fills up a batch; never a target."""
        ...

    @property
    def start_token_id(self) -> int | None:
        """Begins the answer of an encoder-decoder model, behind its prompt; None for all others."""
        ...

    @property
    def unk_token_id(self) -> int | None:
        """Stands for characters that the vocabulary does not have, where there is such a token."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """False for base models."""
        ...

    @property
    def template_source(self) -> str:
        """The text of the chat template, empty where there is none."""
        ...

    @property
    def template_name(self) -> str:
        """Where the chat template comes from, for a person: the tokenizer's own, or a path."""
        ...

    @property
    def content_hash(self) -> str:
        """sha256 over the vocabulary and the chat template."""
        ...

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """End of text and every end of an assistant turn: generation stops at any of them."""
        ...

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Every added token with its id, special or not."""
        ...

    @property
    def special_tokens(self) -> frozenset[str]:
        """Those of ``control_tokens`` that are marked special."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = False,
        arguments: Mapping[str, object] = {},
    ) -> str:
        """The conversation as text. Raises ``DataError`` with what the template says against it."""
        ...

    def assistant_spans(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None,
        arguments: Mapping[str, object],
    ) -> tuple[str, list[Span]] | None:
        """The text and the spans inside ``{% generation %}``; None where the template has no such tag."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = False) -> Encoded:
        """Ids and offsets of ``text``; markers of added tokens inside it become their ids."""
        ...

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Encoded]:
        """``encode`` of each text."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ``ids``."""
        ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row as the model sees it. ``loss_mask[i]`` says that token ``i`` is a target; ``loss_mask[0]`` is False.

    ``values`` are numbers that the row's objective reads, as many in every row: a label, lengths of parts.
    """

    ids: NDArray[np.int32]  # (n,)
    loss_mask: NDArray[np.bool_]  # (n,)
    source: str
    line: int
    weight: float = 1.0
    values: tuple[float, ...] = ()


def last_answer(loss_mask: NDArray[np.bool_]) -> tuple[int, int]:
    """``[start, end)`` of the last targets in a row that stand side by side: its last answer. There must be one."""
    end = int(np.flatnonzero(loss_mask)[-1]) + 1
    before = np.flatnonzero(~loss_mask[:end])
    return (int(before[-1]) + 1 if len(before) else 0), end


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to some rows on the way: how many, and the first of them with file and line."""

    count: int = 0
    rows: tuple[Problem, ...] = ()

    def shown(self) -> tuple[Problem, ...]:
        """``rows``, of which the last says how many more there are."""
        rest = self.count - len(self.rows)
        if not self.rows or not rest:
            return self.rows
        last = self.rows[-1]
        return (*self.rows[:-1], Problem(last.where, f"{last.message} (and {rest:,} more like it)", last.hint))


@dataclass(frozen=True, slots=True)
class TokenizeReport:
    """What became of a split: ``num_rows`` sequences are handed on, made of ``num_used`` of the ``num_examples`` rows;
    ``outcomes`` says what was lost or changed.

    Outcomes: ``refused`` (a marker in the content, a template error, no end mark), ``too_long`` (dropped by length),
    ``cut`` (kept from the end), ``split`` (into pieces), ``no_target`` (nothing to learn, dropped), ``doubled_marker``
    (a begin or end marker in a text row was not written twice). ``methods`` counts rows by the way their mask was made.
    ``labels`` are the classes of these rows, whose numbers are the first value of each, empty where rows have none.
    """

    num_examples: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    longest: int = 0
    methods: Mapping[str, int] = field(default_factory=dict[str, int])
    template: str = ""
    notes: tuple[str, ...] = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict[str, Outcome])
    labels: tuple[str, ...] = ()
    num_used: int = 0

    @property
    def target_share(self) -> float:
        """Targets over tokens, 0 to 1; 0 for an empty split."""
        return self.num_targets / self.num_tokens if self.num_tokens else 0.0

    @property
    def method(self) -> str:
        """How the masks were made, for a person; more than one way is spelled out with its number of rows."""
        if len(self.methods) <= 1:
            return next(iter(self.methods), "")
        return ", ".join(f"{name} ({count} rows)" for name, count in self.methods.items())

    def count(self, outcome: str) -> int:
        """Number of rows with ``outcome``."""
        return self.outcomes[outcome].count if outcome in self.outcomes else 0

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Located examples of every outcome, in the order of the outcomes."""
        return tuple(problem for outcome in self.outcomes.values() for problem in outcome.rows)


@dataclass(frozen=True, slots=True)
class TokenizedSplit:
    """Rows ready for packing, and what became of the others."""

    rows: Sequence[Tokens]
    report: TokenizeReport


@dataclass(slots=True)
class Totals:
    """Counts over rows as they are made."""

    num_rows: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    longest: int = 0
    num_used: int = 0

    def add(self, rows: Sequence[Tokens], num_used: int) -> None:
        """Count ``rows``, which were made of ``num_used`` examples."""
        self.num_used += num_used
        for row in rows:
            self.num_rows += 1
            self.num_tokens += len(row.ids)
            self.num_targets += int(np.count_nonzero(row.loss_mask))
            self.longest = max(self.longest, len(row.ids))


class Tally:
    """Counts outcomes and keeps the first located examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._rows: dict[str, list[Problem]] = {}

    def add(self, outcome: str, problem: Problem) -> None:
        """Count one row."""
        self._counts[outcome] = self._counts.get(outcome, 0) + 1
        kept = self._rows.setdefault(outcome, [])
        if len(kept) < SHOWN_PER_KIND:
            kept.append(problem)

    def add_all(self, other: "Tally") -> None:
        """Count the rows of another tally behind those counted so far."""
        self.add_outcomes(other.outcomes())

    def add_outcomes(self, outcomes: Mapping[str, Outcome]) -> None:
        """Count rows that were counted elsewhere behind those counted so far."""
        for name, outcome in outcomes.items():
            self._counts[name] = self._counts.get(name, 0) + outcome.count
            kept = self._rows.setdefault(name, [])
            kept += outcome.rows[: SHOWN_PER_KIND - len(kept)]

    def outcomes(self) -> dict[str, Outcome]:
        """Everything counted so far."""
        return {name: Outcome(count, tuple(self._rows[name])) for name, count in self._counts.items()}

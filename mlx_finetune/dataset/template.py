"""Examples to tokens and loss mask, for training; the same rendering for prompts of chat and generation.

What happens to one row is in ``walk``. Here the rows of a batch go through the tokenizer together, in a thread of its
own: while it reads one batch, the next is rendered and the one before it gets its masks. Every row that is refused,
cut, split or dropped is counted and located in the report. 75 % of the speed of the tokenizer alone on two cores
(``benchmarks/data_path.py``).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_finetune.dataset.formats import Example
from mlx_finetune.dataset.kinds import refused_example, wanted_rows
from mlx_finetune.dataset.labels import renumbered, sorted_labels
from mlx_finetune.dataset.token_rows import RowsBuilder
from mlx_finetune.dataset.tokens import (
    Encoded,
    Message,
    Outcome,
    Tally,
    TokenizedSplit,
    Tokenizer,
    TokenizeReport,
    Tokens,
    Totals,
)
from mlx_finetune.dataset.walk import Draft, Walk, where
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe

if TYPE_CHECKING:
    from concurrent.futures import Future

BATCH_ROWS = 256

_SPLIT_NAMES = {"": "", "train": "training ", "valid": "validation ", "test": "test "}


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rendered rows on their way through the tokenizer; ``tally`` is what rendering had to say about them."""

    num_examples: int
    drafts: list[Draft]
    tally: Tally
    encodings: "Future[list[Encoded]]"


def tokenize(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    data: DataRecipe,
    *,
    task: str,
    progress: Callable[[int, int], None] | None = None,
    base: Path | None = None,
) -> TokenizedSplit:
    """Rows of at most ``data.max_seq_length`` tokens with their masks, in the order of ``examples``.

    ``progress`` is called with (examples done, all examples). ``base`` is the folder a prompt template's path starts
    from. Labels become numbers, the first value of each row; the report names them. Raises ``DataError`` for rows that
    the task has no use for.
    """
    walk = Walk(tokenizer, data, task=task, base=base)
    builder = RowsBuilder()
    totals, tally = Totals(), Tally()
    methods: dict[str, int] = {}
    done = 0
    for batch in _encoded(examples, walk, tokenizer, task):
        tally.add_all(batch.tally)
        rows: list[Tokens] = []
        used: set[int] = set()  # of one example there may be several drafts
        for draft, encoding in zip(batch.drafts, batch.encodings.result(), strict=True):
            made = walk.rows(draft, walk.without_merged_border(draft, encoding))
            rows += made
            if made:
                methods[draft.method] = methods.get(draft.method, 0) + 1
                used.add(id(draft.example))
        builder.add(rows)
        totals.add(rows, len(used))
        tally.add_all(walk.take_tally())
        done += batch.num_examples
        if progress is not None:
            progress(done, len(examples))
    report = walk.report(totals, done, methods, tally)
    labels = sorted_labels(report.labels)
    numbered = renumbered(builder.finish(), report.labels, labels) if totals.num_rows else ()
    return TokenizedSplit(numbered, replace(report, labels=labels))


def refuse_empty(made: TokenizedSplit, data: DataRecipe, split: str, context: int | None) -> TokenizedSplit:
    """``made`` of the rows of ``split`` (train, valid or test). Raises ``DataError`` where there were some and none is
    left."""
    if made.report.num_examples and not made.report.num_rows:
        raise nothing_left(made.report, data, split, context)
    return made


def nothing_left(report: TokenizeReport, data: DataRecipe, split: str, context: int | None) -> DataError:
    """The error that no row of ``split`` can be used, with every way out and the first rows of each kind.

    ``context`` is how many tokens the model reads at most, None where that has no end.
    """
    what = _SPLIT_NAMES[split]
    which = f"the only {what}row" if report.num_examples == 1 else f"none of the {report.num_examples:,} {what}rows"
    can = "cannot be used" if report.num_examples == 1 else "can be used"
    problems = tuple(problem for outcome in report.outcomes.values() for problem in outcome.shown())
    hint = next((problem.hint for problem in problems if problem.hint), "correct these rows")
    if any(not problem.hint for problem in report.outcomes.get("too_long", Outcome()).rows):
        hint = _room_for(data, context)
    if split == "valid" and data.val_split and data.valid is None:
        hint += "; without a validation file a larger data.val_split takes more rows, 0 trains without validation"
    return DataError(f"{which} {can}", hint, problems)


def _room_for(data: DataRecipe, context: int | None) -> str:
    """What helps rows that are too long."""
    ways: list[str] = []
    if context is None or data.max_seq_length < context:
        ways.append(f"raise data.max_seq_length{'' if context is None else f', to {context} at most'}")
    if data.truncation == "drop":
        ways.append('keep the end of long rows with data.truncation = "keep-end"')
    return ", or ".join(ways) or f"shorten these rows: the model reads {context} tokens at most"


def _encoded(examples: Iterable[Example], walk: Walk, tokenizer: Tokenizer, task: str) -> Iterator[_Batch]:
    """The batches in order, each while the next one is on its way through the tokenizer."""
    from concurrent.futures import ThreadPoolExecutor  # 5 ms, and a start that finds its tokens needs none

    with ThreadPoolExecutor(1, "tokenizer") as pool:
        before: _Batch | None = None
        for batch in _batches(examples, BATCH_ROWS):
            _refuse_other_kinds(batch, task)
            drafts = [draft for example in batch for draft in walk.drafts(example)]
            encodings = pool.submit(tokenizer.encode_batch, [draft.text for draft in drafts])
            started = _Batch(len(batch), drafts, walk.take_tally(), encodings)
            if before is not None:
                yield before
            before = started
        if before is not None:
            yield before


def render_prompt(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    data: DataRecipe,
    *,
    tools: Sequence[Message] | None = None,
    base: Path | None = None,
) -> list[int]:
    """Token ids of a conversation, ready for the model to answer; the same code as in training.

    Raises ``DataError`` where content holds a control marker, the template refuses the conversation, or a model
    without a chat template is given more than one question.
    """
    walk = Walk(tokenizer, data, task="sft", base=base)
    return walk.prompt_ids([dict(message) for message in messages], tools)


def _batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while batch := list(islice(iterator, size)):
        yield batch


def _refuse_other_kinds(examples: Sequence[Example], task: str) -> None:
    """Raise ``DataError`` for the first row of a kind that ``task`` does not learn from."""
    for example in examples:
        if why := refused_example(example, task):
            raise DataError(f"{where(example)}: {why}", f"it learns from {wanted_rows(task)}")

"""The data card: rows, lengths, what is learned of them, what was left out. The data itself is not read again."""

from collections.abc import Iterator, Mapping, Sequence

from mlx_finetune.dataset.card import DataCard, SplitCard
from mlx_finetune.dataset.stats import Bucket
from mlx_finetune.errors import Problem
from mlx_finetune.monitor.report.chart import bar
from mlx_finetune.monitor.report.facts import ReportFacts
from mlx_finetune.monitor.report.markup import Child, Html, code, details, foreign, section, table, tag
from mlx_finetune.units import counted, format_count

_NAMES = {"train": "trained on", "valid": "validation"}
_OUTCOMES = {
    "refused": "could not be rendered, left out",
    "too_long": "longer than max_seq_length, left out",
    "cut": "longer than max_seq_length, cut",
    "split": "longer than max_seq_length, split",
    "no_target": "nothing to learn in them, left out",
    "same_answers": "two equal answers, left out",
    "unknown": "have characters that the tokenizer does not know",
    "reasoning_left_out": "lost reasoning that the chat template does not write",
    "doubled_marker": "begin or end marker already there, not written twice",
}
_MOST_FILES = 30


def data(facts: ReportFacts) -> Html | None:
    """The section; None where nothing is known of the rows."""
    if facts.card is None:
        return _from_journal(facts)
    splits = {name: split for name, split in facts.card.splits.items() if split.num_rows or split.lengths.count}
    of_a_row = facts.summary.learned.of_a_row
    return section(
        "data",
        "The data",
        _summary_table(splits, learns_tokens=not of_a_row),
        *(_histogram(name, split.histogram) for name, split in splits.items() if split.histogram),
        tag("p", of_a_row) if of_a_row else None,
        *_notes(splits, learns_tokens=not of_a_row),
        *_losses(splits),
        _problems(facts.card),
        _files(splits),
    )


def _from_journal(facts: ReportFacts) -> Html | None:
    """Runs of earlier versions kept no card: the number of rows is in the journal."""
    started = facts.summary.started
    if started is None:
        return None
    rows = f"{counted(started.train_rows, 'row')} trained on, {started.valid_rows:,} for validation."
    return section("data", "The data", tag("p", rows))


def _summary_table(splits: Mapping[str, SplitCard], *, learns_tokens: bool) -> Html:
    learned = ["learned from"] * learns_tokens
    head = ("", "rows read", "sequences", "tokens", *learned, "median length", "99 % below", "longest")
    rows: list[list[Child]] = []
    for name, split in splits.items():
        one = split.lengths
        share = f"{format_count(split.num_targets)} ({split.target_share:.0%})"
        cells = [f"{split.num_rows:,}", f"{one.count:,}", format_count(one.total), *([share] * learns_tokens)]
        rows.append([_NAMES.get(name, name), *cells, *(f"{value:,}" for value in (one.median, one.p99, one.longest))])
    return table(head, rows, class_="figures")


def _histogram(name: str, buckets: Sequence[Bucket]) -> Html:
    """Rows by length in tokens as bars of a table: readable without a picture."""
    most = max(bucket.count for bucket in buckets)
    bars = [
        (
            f"{bucket.low:,} to {bucket.high - 1:,}" if bucket.high - bucket.low > 1 else f"{bucket.low:,}",
            bar(bucket.count / most),
            f"{bucket.count:,}",
        )
        for bucket in buckets
    ]
    heading = tag("h3", f"Tokens in a sequence, {_NAMES.get(name, name)}")
    return Html(heading.text + table(("tokens", "", "sequences"), bars, class_="bars").text)


def _notes(splits: Mapping[str, SplitCard], *, learns_tokens: bool) -> Iterator[Html]:
    """How it was decided which tokens are learned, where tokens are."""
    train = splits.get("train")
    if train is None:
        return
    if train.method and learns_tokens:
        yield tag("p", "Which tokens are learned was decided by: ", foreign(train.method), ".")
    if train.template:
        yield tag("p", "Chat template: ", foreign(train.template), ".")
    for note in train.notes[:20]:
        yield tag("p", foreign(note))


def _losses(splits: Mapping[str, SplitCard]) -> Iterator[Html]:
    """Rows that were left out or changed, with the first of each kind."""
    rows: list[list[Child]] = []
    places: list[Html] = []
    for name, split in splits.items():
        for outcome, entry in split.outcomes.items():
            if entry.count:
                what = _OUTCOMES.get(outcome, outcome.replace("_", " "))
                rows.append([_NAMES.get(name, name), f"{entry.count:,}", what])
                places += [_place(problem) for problem in entry.rows]
    if rows:
        yield tag("h3", "Rows left out or changed")
        yield table(("", "rows", "what happened"), rows)
        yield details("The first of them", tag("ul", *places))
    else:
        yield tag("p", "No row was left out, cut or changed.")


def _place(problem: Problem) -> Html:
    return tag("li", code(problem.where, 200), " ", foreign(problem.message))


def _problems(card: DataCard) -> Html | None:
    if not card.num_problems:
        return None
    shown = [
        tag("li", code(one.where, 200), " ", foreign(one.message), " ", foreign(one.hint)) for one in card.problems
    ]
    return details(f"{counted(card.num_problems, 'warning')} from reading the files", tag("ul", *shown))


def _files(splits: Mapping[str, SplitCard]) -> Html | None:
    rows: list[list[Child]] = [
        [code(source, 300), _NAMES.get(name, name), f"{count:,}"]
        for name, split in splits.items()
        for source, count in split.sources.items()
    ]
    if not rows:
        return None
    more = f", the first {_MOST_FILES} of {len(rows):,}" if len(rows) > _MOST_FILES else ""
    return details(f"Where the rows come from{more}", table(("file", "", "sequences"), rows[:_MOST_FILES]))

"""The data card is small, whatever the data is, and comes back from its JSON."""

import json

import numpy as np
from pydantic import TypeAdapter

from mlx_finetune.dataset.card import DataCard, card_json, card_of
from mlx_finetune.dataset.token_cache import CachedSplits
from mlx_finetune.dataset.tokens import Outcome, TokenizedSplit, TokenizeReport, Tokens
from mlx_finetune.errors import Problem


def row(length: int, source: str) -> Tokens:
    return Tokens(np.arange(length, dtype=np.int32), np.arange(length) % 2 == 1, source, 1)


def splits(num_problems: int = 0) -> CachedSplits:
    problems = tuple(Problem(f"a.jsonl:{number}", "odd") for number in range(num_problems))
    report = TokenizeReport(5, 3, 24, 12, 12, {"text prefix": 3}, "its own", ("a note",), {"cut": Outcome(9, problems)})
    rows = [row(4, "a.jsonl"), row(8, "b.jsonl"), row(12, "a.jsonl")]
    return CachedSplits(
        {"train": TokenizedSplit(rows, report), "valid": TokenizedSplit((), TokenizeReport())}, problems, "0" * 64
    )


def test_a_card_counts_rows_tokens_targets_and_files() -> None:
    train = card_of(splits()).splits["train"]
    assert (train.num_rows, train.lengths.count, train.lengths.total, train.num_targets) == (5, 3, 24, 12)
    assert train.target_share == 0.5
    assert train.sources == {"a.jsonl": 2, "b.jsonl": 1}
    assert (train.method, train.template, train.notes) == ("text prefix", "its own", ("a note",))


def test_a_split_without_rows_is_all_zero() -> None:
    valid = card_of(splits()).splits["valid"]
    assert (valid.lengths.count, valid.target_share, valid.sources) == (0, 0.0, {})


def test_many_problems_are_counted_and_few_are_kept() -> None:
    card = card_of(splits(num_problems=1000))
    assert (card.num_problems, len(card.problems)) == (1000, 5)
    assert (card.splits["train"].outcomes["cut"].count, len(card.splits["train"].outcomes["cut"].rows)) == (9, 5)
    assert len(json.dumps(card_json(card))) < 3000


def test_a_card_comes_back_from_its_json() -> None:
    card = card_of(splits(num_problems=2))
    assert TypeAdapter(DataCard).validate_json(json.dumps(card_json(card))) == card

import os
from pathlib import Path

import numpy as np
import pytest

from mlx_finetune import durable
from mlx_finetune.dataset.token_cache import CachedSplits, TokenCache, cache_key, code_hash
from mlx_finetune.dataset.token_rows import TokenRows, rows_of
from mlx_finetune.dataset.tokens import Outcome, TokenizedSplit, TokenizeReport, Tokens
from mlx_finetune.errors import Problem


def split(count: int, *, seed: int = 0) -> TokenizedSplit:
    rng = np.random.default_rng(seed)
    rows = [
        Tokens(rng.integers(0, 2**17, n).astype(np.int32), rng.random(n) < 0.5, f"{n % 2}.jsonl", n, 0.5 * n)
        for n in rng.integers(1, 50, count).tolist()
    ]
    outcomes = {"too_long": Outcome(3, (Problem("a:1", "\u00e9 too \ud83d", "cut it"), Problem("", "x")))}
    report = TokenizeReport(9, count, 7, 5, 50, {"text prefix": 4, "other": 1}, "the model's own", ("a", "b"), outcomes)
    return TokenizedSplit(rows_of(rows) if rows else (), report)


def made(count: int = 40) -> CachedSplits:
    splits = {"train": split(count), "valid": split(count // 4, seed=1)}
    return CachedSplits(splits, (Problem("f:1", "a leak", "mend it"),), "0123")


def assert_same(found: CachedSplits | None, expected: CachedSplits) -> None:
    assert found is not None
    assert (found.problems, found.content_hash) == (expected.problems, expected.content_hash)
    assert list(found.splits) == list(expected.splits)
    for name, one in found.splits.items():
        other = expected.splits[name]
        assert one.report == other.report
        assert len(one.rows) == len(other.rows)
        for row, its in zip(one.rows, other.rows, strict=True):
            assert np.array_equal(row.ids, its.ids)
            assert np.array_equal(row.loss_mask, its.loss_mask)
            assert (row.source, row.line, row.weight) == (its.source, its.line, its.weight)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_what_was_stored_is_found_to_the_last_bit_with_its_report(tmp_path: Path, count: int) -> None:
    cache = TokenCache(tmp_path / "not" / "there")
    assert cache.load("k") is None
    cache.store("k", made(count))
    assert_same(cache.load("k"), made(count))
    assert cache.load("other") is None


def test_rows_that_were_found_are_mapped_and_stay_readable_when_the_file_is_removed(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path)
    cache.store("k", made())
    found = cache.load("k")
    assert found is not None
    rows = found.splits["train"].rows
    assert isinstance(rows, TokenRows)
    assert not rows.words.flags.owndata
    assert not rows.words.flags.writeable
    (tmp_path / "k.tokens").unlink()
    assert_same(found, made())


def test_no_damaged_byte_and_no_cut_is_believed_and_the_file_can_be_made_again(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path)
    cache.store("k", made(3))
    path = tmp_path / "k.tokens"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert cache.load("k") is None
        assert not path.exists()
    for length in (0, 1, 55, 56, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert cache.load("k") is None
    path.write_bytes(whole + b"\0")
    assert cache.load("k") is None
    cache.store("k", made(3))
    assert_same(cache.load("k"), made(3))


def test_files_used_longest_ago_are_removed_beyond_the_limit(tmp_path: Path) -> None:
    TokenCache(tmp_path).store("a", made())
    size = (tmp_path / "a.tokens").stat().st_size
    cache = TokenCache(tmp_path, max_bytes=int(2.5 * size))
    cache.store("b", made())
    os.utime(tmp_path / "a.tokens", (1, 1))
    os.utime(tmp_path / "b.tokens", (2, 2))
    assert cache.load("a") is not None  # used now
    cache.store("c", made())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tokens", "c.tokens"]


def test_a_file_larger_than_the_limit_stays_until_the_next_one(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, max_bytes=1)
    cache.store("a", made())
    assert cache.load("a") is not None
    cache.store("b", made())
    assert [path.name for path in tmp_path.iterdir()] == ["b.tokens"]


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".k.tokens.1.part", tmp_path / ".l.tokens.2.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    TokenCache(tmp_path).store("a", made())
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "a.tokens"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        TokenCache(tmp_path).store("a", made())
    assert list(tmp_path.iterdir()) == []


def test_a_key_changes_with_every_value_and_not_with_their_order() -> None:
    parts = {"a": 1, "b": ["x", None], "c": {"d": 0.1}}
    keys = {cache_key(parts | change) for change in ({}, {"a": 2}, {"b": ["x"]}, {"c": {"d": 0.2}}, {"e": 1})}
    assert len(keys) == 5
    assert cache_key(dict(reversed(parts.items()))) == cache_key(parts)


def test_the_hash_of_code_changes_with_a_file_its_name_and_its_place(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.py").write_text("x = 1\n")
    seen = {code_hash({"m": tmp_path / "m"})}
    (tmp_path / "m" / "a.py").write_text("x = 2\n")
    seen.add(code_hash({"m": tmp_path / "m"}))
    (tmp_path / "m" / "a.py").rename(tmp_path / "m" / "b.py")
    seen.add(code_hash({"m": tmp_path / "m"}))
    (tmp_path / "m" / "notes.txt").write_text("no code")
    seen.add(code_hash({"m": tmp_path / "m"}))
    assert len(seen) == 3

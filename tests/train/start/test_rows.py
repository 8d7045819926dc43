"""A second start takes the tokens of the first, says the same, and never believes what it should not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_finetune import durable
from mlx_finetune.dataset import template
from mlx_finetune.dataset.card import card_json
from mlx_finetune.errors import DataError
from mlx_finetune.events import Event, Notice
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.recipe.training import TrainingRecipe
from mlx_finetune.train.objectives.next_token import next_token
from mlx_finetune.train.start import rows as start
from mlx_finetune.train.start.rows import TrainingRows, read_rows


@pytest.fixture
def tokenizer(tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelTokenizer:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    return load_tokenizer(tiny_model("llama"))


def write(path: Path, num_rows: int = 60) -> None:
    with path.open("w") as file:
        for n in range(num_rows):
            answer = "word " * 90 if n % 9 == 0 else f"answer {n}"
            turns = [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns if n % 14 else turns[:1]}) + "\n")


def recipe(**data: object) -> Recipe:
    values = {"path": "rows.jsonl", "max_seq_length": 64, "val_split": 0.2, **data}
    return Recipe.model_validate({"model": "m", "output_dir": "o", "data": values})


class Start:
    """Reads rows as a training does; counts the texts that went through the tokenizer."""

    def __init__(self, tokenizer: ModelTokenizer, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._tokenizer, self._base = tokenizer, base
        self.num_encoded, self.num_loaded = 0, 0
        encode, load = tokenizer.encode_batch, start.load_splits

        def counting(texts, **options):
            self.num_encoded += len(texts)
            return encode(texts, **options)

        def loading(*arguments, **options):
            self.num_loaded += 1
            return load(*arguments, **options)

        monkeypatch.setattr(tokenizer, "encode_batch", counting)
        monkeypatch.setattr(start, "load_splits", loading)

    def __call__(self, made: Recipe) -> tuple[TrainingRows, list[Notice], bool]:
        """Rows, what was said of them, and whether anything was read and tokenised."""
        self.num_encoded = self.num_loaded = 0
        events: list[Event] = []
        rows = read_rows(made, next_token(made.task), self._tokenizer, self._base, events.append)
        assert (self.num_encoded > 0) == (self.num_loaded > 0)
        return rows, [event for event in events if isinstance(event, Notice)], self.num_encoded > 0


@pytest.fixture
def read(tokenizer: ModelTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    write(tmp_path / "rows.jsonl")
    return Start(tokenizer, tmp_path, monkeypatch)


def assert_same(one: TrainingRows, other: TrainingRows) -> None:
    assert one.content_hash == other.content_hash
    for mine, its in ((one.train, other.train), (one.valid, other.valid)):
        assert np.array_equal(mine.words, its.words)
        assert np.array_equal(mine.rows, its.rows)
        assert mine.sources == its.sources


def files(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "tokens").glob("*"))


def test_a_second_start_reads_and_tokenises_nothing_and_says_the_same(read: Start, tmp_path: Path) -> None:
    rows, said, was_made = read(recipe())
    again, said_again, was_made_again = read(recipe())
    assert (was_made, was_made_again) == (True, False)
    assert_same(again, rows)
    assert said_again == said
    assert any("have nothing to learn" in notice.message for notice in said)
    (long,) = [notice for notice in said if "longer than max_seq_length" in notice.message]
    assert long.message.startswith("train: 6 of 48 rows are longer than max_seq_length and were left out (first: rows.")
    assert long.hint == "see them with file and line: mlxft data check RECIPE"
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"max_seq_length": 65},
        {"truncation": "split"},
        {"mask_prompt": False},
        {"val_split": 0.3},
        {"template_arguments": {"x": 1}},
        {"format": "messages"},
        {"path": "./rows.jsonl"},
    ],
    ids=str,
)
def test_another_setting_makes_rows_anew(read: Start, change: dict[str, object]) -> None:
    read(recipe())
    assert read(recipe(**change))[2]
    assert not read(recipe())[2]


def test_patience_without_validation_rows_is_said_to_end_nothing(read: Start) -> None:
    patient = {"training": TrainingRecipe.model_validate({"early_stopping_patience": 3})}
    _, without, _ = read(recipe(val_split=0).model_copy(update=patient))
    (found,) = [notice for notice in without if "early_stopping_patience = 3 ends nothing" in notice.message]
    assert (found.level, found.hint) == ("warning", "set data.val_split, or name data.train and data.valid")
    for other in (recipe().model_copy(update=patient), recipe(val_split=0)):
        assert not [notice for notice in read(other)[1] if "patience" in notice.message]


def test_packing_comes_after_the_tokens_and_changes_none(read: Start) -> None:
    read(recipe(packing=True))
    assert not read(recipe(packing=False))[2]


def test_other_data_task_tokenizer_template_or_code_makes_rows_anew(
    read: Start, tokenizer: ModelTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text("{instruction} {output}")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    pairs = recipe(path="pairs.jsonl", prompt_template="prompt.txt", val_split=0.0, test_split=0.0)
    read(recipe())
    assert read(recipe().model_copy(update={"task": "pretrain"}))[2]
    assert read(pairs)[2]
    assert not read(pairs)[2]
    (tmp_path / "prompt.txt").write_text("{instruction}: {output}")
    assert read(pairs)[2]
    monkeypatch.setattr(tokenizer, "settings_hash", "another")
    assert read(recipe())[2]
    monkeypatch.setattr(start, "code_hash", lambda folders: "another")
    assert read(recipe())[2]
    write(tmp_path / "rows.jsonl", 59)
    assert read(recipe())[2]
    assert not read(recipe())[2]


def test_a_damaged_file_is_made_again(read: Start, tmp_path: Path) -> None:
    rows, said, _ = read(recipe())
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], whole[:50] + b"x" + whole[51:], b""):
        path.write_bytes(damaged)
        again, said_again, was_made = read(recipe())
        assert was_made
        assert_same(again, rows)
        assert said_again == said
        assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_next_start(
    read: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, said, _ = read(recipe())
    for path in files(tmp_path):
        path.unlink()

    def full(path: Path, chunks: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(durable, "replace_file", full)
    again, said_again, _ = read(recipe())
    assert_same(again, rows)
    assert said_again[: len(said)] == said
    assert [notice.message for notice in said_again[len(said) :]] == [
        "the tokens of this data cannot be kept for the next start: No space left on device"
    ]


def test_data_that_cannot_be_used_is_refused_at_every_start(read: Start, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    for _ in range(2):
        with pytest.raises(DataError, match="one problem"):
            read(recipe())
    assert files(tmp_path) == []


def test_data_that_changes_while_it_is_read_is_not_kept(
    read: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = start.load_splits
    monkeypatch.setattr(start, "load_splits", lambda *a, **k: replace(load(*a, **k), content_hash="another"))
    read(recipe())
    assert files(tmp_path) == []


def test_batches_on_the_way_through_the_tokenizer_are_left_when_training_is_stopped(
    read: Start, tokenizer: ModelTokenizer, tmp_path: Path
) -> None:
    write(tmp_path / "rows.jsonl", template.BATCH_ROWS * 4)

    def stop(event: Event) -> None:
        if getattr(event, "name", "") == "tokenise":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_rows(recipe(), next_token("sft"), tokenizer, tmp_path, stop)
    assert read.num_encoded <= 3 * template.BATCH_ROWS
    assert files(tmp_path) == []


def test_the_card_tells_of_every_row_and_is_the_same_at_the_second_start(read: Start) -> None:
    first, _, _ = read(recipe())
    again, _, was_read = read(recipe())
    assert not was_read
    assert card_json(again.card) == card_json(first.card)
    train, valid = first.card.splits["train"], first.card.splits["valid"]
    assert train.lengths.count == len(first.train) == sum(train.sources.values())
    assert train.lengths.total == len(first.train.words)
    assert train.num_targets == sum(int(row.loss_mask.sum()) for row in first.train)
    assert valid.lengths.longest == int(first.valid.lengths.max())
    assert train.outcomes["too_long"].count > 0
    assert sum(one.count for one in train.outcomes.values()) == train.num_rows - train.lengths.count
    assert train.outcomes["too_long"].rows[0].where.startswith("rows.jsonl:")
    assert first.card.num_problems == len(first.card.problems)

"""Several right answers of a row: read from their columns, and the best of them counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_finetune.app.eval.references import best_values
from mlx_finetune.app.eval.rows import Chosen, choose_rows
from mlx_finetune.app.eval.score import AnswerScorer
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.scoring.rouge import rouge

COLUMNS = {"prompt": "dialogue", "completion": "summary"}


def write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chosen(given: Path, *references: str) -> Chosen:
    data = DataRecipe.model_validate({"path": "rows.jsonl", "columns": COLUMNS})
    where = given.parent
    return choose_rows(
        data,
        base=where,
        training_base=where,
        given=given.name,
        max_rows=10,
        category=None,
        shots=0,
        seed=0,
        references=references,
    )


def test_each_measure_takes_the_reference_that_suits_it_best() -> None:
    scorer = AnswerScorer(("rouge", "exact_match", "token_f1", "max_length:5"), (), None)
    references = ("they meet at noon", "Ann calls Ben", "Ann will call")
    found = best_values(scorer, references, "Ann calls Ben")
    assert (found["exact_match"], found["rouge1"], found["rougeL"]) == ((1.0,), (1.0,), (1.0,))
    assert found["max_length:5"] == (0.0,)
    half = best_values(scorer, references, "Ann will meet Ben")
    assert half["rouge1"] == (max(rouge(one, "Ann will meet Ben").rouge1 for one in references),)
    assert half["rouge1"][0] > rouge(references[0], "Ann will meet Ben").rouge1


def test_references_are_read_from_their_columns(tmp_path: Path) -> None:
    """The first takes the place of the answer's column where rows to test have another than those to train on."""
    rows = [{"dialogue": f"talk {n}", "summary1": f"one {n}", "summary2": f"two {n}"} for n in range(3)]
    found = chosen(write(tmp_path / "test.jsonl", *rows), "summary1", "summary2")
    assert [row.reference for row in found.rows] == ["one 0", "one 1", "one 2"]
    assert [row.others for row in found.rows] == [("one 0", "two 0"), ("one 1", "two 1"), ("one 2", "two 2")]
    more = [row | {"summary": "its own"} for row in rows]
    again = chosen(write(tmp_path / "own.jsonl", *more), "summary2")
    assert {row.reference for row in again.rows} == {"its own"}
    assert again.rows[1].others == ("two 1",)


def test_a_row_without_the_column_is_named(tmp_path: Path) -> None:
    rows = [{"dialogue": "a", "summary": "b", "more": "c"}, {"dialogue": "d", "summary": "e"}]
    with pytest.raises(DataError, match=r"jsonl:2: the row has no text in `more`"):
        chosen(write(tmp_path / "test.jsonl", *rows), "more")


def test_real_summaries_have_three_references(shared: Callable[..., Path]) -> None:
    """DialogSum trains with ``summary`` and tests with ``summary1`` to ``summary3``."""
    found = chosen(shared("data", "dialogsum", "test.jsonl"), "summary1", "summary2", "summary3")
    scorer = AnswerScorer(("rouge",), (), None)
    assert len(found.rows) == 10
    for row in found.rows:
        assert row.reference == row.others[0]
        alone = scorer.values(row.reference, row.others[2])["rougeL"]
        assert best_values(scorer, (row.reference, *row.others), row.others[2])["rougeL"] == (1.0,)
        assert alone[0] <= 1.0
    assert any(scorer.values(row.reference, row.others[2])["rougeL"][0] < 0.5 for row in found.rows)

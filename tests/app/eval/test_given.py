"""Rows named on the command line: there is no [data] to change, so no way out names one."""

import pytest

from mlx_finetune.app.eval.given import given_rows
from mlx_finetune.errors import DataError, Problem

LABELS = 'rows are {"text": ..., "label": ...}: name the columns of the file so'


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ('[data.columns] text = "COLUMN", label = "COLUMN" names the two columns', LABELS),
        ('or only the texts: [data] format = "text"', LABELS),
        ('name one of them: [data] path = "d/a.jsonl"', 'name one of them: "d/a.jsonl"'),
        ("mlxft data check RECIPE", "mlxft data check 'my rows.jsonl'"),
        ("one JSON object on each line", "one JSON object on each line"),
        ("", ""),
    ],
)
def test_a_way_out_is_one_that_whoever_named_the_rows_can_take(hint: str, said: str) -> None:
    error = DataError("bad rows", hint, [Problem("a.jsonl:1", "bad", hint)])
    with pytest.raises(DataError) as caught, given_rows("my rows.jsonl", "classify"):
        raise error
    assert (caught.value.message, caught.value.hint) == ("bad rows", said)
    assert caught.value.problems == (Problem("a.jsonl:1", "bad", said),)


def test_the_rows_of_a_run_are_mended_in_its_recipe() -> None:
    error = DataError("bad rows", "mlxft data check RECIPE")
    with pytest.raises(DataError) as caught, given_rows(None, "sft"):
        raise error
    assert caught.value is error

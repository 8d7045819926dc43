from pathlib import Path

import pytest

from mlx_finetune.dataset.prompts import ALPACA, NONE, load_prompt_template, parse_prompt_template
from mlx_finetune.errors import DataError


def test_alpaca_with_input_is_stanfords_prompt() -> None:
    assert ALPACA.prompt("Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )


def test_alpaca_without_input_has_no_input_section() -> None:
    assert ALPACA.prompt("Go.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGo.\n\n### Response:\n"
    )


def test_none_joins_prompt_and_answer() -> None:
    assert (NONE.prompt("a", "b"), NONE.prompt("a", ""), NONE.ending("a", "b")) == ("ab", "a", "")


def test_auto_is_alpaca() -> None:
    assert load_prompt_template("auto") is ALPACA


def test_a_file_fills_in_its_fields_and_leaves_other_braces(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('{"q": "{instruction}"}\n\nIn: {input}\n\nA: {output} .\n')
    template = load_prompt_template("p.txt", base=tmp_path)
    assert template.prompt("say {input}", "here") == '{"q": "say {input}"}\n\nIn: here\n\nA: '
    assert template.ending("x", "y") == " ."


def test_a_block_with_the_input_is_left_out_where_a_row_has_none() -> None:
    template = parse_prompt_template("p", "Q: {instruction}\n\nIn: {input}\n\nA: {output}")
    assert template.prompt("q", "") == "Q: q\n\nA: "


def test_a_file_without_output_gets_it_at_the_end() -> None:
    assert parse_prompt_template("p", "Q: {instruction}\nA: ").prompt("q", "") == "Q: q\nA: "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello", "has no {instruction}"),
        ("{output} {instruction}", "once, after"),
        ("{instruction}{output}{output}", "once"),
    ],
)
def test_a_file_that_cannot_be_filled_in_is_refused(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_prompt_template("p", text)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_prompt_template("gone.txt", base=tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"{instruction}\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        load_prompt_template("bad.txt", base=tmp_path)

import pytest

from mlx_finetune.dataset.control import is_marker


@pytest.mark.parametrize("token", ["<|im_end|>", "<think>", "</tool_call>", "[INST]", "<unused7>", "<｜User｜>"])
def test_tokens_in_brackets_are_markers(token: str) -> None:
    assert is_marker(token)


@pytest.mark.parametrize("token", ["\n\n", "    ", "<table>", "</h1>", "<b>", "hello", "|||EMAIL|||", ""])
def test_blanks_words_and_html_elements_are_text(token: str) -> None:
    assert not is_marker(token)

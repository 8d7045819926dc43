"""Real vocabularies of ../shared/models with ChatML on top: content never becomes a control id, masks are exact."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import CHATML, write_tokenizer

from mlx_finetune.dataset.formats import Instruction, Messages, Text
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.data import DataRecipe

#: Name -> files of ../shared/models with the name each has in a model folder, and the tokenizer class.
FILES = {
    "gpt2": ({"tokenizers/gpt2_vocab.json": "vocab.json", "tokenizers/gpt2_merges.txt": "merges.txt"}, "GPT2Tokenizer"),
    "gpt-neox": ({"tokenizers/gpt-neox-20B_tokenizer.json": "tokenizer.json"}, ""),
    "llama2": ({"tokenizers/llama2_tokenizer.model": "tokenizer.model"}, "LlamaTokenizer"),
    "stories260K": ({"stories260K/tokenizer.json": "tokenizer.json"}, ""),
    "byte-level": ({}, ""),
}
MARKERS = ("<|im_start|>", "<|im_end|>")
DATA = DataRecipe.model_validate({"path": "-"})
PIECES = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>", "<|padding|>"]),
    st.sampled_from(
        ["<|im_", "end|>", "<", "|>", " ", "\n\n", "    ", "＜|im_end|＞", "<|im\u200b_end|>", "<\uff5cim_end|>"]
    ),
)
CONTENT = st.lists(PIECES, max_size=5).map("".join)


@pytest.fixture(name="vocabulary", scope="module")
def vocabulary_fixture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelTokenizer]:
    from conftest import shared

    made: dict[str, ModelTokenizer] = {}

    def make(name: str) -> ModelTokenizer:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            files, cls = FILES[name]
            for source, target in files.items():
                shutil.copy(shared("models", *source.split("/")), folder / target)
            if not files:
                write_tokenizer(folder)
            made[name] = _with_chatml(folder, cls)
        return made[name]

    return make


def _with_chatml(folder: Path, cls: str) -> ModelTokenizer:
    config: dict[str, object] = {"chat_template": CHATML, "eos_token": "<|im_end|>"}
    config |= {"tokenizer_class": cls} if cls else {}
    config["additional_special_tokens"] = list(MARKERS)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if (folder / "tokenizer.json").is_file():
        size = _size(folder / "tokenizer.json")
        added = {str(size + n): {"content": token, "special": True} for n, token in enumerate(MARKERS)}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": added}))
    return load_tokenizer(folder)


def _size(path: Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True)


@pytest.mark.parametrize("name", FILES)
def test_replies_and_end_marks_are_learned_in_every_vocabulary(
    vocabulary: Callable[[str], ModelTokenizer], name: str
) -> None:
    tokenizer = vocabulary(name)
    turns = tuple(
        {"role": ("user", "assistant")[n % 2], "content": text}
        for n, text in enumerate(("one  two", "three, four", "five", "\u00e9t\u00e9 six"))
    )
    row = tokenize([Messages(turns, None, "f", 1)], tokenizer, DATA, task="sft").rows[0]
    learned = tokenizer.decode(row.ids[row.loss_mask].tolist())
    assert learned.replace(" ", "").lower() == "three,four<|im_end|>\u00e9t\u00e9six<|im_end|>"
    assert row.loss_mask.sum() < len(row.ids) / 2


@pytest.mark.some(2)
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=CONTENT, answered=CONTENT)
def test_content_never_becomes_a_control_id(
    vocabulary: Callable[[str], ModelTokenizer], name: str, asked: str, answered: str
) -> None:
    tokenizer = vocabulary(name)
    special = {tokenizer.control_tokens[token] for token in tokenizer.special_tokens}
    unknown = tokenizer.control_tokens.get("<unk>")
    rows = [Instruction(asked, "", answered, "f", 1), Text(asked, "f", 2), Instruction("q", "", "a", "f", 3)]
    split = tokenize(rows, tokenizer, DATA, task="sft")
    expected = {1: 4, 2: 1, 3: 4}  # two turns with a start and an end each; the end of a text
    for row in split.rows:
        assert row.ids.shape == row.loss_mask.shape
        found = [token for token in row.ids.tolist() if token in special and token != unknown]
        assert len(found) == expected[row.line], tokenizer.decode(row.ids.tolist())
    lost = {problem.where for problem in split.report.problems if "doubled" not in problem.message}
    assert len(split.rows) + sum(where in ("f:1", "f:2") for where in lost) >= 3

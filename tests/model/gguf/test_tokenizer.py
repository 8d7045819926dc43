import json
from pathlib import Path

import gguf_writer
import pytest
import tiny
from conftest import shared
from tokenizers import Tokenizer

from mlx_finetune.errors import ModelError
from mlx_finetune.model.gguf.container import read_gguf
from mlx_finetune.model.gguf.tokenizer import write_tokenizer

VOCABULARIES = (
    "deepseek-coder",
    "deepseek-llm",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
    "starcoder",
)


def written(folder: Path, **changed: object) -> Path:
    """A GGUF file with the tiny tokenizer and a single weight; an entry changed to None is left out."""
    model = tiny.write_tiny_model(folder / "tiny", "llama")
    entries = gguf_writer.tiny_metadata(model) | {key.replace("__", "."): value for key, value in changed.items()}
    metadata = {key: value for key, value in entries.items() if value is not None}
    return gguf_writer.write_gguf(folder / "m.gguf", metadata, {})


def converted(path: Path, folder: Path) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    write_tokenizer(read_gguf(path), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.some(3)
@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_the_original_tokenizer_on_every_recorded_text(name: str, tmp_path: Path) -> None:
    path = shared("models", "gguf-vocab", f"ggml-vocab-{name}.gguf")
    texts = Path(f"{path}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(number) for number in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    tokenizer = converted(path, tmp_path)
    assert len(texts) == len(expected) == 47
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert found == expected


def test_a_vocabulary_without_a_known_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the pre-tokenizer 'missing' is not supported"):
        converted(shared("models", "gguf-vocab", "ggml-vocab-gpt-neox.gguf"), tmp_path)


def test_control_tokens_template_and_ends_come_from_the_file(tmp_path: Path) -> None:
    tokenizer = converted(written(tmp_path), tmp_path / "out")
    assert tokenizer.encode("<|im_start|>user").ids == tiny.make_tokenizer().encode("<|im_start|>user").ids
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert config["chat_template"] == tiny.CHATML
    assert config["add_bos_token"] is False
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    assert special == list(tiny.SPECIAL_TOKENS)


def test_a_beginning_token_is_put_in_front_only_where_the_file_asks_for_it(tmp_path: Path) -> None:
    tokenizer = converted(written(tmp_path, tokenizer__ggml__add_bos_token=True), tmp_path / "out")
    assert tokenizer.encode(" the").ids == [1, 261]
    assert tokenizer.encode(" the", add_special_tokens=False).ids == [261]


@pytest.mark.parametrize("text", ["Hello  world\n\n\tx", "\u00e4\u4e2d\U0001f600 e\u0301", " leading", ""])
def test_text_comes_back_from_its_ids(text: str, tmp_path: Path) -> None:
    tokenizer = converted(written(tmp_path), tmp_path / "out")
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"tokenizer__ggml__model": "rwkv"}, "tokenizer type 'rwkv' is not supported"),
        ({"tokenizer__ggml__pre": "viking"}, "pre-tokenizer 'viking' is not supported"),
        ({"tokenizer__ggml__tokens": None}, "has no list of texts `tokenizer.ggml.tokens`"),
        ({"tokenizer__ggml__token_type": [1, 2]}, "does not have one number for each"),
        ({"tokenizer__ggml__token_type": [0.5] * 299}, "does not have one number for each"),
        ({"tokenizer__ggml__model": "llama"}, "without a score for each"),
        ({"tokenizer__ggml__model": "llama", "tokenizer__ggml__scores": [1] * 299}, "without a score for each"),
        ({"tokenizer__ggml__merges": ["a b c"]}, "is not a merge of two pieces"),
        ({"tokenizer__ggml__merges": ["q qqq"]}, "does not fit together"),
        ({"tokenizer__ggml__tokens": ["a", "a"], "tokenizer__ggml__token_type": [1, 1]}, "occur twice"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(changed: dict[str, object], what: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=what):
        converted(written(tmp_path, **changed), tmp_path / "out")


def test_token_ids_beyond_the_vocabulary_are_not_used(tmp_path: Path) -> None:
    converted(written(tmp_path, tokenizer__ggml__eos_token_id=10**6), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert "eos_token" not in config

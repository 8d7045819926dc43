"""A long text as rows: no token lost or learned twice, the end of text once, at its end."""

from pathlib import Path

from tiny import write_tiny_model

from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.explain import explain
from mlx_finetune.dataset.template import tokenize
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.data import DataRecipe


def test_every_token_of_a_long_file_is_learned_exactly_once(tmp_path: Path) -> None:
    text = "".join(f"Speech {number}.\n" + "the king and the queen are here " * 30 + "\n\n" for number in range(30))
    (tmp_path / "book.txt").write_text(text)
    tokenizer = load_tokenizer(write_tiny_model(tmp_path / "m", "llama", chat_template=False))
    data = DataRecipe.model_validate(
        {"path": "book.txt", "documents": "file", "truncation": "split", "max_seq_length": 33, "val_split": 0.0,
         "test_split": 0.0}
    )  # fmt: skip
    splits = load_splits(data, base=tmp_path)
    assert len(splits.train) > 3
    rows = list(tokenize(splits.train, tokenizer, data, task="pretrain").rows)
    learned = [int(token) for row in rows for token, is_target in zip(row.ids, row.loss_mask, strict=True) if is_target]
    whole = [tokenizer.encode(str(one.text)).ids for one in splits.train]  # pyright: ignore[reportAttributeAccessIssue]
    expected = [token for ids in whole for token in ids[1:]] + [tokenizer.eos_token_id]  # the first have nothing before
    assert learned == expected
    assert tokenizer.decode([token for ids in whole for token in ids]) == text
    assert max(len(row.ids) for row in rows) == 33


def test_paragraphs_are_documents_unless_the_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("one\n\ntwo\n\nthree\n")
    sides = {"val_split": 0.0, "test_split": 0.0}
    paragraphs = load_splits(DataRecipe.model_validate({"path": "book.txt", **sides}), base=tmp_path)
    assert len(paragraphs.train) == 3
    whole = load_splits(DataRecipe.model_validate({"path": "book.txt", "documents": "file", **sides}), base=tmp_path)
    assert len(whole.train) == 1


def test_a_stretch_that_goes_on_is_explained_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("the king is here\n" * 600)
    tokenizer = load_tokenizer(write_tiny_model(tmp_path / "m", "llama", chat_template=False))
    data = DataRecipe.model_validate({"path": "book.txt", "documents": "file", "val_split": 0.0, "test_split": 0.0})
    examples = load_splits(data, base=tmp_path).train
    rows = list(explain(examples, tokenizer, data, task="pretrain", base=tmp_path))
    assert len(rows) == 2
    assert [row.tokens[-1].id == tokenizer.eos_token_id for row in rows] == [False, True]
    assert "".join(token.text for row in rows for token in row.tokens) == "the king is here\n" * 600 + "<|endoftext|>"

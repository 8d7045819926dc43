"""The text of each token, also where a character is several of them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from mlx_finetune.dataset.token_texts import token_texts


class ByteTokens:
    """One token for each byte, as in the tail of a byte-level vocabulary."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        del skip_special_tokens
        return bytes(ids).decode("utf-8", "replace")


class PieceTokens:
    """SentencePiece's pieces: a blank is part of a piece, and the first one loses it; unknown characters are bytes."""

    def __init__(self) -> None:
        vocabulary = ["<unk>", "\u2581Hi", "\u2581you", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
        self.vocabulary = vocabulary
        self._backend = Backend(models.BPE({piece: n for n, piece in enumerate(vocabulary)}, [], byte_fallback=True))
        self._backend.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )

    def ids(self, *pieces: str | bytes) -> list[int]:
        """Of pieces, and of bytes one by one."""
        found: list[int] = []
        for piece in pieces:
            names = [piece] if isinstance(piece, str) else [f"<0x{byte:02X}>" for byte in piece]
            found += [self.vocabulary.index(name) for name in names]
        return found

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)


def _of_bytes(text: bytes) -> list[str]:
    return token_texts(list(text), ByteTokens())  # pyright: ignore[reportArgumentType]


def test_a_character_stands_with_its_first_token():
    assert _of_bytes("a\u00e9b".encode()) == ["a", "\u00e9", "", "b"]
    assert _of_bytes("\U0001f600!".encode()) == ["\U0001f600", "", "", "", "!"]
    assert _of_bytes("\u00e9\U0001f600".encode()) == ["\u00e9", "", "\U0001f600", "", "", ""]


def test_bytes_that_are_no_character_stay_visible():
    assert "".join(_of_bytes(b"a\xff\xffb")) == "a\ufffd\ufffdb"
    assert _of_bytes(b"a\xf0\x9f")[0] == "a"
    assert "\ufffd" in "".join(_of_bytes(b"a\xf0\x9f"))


def test_pieces_keep_their_blanks_and_bytes_become_their_character():
    tokens = PieceTokens()
    ids = tokens.ids("\u2581Hi", "\u2581you", "\U0001f600".encode(), "a", "\u2581you", "\u00e9".encode())
    texts = token_texts(ids, tokens)  # pyright: ignore[reportArgumentType]
    assert texts == ["Hi", " you", "\U0001f600", "", "", "", "a", " you", "\u00e9", ""]


def test_nothing_has_no_texts():
    assert _of_bytes(b"") == []


@given(st.text(max_size=12))
def test_the_texts_joined_are_the_row(text: str):
    content = text.encode("utf-8", "replace")
    texts = _of_bytes(content)
    assert len(texts) == len(content)
    assert "".join(texts) == content.decode("utf-8")


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_row_that_begins_inside_a_character_is_whole_all_the_same(cut: int):
    content = "x\U0001f600y\u00e9zzz".encode()[cut:]
    assert "".join(_of_bytes(content)).lstrip("\ufffd") == content.decode("utf-8", "ignore")

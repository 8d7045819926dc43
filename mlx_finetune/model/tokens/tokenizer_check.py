"""``tokenizer.json`` from a stranger: read by the Rust library, with what it may do to a text bounded.

The library panics on some files and texts, pads and cuts where the file says so, and replaces one letter by a million.
Here a panic is a ``ModelError``, padding, cutting and dropout are switched off, texts in the file are bounded, and a
hundred probes are encoded once: 5 ms. A regular expression that goes wild is ended by Oniguruma after 0.1 s; the probes
find those that do so on repeated letters, others are refused at the text they meet. Reading takes about twelve times
the memory of the file, hence the limit; the largest real ones have 35 MB.
"""

import json
import os
import string
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from mlx_finetune.errors import DataError, MlxftError, ModelError

MAX_TOKENIZER_BYTES = 64_000_000
_MAX_PART_CHARACTERS = 100_000  # of the parts around the vocabulary; SentencePiece's table of characters not counted
_MAX_TEXT_CHARACTERS = 100
_MAX_GROWTH = 1_000
_MAX_ID = 10_000_000
_IDS_PER_CHARACTER, _MORE_IDS = 4, 64
_AGAIN = "fetch the model again, or use another copy of it"


def read_tokenizer(path: Path) -> FastTokenizer:
    """The tokenizer in one file, checked. Raises ``ModelError`` naming the file."""
    check_size(path)
    with _library_errors(f"{path}: not a tokenizer that can be read", ModelError), _quiet():
        backend = FastTokenizer.from_file(str(path))
    check_tokenizer(backend, path)
    return backend


def check_size(path: Path) -> None:
    """Raise ``ModelError`` for a tokenizer file that is larger than any real one."""
    size = path.stat().st_size if path.is_file() else 0
    if size > MAX_TOKENIZER_BYTES:
        raise ModelError(f"{path} has {size:,} bytes, more than any real tokenizer", _AGAIN)


def check_tokenizer(backend: FastTokenizer, path: Path) -> None:
    """Switch off what changes texts, and try the tokenizer. Raises ``ModelError`` naming ``path``."""
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None  # drawn anew for every text: no two runs would read the same rows
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(backend, name)
        if part is not None:
            _check_part(path, name, json.loads(part.__getstate__()))
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=0)
    with _library_errors(f"{path}: not a tokenizer that can be used", ModelError), _quiet():
        for text in _probes():
            ids = backend.encode(text, add_special_tokens=True).ids
            if len(ids) > _IDS_PER_CHARACTER * len(text) + _MORE_IDS:
                raise ModelError(f"{path}: the tokenizer makes {len(ids)} tokens of {len(text)} characters", _AGAIN)
            largest = max(largest, *ids, 0)
            backend.decode(ids)
    if largest > _MAX_ID:
        raise ModelError(f"{path}: the tokenizer has the token id {largest}, more than any model has", _AGAIN)


@contextmanager
def reading_text() -> Generator[None]:
    """Errors of the library inside the block become a ``DataError`` about the text that is read."""
    with _library_errors("the tokenizer cannot read this text", DataError):
        yield


@contextmanager
def _library_errors(message: str, kind: type[MlxftError]) -> Generator[None]:
    """Whatever the Rust library raises, its panics included, as ``kind``."""
    try:
        yield
    except MlxftError:
        raise
    except BaseException as error:  # the library raises plain Exception, and PanicException, which is not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:300]
        raise kind(f"{message}: {said}", _AGAIN if kind is ModelError else "") from error


@contextmanager
def _quiet() -> Generator[None]:
    """Without what a panic writes to stderr before Python sees it."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _probes() -> Iterator[str]:
    yield "The quick brown fox, 1234 times, jumps over the lazy dog's back. Füße, 你好, \U0001f600\n\n  end"
    for letter in string.printable:
        yield letter * 64 + "\x01"


def _check_part(path: Path, name: str, state: object) -> None:
    """Refuse a normalizer, decoder and so on with long texts in it, or one that can make a text grow a lot."""
    texts = [(key, text) for key, text in _texts(state) if key != "precompiled_charsmap"]
    if sum(len(text) for _, text in texts) > _MAX_PART_CHARACTERS:
        raise ModelError(f"{path}: the {name} holds more text than any real one", _AGAIN)
    growth = 1
    for key, text in texts:
        if key in ("content", "prepend", "replacement"):
            if len(text) > _MAX_TEXT_CHARACTERS:
                raise ModelError(f"{path}: the {name} puts {len(text):,} characters in the place of others", _AGAIN)
            growth *= max(1, len(text))
    if growth > _MAX_GROWTH:
        raise ModelError(f"{path}: the {name} can make a text {growth:.3g} times as long", _AGAIN)


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with the key it stands under."""
    stack = [(key, value)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            stack += [(str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            stack += [(key, item) for item in value]

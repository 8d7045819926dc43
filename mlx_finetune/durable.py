"""Writes that survive a crash: a file is whole or absent, its bytes are on the disk, and no link is written through.

Everything a run keeps goes through here, so that there is one place that retries, flushes and reads back. The price of
``write_new`` is a second pass over the bytes: 0.7 s for 1 GB (2-core x86, 2026).
"""

import fcntl
import hashlib
import json
import os
import stat
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EIO, ELOOP, EMLINK, ENOLCK, ENOTSUP, ENXIO
from pathlib import Path
from typing import cast

from mlx_finetune.errors import RunError

Chunk = bytes | memoryview

_CHUNK_BYTES = 1 << 20
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Written:
    """Size and SHA-256 (hex) of a file that was written."""

    num_bytes: int
    sha256: str


def write_new(path: Path, chunks: Iterable[Chunk]) -> Written:
    """Make ``path`` of ``chunks``, flush it to the disk and read it back. Raises ``OSError``, also where it exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS, 0o644)
    digest, num_bytes = hashlib.sha256(), 0
    with naming(path):
        try:
            for chunk in _joined(chunks):
                num_bytes += write_all(descriptor, chunk)
                digest.update(chunk)
            sync_file(descriptor)
        finally:
            os.close(descriptor)
    written = Written(num_bytes, digest.hexdigest())
    if hash_file(path) != written.sha256:
        raise OSError(EIO, "what was written reads back differently", str(path))
    return written


def _joined(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same bytes in fewer pieces: small ones together, large ones as they are."""
    small = bytearray()
    for chunk in chunks:
        if len(chunk) < _CHUNK_BYTES:
            small += chunk
            if len(small) < _CHUNK_BYTES:
                continue
            chunk = b""
        if small:
            yield bytes(small)
            small.clear()
        if chunk:
            yield chunk
    if small:
        yield bytes(small)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Inside, an ``OSError`` of a call that knows no path says ``path``, so that a full disk can be named."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_all(descriptor: int, content: Chunk) -> int:
    """Write all of ``content``, however little the system takes at a time; returns its bytes. Raises ``OSError``."""
    octets = memoryview(content)
    assert octets.itemsize == 1, "positions are bytes"
    done = 0
    while done < len(octets):
        done += os.write(descriptor, octets[done:])
    return done


def replace_file(path: Path, chunks: Iterable[Chunk]) -> None:
    """Put ``chunks`` in the place of ``path``, whole or not at all; a link at ``path`` is replaced, not followed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        write_new(part, chunks)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """``replace_file`` for UTF-8 text."""
    replace_file(path, [text.encode("utf-8")])


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """``replace_file`` for one JSON object."""
    replace_file(path, [encode_json(value)])


def encode_json(value: Mapping[str, object]) -> bytes:
    """One JSON object: sorted keys, two spaces, a last newline, no NaN."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty where it holds another value. Raises ``RunError`` where it cannot be read."""
    try:
        value: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def read_object_if_any(path: Path) -> dict[str, object]:
    """The same; empty also where there is no such file, or none that can be read."""
    try:
        return read_object(path)
    except RunError:
        return {}


def copy_file(source: Path, target: Path) -> None:
    """Replace ``target`` by a copy of ``source``, whole or not at all, a piece at a time."""
    with source.open("rb") as file:
        replace_file(target, iter(lambda: file.read(_CHUNK_BYTES), b""))


def append(path: Path, descriptor: int, content: bytes) -> None:
    """Add ``content`` to the end of the file that ``open_append`` opened. Raises ``OSError`` that names ``path``."""
    with naming(path):
        write_all(descriptor, content)


def append_line(path: Path, line: bytes) -> None:
    """Add ``line``, which ends in a newline, to a file that several processes add to; it is on the disk afterwards.

    What somebody left without a newline at the end is ended first, not cut: a person's line, or the piece of a process
    that was killed as it wrote. Where the disk takes only a part, that part is taken away again. Raises as
    ``open_append`` does.
    """
    assert line.endswith(b"\n")
    descriptor, is_new = _open_locked(path)
    try:
        num_bytes = os.fstat(descriptor).st_size
        if num_bytes and os.pread(descriptor, 1, num_bytes - 1) != b"\n":
            line = b"\n" + line
        try:
            append(path, descriptor, line)
            with naming(path):
                sync_file(descriptor)
        except BaseException:
            with suppress(OSError):
                cut(path, descriptor, num_bytes)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        sync_folder(path.parent)


def _open_locked(path: Path) -> tuple[int, bool]:
    """The file, made where it is missing, that nobody else adds to meanwhile; was it made?"""
    while True:
        is_new = not path.exists()
        descriptor = _open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            _lock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else it was removed before the lock was ours
                return descriptor, is_new
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def count_bytes(path: Path) -> int:
    """Bytes of a file of ``append_line`` when nobody is adding a line; 0 where it is missing. Raises ``OSError``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        _lock(descriptor, fcntl.LOCK_SH)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    """Wait for a lock that is held for milliseconds. A file system without locks has one writer, or whole appends."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in (ENOLCK, ENOTSUP):
            raise


def cut(path: Path, descriptor: int, num_bytes: int) -> None:
    """Leave the first ``num_bytes`` of the file that is open at ``path``. Raises ``OSError`` that names ``path``."""
    with naming(path):
        os.ftruncate(descriptor, num_bytes)


def make_folder(path: Path) -> None:
    """Make ``path`` and the folders above it where they are missing, so that their names survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def open_append(path: Path) -> int:
    """A descriptor that appends to ``path``, which is made where it is missing.

    Raises ``RunError`` where ``path`` is a link or not a regular file, ``OSError`` for what the disk refuses.
    """
    return _open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def open_update(path: Path) -> int:
    """A descriptor that reads and writes ``path``, which must be there; raises as ``open_append`` does."""
    return _open_own(path, os.O_RDWR)


def open_lock(path: Path) -> int:
    """A descriptor for a lock file, which is made where it is missing; raises as ``open_append`` does."""
    return _open_own(path, os.O_RDWR | os.O_CREAT)


def _open_own(path: Path, flags: int) -> int:
    refusal = RunError(f"{path} is a link or no regular file; a run writes only to files of its own", f"remove {path}")
    try:
        descriptor = os.open(path, flags | _NO_LINKS | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (ELOOP, EMLINK) or (error.errno == ENXIO and path.exists()):  # ENXIO: a pipe nobody reads
            raise refusal from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal
    return descriptor


def sync_file(descriptor: int) -> None:
    """Flush one open file or folder to the disk itself; on macOS that takes F_FULLFSYNC (MACOS.md, fsync(2)).

    Volumes that do not know that call (network, some external disks) are flushed as far as fsync does.
    """
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (ENOTSUP, ENXIO):
                raise
    os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """Flush a file that somebody else has written; nothing where it is missing."""
    with suppress(FileNotFoundError):
        _sync(path, _NO_LINKS)


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder``, so that a rename survives a power cut."""
    _sync(folder, os.O_CLOEXEC)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    with naming(path):
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a file, a link (not what it names) or a folder with everything in it, as far as that goes."""
    import shutil  # the imports of this module are paid by every help page (benchmarks/help_cost.py)

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces; 1.5 GB a second."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

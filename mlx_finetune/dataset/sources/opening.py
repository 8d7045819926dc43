"""Opening a data file safely and cutting it into lines.

Only ordinary files are opened (a FIFO would wait for ever, a device never ends). A .gz file may unpack to at most 200
times its size once it has passed 100 MB, and no line may be longer than 64 MB: memory stays bounded whatever arrives.
"""

import gzip
import io
import stat
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from mlx_finetune.errors import Problem
from mlx_finetune.units import format_bytes

MAX_LINE_BYTES = 64 * 10**6
MAX_UNPACKED_RATIO = 200
UNPACKED_FREE_BYTES = 100 * 10**6
BUFFER_BYTES = 1 << 20

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class FileProblem(Exception):
    """A whole file cannot be read (further); ``line`` is 0 where no line is to blame."""

    def __init__(self, message: str, hint: str = "", *, line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line


class _GuardedGzip(io.RawIOBase):
    """Unpacked bytes of a .gz file; raises ``FileProblem`` for damage and for bombs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._packed_bytes = path.stat().st_size
        self._file = gzip.open(path, "rb")  # noqa: SIM115  closed by close()
        self._unpacked_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._unpacked_bytes = 0
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            count = self._file.readinto(buffer)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FileProblem(f"the .gz file is damaged: {error}", "fetch or pack it again") from None
        self._unpacked_bytes += count
        limit = max(UNPACKED_FREE_BYTES, MAX_UNPACKED_RATIO * self._packed_bytes)
        if self._unpacked_bytes > limit:
            raise FileProblem(
                f"unpacks to more than {MAX_UNPACKED_RATIO} times its {format_bytes(self._packed_bytes)}",
                "this is not how text packs; unpack it yourself and look inside",
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def open_bytes(path: Path) -> Generator[BinaryIO]:
    """The unpacked bytes of an ordinary file, buffered and seekable. Raises ``FileProblem`` for everything else."""
    refuse_special(path)
    name = path.name.lower()
    if name.endswith(_ARCHIVES):
        raise FileProblem("is an archive, which is not opened", "unpack it and name the file inside")
    try:
        raw = _GuardedGzip(path) if name.endswith(".gz") else path.open("rb", buffering=0)
    except OSError as error:
        raise FileProblem(f"cannot be opened: {error.strerror}") from None
    stream = io.BufferedReader(cast(io.RawIOBase, raw), BUFFER_BYTES)
    with stream:
        try:
            yield cast(BinaryIO, stream)
        except OSError as error:
            raise FileProblem(f"cannot be read: {error.strerror or error}") from None


def refuse_special(path: Path) -> None:
    """Raise ``FileProblem`` unless ``path`` is an ordinary file (a link to one will do)."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileProblem("no such file", _near_names(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileProblem(f"cannot be opened: {reason}") from None
    if stat.S_ISDIR(mode):
        raise FileProblem("is a folder, not a file", "name a file inside it")
    if not stat.S_ISREG(mode):
        what = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise FileProblem(f"is {what}, not a file", "write the rows to a file first")


def _near_names(path: Path) -> str:
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return "the folder does not exist either"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.8)
    return f"there is {', '.join(near)} in that folder" if near else ""


def read_lines(stream: BinaryIO, source: str, report: Callable[[Problem], None]) -> Iterator[tuple[int, bytes]]:
    """``(line number, bytes)`` of every line, its newline included; lines over 64 MB are reported and left out.

    The byte-order mark of UTF-8 is taken off. Raises ``FileProblem`` for UTF-16.
    """
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        if number == 1:
            refuse_utf16(line)
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            length = len(line)
            while part := stream.readline(BUFFER_BYTES):
                length += len(part)
                if part.endswith(b"\n"):
                    break
            message = f"the line has {format_bytes(length)}; the limit is {format_bytes(MAX_LINE_BYTES)}"
            report(Problem(f"{source}:{number}", message, "one row on each line"))
            continue
        yield number, line


def refuse_utf16(head: bytes) -> None:
    """Raise ``FileProblem`` where the first bytes are the mark of UTF-16."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileProblem("the file is UTF-16", "save it as UTF-8", line=1)

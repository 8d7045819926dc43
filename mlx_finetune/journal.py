"""The journal of a run: an append-only JSON Lines file of events, the only link from training to whoever watches.

One event is one line and one write; a torn last line is skipped by every reader. Reading needs nothing but this module
and ``events``. What of it a person looks for afterwards stands in log.txt as well (``events_log``).
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from mlx_finetune import durable
from mlx_finetune.events import CheckpointSaved, Event, Record, Resources, from_json, to_json
from mlx_finetune.events_log import log_text
from mlx_finetune.rundir import EVENTS, RunDir, of_other_step, weights_step

_RESOURCES = f'{{"kind": "{Resources.kind}"'.encode()
_CHECKPOINT = f'{{"kind": "{CheckpointSaved.kind}"'.encode()
#: The step of a result that was kept before its step was noted.
NOT_NOTED = -1


class EventWriter:
    """Appends events to one file; every event is one unbuffered write.

    A line that was torn, by a full disk or a process that died, is ended before the next one begins. ``log`` gets the
    time-stamped lines of what belongs into log.txt, a whole number of them with their ends.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float], log: Callable[[str], None] = lambda _: None) -> None:
        self._clock = clock
        self._log = log
        self._path = path
        self._descriptor = durable.open_append(path)
        self._is_torn = not _ends_a_line(path)

    def __call__(self, event: Event) -> None:
        """Report ``event`` now."""
        now = self._clock()
        line = to_json(event, now).encode("utf-8") + b"\n"
        line, self._is_torn = b"\n" * self._is_torn + line, True
        durable.append(self._path, self._descriptor, line)
        self._is_torn = False
        if text := log_text(event, now):
            self._log(text)

    def sync(self) -> None:
        """Flush to the disk what was reported. Raises ``OSError`` that names the file."""
        with durable.naming(self._path):
            durable.sync_file(self._descriptor)

    def close(self) -> None:
        """No more events follow."""
        os.close(self._descriptor)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_events(path: Path) -> Iterator[Record]:
    """All events of a journal in order; torn or unknown lines are left out. Empty where there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for index, line in enumerate(file):
            record = from_json(line, index)
            if record is not None:
                yield record


def read_resources(path: Path) -> list[Resources]:
    """What the machine did, from a whole journal whose other lines are only passed over; empty without a file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        found = (from_json(line) for line in file if line.startswith(_RESOURCES))
        return [record.event for record in found if record is not None and isinstance(record.event, Resources)]


def of_other_weights(run: RunDir, step: int | None, *, measured: str, subject: str) -> str:
    """What ``of_other_step`` says of a result that ``run`` keeps of its weights; "" where it is of those there are.

    Of a step that was ``NOT_NOTED`` it is asked whether the run has saved weights since it was ``measured`` (a time in
    ISO format). A checkpoint that was named as the ``subject`` stays what it is.
    """
    if step != NOT_NOTED:
        return of_other_step(step, weights_step(run))
    if Path(subject).name.startswith("checkpoint-"):
        return ""
    try:
        moment = datetime.fromisoformat(measured).timestamp() + 1  # whole seconds are noted
    except ValueError:
        return ""
    is_older = any(record.time > moment for record in _read_checkpoints(run.file(EVENTS)))
    return "from before the run was trained further" if is_older else ""


def _read_checkpoints(path: Path) -> Iterator[Record]:
    if path.is_file():
        with path.open("rb") as file:
            found = (from_json(line) for line in file if line.startswith(_CHECKPOINT))
            yield from (record for record in found if record is not None)


class EventFollower:
    """Reads a journal that grows: each call of ``poll`` yields the whole lines that were added since the last.

    A resumed run first cuts the journal back to its checkpoint and goes on from there; then the lines from the first
    that differs are new. Costs a hash for each line.
    """

    def __init__(
        self, path: Path, *, from_end: bool = False, decode: Callable[[str | bytes], Any] = json.loads
    ) -> None:
        """``from_end`` leaves out what is there now, for good; ``decode`` as in ``events.from_json``."""
        self._path = path
        self._decode = decode
        self._lines: list[int] = []  # hashes of the lines up to _offset
        self._offset = 0
        self._last = b""  # the line that ends at _offset
        self._stamp: tuple[int, int] | None = None
        self._left_out: Sequence[int] = ()
        if from_end:
            for _ in self.poll():
                pass
            self._left_out = tuple(self._lines)

    def poll(self) -> Iterator[Record]:
        """New events, in order; nothing where the file does not exist yet or did not change."""
        try:
            status = self._path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if stamp == self._stamp:
                return
            with self._path.open("rb") as file:  # which may be removed meanwhile
                self._go_back(file)
                *lines, _ = file.read().split(b"\n")  # a torn last line is read again once it is whole
        except (FileNotFoundError, NotADirectoryError):
            return
        for line in lines:
            self._last = line + b"\n"
            self._offset += len(self._last)
            self._lines.append(hash(self._last))
            number = len(self._lines) - 1
            if self._lines[-1:] == list(self._left_out[number : number + 1]):
                continue
            record = from_json(line, number, decode=self._decode)
            if record is not None:
                yield record
        self._stamp = stamp

    def _go_back(self, file: BinaryIO) -> None:
        """Stand at the end of what was read before, or after the last line of it that is still in the file."""
        file.seek(self._offset - len(self._last))
        if file.read(len(self._last)) == self._last:
            return
        file.seek(0)
        self._offset, self._last = 0, b""
        for count, known in enumerate(self._lines):
            line = file.readline()
            if hash(line) != known:
                del self._lines[count:]
                break
            self._offset, self._last = self._offset + len(line), line
        file.seek(self._offset)

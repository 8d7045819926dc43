"""A model of a disk that loses power: what was done under a folder, and every state a crash may leave of it.

``record`` runs code for real while the functions of ``os`` that change files or names write down what they do. The
rules of the model are those of POSIX and no more: bytes of a file are safe once the file was flushed, a name is safe
once its folder was; until then each change of a name may be kept or lost by itself, except that one is not kept without
an earlier change of the same name; a rename within a folder is one change; unflushed bytes may be absent, cut anywhere,
zero, garbage, or there without earlier ones.
"""

import itertools
import os
import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = 0
SECTOR_BYTES = 512
CUT_BYTES = 37  # unflushed bytes are cut at each multiple: every border of a sector would be too tidy
Tree = dict[str, bytes | None]  # path -> bytes of a file, None for a folder


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one folder change together: to a node, or to nothing."""

    folder: int
    changes: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes go into a file at a position; ``content`` None cuts the file there instead."""

    file: int
    position: int
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Sync:
    """A file or folder is flushed."""

    node: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Something was promised at this point."""

    label: str


Operation = Names | Write | Sync | Mark


@dataclass(slots=True)
class Disk:
    """Files and folders by number: what is safe of each, and what was done since it was flushed last."""

    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    pending: dict[int, list[Any]] = field(default_factory=dict)

    def copy(self) -> "Disk":
        return Disk({node: dict(names) for node, names in self.folders.items()}, dict(self.files))

    def do(self, operation: Operation) -> None:
        """Take one operation in, unflushed; a flush makes what was pending safe."""
        if isinstance(operation, Names):
            self.pending.setdefault(operation.folder, []).append(operation.changes)
        elif isinstance(operation, Write):
            self.pending.setdefault(operation.file, []).append(operation)
        elif isinstance(operation, Sync):
            pending = self.pending.pop(operation.node, [])
            if operation.node in self.folders:
                self.folders[operation.node] = apply_names(self.folders[operation.node], pending)
            else:
                self.files[operation.node] = apply_writes(self.files[operation.node], pending)

    def crash(self, limit: int, chance: random.Random) -> Iterator[Tree]:
        """States that a crash may leave now: all of them where they are at most ``limit``, else that many drawn."""
        choices = {
            node: _name_states(self.folders[node], pending)
            if node in self.folders
            else _file_states(self.files[node], tuple(pending))
            for node, pending in self.pending.items()
        }
        total = 1
        for states in choices.values():
            total *= len(states)
        if total <= limit:
            drawn: Iterator[Sequence[Any]] = itertools.product(*choices.values())
        else:
            ends = ([states[0] for states in choices.values()], [states[-1] for states in choices.values()])
            more = ([chance.choice(states) for states in choices.values()] for _ in range(limit - 2))
            drawn = itertools.chain(ends, more)
        for chosen in drawn:
            yield self.tree(dict(zip(choices, chosen, strict=True)))

    def tree(self, chosen: Mapping[int, Any]) -> Tree:
        """Everything that is reachable from the root, with the ``chosen`` states of unflushed nodes."""
        found: Tree = {}
        waiting = [("", ROOT)]
        while waiting:
            path, node = waiting.pop()
            if node in self.files:
                found[path] = chosen.get(node, self.files[node])
                continue
            if path:
                found[path] = None
            names = chosen.get(node, self.folders[node])
            waiting += [(f"{path}/{name}" if path else name, child) for name, child in names.items()]
        return found

    def latest(self) -> Tree:
        """Everything as it is while the power stays on."""
        last = {n: apply_names(names, self.pending.get(n, ())) for n, names in self.folders.items()}
        return self.tree(last | {n: apply_writes(data, self.pending.get(n, ())) for n, data in self.files.items()})


def apply_names(names: Mapping[str, int], pending: Sequence[Mapping[str, int | None]]) -> dict[str, int]:
    """The names of a folder after some changes."""
    after: dict[str, int | None] = dict(names)
    for changes in pending:
        after |= changes
    return {name: node for name, node in after.items() if node is not None}


def apply_writes(content: bytes, writes: Sequence[Write]) -> bytes:
    """The bytes of a file after some writes; what lies between them and was never written is zero."""
    data = bytearray(content)
    for write in writes:
        if write.content is None:
            del data[write.position :]
        data.extend(bytes(max(0, write.position - len(data))))
        data[write.position : write.position + len(write.content or b"")] = write.content or b""
    return bytes(data)


def _name_states(names: dict[str, int], pending: Sequence[Mapping[str, int | None]]) -> list[dict[str, int]]:
    """What may be left of a folder's names: every choice of changes that leaves out no earlier one of the same name."""
    found: list[dict[str, int]] = []
    chance = random.Random(len(pending))
    every = itertools.product((False, True), repeat=len(pending))
    some = ([chance.random() < share for _ in pending] for share in (0.2, 0.5, 0.8) for _ in range(100))
    ends = ([False] * len(pending), [True] * len(pending))
    for kept in every if len(pending) <= 8 else itertools.chain(ends[:1], some, ends[1:]):
        lost: set[str] = set()
        chosen: list[Mapping[str, int | None]] = []
        for changes, is_kept in zip(pending, kept, strict=True):
            if is_kept and not lost & changes.keys():
                chosen.append(changes)
            else:
                lost |= changes.keys()
        state = apply_names(names, chosen)
        if state not in found:
            found.append(state)
    return found


def _file_states(content: bytes, writes: tuple[Write, ...]) -> list[bytes]:
    """What may be left of a file: cut anywhere, without one of the writes, with some sectors only, garbage, everything.

    The first state is that of nothing kept, the last that of everything.
    """
    whole = apply_writes(content, writes)
    found = [whole[:cut] for cut in range(len(content), len(whole), CUT_BYTES)]
    found += [apply_writes(content, writes[:index]) for index in range(len(writes))]
    found += [apply_writes(content, writes[:index] + writes[index + 1 :]) for index in range(len(writes))]
    sectors = range(0, len(whole), SECTOR_BYTES)
    for kept in itertools.islice(itertools.product((False, True), repeat=len(sectors)), 64):
        found.append(b"".join(_sector(content, whole, at, is_new) for at, is_new in zip(sectors, kept, strict=True)))
    garbage = random.Random(len(whole)).randbytes(len(whole))
    found.append(whole[: len(content)] + garbage[len(content) :])
    return [content, *dict.fromkeys(state for state in found if state not in (content, whole)), whole]


def _sector(content: bytes, whole: bytes, start: int, is_new: bool) -> bytes:
    """One sector as it is after all writes, or as it was: zero where the file did not reach."""
    new = whole[start : start + SECTOR_BYTES]
    return new if is_new else content[start : start + len(new)].ljust(len(new), b"\0")


@dataclass(slots=True)
class Recording:
    """The disk before, and what was done to it in order."""

    before: Disk
    operations: list[Operation] = field(default_factory=list)

    def mark(self, label: str) -> None:
        self.operations.append(Mark(label))

    def latest(self) -> Tree:
        """The folder after all operations."""
        disk = self.before.copy()
        for operation in self.operations:
            disk.do(operation)
        return disk.latest()

    def states(self, *, limit: int, seed: int = 0) -> Iterator[tuple[frozenset[str], Tree]]:
        """Each state once that a crash after any operation may leave, with the labels that were marked before it."""
        disk, chance = self.before.copy(), random.Random(seed)
        marks: frozenset[str] = frozenset()
        seen: set[tuple[frozenset[str], frozenset[tuple[str, bytes | None]]]] = set()
        for operation in (Mark(""), *self.operations):
            disk.do(operation)
            marks |= {operation.label} if isinstance(operation, Mark) else set()
            for tree in disk.crash(limit, chance):
                key = marks, frozenset(tree.items())
                if key not in seen:
                    seen.add(key)
                    yield marks, tree


def read_disk(root: Path) -> Tree:
    """The real files and folders under ``root``."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


class _Recorder:
    """Stands between the code and ``os``: does what it is asked to and writes it down."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptors: dict[int, tuple[int, int]] = {}  # descriptor -> node, position
        self._count = itertools.count(1)
        before = Disk({ROOT: {}})
        for name, content in read_disk(root).items():
            parent, _, last = name.rpartition("/")
            folder = self._walk(before.folders, parent)
            node = before.folders[folder][last] = next(self._count)
            if content is None:
                before.folders[node] = {}
            else:
                before.files[node] = content
        self.recording = Recording(before)
        self._names = before.copy().folders  # as they are while the power stays on

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Replacements by name."""
        return {
            "open": self._open,
            "write": self._write,
            "close": self._close,
            "ftruncate": self._ftruncate,
            "fsync": self._sync(os.fsync),
            "fdatasync": self._sync(os.fdatasync),
            "mkdir": self._mkdir,
            "rename": self._rename(os.rename),
            "replace": self._rename(os.replace),
            "unlink": self._remove(os.unlink),
            "remove": self._remove(os.remove),
            "rmdir": self._remove(os.rmdir),
        }

    @staticmethod
    def _walk(folders: Mapping[int, Mapping[str, int]], path: str) -> int:
        node = ROOT
        for part in path.split("/") if path else ():
            node = folders[node][part]
        return node

    def _find(self, path: Any, folder: int | None = None) -> tuple[int, str] | None:
        """Folder and last name of a path under the root, None elsewhere; the root itself has an empty name."""
        if folder is not None and not os.path.isabs(path):
            return (self._descriptors[folder][0], os.fsdecode(path)) if folder in self._descriptors else None
        try:
            parts = Path(os.fsdecode(path)).relative_to(self._root).parts
        except ValueError:
            return None
        return (self._walk(self._names, "/".join(parts[:-1])), parts[-1]) if parts else (ROOT, "")

    def _change(self, folder: int, changes: Mapping[str, int | None]) -> None:
        self._names[folder] = apply_names(self._names[folder], [changes])
        self.recording.operations.append(Names(folder, changes))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = _REAL["open"](path, flags, mode, dir_fd=dir_fd)
        if (found := self._find(path, dir_fd)) is None:
            return descriptor
        folder, name = found
        node = self._names[folder].get(name) if name else ROOT
        if node is None:
            node = next(self._count)
            self.recording.before.files[node] = b""
            self._change(folder, {name: node})
        elif flags & os.O_TRUNC:
            self.recording.operations.append(Write(node, 0, None))
        size = os.fstat(descriptor).st_size if flags & os.O_APPEND else 0
        self._descriptors[descriptor] = node, size
        return descriptor

    def _write(self, descriptor: int, content: Any) -> int:
        count = _REAL["write"](descriptor, content)
        if descriptor in self._descriptors:
            node, position = self._descriptors[descriptor]
            self._descriptors[descriptor] = node, position + count
            self.recording.operations.append(Write(node, position, bytes(content[:count])))
        return count

    def _close(self, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)
        _REAL["close"](descriptor)

    def _ftruncate(self, descriptor: int, length: int) -> None:
        _REAL["ftruncate"](descriptor, length)
        if descriptor in self._descriptors:
            self.recording.operations.append(Write(self._descriptors[descriptor][0], length, None))

    def _sync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            real(descriptor)
            if descriptor in self._descriptors:
                self.recording.operations.append(Sync(self._descriptors[descriptor][0]))

        return sync

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        _REAL["mkdir"](path, mode, dir_fd=dir_fd)
        if found := self._find(path, dir_fd):
            node = next(self._count)
            self.recording.before.folders[node], self._names[node] = {}, {}
            self._change(found[0], {found[1]: node})

    def _rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, goal: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            real(source, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            old, new = self._find(source, src_dir_fd), self._find(goal, dst_dir_fd)
            if old and new:
                assert old[0] == new[0], "the model knows renames inside one folder"
                self._change(old[0], {old[1]: None, new[1]: self._names[old[0]][old[1]]})

        return rename

    def _remove(self, real: Callable[..., None]) -> Callable[..., None]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            real(path, dir_fd=dir_fd)
            if found := self._find(path, dir_fd):
                self._change(found[0], {found[1]: None})

        return remove


_REAL: dict[str, Callable[..., Any]] = {
    name: getattr(os, name) for name in ("open", "write", "close", "ftruncate", "mkdir")
}


@contextmanager
def record(root: Path) -> Generator[Recording]:
    """Record what the block does under ``root``; afterwards nothing may have gone unnoticed."""
    recorder = _Recorder(root)
    with pytest.MonkeyPatch.context() as patch:
        for name, function in recorder.functions().items():
            patch.setattr(os, name, function)
        yield recorder.recording
    assert recorder.recording.latest() == read_disk(root), "something was done that the recording does not hold"

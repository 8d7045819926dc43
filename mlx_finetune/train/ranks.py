"""The ranks of a data-parallel training: which one this is, and everything they tell each other.

The transport is ``mx.distributed``. Rank 0 decides and writes; the others compute their share of each step. Per step
the ranks sum one flat fp32 buffer (gradients, loss, counts) and exchange one block of 64 bytes a rank (signals, what
rank 0 decided). A ring sends ``2 (N - 1) / N`` times the buffer from each rank (docs/several-macs.md has the times).
A rank alone costs nothing: each function gives back what it got.

Every exchange begins with the length of what comes, or the word that a rank has given up, so that a rank that fails
is heard wherever the others wait. One that dies closes its connections, which ends the wait of its neighbours.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_finetune.errors import MlxftError, RunError
from mlx_finetune.hardware.place import Place
from mlx_finetune.train.optim import FlatArrays
from mlx_finetune.train.signals import STOP_SIGNALS

T = TypeVar("T")

CONNECT_SECONDS = 120.0  # for the slowest machine to import mlx and, on rank 0, to check the last checkpoint
KEEPALIVE_SECONDS = (30, 10, 6)  # first probe after, between probes, probes: a machine without power is missed in 90 s

_BLOCK_BYTES = 64
_INLINE_BYTES = _BLOCK_BYTES - 8


class LostRankError(RunError):
    """Another rank has ended without a word, or cannot be reached. What was computed up to the last step is good."""


class OtherRankError(RunError):
    """Another rank could not go on, and said why."""

    def __init__(self, rank: int, message: str, hint: str, exit_code: int) -> None:
        super().__init__(f"rank {rank}: {message}", hint)
        self.exit_code = exit_code


class Ranks:
    """Rank ``rank`` of ``size``. Every rank calls the same functions in the same order.

    All but ``together`` raise ``LostRankError``; ``share`` and ``gather`` also ``OtherRankError``.
    """

    def __init__(self, rank: int = 0, size: int = 1, all_sum: Callable[[mx.array], mx.array] | None = None) -> None:
        """``all_sum`` gives the sum of an array over all ranks, evaluated; it raises ``RuntimeError`` without them."""
        self.rank = rank
        self.size = size
        self._all_sum = all_sum

    def reduce(
        self, gradients: FlatArrays, sums: mx.array, counts: Sequence[int]
    ) -> tuple[FlatArrays, mx.array, list[int]]:
        """The three summed over all ranks, gradients in fp32. Counts are exact up to 2^24."""
        if self.size == 1:
            return gradients, sums, list(counts)
        head = mx.concatenate([sums, mx.array([float(count) for count in counts])])
        names = sorted(gradients)  # the same order on every rank, also on one without a part in this step
        flat = self._sum(mx.concatenate([head, *(gradients[name].astype(mx.float32).flatten() for name in names)]))
        ends = np.cumsum([head.size, *(gradients[name].size for name in names)]).tolist()
        first, *rest = mx.split(flat, ends[:-1])
        summed = {name: part.reshape(gradients[name].shape) for name, part in zip(names, rest, strict=True)}
        return summed, first[: sums.size], [round(float(count)) for count in np.array(first[sums.size :])]

    def gather(self, value: T) -> list[T]:
        """What every rank gave, by rank. Plain values that JSON takes; floats come through to the last bit."""
        if self.size == 1:
            return [value]
        return [json.loads(content) for content in self._exchange(json.dumps(value).encode())]

    def share(self, value: T) -> T:
        """What rank 0 gave; the values of the others are not looked at."""
        if self.size == 1:
            return value
        return json.loads(self._exchange(b"" if self.rank else json.dumps(value).encode())[0])

    def share_arrays(self, arrays: FlatArrays) -> FlatArrays:
        """The arrays of rank 0, bit for bit but for the sign of a zero; all ranks have the same names and shapes."""
        if self.size == 1:
            return arrays
        return {name: self._sum(mx.zeros_like(value) if self.rank else value) for name, value in sorted(arrays.items())}

    @contextmanager
    def together(self) -> Generator[None]:
        """An error of this rank in the block ends the others too: it is what they get from their next exchange."""
        try:
            yield
        except (LostRankError, OtherRankError):
            raise
        except MlxftError as error:
            if self.size > 1:
                told = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
                with contextlib.suppress(LostRankError):
                    self._swap(json.dumps(told).encode(), has_failed=True)
            raise

    def _exchange(self, content: bytes) -> list[bytes]:
        """What every rank gave, by rank. Raises ``OtherRankError`` where one has given up."""
        contents, failed = self._swap(content)
        for rank in failed:
            told = json.loads(contents[rank])
            raise OtherRankError(rank, told["message"], told["hint"], told["exit_code"])
        return contents

    def _swap(self, content: bytes, *, has_failed: bool = False) -> tuple[list[bytes], list[int]]:
        """What every rank gave, and which of them have given up. One sum of a block a rank; a second for long ones."""
        head = struct.pack("<q", ~len(content) if has_failed else len(content)) + content[:_INLINE_BYTES]
        blocks = np.zeros((self.size, _BLOCK_BYTES), np.uint8)
        blocks[self.rank, : len(head)] = np.frombuffer(head, np.uint8)
        blocks = self._sum_bytes(blocks)
        lengths = [struct.unpack("<q", block[:8].tobytes())[0] for block in blocks]
        failed = [rank for rank, length in enumerate(lengths) if length < 0]
        lengths = [~length if length < 0 else length for length in lengths]
        ends = np.cumsum([max(0, length - _INLINE_BYTES) for length in lengths]).tolist()
        rest = np.zeros(ends[-1], np.uint8)
        if rest.size:
            mine = np.frombuffer(content[_INLINE_BYTES:], np.uint8)
            rest[ends[self.rank] - len(mine) : ends[self.rank]] = mine
            rest = self._sum_bytes(rest)
        heads = [block[8:].tobytes() for block in blocks]
        tails = [part.tobytes() for part in np.split(rest, ends[:-1])]
        return [(heads[rank] + tails[rank])[:length] for rank, length in enumerate(lengths)], failed

    def _sum_bytes(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.array(self._sum(mx.array(values)))

    def _sum(self, array: mx.array) -> mx.array:
        """The sum over all ranks, evaluated."""
        assert self._all_sum is not None
        mx.eval(array)  # before the try: what fails in here is no rank that was lost
        try:
            return self._all_sum(array)
        except RuntimeError as error:
            raise LostRankError(
                f"another rank has gone: {error}",
                "see there what ended it, then go on with --resume; the number of ranks may be another",
            ) from error


#: The only process of a training.
ALONE = Ranks()


def connect(place: Place) -> Ranks:
    """Wait for the other ranks and connect with them. Raises ``RunError`` where that fails for two minutes.

    mlx hears no signal while it waits, so the stop signals have their default effect meanwhile: nothing is lost yet.
    """
    if place.size == 1:
        return ALONE
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    before = _open_sockets()
    try:
        group = _init(place)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for descriptor in _open_sockets() - before:
        _keep_alive(descriptor)
    if (group.rank(), group.size()) != (place.rank, place.size):
        raise RunError(
            f"mlx says rank {group.rank()} of {group.size()}, the environment rank {place.rank} of {place.size}",
            "start it with mlxft train --hostfile, or with mlx.launch",
        )

    def all_sum(array: mx.array) -> mx.array:
        total = mx.distributed.all_sum(array, group=group)
        mx.eval(total)
        return total

    return Ranks(place.rank, place.size, all_sum)


def _init(place: Place) -> mx.distributed.Group:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return mx.distributed.init(strict=True, backend=place.backend)
        except RuntimeError as error:
            if time.monotonic() > deadline:
                raise LostRankError(
                    f"rank {place.rank} cannot connect with the other {place.size - 1}: {error}",
                    "see whether they have started, and whether their addresses in the hostfile can be reached",
                ) from error
            time.sleep(0.5)


def _open_sockets() -> set[int]:
    """Descriptors of this process that are TCP sockets."""
    found: set[int] = set()
    for descriptor in range(3, 1024):
        with contextlib.suppress(OSError), _borrowed(descriptor) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                found.add(descriptor)
    return found


def _keep_alive(descriptor: int) -> None:
    """Let the system ask a silent neighbour for a sign of life: a machine that loses its power sends no farewell."""
    names = ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    with contextlib.suppress(OSError), _borrowed(descriptor) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in zip(names, KEEPALIVE_SECONDS, strict=True):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextmanager
def _borrowed(descriptor: int) -> Generator[socket.socket]:
    """A socket object for a descriptor that stays open. Raises ``OSError`` where it is none."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    connection = socket.socket(fileno=os.dup(descriptor))
    try:
        yield connection
    finally:
        connection.close()

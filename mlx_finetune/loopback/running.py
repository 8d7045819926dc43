"""uvicorn on a socket that is taken already, with our signals, our limits, and nothing of a request in any log.

The first signal closes the door and lets the answers that are being given end, for as long as ``drain_seconds`` allows;
the second ends them too.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Generator
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from mlx_finetune.loopback.protocol import MAX_CONNECTIONS, MAX_HEADER_BYTES, BoundedProtocol

KEEP_ALIVE_SECONDS = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Served(Protocol):
    """What a server is told of and asks about. The methods are called in the server's own thread."""

    def is_alive(self) -> bool:
        """False ends the server, as a signal does."""
        ...

    def end(self, *, at_once: bool) -> None:
        """A signal came: no new answer begins; ``at_once`` also ends those that are being given."""
        ...


def run_server(
    app: ASGIApp, served: Served, taken: socket.socket, *, drain_seconds: int, tell: Callable[[str], None]
) -> int:
    """Answer until a signal comes; returns the number of that signal, or 0 when ``served`` is alive no more."""
    _silence()
    _allow_files()
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = _Server(config, served, tell)
    server.run(sockets=[taken])
    return server.received


class _Server(uvicorn.Server):
    """uvicorn with our signals: it would end itself with the default action of the first one."""

    def __init__(self, config: uvicorn.Config, served: Served, tell: Callable[[str], None]) -> None:
        super().__init__(config)
        self._served = served
        self._tell = tell
        self.received = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._note)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        if not self._served.is_alive():
            self.should_exit = True
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            self._served.end(at_once=True)
            return
        self.received = sig
        self.should_exit = True
        self._served.end(at_once=False)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """What asyncio would log with everything it knows."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._tell(f"{type(error).__name__} in a connection")


def _silence() -> None:
    """uvicorn and asyncio log messages of exceptions, which may repeat what somebody asked."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False


def _allow_files() -> None:
    """Room for every connection: a Mac allows 256 open files unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

"""The process: one socket, uvicorn in the main thread, the model in its own, and an orderly end.

The first signal closes the door and lets the answers that are being given end, for at most ``DRAIN_SECONDS``; the
second ends them too. The socket was taken before anything was loaded (``addresses``).
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from mlx_finetune.app.serve.api import Api
from mlx_finetune.app.serve.guard import Doors, Guard
from mlx_finetune.app.serve.protocol import MAX_CONNECTIONS, MAX_HEADER_BYTES, BoundedProtocol
from mlx_finetune.app.serve.worker import Worker

DRAIN_SECONDS = 30
KEEP_ALIVE_SECONDS = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(api: Api, worker: Worker, taken: socket.socket, doors: Doors, tell: Callable[[str], None]) -> int:
    """Answer until a signal comes; returns the number of that signal, or 0 when the model's thread is gone."""
    _silence()
    _allow_files()
    config = uvicorn.Config(
        Guard(api, doors, tell),
        http=BoundedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = _Server(config, api, worker, tell)
    server.run(sockets=[taken])
    worker.end(5.0)
    return server.received


class _Server(uvicorn.Server):
    """uvicorn with our signals: it would end itself with the default action of the first one."""

    def __init__(self, config: uvicorn.Config, api: Api, worker: Worker, tell: Callable[[str], None]) -> None:
        super().__init__(config)
        self._api = api
        self._worker = worker
        self._tell = tell
        self.received = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._note)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        if not self._worker.is_alive:
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
            self._worker.end(0)
            return
        self.received = sig
        self.should_exit = True
        self._api.is_ending = True

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

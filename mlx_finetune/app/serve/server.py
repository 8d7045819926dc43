"""The process: one socket, uvicorn in the main thread, the model in its own, and an orderly end.

The socket was taken before anything was loaded (``loopback.addresses``); signals are those of ``loopback.running``.
"""

import socket
from collections.abc import Callable

from mlx_finetune.app.serve.api import Api
from mlx_finetune.app.serve.worker import Worker
from mlx_finetune.loopback.guard import Doors, Guard
from mlx_finetune.loopback.running import run_server

DRAIN_SECONDS = 30


def serve(api: Api, worker: Worker, taken: socket.socket, doors: Doors, tell: Callable[[str], None]) -> int:
    """Answer until a signal comes; returns the number of that signal, or 0 when the model's thread is gone."""
    guarded = Guard(api, doors, tell)
    received = run_server(guarded, _Both(api, worker), taken, drain_seconds=DRAIN_SECONDS, tell=tell)
    worker.end(5.0)
    return received


class _Both:
    """The addresses and the model behind them, as one thing that ends."""

    def __init__(self, api: Api, worker: Worker) -> None:
        self._api = api
        self._worker = worker

    def is_alive(self) -> bool:
        return self._worker.is_alive

    def end(self, *, at_once: bool) -> None:
        if at_once:
            self._worker.end(0)
        else:
            self._api.is_ending = True

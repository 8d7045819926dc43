"""The process: the page's addresses behind the guard, on a socket that was taken before, until Ctrl-C."""

import socket
from collections.abc import Callable

from mlx_finetune.loopback.guard import Doors, Guard
from mlx_finetune.loopback.running import run_server
from mlx_finetune.monitor.web.pages import Pages

DRAIN_SECONDS = 2


def serve_pages(pages: Pages, taken: socket.socket, token: str, tell: Callable[[str], None]) -> int:
    """Answer until a signal comes; returns its number."""
    doors = Doors(port=int(taken.getsockname()[1]), token=token, open_paths=pages.open_paths)
    guarded = Guard(pages, doors, tell, is_quiet=True)
    return run_server(guarded, _Ending(pages), taken, drain_seconds=DRAIN_SECONDS, tell=tell)


class _Ending:
    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def is_alive(self) -> bool:
        return True

    def end(self, *, at_once: bool) -> None:
        self._pages.is_ending = True

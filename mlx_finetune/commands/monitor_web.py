"""``mlxft monitor --web``: the page of the runs in a folder. Ctrl-C ends the page alone."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_finetune.errors import RunError

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    import socket
    from collections.abc import Mapping

    from mlx_finetune.monitor.web.hands import Hands
    from mlx_finetune.rundir import RunDir

#: Where the page is unless --port says otherwise; any free one where it is taken.
PORT = 8421


def watch_in_browser(run: str | None, *, port: int | None, opens: bool) -> int:
    """Serve the page until Ctrl-C; returns the exit code. Raises ``RunError`` for a port that is taken."""
    from mlx_finetune import __version__
    from mlx_finetune.commands.serve import state_folder
    from mlx_finetune.loopback.tokens import open_token
    from mlx_finetune.monitor.web.pages import Pages
    from mlx_finetune.monitor.web.server import serve_pages
    from mlx_finetune.monitor.web.shelf import Shelf
    from mlx_finetune.monitor.web.tickets import Tickets

    folder, chosen = _place(run)
    token = open_token(state_folder() / "monitor-token", elsewhere="MLXFT_STATE names another folder")
    hands = _hands()
    with _take_port(port) as taken:
        shelf = Shelf(folder, hands)
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        click.echo(f"the runs in {folder} are at {address}#token={token.text}", err=True)
        click.echo("the address holds a token: keep it to yourself. Ctrl-C ends the page, trainings go on", err=True)
        tickets = Tickets(token.text)
        pages = Pages(shelf, hands, tickets, chosen=chosen, version=__version__)
        threading.Thread(target=shelf.read_ahead, args=(chosen,), daemon=True).start()
        if opens and sys.stderr.isatty() and _has_display():
            import webbrowser

            webbrowser.open(f"{address}#ticket={tickets.issue()}")
        received = serve_pages(pages, taken, token.text, lambda line: click.echo(line, err=True))
    click.echo("the page is gone; trainings go on, mlxft monitor --web shows them again", err=True)
    return 0 if received == signal.SIGINT else 128 + received


def _place(run: str | None) -> "tuple[Path, str]":
    """The folder whose runs are shown, and the name of the one to begin with ("": there is none yet)."""
    from mlx_finetune.app.running.follow import latest_run
    from mlx_finetune.rundir import find_run

    folder = Path("adapters")
    if run is not None:
        path = find_run(run, base=Path()).path
        path = path if path.name not in ("", "..") else path.resolve()
        return path.parent, path.name
    try:
        return folder, latest_run(folder).path.name
    except RunError:
        return folder, ""


def _take_port(port: int | None) -> "socket.socket":
    from mlx_finetune.loopback.addresses import take_port

    if port is not None:
        return take_port("127.0.0.1", port)
    try:
        return take_port("127.0.0.1", PORT)
    except RunError:
        return take_port("127.0.0.1", 0)


def _has_display() -> bool:
    """A Mac that nobody has logged in to from elsewhere, or a desktop of Linux."""
    if sys.platform == "darwin":
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _hands() -> "Hands":
    from mlx_finetune.app.running.control import save_now, stop
    from mlx_finetune.app.running.runs import run_bytes
    from mlx_finetune.commands.closing import copied, copied_go_on
    from mlx_finetune.commands.runs import read_settings
    from mlx_finetune.monitor.web.hands import Hands

    return Hands(
        stop=stop,
        save_now=save_now,
        go_on=copied_go_on,
        copied=lambda command: copied(command, Path.cwd()),
        rows=_RowsLater().rows,
        compare=_compare,
        settings=read_settings,
        num_bytes=run_bytes,
    )


class _RowsLater:
    """Imports what reads data with the first question, so that the page is there sooner."""

    def __init__(self) -> None:
        self._viewer = None

    def rows(self, run: "RunDir", split: str, first: int, count: int) -> "Mapping[str, object]":
        from mlx_finetune.app.data.row_view import RowViewer

        self._viewer = self._viewer or RowViewer()
        return self._viewer.rows(run, split, first, count)


def _compare(first: "RunDir", second: "RunDir") -> "Mapping[str, object]":
    from mlx_finetune.app.eval.between_runs import compare_runs, comparison_json
    from mlx_finetune.recipe.values import shown

    try:
        found = comparison_json(compare_runs(first, second))
    except RunError as error:
        return {"recipe": [], "refusal": error.message}
    rows = found["recipe"]
    assert isinstance(rows, list)
    recipe = [
        [row["key"], *("-" if row[side] is None else shown(row[side]) for side in ("first", "second"))] for row in rows
    ]
    return {"recipe": recipe, "refusal": ""}

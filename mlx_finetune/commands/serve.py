"""``mlxft serve``: a model and its adapters over HTTP, in the shape of OpenAI's interface."""

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_finetune.errors import RunError, UsageError

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    import socket

    from mlx_finetune.app.serve.models import Served
    from mlx_finetune.app.serve.worker import Worker
    from mlx_finetune.loopback.guard import Doors
    from mlx_finetune.loopback.tokens import Token

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+")


@click.command()
@click.argument("names", metavar="RUN_OR_MODEL...", nargs=-1, required=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--allow-remote", is_flag=True, help="Let --host be one that other machines can reach.")
@click.option("--token-file", type=click.Path(path_type=Path), help="Where the token is kept, in place of the usual.")
@click.option("--no-token", is_flag=True, help="Answer every program on this machine.")
@click.option("--max-rows", type=click.IntRange(1, 256), default=8, show_default=True, help="Answers at once.")
@click.option("--queue", type=click.IntRange(0, 10_000), default=64, show_default=True, help="Answers that may wait.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="A web page's origin that may ask, e.g. http://my.app.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any key of [chat], e.g. temperature=0.")
def command(
    names: tuple[str, ...],
    port: int,
    host: str,
    allow_remote: bool,
    token_file: Path | None,
    no_token: bool,
    max_rows: int,
    queue: int,
    cors: tuple[str, ...],
    settings: tuple[str, ...],
) -> int:
    """Serve runs and models that share one base over HTTP, as OpenAI does.

    Clients choose by name, without a reload; the base's own name is there too, with every adapter off.
    """
    from mlx_finetune.loopback.tokens import open_token
    from mlx_finetune.recipe.sampling import change_settings
    from mlx_finetune.recipe.schema import ChatRecipe

    change_settings(ChatRecipe.model_validate({}), settings)  # a slip is found before the model is loaded
    _check(names, host, cors, token_file, allow_remote=allow_remote, no_token=no_token)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in commands.opening
    from mlx_finetune.hardware import blas

    blas.prepare()  # before mlx is imported
    from mlx_finetune.loopback.addresses import take_port

    with take_port(host, port) as taken:
        token = None if no_token else open_token(token_file or default_token_file())
        worker, served = _load(names, settings, max_rows=max_rows, queue=queue)
        doors = _doors(taken, host, cors, None if token is None else token.text, is_remote=allow_remote)
        _greet(served, host, doors.port, token)
        return _serve(worker, served, taken, doors)


def default_token_file() -> Path:
    """Where the token is kept unless --token-file says otherwise."""
    return state_folder() / "serve-token"


def state_folder() -> Path:
    """Where this user's tokens are kept: ``MLXFT_STATE``, else the system's place for such things."""
    import platformdirs

    moved = os.environ.get("MLXFT_STATE")
    return Path(moved).expanduser() if moved else platformdirs.user_state_path("mlxft")


def _check(
    names: tuple[str, ...],
    host: str,
    cors: tuple[str, ...],
    token_file: Path | None,
    *,
    allow_remote: bool,
    no_token: bool,
) -> None:
    """Refuse what does not go together, before anything is loaded. Raises ``UsageError``."""
    from mlx_finetune.loopback.addresses import is_address, is_loopback

    if not is_loopback(host) and re.fullmatch(r"[0-9.]+", host) and not is_address(host):
        raise UsageError(f"--host {host} is not an address", "use 127.0.0.1")
    if not is_loopback(host) and not allow_remote:
        raise UsageError(
            f"--host {host} can be reached from other machines",
            "use 127.0.0.1, or add --allow-remote; what is sent is not encrypted",
        )
    if no_token and allow_remote:
        raise UsageError("--no-token would let every machine of the network ask", "leave one of the two out")
    if no_token and token_file is not None:
        raise UsageError("--no-token and --token-file do not go together", "leave one of the two out")
    for origin in cors:
        if not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--cors {origin} is not an origin", "write it as http://localhost:3000, without a path")
    if len(set(names)) < len(names):
        raise UsageError("a name is given twice", "give each run once")


def _load(
    names: tuple[str, ...], settings: tuple[str, ...], *, max_rows: int, queue: int
) -> "tuple[Worker, tuple[Served, ...]]":
    """Load in the model's own thread and wait for it."""
    from mlx_finetune.app.serve.models import open_rack
    from mlx_finetune.app.serve.worker import Worker
    from mlx_finetune.commands.opening import LoadingTalk
    from mlx_finetune.recipe.sampling import change_settings

    talk = LoadingTalk()
    worker = Worker(
        lambda: open_rack(
            names,
            base=Path.cwd(),
            report=talk,
            max_rows=max_rows,
            change=lambda chat: change_settings(chat, settings),
        ),
        max_rows=max_rows,
        max_waiting=queue,
        tell=_tell,
    )
    worker.start()
    try:
        served = worker.wait_loaded()
    finally:
        talk.clear()
    return worker, served


def _doors(taken: "socket.socket", host: str, cors: tuple[str, ...], token: str | None, *, is_remote: bool) -> "Doors":
    import socket

    from mlx_finetune.loopback.guard import Doors

    names = {host, *((socket.gethostname(), socket.getfqdn()) if is_remote else ())}
    return Doors(
        port=int(taken.getsockname()[1]),
        token=token,
        names=frozenset((f"[{name}]" if ":" in name else name).lower().encode("ascii", "replace") for name in names),
        origins=frozenset(origin.encode("ascii") for origin in cors),
        is_remote=is_remote,
        origin_hint="; --cors ORIGIN lets one in",
    )


def _greet(served: "tuple[Served, ...]", host: str, port: int, token: "Token | None") -> None:
    from mlx_finetune.app.serve.asking import asking_lines

    shown = f"[{host}]" if ":" in host else host
    click.echo(f"serving {', '.join(one.id for one in served)} at http://{shown}:{port}/v1", err=True)
    for path in dict.fromkeys(path for one in served for path in one.tasks):
        click.echo(f"endpoint: http://{shown}:{port}/{path}", err=True)
    if token is None:
        click.echo("no token: every program on this machine may ask", err=True)
    elif token.is_new:
        click.echo(f"token: {token.text}", err=True)
        click.echo(f"it is kept in {token.path} and not shown again", err=True)
    else:
        click.echo(f"token: in {token.path}", err=True)
    here = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(shown, shown)
    token_file = None if token is None else token.path.absolute()
    endpoint = next((path for one in served for path in one.tasks), None)
    for line in asking_lines(f"http://{here}:{port}", served[0].id, endpoint, token_file):
        click.echo(f"ask: {line}", err=True)
    click.echo("Ctrl-C ends it", err=True)


def _serve(worker: "Worker", served: "tuple[Served, ...]", taken: "socket.socket", doors: "Doors") -> int:
    from mlx_finetune import __version__
    from mlx_finetune.app.serve.api import Api
    from mlx_finetune.app.serve.server import serve

    received = serve(Api(worker, served, version=__version__), worker, taken, doors, _tell)
    if not received:
        raise RunError("the model's thread ended", "the lines above say where; start the server again")
    click.echo("ended", err=True)
    return 128 + received


def _tell(line: str) -> None:
    """One line of the log, with the time; what a client sends is never part of it."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()

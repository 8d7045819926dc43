"""The addresses of the page, and what is answered there. A guard before it has looked at Host, Origin and token."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import cast

from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from mlx_finetune.errors import MlxftError
from mlx_finetune.loopback.body import read_json
from mlx_finetune.loopback.refusals import RefusedError, short_line
from mlx_finetune.loopback.routing import route
from mlx_finetune.monitor.web.assets import read_assets
from mlx_finetune.monitor.web.course import Course, curves_json, parse_position
from mlx_finetune.monitor.web.hands import Hands, Json
from mlx_finetune.monitor.web.lens import microscope_json
from mlx_finetune.monitor.web.plain_json import encode
from mlx_finetune.monitor.web.shelf import POINTS, Shelf
from mlx_finetune.monitor.web.status import filmstrip_json, frame_json, status_json
from mlx_finetune.monitor.web.stream import Teller, tell
from mlx_finetune.monitor.web.tickets import Tickets
from mlx_finetune.rundir import RunDir, running_process

#: Points of a curve that a page may ask for.
MAX_POINTS = 20_000
MAX_ROWS = 50
#: Pages that look on at once; each asks about twice a second.
MAX_STREAMS = 64

_TICKET = "/api/ticket"
Found = Callable[[Request, RunDir], Json]


class Confirmed(BaseModel):
    """The body of what changes a run: nobody asks for that by accident."""

    model_config = ConfigDict(extra="forbid", strict=True)
    confirm: bool


class Ticket(BaseModel):
    """The body of a browser that was opened with a ticket."""

    model_config = ConfigDict(extra="forbid", strict=True)
    ticket: str = Field(max_length=200)


class Pages:
    """The ASGI application. ``chosen`` is the run that the page opens with."""

    def __init__(self, shelf: Shelf, hands: Hands, tickets: Tickets, *, chosen: str, version: str) -> None:
        self._shelf = shelf
        self._tickets = tickets
        self._hands = hands
        self._chosen = chosen
        self._version = version
        self._assets = read_assets()
        self.num_streams = 0
        self.is_ending = False
        self._router = Router(
            [
                *(Route(path, self._asset, methods=["GET"]) for path in self._assets),
                Route(_TICKET, self._ticket, methods=["POST"]),
                Route("/api/names", self._names, methods=["GET"]),
                Route("/api/runs", self._runs, methods=["GET"]),
                Route("/api/compare", self._compare, methods=["GET"]),
                Route("/api/runs/{name}/events", self._events, methods=["GET"]),
                Route("/api/runs/{name}/status", self._about(self._status), methods=["GET"]),
                Route("/api/runs/{name}/curves", self._curves, methods=["GET"]),
                Route("/api/runs/{name}/filmstrip", self._about(self._filmstrip), methods=["GET"]),
                Route("/api/runs/{name}/filmstrip/{number}", self._about(self._frame), methods=["GET"]),
                Route("/api/runs/{name}/rows", self._about(self._rows), methods=["GET"]),
                Route("/api/runs/{name}/settings", self._about(self._settings), methods=["GET"]),
                Route("/api/runs/{name}/microscope", self._about(self._microscope), methods=["GET"]),
                Route("/api/runs/{name}/stop", self._asking(lambda: self._hands.stop), methods=["POST"]),
                Route("/api/runs/{name}/save", self._asking(lambda: self._hands.save_now), methods=["POST"]),
            ],
            redirect_slashes=False,
        )

    @property
    def open_paths(self) -> frozenset[str]:
        """What needs no token: the files of the page, and changing a ticket for it."""
        return frozenset({*self._assets, _TICKET})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await route(self, self._router, scope, receive, send)

    async def _asset(self, request: Request) -> Response:
        return self._assets[request.url.path]

    async def _ticket(self, request: Request) -> Response:
        asked = await read_json(request.scope, request.receive, Ticket)
        token = self._tickets.redeem(asked.ticket)
        if token is None:
            raise RefusedError(403, "the ticket was used before or is too old")
        return _json({"token": token})

    async def _names(self, request: Request) -> Response:
        names = await run_in_threadpool(self._shelf.names)
        return _json({"names": names, "chosen": self._chosen, "version": self._version})

    async def _runs(self, request: Request) -> Response:
        return _json({"runs": await run_in_threadpool(self._shelf.rows)})

    def _find(self, name: str) -> RunDir:
        run = self._shelf.find(name)
        if run is None:
            raise RefusedError(404, f"there is no run {short_line(name, 60)!r} here")
        return run

    # --- one run ---

    def _about(self, answer: Found) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that answers a question about one run, in a worker thread."""

        async def endpoint(request: Request) -> Response:
            def work() -> Json:
                run = self._find(cast(str, request.path_params["name"]))
                with _telling():
                    return answer(request, run)

            return _json(await run_in_threadpool(work))

        return endpoint

    def _fresh(self, run: RunDir) -> "contextlib.AbstractContextManager[Course]":
        return self._shelf.course(run).fresh()

    async def _curves(self, request: Request) -> Response:
        most = int(_between(request, "points", 4, MAX_POINTS, POINTS) or POINTS)
        first, last = _between(request, "from", 0, 1e12), _between(request, "to", 0, 1e12)

        def work() -> bytes:
            run = self._find(cast(str, request.path_params["name"]))
            with _telling():
                if not request.query_params:
                    return self._shelf.curves(run)
                with self._fresh(run) as course:
                    return encode(curves_json(course, first, last, most))

        return Response(await run_in_threadpool(work), media_type="application/json")

    def _status(self, request: Request, run: RunDir) -> Json:
        is_running = running_process(run) is not None
        with self._fresh(run) as course:
            return {"status": status_json(run, course.summary, self._hands, is_running=is_running)}

    def _filmstrip(self, request: Request, run: RunDir) -> Json:
        with self._fresh(run) as course:
            return filmstrip_json(run, course.summary, self._hands)

    def _frame(self, request: Request, run: RunDir) -> Json:
        text = cast(str, request.path_params["number"])
        with self._fresh(run) as course:
            number = int(text) if text.isdecimal() and len(text) < 10 else -1
            found = frame_json(course.summary, number, against=request.query_params.get("against", "before"))
        if found is None:
            raise RefusedError(404, "there is no frame of that number")
        return found

    def _rows(self, request: Request, run: RunDir) -> Json:
        split = request.query_params.get("split", "train")
        if split not in ("train", "valid", "test"):
            raise RefusedError(400, "split is train, valid or test", param="split")
        first = int(_between(request, "from", 0, 1e9, 0) or 0)
        count = int(_between(request, "count", 1, MAX_ROWS, 10) or 10)
        return self._hands.rows(run, split, first, count)

    def _settings(self, request: Request, run: RunDir) -> Json:
        return {"settings": self._hands.settings(run)}

    def _microscope(self, request: Request, run: RunDir) -> Json:
        return microscope_json(run)

    async def _compare(self, request: Request) -> Response:
        names = [request.query_params.get(name, "") for name in ("first", "second")]
        most = int(_between(request, "points", 4, MAX_POINTS, POINTS) or POINTS)

        def work() -> Json:
            runs = [self._find(name) for name in names]
            with _telling():
                sides: list[Json] = []
                for run in runs:
                    with self._fresh(run) as course:
                        sides.append({"name": run.path.name, **curves_json(course, None, None, most)})
                return {"sides": sides, **self._hands.compare(*runs)}

        return _json(await run_in_threadpool(work))

    # --- what is going on, and what may be asked of it ---

    async def _events(self, request: Request) -> Response:
        run = await run_in_threadpool(self._find, cast(str, request.path_params["name"]))
        if self.num_streams >= MAX_STREAMS:
            raise RefusedError(503, "too many pages look on at once", retry_after_seconds=5)
        given = request.headers.get("last-event-id", "")
        teller = Teller(self._shelf.course(run), self._hands, parse_position(given))

        def look() -> Json | None:
            with _telling():
                return teller.news()

        first = await run_in_threadpool(look)
        return StreamingResponse(self._counted(teller, first, request), media_type="text/event-stream")

    async def _counted(self, teller: Teller, first: Json | None, request: Request) -> AsyncIterator[bytes]:
        self.num_streams += 1
        try:
            async for piece in tell(teller, first, lambda: self.is_ending):
                yield piece
                if await request.is_disconnected():
                    return
        finally:
            self.num_streams -= 1

    def _asking(self, which: Callable[[], Callable[[RunDir], object]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            asked = await read_json(request.scope, request.receive, Confirmed)
            if not asked.confirm:
                raise RefusedError(400, "confirm must be true", param="confirm")
            run = await run_in_threadpool(self._find, cast(str, request.path_params["name"]))

            def work() -> None:
                with _telling():
                    which()(run)

            await run_in_threadpool(work)
            return _json({"asked": True}, 202)

        return endpoint


def _json(value: Json, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")


def _between(request: Request, name: str, least: float, most: float, default: float | None = None) -> float | None:
    """A number of the query, held within its bounds. Raises ``RefusedError`` for what is no number."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value:
        raise RefusedError(400, f"{name} is not a number", param=name)
    return min(max(value, least), most)


@contextlib.contextmanager
def _telling() -> "Generator[None]":
    """An error that a person can do something about is told, with its hint; every other one is a failure of ours."""
    try:
        yield
    except MlxftError as error:
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        raise RefusedError(409, short_line(message)) from None

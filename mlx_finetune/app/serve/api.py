"""The addresses of the server and what happens at each of them, from a request's body to its answer."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from mlx_finetune.app.serve.documents import describe
from mlx_finetune.app.serve.models import Served
from mlx_finetune.app.serve.prepare import Preparer
from mlx_finetune.app.serve.replies import ChatWriter, CompletionWriter, Pieces, Ticket, Writer
from mlx_finetune.app.serve.requests import ChatRequest, CompletionRequest, Drawing, TaskRequest
from mlx_finetune.app.serve.wire import Health, ModelCard, ModelList, Reply
from mlx_finetune.app.serve.worker import Job, Worker
from mlx_finetune.loopback.body import ClientGoneError, read_json
from mlx_finetune.loopback.guard import SAID
from mlx_finetune.loopback.refusals import RefusedError
from mlx_finetune.loopback.routing import route
from mlx_finetune.model.answers.batches import Request

Endpoint = Callable[[HttpRequest], Awaitable[Response]]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is served, by id; the first is the default."""

    served: Sequence[Served]

    def find(self, name: str | None) -> Served:
        """The model of a request. Raises ``RefusedError`` (404) for a name that is not served."""
        if name is None:
            return self.served[0]
        for one in self.served:
            if one.id == name:
                return one
        known = ", ".join(one.id for one in self.served)
        raise RefusedError(
            404, f"there is no such model here; there are {known}", code="model_not_found", param="model"
        )

    def with_task(self, path: str, name: str | None) -> Served:
        """The first run that has the endpoint, or the one that is named."""
        if name is not None:
            chosen = self.find(name)
            if path in chosen.tasks:
                return chosen
            having = ", ".join(one.id for one in self.served if path in one.tasks)
            message = f"this model has no endpoint {path!r}; it is of {having}"
            raise RefusedError(404, message, code="model_not_found", param="model")
        return next(one for one in self.served if path in one.tasks)

    def task_paths(self) -> list[str]:
        """Every endpoint's path, once."""
        return list(dict.fromkeys(path for one in self.served for path in one.tasks))


class Api:
    """The ASGI application, to be put behind a guard, which answers what is refused."""

    def __init__(self, worker: Worker, served: Sequence[Served], *, version: str) -> None:
        self._worker = worker
        self._catalogue = Catalogue(served)
        self._preparer = Preparer()
        self._threads = ThreadPoolExecutor(2, "prepare")
        self._created = int(time.time())
        self.is_ending = False
        paths = self._catalogue.task_paths()
        self._document = json.dumps(describe(served, version)).encode("ascii")
        self._router = Router(
            [
                Route("/health", self._health, methods=["GET"]),
                Route("/openapi.json", self._openapi, methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model:path}", self._model, methods=["GET"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                *(Route(f"/{path}", self._task_endpoint(path), methods=["POST"]) for path in paths),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await route(self, self._router, scope, receive, send)

    # --- what is there ---

    async def _health(self, request: HttpRequest) -> Response:
        load = self._worker.load()
        status = "failed" if not self._worker.is_alive else "ending" if self.is_ending else "ok"
        return _json(Health(status=status, running=load.running, waiting=load.waiting), 200 if status == "ok" else 503)

    async def _openapi(self, request: HttpRequest) -> Response:
        return Response(self._document, media_type="application/json")

    async def _models(self, request: HttpRequest) -> Response:
        return _json(ModelList(data=[self._card(one) for one in self._catalogue.served]))

    async def _model(self, request: HttpRequest) -> Response:
        return _json(self._card(self._catalogue.find(cast(str, request.path_params["model"]))))

    def _card(self, served: Served) -> ModelCard:
        return ModelCard(id=served.id, created=self._created, parent=served.parent)

    # --- what is asked ---

    async def _chat(self, request: HttpRequest) -> Response:
        asked = await read_json(request.scope, request.receive, ChatRequest)
        served = self._catalogue.find(asked.model)
        requests = await self._prepared(lambda: self._preparer.chat(served, asked))
        ticket = self._ticket("chatcmpl", served, requests, 1, asked.num_logprobs)
        return await self._answer(request, served, requests, asked, ChatWriter(ticket))

    async def _complete(self, request: HttpRequest) -> Response:
        asked = await read_json(request.scope, request.receive, CompletionRequest)
        served = self._catalogue.find(asked.model)
        requests = await self._prepared(lambda: self._preparer.completion(served, asked))
        prompts = len(requests) // (asked.n or 1)
        ticket = self._ticket("cmpl", served, requests, prompts, asked.num_logprobs)
        return await self._answer(request, served, requests, asked, CompletionWriter(ticket))

    def _task_endpoint(self, path: str) -> Endpoint:
        async def answer(request: HttpRequest) -> Response:
            asked = await read_json(request.scope, request.receive, TaskRequest)
            served = self._catalogue.with_task(path, asked.model)
            task = served.tasks[path]
            requests = await self._prepared(lambda: self._preparer.task(served, task, asked))
            job = Job(served, requests, is_streamed=False)
            pieces = await self._all(job, request)
            request.scope[SAID] = f"{served.id}, {len(requests[0].prompt_ids)} + {len(pieces)} tokens"
            return Response(await self._prepared(lambda: task.checked(pieces)), media_type="application/json")

        return answer

    async def _prepared(self, work: Callable[[], ResultT]) -> ResultT:
        """``work`` beside the event loop: a long prompt takes a while to become tokens."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _ticket(
        self, prefix: str, served: Served, requests: Sequence[Request], prompts: int, num_logprobs: int | None
    ) -> Ticket:
        each = len(requests) // prompts
        return Ticket(
            id=f"{prefix}-{secrets.token_hex(12)}",
            created=int(time.time()),
            served=served,
            num_answers=len(requests),
            num_prompt_tokens=sum(len(one.prompt_ids) for one in requests[::each]),
            num_logprobs=num_logprobs,
        )

    async def _answer(
        self, request: HttpRequest, served: Served, requests: Sequence[Request], asked: Drawing, writer: Writer
    ) -> Response:
        job = Job(served, requests, is_streamed=bool(asked.stream))
        if not asked.stream:
            whole = writer.whole(await self._all(job, request))
            request.scope[SAID] = writer.ticket.said()
            return _json(whole)
        has_usage = asked.stream_options is not None and asked.stream_options.include_usage
        self._worker.submit(job)
        try:  # what goes wrong before the first piece still has a status of its own
            first = await _unless_gone(job.next(), request.receive)
        except BaseException:
            self._worker.cancel(job)
            raise
        return EventStream(self._worker, job, writer.ticket, _events(job, first, writer, has_usage=has_usage))

    async def _all(self, job: Job, request: HttpRequest) -> Pieces:
        """Every piece of a job, at once. Raises ``ClientGoneError`` where the client did not wait for it."""
        self._worker.submit(job)
        try:
            return await _unless_gone(job.next(), request.receive)
        except BaseException:
            self._worker.cancel(job)
            raise


class EventStream(Response):
    """Server-sent events until they are all sent or the client is gone; then nothing more is generated."""

    def __init__(self, worker: Worker, job: Job, ticket: Ticket, events: AsyncIterator[bytes]) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._worker = worker
        self._job = job
        self._ticket = ticket
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _unless_gone(self._send(send), receive)
        finally:
            self._worker.cancel(self._job)
            scope[SAID] = self._ticket.said()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(job: Job, first: Pieces, writer: Writer, *, has_usage: bool) -> AsyncIterator[bytes]:
    left = len(job.requests)
    pieces = first
    for reply in writer.begin():
        yield _event(reply)
    try:
        while True:
            text = b"".join(map(_event, writer.chunks(pieces)))
            if text:
                yield text
            left -= sum(piece.finish is not None for _, piece in pieces)
            if not left:
                break
            pieces = await job.next()
    except RefusedError as refused:
        yield b"data: " + refused.encode() + b"\n\n"
        return
    if has_usage:
        yield _event(writer.end())
    yield b"data: [DONE]\n\n"


def _event(reply: Reply) -> bytes:
    return b"data: " + reply.model_dump_json().encode("utf-8") + b"\n\n"


def _json(reply: Reply, status: int = 200) -> Response:
    return Response(reply.model_dump_json(), status_code=status, media_type="application/json")


async def _unless_gone(work: Awaitable[ResultT], receive: Receive) -> ResultT:
    """What ``work`` gives. Raises ``ClientGoneError`` where the client closes its connection first."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        working.cancel()
        watching.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""Who may ask: Host, Origin and token are looked at before anything else of a request is.

A web page can make a browser send requests to this machine. Host stops a foreign name that resolves to 127.0.0.1 (DNS
rebinding), Origin and Sec-Fetch-Site stop other pages, the token stops every other program and user of the machine. No
page may read an answer (no CORS) unless its origin was named.
"""

import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_finetune.loopback.addresses import is_address
from mlx_finetune.loopback.body import ClientGoneError
from mlx_finetune.loopback.refusals import RefusedError, places, short_line

Headers = dict[bytes, bytes]
_HOST = re.compile(rb"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?")
#: Key of the scope under which an endpoint leaves what the log may say about its answer.
SAID = "mlxft.said"
_LONGEST_PATH = 60
#: The one address that a server has without a token unless it says otherwise: it says nothing about the model.
HEALTH = "/health"
_LOOPBACK = (b"127.0.0.1", b"localhost", b"[::1]")
#: On every answer that does not say something else under that name.
_ALWAYS: Sequence[tuple[bytes, bytes]] = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)


@dataclass(frozen=True, slots=True)
class Doors:
    """Who is let in. ``token`` is None with --no-token; ``names`` are hosts besides the loopback ones.

    ``open_paths`` are answered without a token; ``origin_hint`` says how a page of another origin could be let in.
    """

    port: int
    token: str | None
    names: frozenset[bytes] = frozenset()
    origins: frozenset[bytes] = frozenset()
    is_remote: bool = False
    open_paths: frozenset[str] = frozenset({HEALTH})
    origin_hint: str = ""


class Guard:
    """ASGI middleware, the outermost: lets in, refuses, and turns what nobody caught into one 500.

    ``tell`` is handed a line about each request unless it ``is_quiet``, and about each failure of ours, without a word
    of the request's content.
    """

    def __init__(self, app: ASGIApp, doors: Doors, tell: Callable[[str], None], *, is_quiet: bool = False) -> None:
        self._app = app
        self._doors = doors
        self._tell = tell
        self._is_quiet = is_quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(cast("list[tuple[bytes, bytes]]", scope["headers"]))
        origin = headers.get(b"origin", b"")
        cors = _cors_headers(origin) if origin in self._doors.origins else ()
        is_started, status, began = False, 0, time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal is_started, status
            if message["type"] == "http.response.start":
                is_started, status = True, message["status"]
                own = list(message.get("headers", ()))
                said = {name for name, _ in own}
                message["headers"] = [*own, *(field for field in _ALWAYS if field[0] not in said), *cors]
            await send(message)

        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS" and cors:
                await _send_empty(answer, 204)
                return
            self._check_token(scope, headers)
            await self._app(scope, receive, answer)
        except RefusedError as refused:
            await send_refusal(answer, refused)
        except ClientGoneError:
            pass
        except Exception as error:
            self._tell(f"a request failed: {places(error)}")
            if is_started:
                raise ConnectionAbortedError from None  # half an answer: the connection is closed
            await send_refusal(answer, RefusedError(500, "the server failed; its log says where", closes=True))
        finally:
            self._log(scope, status, time.perf_counter() - began)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        """One line: what was asked for, never what was said. ``status`` 0 is a client that went away."""
        if self._is_quiet or (scope["path"] in self._doors.open_paths and status == 200):
            return
        said = f" {scope[SAID]}" if SAID in scope else ""
        path = short_line(cast(str, scope["path"]), _LONGEST_PATH)
        self._tell(f"{short_line(cast(str, scope['method']), 10)} {path} {status or 'gone'}{said} {seconds:.2f} s")

    def _check(self, scope: Scope, headers: Headers) -> None:
        counts = [name for name, _ in cast("list[tuple[bytes, bytes]]", scope["headers"])]
        for name in (b"host", b"origin", b"authorization", b"content-type"):
            if counts.count(name) > 1:
                raise RefusedError(400, f"the header {name.decode()} is there twice", closes=True)
        if not host_is_known(headers.get(b"host", b""), self._doors):
            raise RefusedError(403, "this server does not go by the name in the Host header", closes=True)
        origin = headers.get(b"origin")
        if origin is not None and not self._is_known_origin(origin):
            raise RefusedError(403, f"pages of this origin may not ask{self._doors.origin_hint}", closes=True)
        site = headers.get(b"sec-fetch-site", b"none")
        if origin is None and site not in (b"none", b"same-origin"):
            raise RefusedError(403, "pages of other sites may not ask", closes=True)

    def _is_known_origin(self, origin: bytes) -> bool:
        own = origin.removeprefix(b"http://")
        return origin in self._doors.origins or (own != origin and host_is_known(own, self._doors))

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        token = self._doors.token
        if token is None or scope["path"] in self._doors.open_paths:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode("ascii")):
            return
        raise RefusedError(
            401,
            "the token is missing or wrong: send it as `Authorization: Bearer TOKEN`",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
            closes=True,
        )


def host_is_known(host: bytes, doors: Doors) -> bool:
    """True for a name of this server with its own port.

    Rebinding needs a name of the attacker's, so with --allow-remote every address in numbers is as good as another.
    """
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or b"80") != doors.port:
        return False
    name = match["name"].lower()
    is_known = name in _LOOPBACK or name in doors.names
    return is_known or (doors.is_remote and is_address(name.decode("ascii", "replace").strip("[]")))


async def send_refusal(send: Send, refused: RefusedError) -> None:
    """Answer with the error object of ``refused``."""
    headers: Mapping[str, str] = {"connection": "close", **refused.headers} if refused.closes else refused.headers
    body = refused.encode()
    fields = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
    fields += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
    await send({"type": "http.response.start", "status": refused.status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def _send_empty(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _cors_headers(origin: bytes) -> Sequence[tuple[bytes, bytes]]:
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-allow-private-network", b"true"),
        (b"vary", b"origin"),
    )

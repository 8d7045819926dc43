"""uvicorn's HTTP/1.1 protocol with the limits it leaves to others: slow headers, clients that never read, idle crowds.

``keep-alive`` connections are uvicorn's to close. Written for uvicorn 0.54; tests/serving/test_connections.py fails
when its protocol changes under us.
"""

import asyncio
import json
import sys
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

HEADER_SECONDS = 10.0
UNREAD_SECONDS = 30.0
MAX_HEADER_BYTES = 32_768
_HELD_UP_SECONDS = 0.2
#: Above it the oldest connection that asks nothing makes room for a new one.
MAX_CONNECTIONS = 512


class BoundedProtocol(H11Protocol):
    """One connection. A request's headers have 10 seconds, an answer that nobody reads 30."""

    _header_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _made = 0.0
    _header_due = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._made = self.loop.time()
        self._start_header_timer()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_idle and self._header_timer is None:
            self._start_header_timer()
        super().data_received(data)
        if not self.is_idle:
            self._stop_header_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    @property
    def is_idle(self) -> bool:
        """True while no request is being answered."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None until the first request
        return cycle is None or cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """What h11 could not read, as an error object with the status that h11 gives it."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        body = json.dumps({"error": {"message": msg, "type": "invalid_request_error", "param": None, "code": None}})
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        events: list[Any] = [
            h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES.get(status, b"")),
            h11.Data(data=body.encode("ascii")),
            h11.EndOfMessage(),
        ]
        try:
            for event in events:
                self.transport.write(cast(bytes, self.conn.send(event)))
        except h11.LocalProtocolError:
            pass  # an answer is on its way already
        self.transport.close()

    def _start_header_timer(self) -> None:
        self._header_due = self.loop.time() + HEADER_SECONDS
        self._header_timer = self.loop.call_at(self._header_due, self._too_slow)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if self.is_idle and self.loop.time() - self._header_due > _HELD_UP_SECONDS:
            self._start_header_timer()  # it was us who were slow: what came meanwhile has not been read
        elif self.is_idle:
            self.transport.close()

    def _make_room(self) -> None:
        """Close the oldest connection that asks nothing; this one where every other is being answered."""
        others = cast("set[BoundedProtocol]", self.connections)
        idle = [other for other in others if other.is_idle and other is not self]
        oldest = min(idle, key=lambda other: other._made, default=self)
        oldest.transport.abort()

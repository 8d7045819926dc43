"""A ticket lets the browser that we open in, once and for a minute.

The address that a program is started with can be seen by every user of the machine, so it holds a ticket, which the
page changes for the token at once, and not the token itself.
"""

import hmac
import secrets
import threading
import time
from collections.abc import Callable

SECONDS = 60.0


class Tickets:
    """Tickets for ``token``. Safe for several threads."""

    def __init__(self, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._lock = threading.Lock()
        self._valid: dict[str, float] = {}

    def issue(self) -> str:
        """A new ticket."""
        ticket = secrets.token_urlsafe(32)
        with self._lock:
            self._valid[ticket] = self._clock() + SECONDS
        return ticket

    def redeem(self, given: str) -> str | None:
        """The token for a ticket that is good, which it is no more afterwards; None for any other."""
        with self._lock:
            now = self._clock()
            self._valid = {ticket: due for ticket, due in self._valid.items() if now < due}
            for ticket in self._valid:
                if hmac.compare_digest(ticket.encode(), given.encode("utf-8", "replace")):
                    del self._valid[ticket]
                    return self._token
        return None

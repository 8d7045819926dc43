"""Server-sent events of one run: what changed since the position that the page names, until it goes away.

Each event's id is the position after it. A page that comes back with an id of ours gets what it missed; with any other,
or when it missed more than ``MAX_MISSED`` steps, it is told to fetch the curves again (``reset``).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.concurrency import run_in_threadpool

from mlx_finetune.monitor.web.course import Course, Position
from mlx_finetune.monitor.web.hands import Hands
from mlx_finetune.monitor.web.plain_json import encode
from mlx_finetune.monitor.web.status import status_json
from mlx_finetune.rundir import running_process

POLL_SECONDS = 0.4
#: A word from us at least so often, so that either end finds out that the other is gone.
BEAT_SECONDS = 8.0
MAX_MISSED = 5000

Json = Mapping[str, object]


class Teller:
    """What one page was told of one run."""

    def __init__(self, course: Course, hands: Hands, position: Position | None) -> None:
        self._course = course
        self._hands = hands
        self._position = position
        self._told: dict[str, str] = {}
        self._seen: tuple[Position, int, bool] | None = None

    def news(self) -> Json | None:
        """The next message, None where nothing has changed. Called in a worker thread."""
        course = self._course
        is_running = running_process(course.run) is not None
        with course.fresh():
            now, before = course.position, self._position
            seen = (now, course.num_records, is_running)
            if seen == self._seen:
                return None
            status = status_json(course.run, course.summary, self._hands, is_running=is_running)
            is_known = before is not None and course.holds(before) and now.num_steps - before.num_steps <= MAX_MISSED
            steps, machine = course.since(before) if is_known and before is not None else ({}, {})
        self._position, self._seen = now, seen
        message: dict[str, object] = {}
        if not is_known:
            message["reset"] = True
        elif before != now:
            message |= {"steps": steps, "machine": machine}
        changed = self._changed(status)
        if changed:
            message["status"] = changed
        return {**message, "id": now.text} if message else None

    def _changed(self, status: Json) -> Json:
        """The parts of ``status`` that are not as they were told."""
        texts = {name: json.dumps(value, sort_keys=True) for name, value in status.items()}
        changed = {name: status[name] for name, text in texts.items() if self._told.get(name) != text}
        self._told = texts
        return changed


async def tell(teller: Teller, first: Json | None, has_ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The body of the answer, which begins with the news that are known already; ends when ``has_ended``."""
    news, last = first, time.monotonic()
    while not has_ended():
        now = time.monotonic()
        if news is not None:
            yield b"id: %s\ndata: %s\n\n" % (str(news["id"]).encode("ascii"), encode(news))
            last = now
        elif now - last >= BEAT_SECONDS:
            yield b": still here\n\n"
            last = now
        await asyncio.sleep(POLL_SECONDS)
        news = await run_in_threadpool(teller.news)
    yield b"event: end\ndata: {}\n\n"

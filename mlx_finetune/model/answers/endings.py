"""Where an answer ends by its text: a stop string, or the brace that closes the first JSON object.

Text comes in pieces of any length, and the end is the same however it is cut. What may be the beginning of a stop
string is held back until it is certain, so a stop string is never shown, not even in part. Of several ends the first
one complete counts; a stop string wins over an object that ends with the same character.
"""

from collections.abc import Sequence

from mlx_finetune.errors import UsageError
from mlx_finetune.scoring.json_text import ObjectScanner


class Endings:
    """Follows one answer. Nothing may be fed after ``is_reached``."""

    def __init__(self, stop: Sequence[str] = (), *, ends_with_object: bool = False) -> None:
        """Raises ``UsageError`` for an empty stop string: it would end every answer before its first word."""
        if "" in stop:
            raise UsageError("a stop text is empty", "write the text at which an answer ends")
        self._stop = tuple(stop)
        self._scanner = ObjectScanner() if ends_with_object else None
        self._held = ""
        self.is_reached = False

    def feed(self, text: str) -> str:
        """The text that is certain now and was not before; all that belongs to the answer once ``is_reached``."""
        if self.is_reached or not text:
            return ""
        before = len(self._held)
        whole = self._held + text
        end, shown = self._first_stop(whole)
        closing = None if self._scanner is None else self._scanner.feed(text)
        if closing is not None and (end is None or before + closing < end):
            end = shown = before + closing
        if end is not None:
            self.is_reached, self._held = True, ""
            return whole[:shown]
        kept = self._may_begin(whole)
        self._held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> tuple[int | None, int]:
        """Where the first complete stop string ends, None without one, and how much stands before it."""
        found = [(start + len(one), start) for one in self._stop if (start := text.find(one)) >= 0]
        return min(found, default=(None, 0))

    def _may_begin(self, text: str) -> int:
        """Length of the longest end of ``text`` that a stop string begins with."""
        longest = min(len(text), max((len(one) for one in self._stop), default=1) - 1)
        ends = (text[len(text) - size :] for size in range(longest, 0, -1))
        return next((len(end) for end in ends if any(one.startswith(end) for one in self._stop)), 0)

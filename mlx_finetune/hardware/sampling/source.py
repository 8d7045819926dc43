"""One source of figures about the machine, and what it gives: fields of ``events.Resources`` by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Field of ``Resources`` -> its value; a field that the source cannot tell is None or absent.
Figures = Mapping[str, float | int | str | bool | None]


def _nothing() -> None:
    """There is nothing to close."""


@dataclass(frozen=True, slots=True)
class Source:
    """``read`` may raise, take long or never return: it has a thread of its own. It is asked again after ``seconds`` at
    the earliest, and its figures count until then. ``close`` ends what it has started."""

    name: str
    read: Callable[[], Figures]
    seconds: float = 0.0
    close: Callable[[], None] = _nothing

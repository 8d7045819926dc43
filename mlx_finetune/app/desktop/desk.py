"""Everything outside that a launcher's dialogue touches, as one value that tests replace.

A dialogue talks and asks through it, runs ``mlxft`` commands in the same window, and reaches the Mac's own programs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that has ended, with what it printed."""

    code: int
    out: str
    err: str


class Cancelled(Exception):
    """The person has closed a dialog, pressed Ctrl-C or Ctrl-D at a question, or answered that nothing is to happen."""


@dataclass(frozen=True, slots=True)
class Desk:
    """``folder`` is where recipes/ and adapters/ are, and the current folder.

    ``mlxft`` runs a command in this window and gives its exit code; ``read_mlxft`` gives what it prints instead.
    ``start`` leaves an mlxft command to the background, its words in a file; it gives the process id. ``program`` runs
    one of the Mac's own programs, None where it is missing. ``ask`` shows its text and gives the line that is typed; it
    raises ``Cancelled`` at Ctrl-C and Ctrl-D. ``has_dialogs``: dialogs of the system can be shown. ``can_ask``:
    there is somebody to ask.
    """

    folder: Path
    mlxft: Callable[[Sequence[str]], int]
    read_mlxft: Callable[[Sequence[str]], Ran]
    start: Callable[[Sequence[str], Path], int]
    program: Callable[[Sequence[str]], Ran | None]
    say: Callable[[str], None]
    ask: Callable[[str], str]
    has_dialogs: bool
    can_ask: bool
    now: Callable[[], float]
    sleep: Callable[[float], None]

    @property
    def adapters(self) -> Path:
        """Where runs lie unless a recipe says otherwise."""
        return Path("adapters")

    @property
    def logs(self) -> Path:
        """Where launchers leave what they did."""
        return self.folder / "logs"

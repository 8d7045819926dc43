"""A run as JSON Lines for another program: the journal's own lines on one stream and nothing else."""

from collections.abc import Callable
from typing import TextIO

from mlx_finetune.events import Record, to_json
from mlx_finetune.monitor.summary import Summary


class JsonView:
    """Copies every event to ``stream``; sentences for people go to ``talk``. A closed stream does not end a run.

    ``is_broken`` tells that nobody reads the stream any more.
    """

    def __init__(self, stream: TextIO, summary: Summary, *, talk: Callable[[str], None]) -> None:
        self._stream = stream
        self._summary = summary
        self._talk = talk
        self.is_broken = False

    def show(self, record: Record) -> None:
        """One line, at once."""
        self._summary.add(record)
        if self.is_broken:
            return
        try:
            self._stream.write(to_json(record.event, record.time) + "\n")
            self._stream.flush()
        except OSError:
            self.is_broken = True
            self._talk("warning: nobody reads the events any more; the training goes on")

    def tick(self, now: float) -> None:
        """Nothing moves here."""
        del now

    def say(self, message: str) -> None:
        """To the person, not to the program."""
        self._talk(message)

    def close(self) -> None:
        """Nothing to restore."""

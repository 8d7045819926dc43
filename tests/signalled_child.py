"""The real training process, which sends itself signals right after the journal line of one step.

    python signalled_child.py STEP SIGNAL[,SIGNAL] [arguments of mlx_finetune.train.child]

A signal from outside lands at a moment nobody chose; this one always lands at the same.
"""

import os
import sys

from mlx_finetune.events import Event, StepDone
from mlx_finetune.journal import EventWriter
from mlx_finetune.train import child


class SignallingWriter(EventWriter):
    """Writes the event, then sends the signals if it was that step's."""

    step = 0
    signals: tuple[int, ...] = ()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, StepDone) and event.step == self.step:
            for number in self.signals:
                os.kill(os.getpid(), number)


if __name__ == "__main__":
    SignallingWriter.step = int(sys.argv[1])
    SignallingWriter.signals = tuple(int(number) for number in sys.argv[2].split(","))
    child.EventWriter = SignallingWriter
    sys.exit(child.main(sys.argv[3:]))

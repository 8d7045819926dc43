"""Ctrl-C while another program has the terminal."""

import signal
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def interrupts_ignored() -> Generator[None]:
    """Inside, Ctrl-C does nothing to us; a program that is started gets it, as it would not with SIG_IGN."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

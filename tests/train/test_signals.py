"""What counts as one request to stop, and what as impatience."""

import os
import signal
import subprocess
import sys
import time
from itertools import product

import pytest

from mlx_finetune.rundir import SAVE_SIGNAL
from mlx_finetune.train.signals import STOP_SIGNALS, StopRequest

LISTEN = """
import sys, time
from mlx_finetune.train.signals import StopRequest
stop = StopRequest()
stop.install()
print("listening", flush=True)
deadline = time.monotonic() + 20
while not stop.signal_number:
    time.sleep(0.001)
time.sleep(0.3)  # the step at hand
print("saved", flush=True)
sys.exit(128 + stop.signal_number)
"""
PAIRS = list(product((signal.SIGHUP, signal.SIGTERM, signal.SIGINT), repeat=2))


def test_a_request_for_a_checkpoint_stops_nothing_and_is_kept_until_it_is_taken() -> None:
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, SAVE_SIGNAL)}
    stop = StopRequest()
    try:
        stop.install()
        assert not stop.is_save_asked
        os.kill(os.getpid(), SAVE_SIGNAL)
        os.kill(os.getpid(), SAVE_SIGNAL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stop.is_save_asked
    assert stop.take_save_request()
    assert not stop.is_save_asked
    assert not stop.take_save_request()
    assert stop.signal_number == 0


@pytest.mark.some(4)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda number: number.name)
def test_only_a_second_ctrl_c_leaves_at_once(first: signal.Signals, second: signal.Signals) -> None:
    """A terminal that closes sends SIGHUP twice, a logout SIGHUP and SIGTERM: the step at hand is still saved."""
    process = subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    process.send_signal(first)
    time.sleep(0.1)  # two that are pending together are one
    process.send_signal(second)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + first
    assert said == ("" if (first, second) == (signal.SIGINT, signal.SIGINT) else "saved\n")

"""Every way a training process can end, as one sentence, a way out, and whether starting it again can help.

Reads what is left of it: exit code, signal, last word in the journal, last lines of its log. Metal ends a process by
``abort`` from a thread of its own, which nothing in Python can catch; its texts are those of MACOS.md 1.4 and 1.5,
wherever in the log they stand. Touches no file.
"""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mlx_finetune.errors import EXIT_NO_SPACE
from mlx_finetune.events import RunFailed, RunFinished, RunStopped
from mlx_finetune.hardware.safer import Need
from mlx_finetune.units import format_bytes

Outcome = RunFinished | RunStopped | RunFailed
Kind = Literal["finished", "stopped", "refused", "failed", "no_space", "crashed"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SMALLER = "use a shorter data.max_seq_length, quantize = 4 or a smaller lora.rank"
BUG = "this is a bug in mlxft"


@dataclass(frozen=True, slots=True)
class Ended:
    """What is left of a training process. ``outcome`` is its last word in the journal; ``killed_by`` a signal that
    nobody here sent; ``log_tail`` the last lines that it wrote itself."""

    exit_code: int
    outcome: Outcome | None = None
    killed_by: signal.Signals | None = None
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """What an end means. ``cause`` is a word for programs, ``message`` a sentence.

    ``need`` is what a restart should change, from the restart number ``need_from`` without a new checkpoint on.
    ``only_safer``: without a change the same would happen again.
    """

    kind: Kind
    cause: str
    message: str
    hint: str = ""
    can_restart: bool = False
    need: Need | None = None
    need_from: int = 1
    only_safer: bool = False


def read_ending(ended: Ended) -> Ending:
    """What ``ended`` means."""
    match ended.outcome:
        case RunFinished():
            return Ending("finished", "finished", "the run has finished")
        case RunStopped():
            return Ending("stopped", "stopped", f"it was stopped after step {ended.outcome.step}")
        case RunFailed():
            return _failed(ended.outcome)
        case None:
            killed_by = ended.killed_by or _signal_of(ended.exit_code)
            return _killed(killed_by, ended.log_tail) if killed_by else _left(ended.exit_code, ended.log_tail)


def _failed(failed: RunFailed) -> Ending:
    """The process explained itself: a refusal, a number that is not finite, or a bug of ours."""
    if failed.exit_code == EXIT_NO_SPACE:
        return _NO_SPACE
    if not failed.hint.startswith(BUG):
        return Ending("failed", "failed", failed.message, failed.hint)
    return _known(failed.message) or Ending("failed", "bug", failed.message, failed.hint)


def _killed(number: signal.Signals, log_tail: tuple[str, ...]) -> Ending:
    """Ended by a signal without a word."""
    if number in STOP_SIGNALS:
        return Ending("stopped", "stopped", f"it was stopped at once by {number.name}")
    known = _known("\n".join(log_tail)) if number != signal.SIGKILL else None
    if known is not None:
        return known
    if number in _SIGNALS:
        return _SIGNALS[number]
    message = f"the training process was ended by the signal {number.name}"
    return Ending("crashed", number.name, message, can_restart=True)


def _left(exit_code: int, log_tail: tuple[str, ...]) -> Ending:
    """Left by itself without a word in the journal: refused before it had one, or something is wrong."""
    if exit_code == EXIT_NO_SPACE:
        return _NO_SPACE
    known = _known("\n".join(log_tail)) if exit_code == 1 else None
    if known is not None:
        return known
    said = [line.removeprefix("error: ") for line in log_tail if line.startswith("error: ")]
    if exit_code and said:
        hints = [line.removeprefix("hint: ") for line in log_tail if line.startswith("hint: ")]
        return Ending("refused", "refused", said[0], hints[0] if hints else "")
    if any(line.startswith("Traceback (most recent call last)") for line in log_tail):
        return Ending("failed", "bug", log_tail[-1], f"{BUG}; please report it with the lines above")
    if exit_code in (126, 127):
        message = f"the training process could not be started (exit code {exit_code})"
        return Ending("failed", "not_started", message, "see what is missing with: mlxft doctor")
    if exit_code == 0:
        return Ending("failed", "no_word", "the training process left without saying that the run has finished", BUG)
    if exit_code in (2, 3):
        return Ending(
            "failed", "no_word", f"the training process refused with code {exit_code} and without a word", BUG
        )
    message = f"the training process ended with code {exit_code} and without a word"
    return Ending("crashed", "no_word", message, can_restart=True)


def _signal_of(exit_code: int) -> signal.Signals | None:
    """The signal that a shell or another wrapper tells as 128 + n."""
    try:
        return signal.Signals(exit_code - 128) if exit_code > 128 else None
    except ValueError:
        return None


def _known(text: str) -> Ending | None:
    """The ending whose text stands in ``text``; the first of ``_TEXTS`` where several do."""
    for pattern, ending in _TEXTS:
        found = re.search(pattern, text, re.MULTILINE)
        if found is not None:
            return ending(found) if callable(ending) else ending
    return None


def _buffer_size(found: re.Match[str]) -> Ending:
    asked, allowed = (format_bytes(int(number)) for number in found.groups())
    message = f"one array of {asked} is larger than the {allowed} that Metal allows"
    return Ending("crashed", "buffer_size", message, SMALLER, can_restart=True, need="less_memory", only_safer=True)


def _other_gpu_error(found: re.Match[str]) -> Ending:
    message = f"the GPU gave up on the training process: {found.group(1).strip()}"
    return Ending("crashed", "gpu_error", message, "restart the Mac if it comes again", can_restart=True)


_NO_SPACE = Ending(
    "no_space",
    "no_space",
    "the disk is full; everything up to the last checkpoint is safe",
    "make room, then go on with --resume",
)
_NO_MEMORY = Ending(
    "crashed",
    "memory",
    "the training process got no more memory",
    f"close other programs, or {SMALLER}",
    can_restart=True,
    need="less_memory",
    only_safer=True,
)

#: What a process says before it is aborted, or as the text of a Python exception.
_TEXTS: tuple[tuple[str, Ending | Callable[[re.Match[str]], Ending]], ...] = (
    (
        r"Impacting Interactivity|ErrorImpactingInteractivity",
        Ending(
            "crashed",
            "gpu_interactivity",
            "macOS ended the training process because its work on the GPU held up the display",
            "let the display sleep while it trains: pmset displaysleepnow",
            can_restart=True,
            need="shorter_commands",
        ),
    ),
    (
        r"Caused GPU Timeout Error|kIOGPUCommandBufferCallbackErrorTimeout",
        Ending(
            "crashed",
            "gpu_timeout",
            "macOS ended the training process because one piece of its work on the GPU took too long",
            "use training.batch_size = 1, a shorter data.max_seq_length or training.gradient_checkpointing = true",
            can_restart=True,
            need="shorter_commands",
            only_safer=True,
        ),
    ),
    (
        r"Insufficient Memory \(00000008|kIOGPUCommandBufferCallbackErrorOutOfMemory",
        Ending(
            "crashed",
            "gpu_memory",
            "the GPU ran out of memory",
            f"close other programs, or {SMALLER}",
            can_restart=True,
            need="less_memory",
            only_safer=True,
        ),
    ),
    (r"allocate (\d+) bytes which is greater than the maximum allowed buffer size of (\d+) bytes", _buffer_size),
    (
        r"\[metal::malloc\] Resource limit \(\d+\) exceeded",
        Ending(
            "crashed",
            "gpu_resources",
            "more buffers were alive on the GPU than macOS allows, mostly for rows of many different lengths",
            "rows of one length need fewer: data.packing = true",
            can_restart=True,
            need="fewer_buffers",
        ),
    ),
    (
        r"\[metal::set_wired_limit\]",
        Ending(
            "crashed",
            "wired_limit",
            "macOS refuses to wire as much memory as was asked for",
            'leave out hardware.wired_limit, or set it to "off"',
            can_restart=True,
            need="no_wiring",
            only_safer=True,
        ),
    ),
    (
        r"\[metal::load_device\] No Metal device",
        Ending(
            "failed",
            "no_gpu",
            "there is no GPU here that Metal can use",
            "start it on the Mac itself, logged in at its desktop, not in a virtual machine; see mlxft doctor",
        ),
    ),
    (r"\[METAL\] Command buffer execution failed: ([^\n]*)", _other_gpu_error),
    (r"No space left on device|Disk quota exceeded", _NO_SPACE),
    (r"std::bad_alloc|^MemoryError\b|\[[\w:]*malloc\w*\] Unable to allocate|Cannot allocate memory", _NO_MEMORY),
)


def _crash(name: str, message: str, hint: str = "", *, can_restart: bool = True) -> Ending:
    return Ending("crashed", name, f"{message} ({name})", hint, can_restart=can_restart)


#: What a signal that ended a process tells, where its log does not tell more.
_SIGNALS = {
    signal.SIGKILL: Ending(
        "crashed",
        "SIGKILL",
        "the training process was killed, most often because the memory of this machine ran out (SIGKILL)",
        f"close other programs, or {SMALLER}",
        can_restart=True,
        need="less_memory",
        need_from=2,
    ),
    signal.SIGABRT: _crash("SIGABRT", "a library aborted the training process"),
    signal.SIGSEGV: _crash("SIGSEGV", "the training process crashed inside a library"),
    signal.SIGBUS: _crash("SIGBUS", "the training process could not read a file or memory that it had mapped"),
    signal.SIGTRAP: _crash("SIGTRAP", "a library stopped the training process at a check of its own"),
    signal.SIGILL: _crash(
        "SIGILL",
        "the training process met an instruction that this processor does not have, and would meet it again",
        "a library is built for another processor; see mlxft doctor",
        can_restart=False,
    ),
    signal.SIGSYS: _crash(
        "SIGSYS",
        "the training process asked the system for something that is forbidden here, and would ask again",
        "start it outside of a sandbox",
        can_restart=False,
    ),
    signal.SIGXCPU: _crash(
        "SIGXCPU",
        "the training process used up the processor time that it is allowed",
        "raise the limit, for instance with: ulimit -t unlimited",
        can_restart=False,
    ),
    signal.SIGXFSZ: _crash(
        "SIGXFSZ",
        "the training process wrote a file that is larger than allowed",
        "raise the limit, for instance with: ulimit -f unlimited",
        can_restart=False,
    ),
}

"""Every recorded way to end is told apart, in one sentence, with what to do and what a restart should change."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_finetune.app.running.endings import Ended, Ending, read_ending
from mlx_finetune.errors import EXIT_NO_SPACE
from mlx_finetune.events import RunFailed, RunFinished, RunStopped

Shared = Callable[..., Path]
BUG = "this is a bug in mlxft; the traceback is in adapters/demo/log.txt"
FINISHED = RunFinished(6, "finished", 2.5, 1.5, 6, 1.5, 12.0, 240, 2 * 10**8)

#: File of ../shared/macos-fixtures/errors -> cause, need, whether a restart can help. None: not said by a process that
#: trains, but by the Finder, pip, or a Mac that reboots.
RECORDED = {
    "watchdog_interactivity.txt": ("gpu_interactivity", "shorter_commands", True),
    "watchdog_timeout.txt": ("gpu_timeout", "shorter_commands", True),
    "gpu_oom.txt": ("gpu_memory", "less_memory", True),
    "max_buffer.txt": ("buffer_size", "less_memory", True),
    "resource_limit.txt": ("gpu_resources", "fewer_buffers", True),
    "wired_limit_too_high.txt": ("wired_limit", "no_wiring", True),
    "no_metal_device.txt": ("no_gpu", None, False),
    "command_file_no_exec_bit.txt": None,
    "kernel_panic_iogpu.txt": None,
    "kernel_panic_watchdogd.txt": None,
    "pip_no_match_rosetta.txt": None,
    "quarantine_xattr.txt": None,
}


def aborted(*tail: str) -> Ending:
    return read_ending(Ended(1, None, signal.SIGABRT, tail))


def test_every_recorded_message_has_its_verdict(shared: Shared) -> None:
    assert {path.name for path in shared("macos-fixtures", "errors").iterdir()} == set(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_message_is_known_wherever_it_stands(name: str, shared: Shared) -> None:
    text = shared("macos-fixtures", "errors", name).read_text("utf-8").strip()
    tail = ("step 12", *text.splitlines(), "", "abort() called")
    traceback = ("Traceback (most recent call last):", '  File "x.py", line 1', *text.splitlines())
    in_python = RunFailed(text, BUG, 1)
    found = [aborted(*tail), read_ending(Ended(1, None, None, traceback)), read_ending(Ended(1, in_python))]
    expected = RECORDED[name]
    if expected is None:
        assert [one.cause for one in found] == ["SIGABRT", "bug", "bug"]
        return
    assert [(one.cause, one.need, one.can_restart) for one in found] == [expected] * 3
    assert all(one.message and one.hint and "\n" not in one.message for one in found)


def test_the_sizes_of_an_array_that_is_too_large_are_told(shared: Shared) -> None:
    text = shared("macos-fixtures", "errors", "max_buffer.txt").read_text("utf-8")
    assert aborted(text).message == "one array of 48.3 GB is larger than the 41.7 GB that Metal allows"


def test_a_gpu_error_that_nobody_has_recorded_is_told_in_its_own_words() -> None:
    ending = aborted("[METAL] Command buffer execution failed: Caused GPU Hang Error (00000003:kIOGPUCommandBuffer)")
    assert (ending.cause, ending.can_restart, ending.need) == ("gpu_error", True, None)
    assert "Caused GPU Hang Error (00000003:kIOGPUCommandBuffer)" in ending.message


@pytest.mark.parametrize(
    "text",
    [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "MemoryError: Unable to allocate 3. GiB for an array",
        "RuntimeError: [malloc] Unable to allocate 123 bytes.",
    ],
)
def test_no_more_memory_asks_for_less(text: str) -> None:
    for ending in (aborted(text), read_ending(Ended(1, RunFailed(text, BUG, 1)))):
        assert (ending.cause, ending.need, ending.can_restart) == ("memory", "less_memory", True)


@pytest.mark.parametrize(
    ("number", "can_restart"),
    [
        (signal.SIGKILL, True),
        (signal.SIGABRT, True),
        (signal.SIGSEGV, True),
        (signal.SIGBUS, True),
        (signal.SIGTRAP, True),
        (signal.SIGFPE, True),
        (signal.SIGILL, False),
        (signal.SIGSYS, False),
        (signal.SIGXCPU, False),
        (signal.SIGXFSZ, False),
    ],
)
def test_a_signal_is_named_also_where_a_wrapper_tells_it_as_128_and_n(
    number: signal.Signals, can_restart: bool
) -> None:
    ending = read_ending(Ended(1, None, number))
    assert (ending.kind, ending.cause, ending.can_restart) == ("crashed", number.name, can_restart)
    assert number.name in ending.message
    assert read_ending(Ended(128 + number)) == ending


def test_every_other_signal_is_told_too() -> None:
    for number in signal.Signals:
        assert read_ending(Ended(1, None, number)).message


def test_a_kill_is_tried_again_as_it_was_and_then_with_less_memory() -> None:
    ending = read_ending(Ended(1, None, signal.SIGKILL, ("[METAL] Command buffer execution failed: x",)))
    assert (ending.cause, ending.need, ending.need_from) == ("SIGKILL", "less_memory", 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_stop_is_never_a_reason_to_start_again(number: signal.Signals) -> None:
    interrupted = RunStopped(0, number)
    for ended in (
        Ended(128 + number, RunStopped(3, number)),
        Ended(128 + number),
        Ended(1, None, number),
        Ended(128 + number, interrupted),
        Ended(1, RunStopped(3, number), signal.SIGSEGV),
    ):
        ending = read_ending(ended)
        assert (ending.kind, ending.can_restart) == ("stopped", False)


def test_a_run_that_has_finished_has_finished_whatever_its_process_does_then() -> None:
    for ended in (Ended(0, FINISHED), Ended(1, FINISHED, signal.SIGABRT), Ended(120, FINISHED)):
        assert read_ending(ended).kind == "finished"


def test_a_number_that_is_not_finite_is_told_in_its_own_words_and_not_tried_again() -> None:
    ending = read_ending(Ended(1, RunFailed("the loss is not finite at step 7", "lower the learning rate", 1)))
    assert ending == Ending("failed", "failed", "the loss is not finite at step 7", "lower the learning rate")


def test_words_of_a_user_that_quote_a_message_start_nothing_again() -> None:
    quoted = "rows.jsonl:3: [metal::malloc] Resource limit (499000) exceeded is no JSON"
    assert not read_ending(Ended(1, RunFailed(quoted, "mend the row", 1))).can_restart
    assert not read_ending(Ended(2, None, None, (f"error: {quoted}",))).can_restart


def test_a_bug_of_ours_is_called_one_and_not_tried_again() -> None:
    with_event = read_ending(Ended(1, RunFailed("KeyError: 'x'", BUG, 1)))
    without = read_ending(Ended(1, None, None, ("Traceback (most recent call last):", "  File", "KeyError: 'x'")))
    for ending in (with_event, without):
        assert (ending.cause, ending.message, ending.can_restart) == ("bug", "KeyError: 'x'", False)
        assert ending.hint.startswith("this is a bug in mlxft")


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_refusal_is_told_in_the_childs_words(code: int) -> None:
    ending = read_ending(Ended(code, None, None, ("a line", "error: no such model", "hint: mlxft models list")))
    assert ending == Ending("refused", "refused", "no such model", "mlxft models list")


def test_a_full_disk_is_one_sentence_however_it_shows() -> None:
    for ended in (
        Ended(EXIT_NO_SPACE),
        Ended(EXIT_NO_SPACE, RunFailed("no room", "", EXIT_NO_SPACE)),
        Ended(1, RunFailed("OSError: [Errno 28] No space left on device", BUG, 1)),
        Ended(1, None, None, ("Traceback (most recent call last):", "OSError: [Errno 28] No space left on device")),
    ):
        ending = read_ending(ended)
        assert (ending.kind, ending.can_restart) == ("no_space", False)


@pytest.mark.parametrize(
    ("code", "cause", "can_restart"),
    [
        (0, "no_word", False),
        (1, "no_word", True),
        (2, "no_word", False),
        (126, "not_started", False),
        (127, "not_started", False),
        (255, "no_word", True),
    ],
)
def test_a_code_without_a_word_is_told(code: int, cause: str, can_restart: bool) -> None:
    ending = read_ending(Ended(code))
    assert (ending.cause, ending.can_restart) == (cause, can_restart)
    assert ending.message

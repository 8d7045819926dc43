"""The parent starts the child, shows every event once, passes signals on and tells how it ended."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mlx_finetune.app.running.endings import Ended, read_ending
from mlx_finetune.app.running.launch import TrainRequest, child_environment, forwarding, train
from mlx_finetune.errors import RunError
from mlx_finetune.events import Phase, Record, RunFailed, RunFinished, RunStopped, StepDone
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.rundir import RunDir

FAKE = Path(__file__).parents[1].with_name("fake_child.py")


class Recorder:
    """A view that remembers what it was shown and told."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.said: list[str] = []

    def show(self, record: Record) -> None:
        self.records.append(record)

    def tick(self, now: float) -> None:
        del now

    def say(self, message: str) -> None:
        self.said.append(message)

    def close(self) -> None:
        """Nothing to restore."""


def run_fake(folder: Path, mode: str, view: Recorder, request: TrainRequest | None = None) -> Ended:
    with forwarding(view.say) as signals:
        return train(
            request or TrainRequest(Path("demo.toml")),
            RunDir(folder),
            view,
            signals,
            command=[sys.executable, str(FAKE), str(folder), mode],
        )


def send_when_ready(folder: Path, *numbers: int) -> threading.Thread:
    """Send the signals to this process, a moment apart, once the fake child says it is ready."""

    def send() -> None:
        deadline = time.monotonic() + 10
        while not (folder / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.25)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_every_event_of_the_child_is_shown_once_and_in_order(tmp_path: Path) -> None:
    view = Recorder()
    ended = run_fake(tmp_path / "run", "finish", view)
    assert ended.exit_code == 0
    assert isinstance(ended.outcome, RunFinished)
    steps = [record.event.step for record in view.records if isinstance(record.event, StepDone)]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert view.said == []


def test_events_of_an_earlier_run_are_not_shown_again(tmp_path: Path) -> None:
    run_fake(tmp_path / "run", "finish", Recorder())
    view = Recorder()
    ended = run_fake(tmp_path / "run", "fail", view)
    steps = [record.event.step for record in view.records if isinstance(record.event, StepDone)]
    assert steps == [1, 2]
    assert ended.exit_code == 1
    assert isinstance(ended.outcome, RunFailed)


def test_a_resumed_child_that_cuts_the_journal_back_is_followed_from_the_cut(tmp_path: Path) -> None:
    run_fake(tmp_path / "run", "finish", Recorder())
    view = Recorder()
    run_fake(tmp_path / "run", "cut", view, TrainRequest(Path("demo.toml"), resume=True))
    steps = [record.event.step for record in view.records if isinstance(record.event, StepDone)]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert isinstance(view.records[0].event, Phase)


def test_a_refusal_is_told_in_the_childs_words_and_leaves_the_old_journal_alone(tmp_path: Path) -> None:
    run_fake(tmp_path / "run", "finish", Recorder())
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    view = Recorder()
    ended = run_fake(tmp_path / "run", "refuse", view)
    assert (ended.exit_code, ended.outcome, view.records) == (1, None, [])
    assert ended.log_tail == ("error: the folder holds a finished run", "hint: mlxft train RECIPE --resume")
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_reaches_the_child_and_its_exit_code_comes_back(tmp_path: Path, number: int, code: int) -> None:
    view = Recorder()
    thread = send_when_ready(tmp_path / "run", number)
    before = signal.getsignal(number)
    ended = run_fake(tmp_path / "run", "wait", view)
    thread.join()
    assert ended.exit_code == code
    assert ended.outcome == RunStopped(1, number)
    assert len(view.said) == 1
    assert "stopping once the work at hand is saved" in view.said[0]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("mode", ["hang", "deaf"])
def test_a_second_ctrl_c_leaves_at_once_even_where_the_child_hears_nothing(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_finetune.app.running.launch.GRACE_SECONDS", 0.3)
    view = Recorder()
    thread = send_when_ready(tmp_path / "run", signal.SIGINT, signal.SIGINT)
    ended = run_fake(tmp_path / "run", mode, view)
    thread.join()
    assert (ended.exit_code, ended.killed_by) == (130, None)
    assert ended.outcome is None
    assert [line.split(";")[0] for line in view.said] == ["stopping once the work at hand is saved", "leaving at once"]


def test_a_killed_child_is_named_with_its_last_words(tmp_path: Path) -> None:
    ended = run_fake(tmp_path / "run", "kill", Recorder())
    assert ended.exit_code == 1
    assert ended.killed_by == signal.SIGKILL
    assert read_ending(ended).cause == "SIGKILL"
    assert ended.log_tail[-1] == "the last thing it said"


def test_a_view_that_fails_stops_the_child_cleanly_and_the_error_comes_out(tmp_path: Path) -> None:
    class Broken(Recorder):
        def show(self, record: Record) -> None:
            if isinstance(record.event, StepDone):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_fake(tmp_path / "run", "wait", Broken())
    assert '"run_stopped"' in (tmp_path / "run" / "events.jsonl").read_text("utf-8")


def test_a_signal_between_two_children_reaches_the_next(tmp_path: Path) -> None:
    """It waits while there is no child, also where the last one is gone."""
    view = Recorder()
    command = [sys.executable, str(FAKE), str(tmp_path / "run"), "wait"]
    with forwarding(view.say) as signals:
        train(TrainRequest(Path("demo.toml")), RunDir(tmp_path / "run"), view, signals, command=[sys.executable, "-V"])
        os.kill(os.getpid(), signal.SIGTERM)
        ended = train(TrainRequest(Path("demo.toml")), RunDir(tmp_path / "run"), view, signals, command=command)
    assert ended.exit_code == 143
    assert view.said == ["SIGTERM: stopping before the next step"]


def test_the_childs_arguments_carry_everything_that_was_asked() -> None:
    request = TrainRequest(
        Path("a.toml"),
        ("seed=1", "training.max_steps=2"),
        resume=True,
        fork=True,
        extend=5,
        restarts=({"attempt": 1},),
        safer=Safer(pieces=2),
    )
    assert request.child_arguments() == [
        *("--recipe", "a.toml", "--set", "seed=1", "--set", "training.max_steps=2"),
        *("--resume", "--fork", "--extend", "5", "--parent-pid", str(os.getpid())),
        *("--restarts", '[{"attempt": 1}]'),
        *("--safer", '{"pieces": 2, "recomputation": false, "cache_share": 1.0, "wired": true}'),
    ]


def test_on_a_mac_the_watchdog_is_asked_for_patience_unless_the_user_decided_otherwise() -> None:
    name = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
    assert child_environment({"A": "b"}, "darwin") == {"A": "b", name: "1"}
    assert child_environment({name: "0"}, "darwin") == {name: "0"}
    assert child_environment({"A": "b"}, "linux") == {"A": "b"}


def test_the_training_process_gets_what_the_recipe_says_and_the_users_own_word_wins() -> None:
    hardware = HardwareRecipe.model_validate({"max_ops_per_buffer": 20, "tf32": False, "relax_gpu_watchdog": False})
    given = child_environment({"MLX_ENABLE_TF32": "1"}, "darwin", hardware)
    assert given == {"MLX_ENABLE_TF32": "1", "MLX_MAX_OPS_PER_BUFFER": "20"}
    tuned = {"max_ops_per_buffer": 80, "max_mb_per_buffer": 90}
    assert child_environment({}, "darwin", hardware, tuned) == {
        "MLX_MAX_OPS_PER_BUFFER": "20",
        "MLX_MAX_MB_PER_BUFFER": "90",
        "MLX_ENABLE_TF32": "0",
    }


def test_the_variables_are_there_when_the_training_process_starts(tmp_path: Path) -> None:
    """Not being compiled is the one switch that a machine without Metal has too."""
    said = tmp_path / "said"
    code = f"import os; open({str(said)!r}, 'w').write(os.environ.get('MLX_DISABLE_COMPILE', 'not set'))"
    for value, expected in ((False, "1"), (True, "not set")):
        request = TrainRequest(Path("demo.toml"), hardware=HardwareRecipe.model_validate({"compile": value}))
        with forwarding(print) as signals:
            train(request, RunDir(tmp_path / "run"), Recorder(), signals, command=[sys.executable, "-c", code])
        assert said.read_text() == expected


def test_a_python_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no-python cannot be started"), forwarding(print) as signals:
        train(TrainRequest(Path("a")), RunDir(tmp_path), Recorder(), signals, command=[str(tmp_path / "no-python")])

"""Who is at work in a run folder, as the locks tell it."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlx_finetune.errors import RunError
from mlx_finetune.rundir import (
    EVENTS,
    LOCK,
    PIPELINE,
    RUN_INFO,
    SUPERVISOR,
    RunDir,
    busy,
    find_run,
    lock_holder,
    refuse_pipeline,
    running_process,
    take_lock,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_a_lock_names_its_holder_until_that_has_gone(run: RunDir) -> None:
    assert lock_holder(run.file(LOCK)) is None
    code = "import sys; from mlx_finetune.rundir import *; take_lock(Path(sys.argv[1])); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.file(LOCK))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert lock_holder(run.file(LOCK)) == running_process(run) == other.pid
        assert take_lock(run.file(LOCK)) is None
        other.kill()
    assert lock_holder(run.file(LOCK)) is None


def test_the_supervisor_is_the_one_to_ask(run: RunDir) -> None:
    training, supervisor = take_lock(run.file(LOCK)), take_lock(run.file(SUPERVISOR))
    assert training is not None
    assert supervisor is not None
    run.file(LOCK).write_text("1\n")
    run.file(SUPERVISOR).write_text("2\n")
    assert running_process(run) == 2
    assert "another process (2)" in busy(run).message
    os.close(supervisor)
    assert running_process(run) == 1
    os.close(training)
    assert running_process(run) is None


def test_a_holder_that_has_not_written_its_number_yet_is_there_all_the_same(run: RunDir) -> None:
    lock = take_lock(run.file(LOCK))
    assert lock is not None
    os.truncate(run.file(LOCK), 0)
    assert lock_holder(run.file(LOCK)) == 0
    assert "another process (unknown)" in busy(run).message
    os.close(lock)


def test_somebody_who_looks_does_not_keep_a_training_out(run: RunDir) -> None:
    """``mlxft monitor`` looks twice a second, and each look holds the lock for an instant."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            lock_holder(run.file(LOCK))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            lock = take_lock(run.file(LOCK))
            assert lock is not None
            os.close(lock)
            time.sleep(0.001)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(("path", "name"), [("adapters/demo", "demo"), ("/a/adapters/demo", "/a/adapters/demo")])
def test_a_run_is_named_as_a_user_would_type_it(path: str, name: str) -> None:
    assert RunDir(Path(path)).name == name


def test_a_run_that_this_process_is_about_to_begin_is_none_that_could_be_named(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / EVENTS).write_text("")
    lock = take_lock(tmp_path / "adapters" / "new" / LOCK)
    assert lock is not None
    try:
        with pytest.raises(RunError) as caught:
            find_run("other", base=tmp_path)
    finally:
        os.close(lock)
    assert caught.value.hint == "runs here: old"


def test_the_name_of_a_pipeline_is_told_its_stages_and_the_one_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sft", "verifier"):
        (tmp_path / "adapters" / "mine" / name).mkdir(parents=True)
        (tmp_path / "adapters" / "mine" / name / RUN_INFO).write_text("{}")
    (tmp_path / "adapters" / "mine" / PIPELINE).write_text("{}")
    for name, stages in (("mine", "mine/sft, mine/verifier"), ("adapters/mine", "mine/sft, mine/verifier")):
        with pytest.raises(RunError, match=f"^{name} is a pipeline, not a run$") as caught:
            find_run(name, base=tmp_path)
        assert caught.value.hint == f"name one of its stages: {stages}; about all of it: mlxft report {name}"
    with pytest.raises(RunError) as caught:
        refuse_pipeline("mine", base=tmp_path, among=lambda run: run.path.name == "sft")
    assert caught.value.hint.startswith("name one of its stages: mine/sft; ")
    assert find_run("mine/sft", base=tmp_path).path == tmp_path / "adapters" / "mine" / "sft"
    lock = take_lock(tmp_path / "adapters" / "mine" / "sft" / LOCK)
    assert lock is not None
    with pytest.raises(RunError) as caught:
        find_run("mine", base=tmp_path)
    assert caught.value.hint.startswith("name the stage at work: mine/sft; ")
    os.close(lock)


@pytest.mark.parametrize(
    ("name", "near"), [("tide", "did you mean tides?"), ("sft", "did you mean chain/sft?"), ("zzz", "runs here: ")]
)
def test_an_unknown_run_is_told_with_those_of_nearly_its_name(name: str, near: str, tmp_path: Path) -> None:
    for run in ("tides", "chain/sft", "chain/pretrain"):
        (tmp_path / "adapters" / run).mkdir(parents=True)
        (tmp_path / "adapters" / run / EVENTS).write_text("")
    (tmp_path / "adapters" / "chain" / PIPELINE).write_text("{}")
    with pytest.raises(RunError) as caught:
        find_run(name, base=tmp_path)
    assert caught.value.hint.startswith(near)

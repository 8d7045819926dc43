"""Each tracker with the library that is installed, offline: what it wrote is read back. Skipped without the library."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from following import ROOT, add_events, write_run
from journal import FINISHED, STARTED, step

from mlx_finetune.app.trackers.watching import FOLLOWER
from mlx_finetune.events import Evaluated, Resources, Sampled
from mlx_finetune.rundir import EVENTS, TRACKERS, RunDir

TIMEOUT = 120
FIRST = [
    STARTED,
    Evaluated(0, 2.5, 400, False, 1.0),
    Sampled(0, "Hi?", "no </script>"),
    *(step(number, loss=3 - number / 10) for number in range(1, 6)),
    Resources(5, cpu_percent=50.0),
]
#: After a resume from step 3: two steps come again, and three are new.
REST = [
    STARTED,
    *(step(number, loss=3 - number / 10) for number in range(4, 9)),
    Evaluated(8, 1.25, 400, True, 1.0),
    Sampled(8, "Hi?", "Aye"),
    FINISHED,
]
LOSSES = [(number, pytest.approx(3 - number / 10)) for number in range(1, 9)]


def _needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


def _follow(run: RunDir, tracker: str, folder: Path, *options: str) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
        "HOME": str(folder),  # settings and caches of a person stay out of it
    }
    done = subprocess.run(
        [sys.executable, "-m", FOLLOWER, "--tracker", tracker, "--run", str(run.path), "--since", "0", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.stdout.strip(), done.returncode) == ("", 0), _log(run, tracker)


def _log(run: RunDir, tracker: str) -> str:
    return (run.file(TRACKERS) / f"{tracker}.log").read_text()


def _stopped_and_resumed(tracker: str, folder: Path) -> RunDir:
    run = write_run(folder / "demo", FIRST)
    _follow(run, tracker, folder)
    lines = run.file(EVENTS).read_bytes().splitlines(keepends=True)
    run.file(EVENTS).write_bytes(b"".join(lines[:6]))  # back to the checkpoint of step 3
    add_events(run, REST)
    _follow(run, tracker, folder)
    return run


@_needs("tensorboardX")
def test_tensorboard_has_every_step_once(tmp_path: Path):
    run = _stopped_and_resumed("tensorboard", tmp_path)
    files = sorted((run.file(TRACKERS) / "tensorboard").glob("events.out.tfevents.*"), key=lambda path: path.name)
    assert len(files) == 2
    events = [event for file in files for event in _read_tensorboard(file)]
    scalars = [(value.tag, event.step, value.simple_value) for event in events for value in event.summary.value]
    assert [(at, value) for tag, at, value in scalars if tag == "train/loss"] == LOSSES
    assert [(at, value) for tag, at, value in scalars if tag == "eval/loss"] == [(0, 2.5), (8, 1.25)]
    assert ("resources/cpu_percent", 5, 50.0) in scalars
    texts = [
        (value.tag.partition("/text")[0], event.step, value.tensor.string_val[0].decode())
        for event in events
        for value in event.summary.value
        if value.tensor.string_val
    ]
    assert ("samples/1", 0, "    Hi?\n    -> no </script>") in texts
    assert ("samples/1", 8, "    Hi?\n    -> Aye") in texts
    recipes = [text for tag, _, text in texts if tag == "recipe"]
    assert len(recipes) == 1
    assert 'model = "tiny"' in recipes[0]


def _read_tensorboard(path: Path) -> Iterator[Any]:
    """The events of one file: length, its check sum, an event, its check sum."""
    from tensorboardX.proto.event_pb2 import Event as Message  # pyright: ignore

    content, place = path.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield Message.FromString(content[place + 12 : place + 12 + length])
        place += 12 + length + 4


@pytest.mark.slow
@_needs("trackio")
def test_trackio_has_every_step_once_in_one_run(tmp_path: Path):
    run = _stopped_and_resumed("trackio", tmp_path)
    (path,) = (tmp_path / "trackio").rglob("mlxft.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = database.execute("select config from configs").fetchall()
    database.close()
    kept = json.loads((run.file(TRACKERS) / "trackio.json").read_text())
    assert {name for name, _, _ in rows} == {f"demo-{kept['run_id']}"}
    metrics = [(at, json.loads(text)) for _, at, text in rows]
    assert [(at, values["train/loss"]) for at, values in metrics if "train/loss" in values] == LOSSES
    assert [(at, values["eval/loss"]) for at, values in metrics if "eval/loss" in values] == [(0, 2.5), (8, 1.25)]
    samples = [(at, json.dumps(values["samples/1"])) for at, values in metrics if "samples/1" in values]
    assert [at for at, _ in samples] == [0, 8]
    assert "-> Aye" in samples[1][1]
    assert json.loads(configs[0][0])["model"] == "tiny"


@pytest.mark.slow
@_needs("wandb")
def test_wandb_offline_has_every_step_once_under_one_id(tmp_path: Path):
    run = _stopped_and_resumed("wandb", tmp_path)
    kept = json.loads((run.file(TRACKERS) / "wandb.json").read_text())
    folders = sorted((run.file(TRACKERS) / "wandb" / "wandb").glob("offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == [kept["run_id"]] * 2
    records = [record for folder in folders for record in _read_wandb(folder / f"run-{kept['run_id']}.wandb")]
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(line["step"], line["train/loss"]) for line in history if "train/loss" in line] == LOSSES
    assert [(line["step"], line["eval/loss"]) for line in history if "eval/loss" in line] == [(0, 2.5), (8, 1.25)]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {(one.project, one.display_name, one.run_id) for one in runs} == {("mlxft", "demo", kept["run_id"])}
    config = {update.key: json.loads(update.value_json) for one in runs for update in one.config.update}
    assert config["model"] == "tiny"
    tables = [json.loads(path.read_text())["data"] for path in _tables(folders)]
    assert sorted(tables) == [[[0, "Hi?", "no </script>"]], [[8, "Hi?", "Aye"]]]


def _tables(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (folder / "files").rglob("*.table.json")


def _read_wandb(path: Path) -> Iterator[Any]:
    """The records of one file: a head of 7 bytes, then blocks of 32 kB with the pieces of records, as LevelDB logs."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore

    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


@_needs("wandb")
def test_wandb_without_a_key_is_one_sentence(tmp_path: Path):
    run = write_run(tmp_path / "demo", FIRST)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "WANDB_MODE": "online"}
    environment = {name: value for name, value in environment.items() if name != "WANDB_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", FOLLOWER, "--tracker", "wandb", "--run", str(run.path), "--since", "0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        text=True,
        timeout=TIMEOUT,
    )
    (warning,) = (line for line in done.stdout.splitlines() if line)
    assert warning.startswith("warning: wandb failed, and the training goes on without it: ")
    assert warning.endswith(" Without an account: WANDB_MODE=offline mlxft train ...")
    assert done.returncode == 1

"""What a tracker has been told survives, and no step is told twice."""

from pathlib import Path

import pytest
from journal import step

from mlx_finetune.app.trackers.sent import Sent
from mlx_finetune.events import Evaluated, Notice, Record, Resources, Sampled


def test_each_kind_of_event_is_told_once():
    sent = Sent()
    events = [step(1), Evaluated(0, 1.0, 9, True, 1.0), Sampled(0, "q", "a"), Resources(1)]
    records = [Record(10.0 + place, place, event) for place, event in enumerate(events)]
    assert [sent.is_new(record) for record in records] == [True] * 4
    for record in records:
        sent.note(record)
    assert [sent.is_new(record) for record in records] == [False] * 4
    assert (sent.step, sent.evaluation, sent.sample, sent.resources) == (1, 0, 0, 13.0)
    assert not sent.is_new(Record(0.0, 0, Notice("info", "x")))


def test_it_is_read_again_for_the_same_training_only(tmp_path: Path):
    path = tmp_path / "wandb.json"
    first = Sent.load(path, "monday", is_fork=False)
    first.step, first.num_starts = 7, 1
    first.save(path)
    assert Sent.load(path, "monday", is_fork=False) == first
    for other in (Sent.load(path, "tuesday", is_fork=False), Sent.load(path, "monday", is_fork=True)):
        assert other.run_id != first.run_id
        assert (other.step, other.num_starts) == (0, 0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run_id": 3}', "\x00"])
def test_a_damaged_file_is_a_new_beginning(tmp_path: Path, text: str):
    path = tmp_path / "wandb.json"
    path.write_text(text)
    fresh = Sent.load(path, "monday", is_fork=False)
    assert (fresh.step, fresh.created, len(fresh.run_id)) == (0, "monday", 8)

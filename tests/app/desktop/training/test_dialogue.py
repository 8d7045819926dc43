"""The launcher Train: choose, see the price, start in a session of its own, look on, leave."""

import json
from pathlib import Path

import pytest
from desks import FakeDesk, at_work, write_recipe, write_run

from mlx_finetune.app.desktop.desk import Cancelled, Ran
from mlx_finetune.app.desktop.training import dialogue as training
from mlx_finetune.errors import UsageError

PLAN = ["plan", "recipes/quickstart.toml", "--no-measure"]
PRICE = {
    "rows": {"train": 168},
    "steps": {"total": 84},
    "model": {"name": "m", "is_here": False},
    "forecast": {
        "peak_bytes": {"expected": 1.02e9},
        "finish_seconds": {"low": 79.0, "expected": 787.0, "high": 7792.0},
    },
    "limits": {"memory_bytes": 20_200_000_000},
    "disk_bytes": {"needed": 439_000_000, "free": 69_600_000_000},
    "warnings": ["the disk is slow"],
}
TRAIN = ["train", "recipes/quickstart.toml", "--detach"]
WATCH = ["monitor", "adapters/quickstart", "--until-end"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, "quickstart")
    return FakeDesk(tmp_path, printed={"plan": Ran(0, json.dumps(PRICE), "")})


def test_the_first_time_return_alone_trains_the_quickstart(fake: FakeDesk) -> None:
    fake.answers = ["", ""]
    assert training.train(fake.desk(), []) == 0
    assert fake.called == [TRAIN, WATCH]
    assert fake.said[0] == "\nNothing has been trained here yet. How do you want to begin?"
    assert fake.asked[-1] == "\nStart the training? [Y/n] "


def test_what_was_named_or_dragged_in_is_trained(fake: FakeDesk, tmp_path: Path) -> None:
    fake.answers = [str(tmp_path / "recipes" / "quickstart.toml"), "y"]
    assert training.train(fake.desk(), []) == 0
    fake.answers = [""]
    assert training.train(fake.desk(), ["quickstart"]) == 0
    assert fake.called == [TRAIN, WATCH] * 2


def test_who_says_no_starts_nothing(fake: FakeDesk) -> None:
    fake.answers = ["", "n"]
    with pytest.raises(Cancelled):
        training.train(fake.desk(), [])
    assert fake.called == []


def test_the_price_is_a_few_lines(fake: FakeDesk) -> None:
    fake.answers = ["", ""]
    training.train(fake.desk(), [])
    begin = fake.said.index("\nquickstart will take on this machine:")
    assert fake.said[begin + 1 : begin + 8] == [
        "  learns    168 examples in 84 steps",
        "  memory    about 1.0 GB of 20.2 GB",
        "  time      about 13m 07s (1m 19s to 2h 09m) on this machine",
        "  disk      439.0 MB of 69.6 GB free",
        "  first     the model m is fetched, once",
        "  warning   the disk is slow",
        "  (all of it, with reasons: mlxft plan recipes/quickstart.toml --no-measure)",
    ]


@pytest.mark.parametrize("printed", ["", "[]", "{}", '{"rows": 3}', json.dumps(PRICE | {"forecast": None})])
def test_a_plan_in_another_form_is_shown_as_it_prints_itself(fake: FakeDesk, printed: str) -> None:
    fake.printed = {"plan": Ran(0, printed, "")}
    fake.answers = ["", ""]
    assert training.train(fake.desk(), []) == 0
    assert fake.called == [PLAN, TRAIN, WATCH]


def test_a_plan_that_fails_says_so_itself_and_nothing_is_started(fake: FakeDesk) -> None:
    fake.printed, fake.commands = {"plan": Ran(2, "", "error: x")}, {"plan": 2}
    fake.answers = [""]
    with pytest.raises(Cancelled):
        training.train(fake.desk(), [])
    assert fake.called == [PLAN]


def test_without_a_terminal_only_what_is_named_is_trained(fake: FakeDesk) -> None:
    fake.can_ask = False
    with pytest.raises(UsageError, match="no terminal to ask on"):
        training.train(fake.desk(), [])
    assert training.train(fake.desk(), ["quickstart"]) == 0
    assert fake.asked == []


def test_a_start_that_fails_gives_its_code_and_is_not_watched(fake: FakeDesk) -> None:
    fake.commands = {"train": 130}
    fake.answers = ["", ""]
    assert training.train(fake.desk(), []) == 130
    assert fake.called == [TRAIN]
    assert fake.said[-1] == '\nNext: double-click "Train" again once that is mended.'


def test_what_does_not_fit_is_offered_with_the_plans_own_way_to_fit(fake: FakeDesk) -> None:
    fixes = [{"settings": {"quantize": "4", "data.max_seq_length": "512"}}, {"settings": {"lora.rank": "4"}}]
    fake.printed = {"plan": Ran(3, json.dumps({"fixes": fixes}), "")}
    fake.commands = {"plan": [3, 0]}
    fake.answers = ["", "y", "y"]
    assert training.train(fake.desk(), []) == 0
    changed = ["recipes/quickstart.toml", "--set", "quantize=4", "--set", "data.max_seq_length=512"]
    assert fake.called == [PLAN, ["plan", *changed, "--no-measure"], ["train", *changed, "--detach"], WATCH]


@pytest.mark.parametrize("printed", ['{"fixes": []}', "", "[]", '{"fixes": [3]}'])
def test_what_cannot_be_made_to_fit_is_not_started(fake: FakeDesk, printed: str) -> None:
    fake.printed = {"plan": Ran(3, printed, "")}
    fake.commands = {"plan": 3}
    fake.answers = ["", "y"]
    with pytest.raises(Cancelled):
        training.train(fake.desk(), [])
    assert fake.called == [PLAN]
    assert "A smaller model fits" in fake.said[-1]


def test_a_run_that_is_at_work_is_shown_not_started_again(fake: FakeDesk, tmp_path: Path) -> None:
    run = write_run(tmp_path, "quickstart", "running")
    with at_work(run):
        assert training.train(fake.desk(), ["quickstart"]) == 0
    assert fake.called == [WATCH]


def test_what_was_left_unfinished_stands_first_and_goes_on_without_a_plan(fake: FakeDesk, tmp_path: Path) -> None:
    write_run(tmp_path, "quickstart", "stopped")
    fake.answers = [""]
    assert training.train(fake.desk(), []) == 0
    assert fake.said[1].strip() == "1  Go on with quickstart (stopped at step 4)"
    assert fake.called == [["train", "recipes/quickstart.toml", "--resume", "--detach"], WATCH]


@pytest.mark.parametrize(
    ("typed", "called", "word"),
    [
        (["1"], [WATCH], '"Monitor" to see it again'),
        ([], [WATCH], '"Monitor" to see it again'),
        (["3", "1"], [WATCH, WATCH], '"Monitor"'),
        (["2"], [WATCH, ["stop", "adapters/quickstart"]], '"Train" to go on'),
    ],
    ids=["leave", "ctrl-d", "on", "stop"],
)
def test_who_leaves_the_view_is_asked_what_the_training_is_to_do(
    fake: FakeDesk, tmp_path: Path, typed: list[str], called: list[list[str]], word: str
) -> None:
    run = write_run(tmp_path, "quickstart", "running")
    fake.answers, fake.has_dialogs = typed, True
    with at_work(run):
        assert training.watch(fake.desk(), run) == 0
    assert fake.called == called
    assert word in fake.said[-1]
    assert fake.ran == []  # a question about a key that was pressed here is asked here


def test_the_end_says_what_to_double_click(fake: FakeDesk, tmp_path: Path) -> None:
    assert training.watch(fake.desk(), write_run(tmp_path, "quickstart", "finished")) == 0
    assert fake.said[-1].startswith('\nNext: double-click "Test" to see its answers')
    fake.commands = {"monitor": 1}
    assert training.watch(fake.desk(), write_run(tmp_path, "b", "failed")) == 1
    assert '"Train" to go on with it' in fake.said[-1]


def test_the_end_says_where_the_report_is_and_waits_a_moment_for_it(fake: FakeDesk, tmp_path: Path) -> None:
    run = write_run(tmp_path, "quickstart", "finished")
    fake.on_sleep = lambda: run.file("report.html").touch()
    assert training.watch(fake.desk(), run) == 0
    assert fake.said[-2].endswith(f" for your browser:\n{run.file('report.html').resolve()}")


def test_an_end_without_a_report_does_not_wait_for_ever(fake: FakeDesk, tmp_path: Path) -> None:
    begun = fake.time
    assert training.watch(fake.desk(), write_run(tmp_path, "quickstart", "finished")) == 0
    assert fake.time - begun < 6
    assert "for your browser" not in fake.text

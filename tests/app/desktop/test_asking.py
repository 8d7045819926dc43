"""Questions: dialogs get texts as arguments, cancelling is heard, the window is the way out."""

from pathlib import Path

import pytest
from desks import FakeDesk

from mlx_finetune.app.desktop import asking
from mlx_finetune.app.desktop.desk import Cancelled, Ran

LABELS = ["one", "two", "three"]


@pytest.fixture
def fake(tmp_path: Path) -> FakeDesk:
    return FakeDesk(tmp_path)


@pytest.mark.parametrize(("typed", "index"), [("2", 1), (" 3 ", 2), ("", 0)])
def test_the_menu_takes_a_number(fake: FakeDesk, typed: str, index: int) -> None:
    fake.answers = [typed]
    assert asking.choose(fake.desk(), "Which?", LABELS) == index
    assert fake.said == ["\nWhich?", "  1  one", "  2  two", "  3  three"]


def test_what_is_no_number_is_asked_again(fake: FakeDesk) -> None:
    fake.answers = ["0", "4", "two", "99999999999999", "3"]
    assert asking.choose(fake.desk(), "Which?", LABELS) == 2
    assert fake.said[-1] == "  '99999999999999' is no number from 1 to 3"


def test_a_file_is_taken_where_one_is_wanted(fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / "1 mine.toml").touch()
    fake.answers = ["gone.toml", "1 mine.toml"]
    assert asking.choose(fake.desk(), "Which?", LABELS, paths="a recipe") == tmp_path / "1 mine.toml"
    assert "no number from 1 to 3 and no file" in fake.text


def test_a_name_with_a_line_break_is_read_to_its_end(fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / "two\nlines.toml").touch()
    fake.answers = [f"{tmp_path}/two\\", "lines.toml"]
    assert asking.choose(fake.desk(), "Which?", LABELS, paths="a recipe") == tmp_path / "two\nlines.toml"


def test_ctrl_d_cancels_and_so_do_many_useless_answers(fake: FakeDesk) -> None:
    with pytest.raises(Cancelled):
        asking.choose(fake.desk(), "Which?", LABELS)
    fake.answers = ["x"] * 100
    with pytest.raises(Cancelled):
        asking.choose(fake.desk(), "Which?", LABELS)
    assert fake.answers


@pytest.mark.parametrize(
    ("typed", "picked"), [("1 3", [0, 2]), ("3,1", [2, 0]), ("2 2", [1]), ("", [0]), (" 2, 1 ,3 ", [1, 0, 2])]
)
def test_several_are_taken_in_the_order_they_were_given(fake: FakeDesk, typed: str, picked: list[int]) -> None:
    fake.answers = [typed]
    assert asking.choose_several(fake.desk(), "Which?", LABELS, paths="recipes") == picked


def test_several_files_are_taken(fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / "a.toml").touch()
    (tmp_path / "b c.toml").touch()
    fake.answers = ["1 x", "a.toml b\\ c.toml"]
    found = asking.choose_several(fake.desk(), "Which?", LABELS, paths="recipes")
    assert found == [tmp_path / "a.toml", tmp_path / "b c.toml"]


@pytest.mark.parametrize(("typed", "answer"), [("", True), ("y", True), ("YES", True), ("n", False), ("no ", False)])
def test_yes_and_no(fake: FakeDesk, typed: str, answer: bool) -> None:
    fake.answers = ["what", typed]
    assert asking.confirm(fake.desk(), "Start?") is answer
    assert fake.asked[0] == "Start? [Y/n] "


def test_labels_cannot_draw_on_the_terminal(fake: FakeDesk) -> None:
    fake.answers = [""]
    asking.choose(fake.desk(), "Which?", ["a\x1b[2Jb\nc\u202ed" + "x" * 200])
    assert fake.said[-1].startswith("  1  a[2Jb cdxxx")
    assert len(fake.said[-1]) <= 80


def dialogs(fake: FakeDesk, *answers: Ran | None) -> FakeDesk:
    fake.has_dialogs = True
    fake.programs = {"osascript": list(answers)}
    return fake


def test_a_dialog_gets_every_text_as_an_argument(fake: FakeDesk) -> None:
    labels = ['"); do shell script "touch canary', "$(touch canary)", "-e", "`id`", "umlaut ü"]
    dialogs(fake, Ran(0, "2  $(touch canary)\n", ""))
    assert asking.choose(fake.desk(), "Which one's?", labels) == 1
    (command,) = fake.ran
    assert command[:2] == ["osascript", "-e"]
    assert command[3:] == ["mlxft", "Which one's?", "one", *(f"{i}  {label}" for i, label in enumerate(labels, 1))]
    assert all(label not in command[2] for label in labels)


def test_a_dialog_of_several_gives_them_all(fake: FakeDesk) -> None:
    dialogs(fake, Ran(0, "1  one\n3  three\n", ""))
    assert asking.choose_several(fake.desk(), "Which?", LABELS, paths="recipes") == [0, 2]
    assert fake.ran[0][5] == "many"


def test_a_dialog_that_is_closed_cancels(fake: FakeDesk) -> None:
    cancelled = Ran(1, "", "28:40: execution error: User canceled. (-128)\n")
    with pytest.raises(Cancelled):
        asking.choose(dialogs(fake, Ran(0, "false\n", "")).desk(), "Which?", LABELS)
    with pytest.raises(Cancelled):
        asking.choose(dialogs(fake, cancelled).desk(), "Which?", LABELS)
    with pytest.raises(Cancelled):
        asking.ask_path(dialogs(fake, cancelled).desk(), "Which", "file")
    assert fake.asked == []


@pytest.mark.parametrize("broken", [None, Ran(1, "", "not authorised (-1743)"), Ran(0, "", ""), Ran(0, "junk", "")])
def test_where_no_dialog_can_be_shown_the_window_asks(fake: FakeDesk, broken: Ran | None) -> None:
    fake.answers = ["3"]
    assert asking.choose(dialogs(fake, broken).desk(), "Which?", LABELS) == 2
    assert fake.said[0] == "(no dialog could be shown; asking here)"


@pytest.mark.parametrize(
    "name", ["a b.jsonl", "line\nbreak.jsonl", "ü 'x' \"y\" $(touch canary).jsonl", "ends in blank "]
)
def test_a_file_dialog_gives_the_name_to_the_letter(fake: FakeDesk, name: str) -> None:
    dialogs(fake, Ran(0, f"/tmp/{name}\n", ""))
    assert asking.ask_path(fake.desk(), "Which", "file") == Path(f"/tmp/{name}")


def test_a_typed_path_must_be_there(fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    fake.answers = ["row.jsonl", "rows.jsonl"]
    assert asking.ask_path(fake.desk(), "Which", "file") == tmp_path / "rows.jsonl"
    assert fake.said == ["  there is no file 'row.jsonl'"]

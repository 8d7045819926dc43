"""What is on the screen: golden pictures of every pane at three sizes, and nothing wider than the terminal."""

import pytest
from golden_screens import FOLDER, PANES, SIZES, draw_all


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[str]]:
    return {name: list(lines) for name, lines in draw_all()}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("pane", PANES)
def test_a_pane_is_drawn_as_it_was_reviewed(drawn: dict[str, list[str]], pane: str, size: tuple[int, int]) -> None:
    """Differs? ``PYTHONPATH=.:tests python tests/golden_screens.py`` writes the pictures anew, for review."""
    name = f"{pane}-{size[0]}x{size[1]}.txt"
    assert drawn[name] == (FOLDER / name).read_text("utf-8").removesuffix("\n").split("\n")
    assert len(drawn[name]) == size[1]


def test_there_is_a_picture_of_everything_and_no_other(drawn: dict[str, list[str]]) -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(drawn)

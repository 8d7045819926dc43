"""What is typed or dragged into the window: paths, whatever is in their names, and nothing is ever run."""

from pathlib import Path

import pytest

from mlx_finetune.app.desktop.typed import is_unfinished, typed_paths

HOSTILE = [
    "plain.toml",
    "with blanks in it.toml",
    "it's mine.toml",
    'say "no".toml',
    "Übung für Zoë.toml",
    "rocket 🚀.toml",
    "$(touch canary).toml",
    "`touch canary`.toml",
    "a; touch canary.toml",
    "back\\slash.toml",
    "two\nlines.toml",
    "-n.toml",
    "*.toml",
    "#hash.toml",
    "100%s.toml",
    "cafe\u0301.toml",
    "n" * 250 + ".toml",
]


def dragged(path: Path) -> str:
    """As Terminal pastes a path: a backslash before everything that a shell might take amiss."""
    return "".join(c if c.isalnum() or c in "/._-" or ord(c) > 127 else f"\\{c}" for c in str(path)) + " "


@pytest.mark.parametrize("name", HOSTILE)
def test_a_dragged_path_is_the_file_it_names(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch()
    assert typed_paths(dragged(path), tmp_path) == [path]


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\n" not in name])
def test_a_name_that_exists_is_taken_as_it_stands(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert typed_paths(f"  {name} ", tmp_path) == [tmp_path / name]
    assert typed_paths(str(tmp_path / name), Path("/elsewhere")) == [tmp_path / name]


def test_several_files_can_be_dragged_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / "a b.toml", tmp_path / "c.toml"]
    for path in paths:
        path.touch()
    assert typed_paths("".join(map(dragged, paths)), tmp_path) == paths
    assert typed_paths(f"'{paths[0]}' \"{paths[1]}\"", tmp_path) == paths


def test_a_url_of_a_file_is_its_path(tmp_path: Path) -> None:
    assert typed_paths("file:///tmp/a%20b%C3%BC.toml", tmp_path) == [Path("/tmp/a bü.toml")]


def test_a_missing_name_with_blanks_is_one_name(tmp_path: Path) -> None:
    assert typed_paths("my recipe.toml", tmp_path) == [tmp_path / "my recipe.toml"]
    assert typed_paths("it's.toml", tmp_path) == [tmp_path / "it's.toml"]


def test_the_home_folder_may_be_abbreviated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_paths("~/x.toml", Path("/")) == [tmp_path / "x.toml"]
    assert typed_paths("~nobody-of-that-name/x.toml", Path("/a")) == [Path("/a/~nobody-of-that-name/x.toml")]


@pytest.mark.parametrize("text", ["", "  ", "\t"])
def test_nothing_is_no_path(text: str, tmp_path: Path) -> None:
    assert typed_paths(text, tmp_path) == []


def test_what_no_file_can_be_called_is_no_crash(tmp_path: Path) -> None:
    assert typed_paths("a\0b", tmp_path) == [tmp_path / "a\0b"]
    typed_paths("x" * 5000, tmp_path)


def test_a_line_that_hides_its_end_goes_on() -> None:
    assert is_unfinished("/tmp/two\\")
    assert not is_unfinished("/tmp/two\\\\")
    assert not is_unfinished("/tmp/two")

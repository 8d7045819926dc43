"""The token: made once, for its owner alone; a file that others could read is not used."""

import os
import stat
from pathlib import Path

import pytest

from mlx_finetune.errors import RunError
from mlx_finetune.loopback.tokens import open_token


def test_a_token_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "token"
    old = os.umask(0)
    try:
        made = open_token(path)
    finally:
        os.umask(old)
    assert made.is_new
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(made.text) >= 43
    again = open_token(path)
    assert (again.text, again.is_new) == (made.text, False)
    assert open_token(tmp_path / "other").text != made.text


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    open_token(path)
    path.chmod(mode)
    with pytest.raises(RunError, match="others can read") as caught:
        open_token(path)
    assert path.read_text().strip() not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("content", [b"", b"short", b"with blanks in its middle", b"\xff" * 30, b"a" * 500])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(RunError, match="holds no token"):
        open_token(path)


def test_links_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    open_token(tmp_path / "token")
    (tmp_path / "link").symlink_to(tmp_path / "token")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "folder", "pipe", "dangling"):
        with pytest.raises(RunError):
            open_token(tmp_path / name)
    assert not (tmp_path / "nothing").exists()

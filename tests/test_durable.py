"""A file is whole or absent, what was written is what is read, and nothing is written through a link."""

import hashlib
import os
import stat
from collections.abc import Iterator

import pytest

from mlx_finetune import durable
from mlx_finetune.errors import RunError


def test_a_new_file_has_the_size_and_hash_that_are_reported(tmp_path):
    content = os.urandom(3_000_000)
    written = durable.write_new(tmp_path / "file", [content[:5], memoryview(content[5:]), b""])
    assert (tmp_path / "file").read_bytes() == content
    assert (written.num_bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_file_that_is_there_is_never_written_over(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "file", [b"other"])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "link", [b"other"])
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_write_that_is_taken_in_pieces_is_finished(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:3]))
    durable.write_new(tmp_path / "file", [b"0123456789"])
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_disk_that_keeps_other_bytes_than_it_was_given_is_found_out(tmp_path, monkeypatch):
    real = os.write

    def lying(descriptor, content):
        real(descriptor, bytes(content)[:-1] + b"?")
        return len(content)

    monkeypatch.setattr(os, "write", lying)
    with pytest.raises(OSError, match="reads back differently"):
        durable.write_new(tmp_path / "file", [b"0123456789"])


def test_every_byte_is_flushed_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    calls = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)

        def record(*arguments, name=name, real=real):
            kind = name
            if name == "fsync":
                kind = "sync folder" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else "sync file"
            calls.append(kind)
            return real(*arguments)

        monkeypatch.setattr(os, name, record)
    durable.write_text(tmp_path / "file", "text")
    assert calls == ["write", "sync file", "replace", "sync folder"]


def test_a_replacement_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "file").write_text("old")

    def torn() -> Iterator[bytes]:
        yield b"ne"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as error:
        durable.replace_file(tmp_path / "file", torn())
    assert error.value.filename == str(tmp_path / f".file.{os.getpid()}.part")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_copy_is_the_same_and_a_link_in_its_place_is_replaced(tmp_path):
    (tmp_path / "source").write_bytes(os.urandom(2_500_000))
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "target").symlink_to(tmp_path / "outside")
    durable.copy_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "outside").read_text() == "mine"
    assert not (tmp_path / "target").is_symlink()
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()


@pytest.mark.parametrize("opened", [durable.open_append, durable.open_update, durable.open_lock])
def test_links_pipes_and_folders_are_refused_where_a_run_keeps_a_file(tmp_path, opened):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "link").symlink_to(outside)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(RunError, match="a link or no regular file"):
            opened(tmp_path / name)
    assert outside.read_text() == "mine"


def test_removing_a_link_leaves_what_it_names(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    durable.remove_tree(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "mine"
    durable.remove_tree(tmp_path / "folder")
    durable.remove_tree(tmp_path / "never there")
    assert list(tmp_path.iterdir()) == []

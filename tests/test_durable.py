"""A file is whole or absent, what was written is what is read, and nothing is written through a link."""

import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import time
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


def test_a_line_is_added_behind_what_is_there_and_flushed_before_the_return(tmp_path, monkeypatch):
    path, flushed = tmp_path / "lines", []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size) or real(descriptor)
    )
    durable.append_line(path, b"one\n")
    assert flushed[0] == 4
    assert len(flushed) == 2, "the name of a new file is flushed too"
    path.write_bytes(b"one\ntw")
    durable.append_line(path, b"three\n")
    assert path.read_bytes() == b"one\ntw\nthree\n", "somebody's line without an end is ended, not cut"
    assert durable.count_bytes(path) == len(path.read_bytes())
    assert durable.count_bytes(tmp_path / "none") == 0


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_line_that_the_disk_does_not_take_whole_is_not_there(tmp_path, monkeypatch, call):
    path = tmp_path / "lines"
    path.write_bytes(b"one\n")
    real = os.write

    def full(*arguments):
        if call == "write" and len(arguments[1]) == 4:
            return real(arguments[0], arguments[1][:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space") as caught:
        durable.append_line(path, b"two\n")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"one\n"


def test_lines_of_several_processes_never_mix_and_a_kill_tears_at_most_the_line_being_written(tmp_path):
    """A write ends at any page when its process is killed, so each kill may leave one piece, on a line of its own."""
    path = tmp_path / "lines"
    code = (
        "import sys; from pathlib import Path; from mlx_finetune import durable\n"
        "line = (sys.argv[2] * 5000 + '\\n').encode()\n"
        "while True: durable.append_line(Path(sys.argv[1]), line)\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "abc"]
    try:
        while not path.exists() or len(set(path.read_bytes())) < 4 or path.stat().st_size < 60 * 5001:
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()
            child.wait()
    durable.append_line(path, b"d" * 5000 + b"\n")
    lines = path.read_bytes().splitlines()
    assert all(len(set(line)) == 1 for line in lines), "no line has two writers"
    assert {line[:1] for line in lines} == {b"a", b"b", b"c", b"d"}
    assert len(lines[-1]) == 5000, "what comes after a kill is whole"
    pieces = [line[:1] for line in lines if len(line) != 5000]
    assert len(pieces) == len(set(pieces)), "a process is killed once"


def test_lines_of_several_processes_are_all_there_and_whole(tmp_path):
    path, line = tmp_path / "lines", b"a" * 5000 + b"\n"
    code = (
        "import sys; from pathlib import Path; from mlx_finetune import durable\n"
        "line = (sys.argv[2] * 5000 + '\\n').encode()\n"
        "for _ in range(40): durable.append_line(Path(sys.argv[1]), line)\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "abc"]
    assert [child.wait() for child in children] == [0, 0, 0]
    lines = path.read_bytes().splitlines(keepends=True)
    assert sorted(lines) == sorted(line.replace(b"a", letter) for letter in (b"a", b"b", b"c") for _ in range(40))


def test_a_line_is_not_added_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        durable.append_line(tmp_path / "link", b"one\n")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_was_removed_while_its_lock_was_awaited_is_made_anew(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_bytes(b"old\n")
    real, removed = fcntl.flock, []

    def late(descriptor, kind):
        if not removed:
            removed.append(path.unlink())
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    durable.append_line(path, b"new\n")
    assert path.read_bytes() == b"new\n"


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff\xfe", b"[" * 200_000], ids=["missing", "empty", "cut", "binary", "deep"]
)
def test_a_file_that_cannot_be_read_is_an_error_or_nothing(tmp_path, content):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"file\.json cannot be read"):
        durable.read_object(path)
    assert durable.read_object_if_any(path) == {}


def test_only_an_object_is_read(tmp_path):
    durable.write_json(tmp_path / "object", {"a": [1]})
    (tmp_path / "list").write_text("[1]")
    assert durable.read_object(tmp_path / "object") == {"a": [1]}
    assert durable.read_object(tmp_path / "list") == durable.read_object_if_any(tmp_path / "list") == {}

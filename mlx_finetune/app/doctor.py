"""What is missing or wrong on this machine, and the command that mends it.

``examine`` asks the machine once and returns ``Facts``; ``find_problems`` is arithmetic over them, so every problem can
be shown in a test. mlx is imported (0.05 s) and one matrix product is timed; mlx-lm and transformers are only looked
up, not imported. Nothing is changed and nothing is fetched.
"""

import dataclasses
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_finetune.hardware import blas
from mlx_finetune.hardware.device import Device, read_device, read_metal, read_wheel_tag
from mlx_finetune.model.catalogue import cache_folder, folder_bytes, hub_cache_folder
from mlx_finetune.units import format_bytes

PACKAGES = ("mlx-finetune", "mlx", "mlx-lm", "transformers", "tokenizers", "numpy", "pip")

GB = 10**9
MIN_FREE_BYTES = 2 * GB
LOW_FREE_BYTES = 10 * GB
MIN_MEMORY_BYTES = 4 * GB
MIN_MACOS = 14
#: macOS versions from which on mlx has a wheel of its own: wiring needs 15, the M5's accelerators 26 (MACOS.md 1.1).
WHEEL_MACOS = (14, 15, 26)
SLOW_GFLOPS = 15.0

_SIZE = 1024
_REPETITIONS = 8


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder we keep things in. ``num_bytes`` is 0 where it does not exist yet; it can be made then if writable."""

    name: str
    path: str
    exists: bool
    num_bytes: int
    free_bytes: int
    is_writable: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known. ``versions`` has None for a package that is missing, ``gflops`` None where not measured."""

    versions: Mapping[str, str | None]
    python: str
    device: Device
    blas: blas.BlasReport
    gflops: float | None
    mlx_error: str
    wheel_tag: str | None
    folders: tuple[Folder, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: a blocker stops training, a warning makes it slower or may stop it later."""

    level: Literal["blocker", "warning"]
    message: str
    command: str


def examine() -> Facts:
    """Ask this machine. Takes a second or so; never raises for what it finds."""
    loaded = blas.prepare()
    metal, gflops, problem = None, None, ""
    try:
        metal = read_metal()
        gflops = measure_gflops()
    except (ImportError, OSError, RuntimeError) as error:
        problem = f"{type(error).__name__}: {error}"
    return Facts(
        versions={name: installed_version(name) for name in PACKAGES},
        python=platform.python_version(),
        device=read_device(metal=metal),
        blas=loaded,
        gflops=gflops,
        mlx_error=problem,
        wheel_tag=read_wheel_tag("mlx-metal"),
        folders=(
            look_at("models", cache_folder()),
            look_at("hub cache", hub_cache_folder()),
            look_at("runs", Path("adapters").absolute()),
        ),
    )


def measure_gflops() -> float:
    """The best of a few fp32 products of two 1024 x 1024 matrices on MLX's default device, in 10^9 operations/s."""
    import mlx.core as mx

    matrix = mx.random.normal((_SIZE, _SIZE), key=mx.random.key(0))
    mx.eval(matrix @ matrix)
    best = float("inf")
    for _ in range(_REPETITIONS):
        begin = time.perf_counter()
        mx.eval(matrix @ matrix)
        best = min(best, time.perf_counter() - begin)
    return 2 * _SIZE**3 / best / 1e9


def installed_version(package: str) -> str | None:
    """Version of an installed package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def look_at(name: str, path: Path) -> Folder:
    """Size of ``path`` and the room around it; for a folder that does not exist, of the nearest parent that does."""
    standing = path
    while not standing.is_dir() and standing != standing.parent:
        standing = standing.parent
    exists = path.is_dir()
    return Folder(
        name,
        str(path),
        exists,
        folder_bytes(path) if exists else 0,
        shutil.disk_usage(standing).free,
        os.access(standing, os.W_OK),
    )


def find_problems(facts: Facts) -> tuple[Finding, ...]:
    """Everything wrong, blockers first, each with the command that mends it."""
    found = [
        *_system_problems(facts.device),
        *_package_problems(facts),
        *_speed_problems(facts),
        *_room_problems(facts),
    ]
    return tuple(sorted(found, key=lambda finding: finding.level != "blocker"))


def _system_problems(device: Device) -> Sequence[Finding]:
    if device.system == "darwin":
        if device.is_translated:
            message = "Python runs under Rosetta, where MLX cannot be installed"
            return [Finding("blocker", message, "rm -r .venv && arch -arm64 ./launchers/mlxft doctor")]
        if device.machine != "arm64":
            message = f"MLX needs an Apple silicon Mac (M1 or newer), this is {device.machine}"
            return [Finding("blocker", message, "train on another machine: https://ml-explore.github.io/mlx")]
        version = device.macos_version
        if version is not None and version[0] < MIN_MACOS:
            message = f"MLX needs macOS {MIN_MACOS} or newer, this is {device.os_name}"
            return [Finding("blocker", message, "open 'x-apple.systempreferences:com.apple.Software-Update-Settings'")]
        if device.metal is not None and not device.metal.is_available:
            message = "MLX does not see the GPU, so training would run on the processor alone"
            return [Finding("blocker", message, "log in at the Mac itself, then: mlxft doctor")]
    return []


def _package_problems(facts: Facts) -> Sequence[Finding]:
    missing = [name for name in PACKAGES[1:] if facts.versions.get(name) is None]
    if missing:
        message = f"not installed: {', '.join(missing)}"
        return [Finding("blocker", message, "rm -r .venv && ./launchers/mlxft doctor")]
    found: list[Finding] = []
    if facts.mlx_error:
        message = f"mlx does not work: {facts.mlx_error}"
        found.append(Finding("blocker", message, "rm -r .venv && ./launchers/mlxft doctor"))
    if _is_outgrown(facts.wheel_tag, facts.device.macos_version):
        message = f"mlx was installed for {facts.wheel_tag} and lacks what {facts.device.os_name} offers"
        found.append(Finding("warning", message, "rm -r .venv && ./launchers/mlxft doctor"))
    return found


def _is_outgrown(tag: str | None, macos: tuple[int, int] | None) -> bool:
    """True where a wheel for a newer macOS than ``tag`` exists and this system could use it."""
    match = re.match(r"macosx_(\d+)_", tag or "")
    if match is None or macos is None:
        return False
    return any(int(match[1]) < newer <= macos[0] for newer in WHEEL_MACOS)


def _speed_problems(facts: Facts) -> Sequence[Finding]:
    if facts.device.system != "linux":
        return []
    found: list[Finding] = []
    if not facts.blas.loaded:
        message = f"{facts.blas.reason}: matrix products run 10 to 30 times slower than they could"
        found.append(Finding("warning", message, "python -m pip install --force-reinstall ngsolve-openblas"))
    elif facts.gflops is not None and facts.gflops < SLOW_GFLOPS:
        message = f"only {facts.gflops:.0f} GFLOP/s although OpenBLAS is loaded: other programs keep the processor busy"
        found.append(Finding("warning", message, "OPENBLAS_NUM_THREADS=1 mlxft doctor"))
    if facts.device.machine == "x86_64" and not facts.blas.flush_to_zero:
        message = "denormal numbers could not be switched off: single steps may be 80 times slower"
        found.append(Finding("warning", message, "ldd --version   # glibc is needed"))
    return found


def _room_problems(facts: Facts) -> Sequence[Finding]:
    found: list[Finding] = []
    for folder in facts.folders:
        if not folder.is_writable:
            way_out = (
                "MLXFT_CACHE=FOLDER mlxft doctor"
                if folder.name == "models"
                else f"chmod u+w {shlex.quote(folder.path)}"
            )
            found.append(Finding("blocker", f"{folder.path} cannot be written to", way_out))
        elif folder.free_bytes < LOW_FREE_BYTES:
            level = "blocker" if folder.free_bytes < MIN_FREE_BYTES else "warning"
            message = f"only {format_bytes(folder.free_bytes)} free for {folder.name} in {folder.path}"
            found.append(Finding(level, message, "mlxft models list   # then: mlxft models rm NAME"))
    if facts.device.memory_bytes < MIN_MEMORY_BYTES:
        message = f"{format_bytes(facts.device.memory_bytes)} of memory: only the smallest models can be trained"
        found.append(Finding("warning", message, "mlxft plan recipes/quickstart.toml"))
    return found


def to_json(facts: Facts, findings: Sequence[Finding]) -> dict[str, object]:
    """One JSON object: the facts, the problems, and ``ok``, which is false where there is a blocker."""
    return {
        **dataclasses.asdict(facts),
        "backend": facts.device.backend,
        "problems": [dataclasses.asdict(finding) for finding in findings],
        "ok": not any(finding.level == "blocker" for finding in findings),
    }


def sections(facts: Facts) -> dict[str, list[tuple[str, str]]]:
    """The facts in words: heading -> (label, value)."""
    device, metal = facts.device, facts.device.metal
    memory = f"{format_bytes(device.memory_bytes)}, {format_bytes(device.available_bytes)} of it free"
    if metal is not None and metal.working_set_bytes is not None:
        memory += f", {format_bytes(metal.working_set_bytes)} for the GPU"
    rate = "not measured" if facts.gflops is None else f"{facts.gflops:.0f} GFLOP/s (fp32, 1024 x 1024 x 1024)"
    library = facts.blas.reason if facts.blas.path is None else f"{facts.blas.reason} ({Path(facts.blas.path).name})"
    return {
        "Versions": [
            ("mlxft", facts.versions.get("mlx-finetune") or "not installed"),
            ("python", facts.python),
            *((name, facts.versions.get(name) or "not installed") for name in PACKAGES[1:]),
            ("system", f"{device.os_name}, {device.machine}"),
        ],
        "Machine": [
            ("processor", f"{device.chip}, {device.num_cores} cores"),
            ("memory", memory),
            ("MLX runs on", device.backend + (f", {metal.name} ({metal.architecture})" if metal else "")),
            ("matrix product", rate),
            ("BLAS", library),
            ("flush to zero", "on" if facts.blas.flush_to_zero else "off"),
        ],
        "Folders": [(folder.name, _folder_text(folder)) for folder in facts.folders],
    }


def _folder_text(folder: Folder) -> str:
    size = format_bytes(folder.num_bytes) if folder.exists else "not there yet"
    return f"{folder.path}: {size}, {format_bytes(folder.free_bytes)} free"

"""The facts in words, and everything as one JSON object."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mlx_finetune.app.doctor.environment import PACKAGES
from mlx_finetune.app.doctor.examine import Facts
from mlx_finetune.app.doctor.finding import Finding
from mlx_finetune.app.doctor.mac import MacState
from mlx_finetune.app.doctor.models import HubState, Needs
from mlx_finetune.app.doctor.places import Folder
from mlx_finetune.app.text import printable
from mlx_finetune.hardware.device import Device
from mlx_finetune.hardware.metal import Setting
from mlx_finetune.units import format_bytes

_WIDTH = 16


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
    told = {
        "Versions": _versions(facts),
        "Machine": _machine(facts),
        "Settings": [] if facts.mac is None else _settings(facts.mac, facts.device),
        "Told to MLX": _told_to_mlx(facts.settings),
        "Folders": [(folder.name, _folder_text(folder)) for folder in facts.folders],
        "Hub": [("hub", _hub_text(facts.hub)), ("token", _token_text(facts.hub))],
        "Recipe": [] if facts.needs is None else _needs_rows(facts.needs),
    }
    return {heading: [(label, printable(value)) for label, value in rows] for heading, rows in told.items() if rows}


def _versions(facts: Facts) -> list[tuple[str, str]]:
    wheel = [] if facts.wheel_tag is None else [("wheel of mlx", facts.wheel_tag)]
    return [
        ("mlxft", facts.versions.get("mlx-finetune") or "not installed"),
        ("python", facts.python),
        *((name, facts.versions.get(name) or "not installed") for name in PACKAGES[1:]),
        *wheel,
        ("system", f"{facts.device.os_name}, {facts.device.machine}"),
    ]


def _machine(facts: Facts) -> list[tuple[str, str]]:
    device, metal = facts.device, facts.device.metal
    memory = f"{format_bytes(device.memory_bytes)}, {format_bytes(device.available_bytes)} of it free"
    if metal is not None and metal.working_set_bytes is not None:
        memory += f", {format_bytes(metal.working_set_bytes)} for the GPU"
    cores = f"{device.num_cores} cores" + ("" if device.gpu_cores is None else f", {device.gpu_cores} in the GPU")
    rate = "not measured" if facts.gflops is None else f"{facts.gflops:.0f} GFLOP/s (fp32, 1024 x 1024 x 1024)"
    library = facts.blas.reason if facts.blas.path is None else f"{facts.blas.reason} ({Path(facts.blas.path).name})"
    only_linux = [("BLAS", library), ("flush to zero", "on" if facts.blas.flush_to_zero else "off")]
    return [
        ("processor", f"{device.chip}, {cores}"),
        ("memory", memory),
        ("MLX runs on", device.backend + (f", {metal.name} ({metal.architecture})" if metal else "")),
        ("matrix product", rate),
        *(only_linux if device.system == "linux" else ()),
    ]


def _settings(mac: MacState, device: Device) -> list[tuple[str, str]]:
    source = {None: "not known", True: "battery", False: "mains"}[device.power.on_battery]
    at = " at" if device.power.on_battery else ", battery at"
    charge = "" if device.power.percent is None else f"{at} {device.power.percent} %"
    modes = {None: "not known", "automatic": "automatic", "low": "Low Power Mode", "high": "High Power Mode"}
    limit = {None: "not known", 0: "chosen by macOS"}.get(mac.wired_limit_mb, f"set to {mac.wired_limit_mb} MiB")
    return [
        ("power", f"{source}{charge}; {modes[device.power_mode]}"),
        ("heat", {None: "not known", "": "nothing is held back"}.get(mac.throttled, f"{mac.throttled}")),
        ("display sleeps", f"{_after(mac.display_sleep_minutes)}; it may, and a training goes on"),
        ("Mac sleeps", f"{_after(mac.sleep_minutes)}, never while it trains; a closed lid sleeps regardless"),
        ("GPU memory limit", limit),
        ("memory pressure", mac.pressure or "not known"),
        ("swap in use", "not known" if mac.swap_bytes is None else format_bytes(mac.swap_bytes)),
    ]


def _told_to_mlx(settings: Sequence[Setting]) -> list[tuple[str, str]]:
    """Limits, and those variables that are set or decided by somebody; the rest is MLX's own."""
    rows: list[tuple[str, str]] = []
    for one in settings:
        if one.value is not None:
            name = one.name if len(one.name) <= _WIDTH else one.key.removeprefix("hardware.")
            is_bound = one.name == "wired limit" and one.reason[:1].isdigit()
            rows.append((name, ("at most " if is_bound else "") + (one.reason or one.value)))
    return rows


def _after(minutes: int | None) -> str:
    return "not known" if minutes is None else "never" if minutes == 0 else f"after {minutes} min without use"


def _folder_text(folder: Folder) -> str:
    size = format_bytes(folder.num_bytes) if folder.exists else "not there yet"
    if folder.refused:
        size = f"cannot be looked into ({folder.refused})"
    elif folder.name == "project":
        return f"{folder.path}, {format_bytes(folder.free_bytes)} free"
    return f"{folder.path}: {size}, {format_bytes(folder.free_bytes)} free"


def _hub_text(hub: HubState) -> str:
    if hub.problem is None:
        return "not asked"
    return f"cannot be reached: {hub.problem}" if hub.problem else "answers"


def _token_text(hub: HubState) -> str:
    if hub.has_token:
        return "not accepted by the hub" if hub.token_is_refused else "kept here"
    return "none; only models that ask for their licence to be accepted need one"


def _needs_rows(needs: Needs) -> list[tuple[str, str]]:
    where = "on this disk" if needs.is_here else "not on this disk yet"
    size = f", about {format_bytes(needs.download_bytes)} to fetch" if needs.download_bytes else ""
    return [("recipe", needs.recipe), ("model", f"{needs.model}: {where}{size}")]

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_facts import LINUX, MAC, PACKAGE, TYPED, answering

from mlx_finetune.app.doctor.system import system_problems, wheel_problems
from mlx_finetune.hardware.device import Metal, read_device

NO_GPU = Metal(False, "", "", None, None)
M5 = Metal(True, "Apple M5", "applegpu_g17g", None, None)


def test_linux_is_never_asked_for_a_mac():
    assert system_problems(LINUX, TYPED) == []
    assert list(wheel_problems("manylinux_2_35_x86_64", LINUX, TYPED)) == []


@pytest.mark.parametrize(
    ("name", "is_translated"),
    [("rosetta.txt", True), ("native_arm64_macos26_5.txt", False), ("unknown_oid_stderr.txt", False)],
)
def test_rosetta_is_known_by_the_value_of_sysctl(shared: Callable[..., Path], name: str, is_translated: bool):
    """``-n`` leaves the name away; the old systems that do not know it write to stderr and fail."""
    text = shared("macos-fixtures", "sysctl", name).read_text("utf-8")
    answers = {} if "unknown oid" in text else {"sysctl -n sysctl.proc_translated": text.splitlines()[0].split(": ")[1]}
    device = read_device(metal=None, system="darwin", machine="x86_64", run=answering(answers))
    assert device.is_translated is is_translated
    (finding,) = system_problems(device, TYPED)
    assert ("Rosetta" in finding.message) is is_translated


def test_the_remedy_of_rosetta_starts_the_launcher_natively():
    (finding,) = system_problems(replace(MAC, is_translated=True, machine="x86_64"), TYPED)
    assert finding.command == "rm -r .venv && arch -arm64 ./launchers/mlxft doctor"
    (finding,) = system_problems(replace(MAC, is_translated=True), PACKAGE)
    assert finding.command == "arch -arm64 /opt/env/bin/python -m pip install --force-reinstall mlx-finetune"


def test_a_version_that_macos_hides_is_not_called_old():
    (finding,) = system_problems(replace(MAC, os_name="macOS 10.16"), TYPED)
    assert finding.command == "unset SYSTEM_VERSION_COMPAT && ./launchers/mlxft doctor"
    assert system_problems(replace(MAC, os_name="macOS (unknown)"), TYPED) == []


def test_a_virtual_machine_is_told_apart_from_a_mac_without_a_desktop(shared: Callable[..., Path]):
    overview = json.loads(shared("macos-fixtures", "system_profiler", "hardware_vm_m4max.json").read_text("utf-8"))
    device = replace(MAC, chip=overview["SPHardwareDataType"][0]["chip_type"])
    (without,) = system_problems(replace(device, metal=NO_GPU), TYPED, is_virtual=True)
    assert (without.level, "virtual machine" in without.message) == ("blocker", True)
    (with_gpu,) = system_problems(device, TYPED, is_virtual=True)
    assert (with_gpu.level, "virtual machine" in with_gpu.message) == ("warning", True)
    (at_home,) = system_problems(replace(MAC, metal=NO_GPU), TYPED)
    assert "virtual" not in at_home.message


@pytest.mark.parametrize(
    ("tag", "macos", "metal", "level", "says"),
    [
        ("macosx_14_0_arm64", "14.7", MAC.metal, None, ""),
        ("macosx_15_0_arm64", "15.6", MAC.metal, None, ""),
        ("macosx_26_0_arm64", "26.5", M5, None, ""),
        ("macosx_14_0_arm64", "15.0", MAC.metal, "warning", "lacks what macOS 15.0 offers"),
        ("macosx_15_0_arm64", "26.0", MAC.metal, "warning", "lacks what macOS 26.0 offers"),
        ("macosx_15_0_arm64", "26.2", M5, "warning", "the accelerators of this GPU above all"),
        ("macosx_26_0_arm64", "26.1", M5, "note", "need macOS 26.2"),
        ("macosx_26_0_arm64", "15.6", MAC.metal, "blocker", "installed for macosx_26_0_arm64, and this is macOS 15.6"),
        (None, "26.5", M5, None, ""),
    ],
)
def test_the_wheel_of_mlx_is_compared_with_this_macos(
    tag: str | None, macos: str, metal: Metal, level: str | None, says: str
):
    found = list(wheel_problems(tag, replace(MAC, os_name=f"macOS {macos}", metal=metal), TYPED))
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(says in finding.message for finding in found)
    if level in ("warning", "blocker"):
        assert found[0].command == "rm -r .venv && ./launchers/mlxft doctor"

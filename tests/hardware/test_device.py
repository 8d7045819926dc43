import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from mlx_finetune.hardware.device import (
    Metal,
    Runner,
    parse_gpu_cores,
    parse_metal,
    read_device,
    read_gpu_cores,
    read_metal,
    run_program,
)
from mlx_finetune.hardware.limits import read_machine


def replies(answers: Mapping[str, str]) -> Runner:
    """A runner that answers by the last word of the command, and fails on every other one."""

    def run(command: Sequence[str]) -> str | None:
        return answers.get(command[-1])

    return run


def test_a_mac_is_described_by_its_own_tools(shared: Callable[..., Path]):
    info = json.loads(shared("macos-fixtures", "mlx_device_info", "m4pro_48gb.json").read_text())
    device = read_device(
        metal=parse_metal(info, is_available=True),
        system="darwin",
        machine="arm64",
        run=replies(
            {"machdep.cpu.brand_string": "Apple M4 Pro", "-productVersion": "15.6.1", "sysctl.proc_translated": "0"}
        ),
    )
    assert (device.chip, device.os_name, device.macos_version) == ("Apple M4 Pro", "macOS 15.6.1", (15, 6))
    assert (device.backend, device.is_translated) == ("Metal GPU", False)
    assert device.metal == Metal(True, "Apple M4 Pro", "applegpu_g16s", 40_200_896_512, 30_150_672_384)


def test_python_under_rosetta_is_noticed():
    device = read_device(metal=None, system="darwin", machine="x86_64", run=replies({"sysctl.proc_translated": "1"}))
    assert device.is_translated
    assert device.backend == "none"


def test_a_mac_whose_tools_fail_is_still_described():
    device = read_device(metal=None, system="darwin", machine="arm64", run=replies({}))
    assert (device.os_name, device.macos_version, device.chip) == ("macOS (unknown)", None, "arm64")


def test_the_cpu_backend_has_no_sizes(shared: Callable[..., Path]):
    info = json.loads(shared("macos-fixtures", "mlx_device_info", "linux_cpu_backend.json").read_text())
    assert parse_metal(info, is_available=False) == Metal(False, "AMD EPYC", "x86_64", None, None)


def test_the_processor_of_a_linux_machine_comes_from_lscpu():
    listing = "Architecture: x86_64\nModel name:          AMD EPYC 7763   \nCPU family: 25"
    device = read_device(metal=None, system="linux", machine="x86_64", run=replies({"lscpu": listing}))
    assert device.chip == "AMD EPYC 7763"
    assert device.macos_version is None


def test_this_machine_has_cores_and_memory_and_an_mlx():
    device = read_device(metal=read_metal())
    assert device.num_cores >= 1
    assert 0 < device.available_bytes <= device.memory_bytes
    assert device.backend in ("CPU", "Metal GPU")


def test_a_program_that_is_missing_or_fails_gives_nothing():
    assert run_program(["/nonexistent/program"]) is None
    assert run_program(["sh", "-c", "echo out; exit 3"]) is None
    assert run_program(["sh", "-c", "echo out"]) == "out"


@pytest.mark.parametrize(
    ("name", "cores"),
    [
        ("m1_8core.txt", 8),
        ("m4_10core_grep.txt", 10),
        ("m3pro_18core_busy.txt", 18),
        ("m4max_40core_split_keys.txt", 40),
        ("m4_constructed.plist", 10),
        ("m5pro.txt", None),
        ("spaced_equals.txt", None),
        ("empty_no_stats.txt", None),
    ],
)
def test_gpu_cores_are_those_of_the_register_of_devices(
    shared: Callable[..., Path], name: str, cores: int | None
) -> None:
    assert parse_gpu_cores(shared("macos-fixtures", "ioreg", name).read_text()) == cores


def test_gpu_cores_come_from_the_system_profiler_where_the_register_has_none(shared: Callable[..., Path]) -> None:
    listing = shared("macos-fixtures", "system_profiler", "displays_hardware_m2pro_19core.json").read_text()
    register = shared("macos-fixtures", "ioreg", "m5pro.txt").read_text()
    assert read_gpu_cores(replies({"SPDisplaysDataType": listing, "IOAccelerator": register})) == 19
    assert read_gpu_cores(replies({"IOAccelerator": '"gpu-core-count" = 10'})) == 10
    assert read_gpu_cores(replies({})) is None


@pytest.mark.parametrize("text", ["", "{", "\0", '"gpu-core-count" = x', '"gpu-core-count" = 0', '"sppci_cores" : 19'])
def test_a_listing_without_a_count_gives_none(text: str) -> None:
    assert parse_gpu_cores(text) is None


def test_a_mac_as_the_plan_sees_it_is_asked_for_its_chip_and_cores() -> None:
    run = replies({"machdep.cpu.brand_string": "Apple M4 Max", "IOAccelerator": '"gpu-core-count" = 32'})
    machine = read_machine(system="darwin", run=run, working_set_bytes=30 * 10**9)
    if sys.platform != "darwin":
        assert (machine.chip, machine.gpu_cores, machine.on_gpu) == ("Apple M4 Max", 32, True)
        assert machine.working_set_bytes == 30 * 10**9
    assert read_machine(system="darwin", run=replies({}), on_gpu=False).gpu_cores is None

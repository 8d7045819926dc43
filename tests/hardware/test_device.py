import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from mlx_finetune.hardware.device import (
    Device,
    Metal,
    parse_gpu_cores,
    parse_metal,
    read_device,
    read_gpu_cores,
    read_macos_version,
    read_metal,
)
from mlx_finetune.hardware.limits import read_machine
from mlx_finetune.hardware.system.macos import Cores
from mlx_finetune.hardware.system.power import Power
from mlx_finetune.hardware.system.programs import Runner, run_program


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


#: A whole Mac out of the recorded outputs: the command, without its folder, and the file that answers it.
M2_LAPTOP = {
    "sysctl hw": "sysctl/m1.txt",
    "sysctl -n hw.memsize machdep.cpu.brand_string": "sysctl/m3ultra_n_form.txt",
    "sysctl -n sysctl.proc_translated": "sysctl/native_arm64_macos26_5.txt",
    "ioreg -r -d 1 -w 0 -c IOAccelerator": "ioreg/m1_8core.txt",
    "vm_stat": "vm_stat/m1.txt",
    "pmset -g": "pmset/g_low_power.txt",
    "pmset -g batt": "pmset/batt_discharging.txt",
}


class Recorded:
    """Answers from recorded files, and notes what was asked; the commands in ``broken`` print what they say there."""

    def __init__(self, shared: Callable[..., Path], files: Mapping[str, str], **broken: str | None) -> None:
        self._texts = {name: shared("macos-fixtures", *file.split("/")).read_text() for name, file in files.items()}
        self._broken = broken
        self.asked: list[str] = []

    def __call__(self, command: Sequence[str]) -> str | None:
        assert command[0].startswith("/usr/"), "a tool is asked for by its whole path"
        line = " ".join([Path(command[0]).name, *command[1:]])
        self.asked.append(line)
        if command[0].endswith("sw_vers"):
            return "15.6.1"
        name = Path(command[0]).name
        text = self._broken[name] if name in self._broken else self._texts.get(line)
        return None if text is None else text.strip()


def described(run: Runner, shared: Callable[..., Path]) -> Device:
    info = json.loads(shared("macos-fixtures", "mlx_device_info", "m4pro_48gb.json").read_text())
    return read_device(metal=parse_metal(info, is_available=True), system="darwin", machine="arm64", run=run)


def test_everything_a_mac_tells_is_in_one_value(shared: Callable[..., Path]) -> None:
    run = Recorded(shared, M2_LAPTOP)
    device = described(run, shared)
    assert (device.chip, device.memory_bytes, device.num_cores) == ("Apple M3 Ultra", 549_755_813_888, 8)
    assert device.cores == (Cores("Performance", 4), Cores("Efficiency", 4))
    assert device.available_bytes == 549_755_813_888 - 13_637_386_240
    assert (device.gpu_cores, device.power, device.power_mode) == (8, Power(True, 78), "low")
    assert (device.is_low_power, device.is_translated, device.is_virtual) == (True, False, False)
    assert device.metal is not None
    assert device.metal.working_set_bytes == 40_200_896_512
    assert len(run.asked) == len(set(run.asked)) == 8, "each tool once, the slow one not at all"


@pytest.mark.parametrize("text", [None, "", "\x00\xff", "{", "=", "0", "-1\n-1", "\n" * 50], ids=repr)
@pytest.mark.parametrize("tool", ["sysctl", "ioreg", "vm_stat", "pmset", "system_profiler"])
def test_a_tool_that_fails_or_prints_nonsense_blanks_only_what_it_tells(
    shared: Callable[..., Path], tool: str, text: str | None
) -> None:
    """None is what the runner gives for a tool that is missing, fails or takes too long."""
    whole, device = (
        described(Recorded(shared, M2_LAPTOP), shared),
        described(Recorded(shared, M2_LAPTOP, **{tool: text}), shared),
    )
    told = {
        "sysctl": {"chip", "memory_bytes", "available_bytes", "num_cores", "cores"},
        "ioreg": {"gpu_cores"},
        "vm_stat": {"available_bytes"},
        "pmset": {"power", "power_mode"},
        "system_profiler": set[str](),
    }
    for name in Device.__slots__:
        if name not in told[tool]:
            assert getattr(device, name) == getattr(whole, name), name
    assert device.memory_bytes > 0
    assert 0 < device.available_bytes <= device.memory_bytes
    assert device.gpu_cores in (None, 8)
    assert device.chip


def test_the_slow_profiler_fills_what_the_quick_tools_leave_open(shared: Callable[..., Path]) -> None:
    files = {"system_profiler -json SPHardwareDataType SPDisplaysDataType": ""}
    run = Recorded(shared, dict.fromkeys(files, "system_profiler/displays_hardware_m2pro_19core.json"))
    device = described(run, shared)
    assert (device.chip, device.model, device.memory_bytes) == ("Apple M2 Pro", "Mac14,10", 16 * 2**30)
    assert device.cores == (Cores("Performance", 8), Cores("Efficiency", 4))
    assert device.gpu_cores == 19
    assert (device.power, device.power_mode, device.is_low_power) == (Power(None, None), None, None)


def test_a_virtual_mac_is_one(shared: Callable[..., Path]) -> None:
    files = {"system_profiler -json SPHardwareDataType SPDisplaysDataType": "system_profiler/hardware_vm_m4max.json"}
    device = described(Recorded(shared, files), shared)
    assert (device.is_virtual, device.cores, device.num_cores, device.gpu_cores) == (True, (), 2, None)


@pytest.mark.parametrize(
    ("name", "working_set", "is_raised"),
    [
        ("m4pro_48gb.json", 40_200_896_512, False),
        ("m5max_128gb.json", 115_448_725_504, False),
        ("m3ultra_256gb.json", 223_338_299_392, False),
        ("m5max_64gb_wired_limit_raised.json", 60_129_542_144, True),
        ("linux_cpu_backend.json", None, False),
    ],
)
def test_a_raised_limit_of_the_gpu_is_seen(
    shared: Callable[..., Path], name: str, working_set: int | None, is_raised: bool
) -> None:
    metal = parse_metal(json.loads(shared("macos-fixtures", "mlx_device_info", name).read_text()), is_available=True)
    assert (metal.working_set_bytes, metal.is_working_set_raised) == (working_set, is_raised)


@pytest.mark.parametrize("value", [0, -1, True, "40200896512", None, 1.5])
def test_a_size_that_is_no_size_is_none(value: object) -> None:
    keys = ("max_recommended_working_set_size", "max_buffer_length")
    metal = parse_metal(dict.fromkeys(keys, value), is_available=True)
    assert (metal.working_set_bytes, metal.max_buffer_bytes, metal.is_working_set_raised) == (None, None, False)


def test_the_version_of_macos_comes_from_its_own_tool() -> None:
    assert read_macos_version(replies({"-productVersion": "14.7.1"})) == (14, 7)
    assert read_macos_version(replies({"-productVersion": "26"})) == (26, 0)
    assert read_macos_version(replies({})) is None
    assert read_macos_version(replies({"-productVersion": "beta"})) is None

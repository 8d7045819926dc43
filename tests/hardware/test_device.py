import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlx_finetune.hardware.device import Metal, Runner, parse_metal, read_device, read_metal, run_program


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

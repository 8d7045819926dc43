import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_finetune.app import doctor
from mlx_finetune.app.doctor import Facts, Finding, Folder
from mlx_finetune.hardware.blas import BlasReport
from mlx_finetune.hardware.device import Device, Metal

GB = 10**9
LINUX = Device("linux", "Debian 12", "x86_64", "AMD EPYC", 2, 24 * GB, 20 * GB, False, Metal(False, "", "", None, None))
MAC = Device(
    "darwin",
    "macOS 15.6",
    "arm64",
    "Apple M4",
    10,
    16 * GB,
    8 * GB,
    False,
    Metal(True, "Apple M4", "g16g", 11 * GB, GB),
)
MODELS = Folder("models", "/home/me/.cache/mlxft", True, 3 * GB, 80 * GB, True)
HEALTHY = Facts(
    versions=dict.fromkeys(doctor.PACKAGES, "1.0"),
    python="3.12.1",
    device=LINUX,
    blas=BlasReport(True, "/x/libopenblasp.so", True, "OpenBLAS was loaded before mlx"),
    gflops=155.0,
    mlx_error="",
    wheel_tag=None,
    folders=(MODELS,),
)
HEALTHY_MAC = replace(
    HEALTHY, device=MAC, blas=BlasReport(False, None, False, "not needed"), wheel_tag="macosx_15_0_arm64"
)


def test_a_healthy_machine_has_no_problem():
    assert doctor.find_problems(HEALTHY) == ()
    assert doctor.find_problems(HEALTHY_MAC) == ()


@pytest.mark.parametrize(
    ("facts", "level", "says", "command"),
    [
        (replace(HEALTHY_MAC, device=replace(MAC, is_translated=True)), "blocker", "Rosetta", "arch -arm64"),
        (replace(HEALTHY_MAC, device=replace(MAC, machine="x86_64")), "blocker", "Apple silicon", "another machine"),
        (replace(HEALTHY_MAC, device=replace(MAC, os_name="macOS 13.7")), "blocker", "macOS 14", "Software-Update"),
        (
            replace(HEALTHY_MAC, device=replace(MAC, metal=Metal(False, "", "", None, None))),
            "blocker",
            "does not see the GPU",
            "mlxft doctor",
        ),
        (replace(HEALTHY_MAC, wheel_tag="macosx_14_0_arm64"), "warning", "macosx_14_0_arm64", "rm -r .venv"),
        (
            replace(HEALTHY_MAC, device=replace(MAC, os_name="macOS 26.5")),
            "warning",
            "lacks what macOS 26.5 offers",
            "rm -r .venv",
        ),
        (replace(HEALTHY, versions={**HEALTHY.versions, "mlx-lm": None}), "blocker", "mlx-lm", "rm -r .venv"),
        (replace(HEALTHY, mlx_error="ImportError: libmlx.so"), "blocker", "libmlx.so", "rm -r .venv"),
        (
            replace(HEALTHY, blas=BlasReport(False, None, True, "OpenBLAS is not installed")),
            "warning",
            "OpenBLAS is not installed",
            "pip install",
        ),
        (replace(HEALTHY, blas=replace(HEALTHY.blas, flush_to_zero=False)), "warning", "denormal", "ldd"),
        (replace(HEALTHY, gflops=0.4), "warning", "only 0 GFLOP/s", "OPENBLAS_NUM_THREADS=1"),
        (replace(HEALTHY, folders=(replace(MODELS, free_bytes=GB),)), "blocker", "only 1.0 GB free", "models rm"),
        (replace(HEALTHY, folders=(replace(MODELS, free_bytes=9 * GB),)), "warning", "9.0 GB free", "models rm"),
        (
            replace(HEALTHY, folders=(replace(MODELS, is_writable=False),)),
            "blocker",
            "cannot be written",
            "MLXFT_CACHE",
        ),
        (replace(HEALTHY, device=replace(LINUX, memory_bytes=2 * GB)), "warning", "2.0 GB of memory", "mlxft plan"),
    ],
)
def test_each_problem_is_found_alone_and_comes_with_a_command(facts: Facts, level: str, says: str, command: str):
    (finding,) = doctor.find_problems(facts)
    assert finding.level == level
    assert says in finding.message
    assert command in finding.command


def test_a_mac_that_kept_up_with_its_wheel_is_not_warned():
    on_26 = replace(MAC, os_name="macOS 26.5")
    assert doctor.find_problems(replace(HEALTHY_MAC, device=on_26, wheel_tag="macosx_26_0_arm64")) == ()


def test_blockers_come_before_warnings():
    facts = replace(HEALTHY, gflops=1.0, folders=(replace(MODELS, is_writable=False),))
    assert [finding.level for finding in doctor.find_problems(facts)] == ["blocker", "warning"]


def test_json_holds_the_facts_and_says_whether_training_can_start():
    blocked = (Finding("blocker", "no disk", "rm x"),)
    report = json.loads(json.dumps(doctor.to_json(HEALTHY, blocked)))
    assert report["ok"] is False
    assert report["problems"] == [{"level": "blocker", "message": "no disk", "command": "rm x"}]
    assert (report["gflops"], report["device"]["num_cores"], report["backend"]) == (155.0, 2, "CPU")
    assert doctor.to_json(HEALTHY, (Finding("warning", "slow", "x"),))["ok"] is True


def test_a_mac_shows_what_its_gpu_may_use():
    rows = dict(doctor.sections(HEALTHY_MAC)["Machine"])
    assert rows["memory"] == "16.0 GB, 8.0 GB of it free, 11.0 GB for the GPU"
    assert rows["MLX runs on"] == "Metal GPU, Apple M4 (g16g)"


def test_a_folder_that_is_not_there_is_measured_by_its_parent(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 1000)
    missing = doctor.look_at("models", tmp_path / "a" / "b")
    assert (missing.exists, missing.num_bytes, missing.is_writable) == (False, 0, True)
    assert missing.free_bytes > 0
    assert doctor.look_at("models", tmp_path).num_bytes == 1000


def test_this_machine_is_examined_whole():
    facts = doctor.examine()
    assert facts.mlx_error == ""
    assert facts.gflops is not None
    assert facts.gflops > 0.01
    assert None not in facts.versions.values()
    assert [folder.name for folder in facts.folders] == ["models", "hub cache", "runs"]

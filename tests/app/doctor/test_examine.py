from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_facts import GB, HEALTHY, HEALTHY_MAC, HUB_CACHE, LINUX, MAC, MODELS, TYPED, answering

from mlx_finetune.app.doctor import examine, words
from mlx_finetune.app.doctor.environment import Damage
from mlx_finetune.app.doctor.examine import Asked, Facts
from mlx_finetune.app.doctor.finding import Finding, verdict
from mlx_finetune.app.doctor.mac import MacState
from mlx_finetune.app.doctor.models import HubState, Needs
from mlx_finetune.hardware.blas import BlasReport
from mlx_finetune.hardware.device import Metal
from mlx_finetune.hardware.metal import explain_settings
from mlx_finetune.recipe.hardware import HardwareRecipe


def test_a_healthy_machine_has_no_problem():
    assert examine.find_problems(HEALTHY) == ()
    assert examine.find_problems(HEALTHY_MAC) == ()


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
            "./launchers/mlxft doctor",
        ),
        (replace(HEALTHY_MAC, wheel_tag="macosx_14_0_arm64"), "warning", "macosx_14_0_arm64", "rm -r .venv"),
        (
            replace(HEALTHY_MAC, device=replace(MAC, os_name="macOS 26.5")),
            "warning",
            "lacks what macOS 26.5 offers",
            "rm -r .venv && ./launchers/mlxft doctor",
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
        (
            replace(HEALTHY_MAC, stale=("tuned on macOS 15.6, and this is macOS 26.2",)),
            "note",
            "what was tuned is not used: tuned on macOS 15.6",
            "mlxft tune",
        ),
        (replace(HEALTHY, gflops=0.4), "warning", "only 0 GFLOP/s", "OPENBLAS_NUM_THREADS=1"),
        (
            replace(HEALTHY, folders=(replace(MODELS, free_bytes=GB),)),
            "blocker",
            "models rm NAME makes room",
            "models list",
        ),
        (replace(HEALTHY, folders=(replace(MODELS, free_bytes=9 * GB),)), "warning", "9.0 GB free", "models list"),
        (
            replace(HEALTHY, folders=(replace(MODELS, is_writable=False),)),
            "blocker",
            "cannot be written",
            "MLXFT_CACHE",
        ),
        (replace(HEALTHY, device=replace(LINUX, memory_bytes=2 * GB)), "warning", "2.0 GB of memory", "models list"),
        (
            replace(HEALTHY, launchers=(("Train.command is not executable", "chmod +x x"),)),
            "warning",
            "Train.command",
            "chmod +x",
        ),
    ],
)
def test_each_problem_is_found_alone_and_comes_with_a_command(facts: Facts, level: str, says: str, command: str):
    (finding,) = examine.find_problems(facts)
    assert finding.level == level
    assert says in finding.message
    assert command in finding.command


def test_a_mac_that_kept_up_with_its_wheel_is_not_warned():
    on_26 = replace(MAC, os_name="macOS 26.5")
    assert examine.find_problems(replace(HEALTHY_MAC, device=on_26, wheel_tag="macosx_26_0_arm64")) == ()


def test_blockers_come_first_and_notes_last():
    hub = HubState("there is no network", has_token=False)
    facts = replace(HEALTHY, gflops=1.0, folders=(replace(MODELS, is_writable=False),), hub=hub)
    assert [finding.level for finding in examine.find_problems(facts)] == ["blocker", "warning", "note"]


def test_a_missing_gpu_is_told_once_however_it_shows(shared: Callable[..., Path]):
    error = shared("macos-fixtures", "errors", "no_metal_device.txt").read_text("utf-8").strip()
    facts = replace(HEALTHY_MAC, device=replace(MAC, metal=None), mlx_error=error)
    (finding,) = examine.find_problems(facts)
    assert (finding.level, finding.command) == (
        "blocker",
        "log in at the Mac itself, open Terminal there, then: ./launchers/mlxft doctor",
    )
    assert "virtual machine" in finding.message


def test_json_holds_the_facts_and_says_whether_training_can_start():
    blocked = (Finding("blocker", "no disk", "rm x"),)
    report = words.to_json(HEALTHY, blocked)
    assert report["ok"] is False
    assert report["problems"] == [{"level": "blocker", "message": "no disk", "command": "rm x"}]
    assert (report["gflops"], report["backend"]) == (155.0, "CPU")
    assert words.to_json(HEALTHY, (Finding("warning", "slow", "x"),))["ok"] is True


def test_a_mac_shows_what_its_gpu_may_use_and_how_it_is_set_up():
    told = words.sections(HEALTHY_MAC)
    machine, settings = dict(told["Machine"]), dict(told["Settings"])
    assert machine["memory"] == "16.0 GB, 8.0 GB of it free, 11.0 GB for the GPU"
    assert machine["MLX runs on"] == "Metal GPU, Apple M4 (applegpu_g16g)"
    assert "BLAS" not in machine
    assert settings["power"] == "mains; automatic"
    assert settings["display sleeps"] == "after 10 min without use; it may, and a training goes on"
    assert "a closed lid sleeps regardless" in settings["Mac sleeps"]
    assert dict(words.sections(replace(HEALTHY_MAC, mac=MacState()))["Settings"])["swap in use"] == "not known"


def test_what_mlx_is_told_has_its_reason_and_the_wired_limit_is_a_bound_without_a_plan():
    hardware = HardwareRecipe.model_validate({})
    machine = examine.machine_of(MAC)
    settings = explain_settings(hardware, machine, {}, "darwin", predicted_bytes=machine.working_set_bytes)
    told = dict(words.sections(replace(HEALTHY_MAC, settings=settings))["Told to MLX"])
    assert told["memory limit"] == "11.0 GB: what Metal recommends, or what leaves macOS 15 %"
    assert told["wired limit"] == "at most 9.9 GB: the plan and 2 GiB more, at most 90 % of what Metal recommends"
    mine = explain_settings(hardware, machine, {"MLX_MAX_OPS_PER_BUFFER": "9"}, "darwin")
    told = dict(words.sections(replace(HEALTHY_MAC, settings=mine))["Told to MLX"])
    assert told["max_ops_per_buffer"] == "the environment wins: MLX_MAX_OPS_PER_BUFFER=9"


def test_the_hub_and_its_token_are_told_in_words():
    def hub(state: HubState) -> dict[str, str]:
        return dict(words.sections(replace(HEALTHY, hub=state))["Hub"])

    assert hub(HubState(None, False))["hub"] == "not asked"
    assert hub(HubState("", True)) == {"hub": "answers", "token": "kept here"}
    assert hub(HubState("there is no network", True, True)) == {
        "hub": "cannot be reached: there is no network",
        "token": "not accepted by the hub",
    }


def test_a_recipe_is_shown_with_its_model():
    needs = Needs("mine.toml", "qwen3-0.6b", "Qwen/Qwen3-0.6B", is_here=False, download_bytes=1_500_000_000)
    rows = dict(words.sections(replace(HEALTHY, needs=needs))["Recipe"])
    assert rows == {"recipe": "mine.toml", "model": "qwen3-0.6b: not on this disk yet, about 1.5 GB to fetch"}


def test_names_from_the_disk_cannot_move_the_cursor():
    folder = replace(MODELS, path="/home/me/\x1b[2Jgone")
    assert "\x1b" not in dict(words.sections(replace(HEALTHY, folders=(folder,)))["Folders"])["models"]


def test_the_last_line_names_the_next_command_or_counts_what_is_in_the_way():
    assert verdict((), "mlxft train a.toml") == "Ready to train. Next: mlxft train a.toml"
    both = (Finding("warning", "", ""), Finding("note", "", ""), Finding("note", "", ""))
    assert verdict(both, "x") == "Ready to train (1 warning, 2 notes). Next: x"
    assert verdict((Finding("blocker", "", ""),), "x") == "1 blocker to mend before training."


def test_this_machine_is_examined_whole():
    facts = examine.examine()
    assert facts.mlx_error == ""
    assert facts.gflops is not None
    assert facts.gflops > 0.01
    assert None not in facts.versions.values()
    assert [folder.name for folder in facts.folders] == ["models", "hub cache", "runs"]
    assert facts.environment.damaged == ()
    assert facts.environment.unfit == ()
    assert facts.hub.problem is None  # HF_HUB_OFFLINE is set in tests
    assert facts.mac is None


def test_a_whole_mac_is_examined_through_its_tools(shared: Callable[..., Path], tmp_path: Path):
    """Everything that is asked of a Mac, answered from recorded outputs; what has no answer is not known."""

    def recorded(*parts: str) -> str:
        return shared("macos-fixtures", *parts).read_text("utf-8")

    run = answering(
        {
            "pmset -g": recorded("pmset", "g_low_power.txt"),
            "pmset -g batt": recorded("pmset", "batt_low.txt"),
            "pmset -g therm": recorded("pmset", "therm_throttled.txt"),
            "pmset -g custom": recorded("pmset", "custom_laptop_lowpower_on_battery.txt"),
            "sw_vers -productVersion": "15.6",
            "sysctl -n hw.memsize machdep.cpu.brand_string": recorded("sysctl", "m3ultra_n_form.txt").strip(),
            "sysctl hw": recorded("sysctl", "m1.txt").strip(),
            "sysctl -n sysctl.proc_translated": "0",
            "sysctl -n kern.memorystatus_vm_pressure_level": "2",
            "sysctl -n vm.swapusage": recorded("sysctl", "swapusage_n_form.txt"),
        }
    )
    facts = examine.examine(Asked(tmp_path, {}, system="darwin", run=run, home=tmp_path))
    assert facts.mac is not None
    assert (facts.device.is_low_power, facts.device.power.on_battery, facts.device.power.percent) == (True, True, 19)
    assert (facts.mac.pressure, facts.mac.swap_bytes) == ("warning", 5_115_540_931)
    assert (facts.mac.display_sleep_minutes, facts.mac.sleep_minutes) == (10, 1)
    assert facts.mac.wired_limit_mb is None
    assert (facts.device.chip, facts.device.memory_bytes) == ("Apple M3 Ultra", 549_755_813_888)
    told = dict(words.sections(facts)["Told to MLX"])
    assert told["relax_gpu_watchdog"].startswith("AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1: ")
    assert {"memory limit", "wired limit", "cache limit"} <= set(told)
    assert {"project", "runs"} <= {folder.name for folder in facts.folders}
    said = " ".join(finding.message for finding in examine.find_problems(facts))
    for word in ("Low Power Mode", "19 % left", "62 %", "memory is short"):
        assert word in said


def test_a_machine_without_network_libraries_and_with_a_damaged_package_is_still_examined():
    damaged = replace(HEALTHY.environment, damaged=(Damage("mlx", "0.32.4", 1, 0, "mlx/lib/libmlx.so"),))
    facts = replace(HEALTHY, hub=HubState(None, False), folders=(MODELS,), environment=damaged, cached=())
    assert [finding.level for finding in examine.find_problems(facts)] == ["blocker"]
    assert HUB_CACHE not in facts.folders
    assert facts.typed is TYPED

"""What MLX and Metal are told: the numbers of MACOS.md section 1.3 and the variables of 1.6, each with its reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_finetune.hardware.limits import Limits, Machine, plan_limits, read_machine
from mlx_finetune.hardware.metal import Setting, explain_settings, metal_settings, metal_variables
from mlx_finetune.recipe.hardware import HardwareRecipe

GIB = 2**30
WATCHDOG = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"


def asked(**values: object) -> HardwareRecipe:
    return HardwareRecipe.model_validate(values)


def planned(machine: Machine, predicted_bytes: int = 0, **values: object) -> tuple[Limits, dict[str, str]]:
    reasons: dict[str, str] = {}
    return plan_limits(asked(**values), machine, predicted_bytes, reasons), reasons


def mac(memory: int, working_set: int, macos: tuple[int, int] | None = (15, 6)) -> Machine:
    return Machine(True, memory, working_set, "Apple M4", macos=macos)


PUBLISHED = {
    "m4pro_48gb.json": Limits(40_200_896_512, 22_147_483_648, 2_147_483_648),
    "m5max_128gb.json": Limits(115_448_725_504, 22_147_483_648, 2_147_483_648),
    "m5max_64gb_wired_limit_raised.json": Limits(58_411_555_226, 22_147_483_648, 2_147_483_648),
    "m3ultra_256gb.json": Limits(223_338_299_392, 22_147_483_648, 2_147_483_648),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_limits_of_every_published_mac_for_a_plan_of_20_gb(shared: Callable[..., Path], name: str) -> None:
    info = json.loads(shared("macos-fixtures", "mlx_device_info", name).read_text())
    machine = mac(info["memory_size"], info["max_recommended_working_set_size"])
    assert planned(machine, 20 * 10**9)[0] == PUBLISHED[name]


@pytest.mark.parametrize(
    ("memory", "working_set", "predicted", "limits"),
    [
        (8 * GIB, 5_726_623_061, 0, Limits(4_294_967_296, 2_147_483_648, 572_662_306)),
        (16 * GIB, 11_453_246_123, 30 * 10**9, Limits(11_453_246_123, 10_307_921_511, 1_145_324_612)),
        (48 * GIB, 40_200_896_512, 60 * 10**9, Limits(40_200_896_512, 36_180_806_861, 2_147_483_648)),
    ],
    ids=["8 GB: macOS keeps 4 GiB", "16 GB: 90 % is wired", "48 GB: 90 % is wired"],
)
def test_small_macs_and_large_plans(memory: int, working_set: int, predicted: int, limits: Limits) -> None:
    assert planned(mac(memory, working_set), predicted)[0] == limits


@pytest.mark.parametrize(
    ("macos", "wired"), [((14, 7), 0), ((15, 0), 3 * GIB), ((26, 2), 3 * GIB), (None, 3 * GIB)], ids=str
)
def test_memory_is_wired_from_macos_15_on(macos: tuple[int, int] | None, wired: int) -> None:
    machine = mac(16 * GIB, 11 * GIB, macos)
    limits, reasons = planned(machine, GIB)
    assert limits.wired_bytes == wired
    assert reasons["hardware.wired_limit"].startswith(
        "3.2 GB" if wired else "macOS 14.7 wires nothing, macOS 15 and later do"
    )
    assert planned(mac(16 * GIB, 11 * GIB, (14, 7)), GIB, wired_limit="5 GB")[0].wired_bytes == 0


def test_metal_is_never_asked_to_wire_more_than_it_takes() -> None:
    limits, reasons = planned(mac(16 * GIB, 11 * 10**9), wired_limit="200 GB")
    assert limits.wired_bytes == 11 * 10**9
    assert reasons["hardware.wired_limit"] == "11.0 GB: Metal takes no more, 200.0 GB were asked for"
    limits, reasons = planned(mac(16 * GIB, 11 * 10**9), wired_limit="5 GB")
    assert limits.wired_bytes == 5 * 10**9
    assert "hardware.wired_limit" not in reasons


def test_off_is_what_mlx_does_by_itself() -> None:
    machine = mac(16 * GIB, 11 * 10**9)
    limits, reasons = planned(machine, GIB, memory_limit="off", wired_limit="off", cache_limit="off")
    assert limits == Limits(round(0.95 * 16 * GIB), 0, round(0.95 * 16 * GIB))
    assert reasons.keys() == {"hardware.memory_limit", "hardware.wired_limit", "hardware.cache_limit"}
    cpu = Machine(False, 10 * 10**9, 0, "x86_64")
    assert planned(cpu, memory_limit="off", cache_limit="off")[0] == Limits(8 * 10**9, 0, 8 * 10**9)


def test_a_mac_knows_its_version() -> None:
    answers = {"-productVersion": "14.7.1", "machdep.cpu.brand_string": "Apple M1"}
    machine = read_machine(on_gpu=True, system="darwin", run=lambda command: answers.get(command[-1]))
    assert (machine.macos, machine.can_wire) == ((14, 7), False)
    assert read_machine(on_gpu=False, system="darwin", run=lambda _: None).macos is None


def by_key(settings: tuple[Setting, ...]) -> dict[str, Setting]:
    return {one.key.removeprefix("hardware."): one for one in settings}


def test_a_mac_gets_the_watchdogs_patience_and_nothing_else_by_itself() -> None:
    assert metal_variables(asked(), {}, "darwin") == {WATCHDOG: "1"}
    assert metal_variables(asked(), {}, "linux") == {}
    found = by_key(metal_settings(asked(), {}, "darwin"))
    assert {key for key, one in found.items() if one.value is not None} == {"relax_gpu_watchdog"}
    assert found["relax_gpu_watchdog"].reason.startswith(f"{WATCHDOG}=1: ")
    assert found["max_ops_per_buffer"].reason == "MLX's own: 40, on a Pro, Max or Ultra 50"
    assert all(one.reason for one in found.values())


VALUES = {
    "relax_gpu_watchdog": (False, {}),
    "max_ops_per_buffer": (80, {WATCHDOG: "1", "MLX_MAX_OPS_PER_BUFFER": "80"}),
    "max_mb_per_buffer": (120, {WATCHDOG: "1", "MLX_MAX_MB_PER_BUFFER": "120"}),
    "residency_set_percent": (10, {WATCHDOG: "1", "MLX_RESIDENCY_SET_MAX_PCT": "10"}),
    "fast_synch": (True, {WATCHDOG: "1", "MLX_METAL_FAST_SYNCH": "1"}),
    "tf32": (False, {WATCHDOG: "1", "MLX_ENABLE_TF32": "0"}),
    "gpu_architecture": ("applegpu_g16s", {WATCHDOG: "1", "MLX_METAL_GPU_ARCH": "applegpu_g16s"}),
    "compile": (False, {WATCHDOG: "1", "MLX_DISABLE_COMPILE": "1"}),
}


@pytest.mark.parametrize("key", VALUES)
def test_every_key_of_a_variable_sets_it(key: str) -> None:
    value, variables = VALUES[key]
    assert metal_variables(asked(**{key: value}), {}, "darwin") == variables
    on_linux = {"MLX_DISABLE_COMPILE": "1"} if key == "compile" else {}
    assert metal_variables(asked(**{key: value}), {}, "linux") == on_linux


def test_every_variable_has_a_key_and_every_key_a_test() -> None:
    assert by_key(metal_settings(asked(), {}, "darwin")).keys() == VALUES.keys()


@pytest.mark.parametrize("key", VALUES)
def test_what_the_user_has_set_himself_wins_and_that_is_said(key: str) -> None:
    value, _ = VALUES[key]
    name = by_key(metal_settings(asked(), {}, "darwin"))[key].name
    theirs = {name: "7"}
    assert name not in metal_variables(asked(**{key: value}), theirs, "darwin", {"max_ops_per_buffer": 99})
    for system in ("darwin", "linux"):
        setting = by_key(metal_settings(asked(**{key: value}), theirs, system))[key]
        assert (setting.value, setting.reason) == ("7", f"the environment wins: {name}=7")


def test_the_reasons_are_the_same_in_the_process_that_was_given_the_variables() -> None:
    hardware = asked(max_ops_per_buffer=80, tf32=False)
    given = {"HOME": "/", **metal_variables(hardware, {}, "darwin")}
    assert metal_settings(hardware, given, "darwin") == metal_settings(hardware, {}, "darwin")


def test_what_tune_found_counts_for_auto_alone() -> None:
    tuned = {"max_ops_per_buffer": 120, "max_mb_per_buffer": 200}

    def found(**values: object) -> Setting:
        return by_key(metal_settings(asked(**values), {}, "darwin", tuned))["max_ops_per_buffer"]

    assert found().value == "120"
    assert found().reason == "MLX_MAX_OPS_PER_BUFFER=120: the fastest that mlxft tune found on this Mac"
    assert found(max_ops_per_buffer=10).value == "10"
    assert found(max_ops_per_buffer="off").value is None


def test_a_switch_for_metal_says_on_linux_that_it_does_nothing_there() -> None:
    found = by_key(metal_settings(asked(tf32=False), {}, "linux"))["tf32"]
    assert (found.value, found.reason) == (None, "a Mac's GPU alone has this")


def test_doctor_can_list_limits_and_variables_with_values_and_reasons() -> None:
    found = explain_settings(asked(), mac(16 * GIB, 11 * 10**9), {}, "darwin", predicted_bytes=4 * 10**9)
    rows = {one.name: (one.key, one.value) for one in found}
    assert rows["memory limit"] == ("hardware.memory_limit", "11.0 GB")
    assert rows["wired limit"] == ("hardware.wired_limit", "6.1 GB")
    assert rows["cache limit"] == ("hardware.cache_limit", "1.1 GB")
    assert rows[WATCHDOG] == ("hardware.relax_gpu_watchdog", "1")
    assert all(one.reason for one in found)


@pytest.mark.parametrize(
    "values",
    [
        {"max_ops_per_buffer": 0},
        {"max_ops_per_buffer": "many"},
        {"residency_set_percent": 101},
        {"gpu_architecture": "g16; rm"},
        {"tf32": "off"},
        {"sample_seconds": -1.0},
        {"memory_limit": "none"},
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        asked(**values)

"""The machine as far as the plan cares, and the memory limits that follow from it (MACOS.md section 1.3). No mlx."""

import os
import platform
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from mlx_finetune.hardware.device import read_chip, read_gpu_cores, read_macos_version
from mlx_finetune.hardware.system.programs import Runner, run_program
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.units import format_bytes

GIB = 2**30
WIRING_MACOS = (15, 0)
CPU_SHARE = 0.8
CPU_CACHE_BYTES = 32 * 10**6  # a step is as fast as with 128 MiB, the process 115 MB smaller (process_memory.py)


@dataclass(frozen=True, slots=True)
class Limits:
    """What MLX is told before its first allocation; ``wired_bytes`` is 0 where nothing is wired."""

    memory_bytes: int
    wired_bytes: int
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """``working_set_bytes`` is Metal's recommended limit W: asked for on a Mac, else from the table below.

    ``gpu_cores`` is None where it does not compute on a GPU or nobody tells, and so is ``macos`` on a Mac from the
    table, which is taken to have a version that can do everything.
    """

    on_gpu: bool
    memory_bytes: int
    working_set_bytes: int
    chip: str
    gpu_cores: int | None = None
    macos: tuple[int, int] | None = None

    @property
    def can_wire(self) -> bool:
        """True where memory can be wired for the GPU: residency sets came with macOS 15."""
        return self.on_gpu and (self.macos is None or self.macos >= WIRING_MACOS)


def read_machine(
    *,
    on_gpu: bool | None = None,
    working_set_bytes: int | None = None,
    system: str = sys.platform,
    run: Runner = run_program,
) -> Machine:
    """This machine. What only MLX knows (its device, W) is passed in by whoever has it loaded, else predicted.

    ``system`` and ``run`` are this machine's in all but tests.
    """
    memory = psutil.virtual_memory().total
    is_mac = system == "darwin" and (platform.machine() == "arm64" or system != sys.platform)
    computes_on_gpu = is_mac if on_gpu is None else on_gpu
    return Machine(
        on_gpu=computes_on_gpu,
        memory_bytes=memory,
        working_set_bytes=working_set_bytes or round(working_set_share(memory) * memory),
        chip=(read_chip(system, run) or "Apple") if is_mac else _processor(),
        gpu_cores=read_gpu_cores(run) if is_mac and computes_on_gpu else None,
        macos=read_macos_version(run) if is_mac and computes_on_gpu else None,
    )


def working_set_share(memory_bytes: int) -> float:
    """W as a share of the memory, from published values (MACOS.md section 1.2); 0.66 below 32 GB."""
    for least, share in ((200 * 10**9, 0.8125), (100 * 10**9, 0.84), (60 * 10**9, 0.81), (31 * 10**9, 0.78)):
        if memory_bytes >= least:
            return share
    return 0.66


def plan_limits(
    hardware: HardwareRecipe, machine: Machine, predicted_bytes: int, reasons: MutableMapping[str, str]
) -> Limits:
    """The three limits; what the recipe fixes stays, the rest follows MACOS.md, with its reason. "off" is what MLX has
    by itself.

    On a CPU: 80 % of the memory, a cache of 32 MB, nothing wired.
    """
    memory, cache = memory_limit(machine), cache_limit(machine)
    if hardware.memory_limit == "auto":
        rule = "what Metal recommends, or what leaves macOS 15 %" if machine.on_gpu else "80 % of the memory"
        reasons["hardware.memory_limit"] = f"{format_bytes(memory)}: {rule}"
    elif hardware.memory_limit == "off":
        memory = _mlx_memory_limit(machine)
        reasons["hardware.memory_limit"] = f"{format_bytes(memory)}: MLX's own, which the plan is held against"
    else:
        memory = hardware.memory_limit
    if hardware.cache_limit == "auto":
        rule = "2 GiB, or a tenth of what Metal recommends" if machine.on_gpu else "32 MB or a tenth of the memory"
        reasons["hardware.cache_limit"] = f"{format_bytes(cache)}: {rule}"
    elif hardware.cache_limit == "off":
        cache = memory
        reasons["hardware.cache_limit"] = f"{format_bytes(cache)}: all that the memory limit allows, as MLX does"
    else:
        cache = hardware.cache_limit
    return Limits(memory, _plan_wired(hardware, machine, predicted_bytes, reasons), cache)


def _plan_wired(
    hardware: HardwareRecipe, machine: Machine, predicted_bytes: int, reasons: MutableMapping[str, str]
) -> int:
    """Bytes to wire, never more than Metal takes: above W it refuses, and the training with it."""
    asked = hardware.wired_limit
    wired, reason = wired_limit(machine, predicted_bytes), ""
    if not machine.on_gpu:
        reason = "nothing is wired on a CPU"
    elif not machine.can_wire:
        version = ".".join(map(str, machine.macos or ()))
        reason = f"macOS {version} wires nothing, macOS 15 and later do"
    elif asked == "off":
        wired, reason = 0, "nothing is wired, as MLX does by itself"
    elif asked == "auto":
        reason = f"{format_bytes(wired)}: the plan and 2 GiB more, at most 90 % of what Metal recommends"
    elif asked > machine.working_set_bytes > 0:
        wired = machine.working_set_bytes
        reason = f"{format_bytes(wired)}: Metal takes no more, {format_bytes(asked)} were asked for"
    else:
        wired = asked
    if reason:
        reasons["hardware.wired_limit"] = reason
    return wired


def _mlx_memory_limit(machine: Machine) -> int:
    """``min(1.5 W, 0.95 RAM)`` on a GPU (MACOS.md section 1.3); on a CPU the same as ours."""
    if not machine.on_gpu:
        return memory_limit(machine)
    return min(round(1.5 * machine.working_set_bytes), round(0.95 * machine.memory_bytes))


def memory_limit(machine: Machine) -> int:
    """``min(W, RAM - max(4 GiB, 15 %))`` on a GPU, 80 % of the memory on a CPU."""
    if not machine.on_gpu:
        return round(CPU_SHARE * machine.memory_bytes)
    spare = max(4 * GIB, round(0.15 * machine.memory_bytes))
    return max(GIB, min(machine.working_set_bytes, machine.memory_bytes - spare))


def cache_limit(machine: Machine) -> int:
    """``min(2 GiB, 10 % of W)`` on a GPU, ``min(32 MB, 10 % of the memory)`` on a CPU."""
    if machine.on_gpu:
        return min(2 * GIB, machine.working_set_bytes // 10)
    return min(CPU_CACHE_BYTES, machine.memory_bytes // 10)


def wired_limit(machine: Machine, predicted_bytes: int) -> int:
    """``min(0.9 W, predicted peak + 2 GiB)`` on a GPU from macOS 15 on, else 0. More froze or rebooted Macs
    (mlx-lm#828)."""
    if not machine.can_wire:
        return 0
    return min(round(0.9 * machine.working_set_bytes), predicted_bytes + 2 * GIB)


def compute_dtype(machine: Machine, *, is_full: bool, needs_range: bool = False) -> tuple[str, str]:
    """The type of weights and activations, and why; ``needs_range``: of a model that float16 cannot hold."""
    if not machine.on_gpu:
        return "float32", "a CPU has no fast path for 16-bit types"
    if needs_range and machine.chip.startswith(("Apple M1", "Apple M2")):
        return "float32", f"{machine.chip} only emulates bfloat16, and float16 cannot hold T5's activations"
    if not is_full and machine.chip.startswith(("Apple M1", "Apple M2")):
        return "float16", f"{machine.chip} only emulates bfloat16"
    return "bfloat16", "half the memory of float32, and its range"


def _processor() -> str:
    """The name of the processor and the cores we may use, as two machines of one name differ in those."""
    name = platform.machine()  # not processor(), which starts a program
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = (line.partition(":") for line in file)
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{name}, {cores} cores"

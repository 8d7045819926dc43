"""What MLX and Metal are told before they start: memory limits, and variables that both read only once.

Each setting has its reason, for resolved.toml and for ``mlxft doctor``. What stands in the user's own environment wins
over the recipe, and that is the reason then. Variables have to be there before mlx is imported, so whoever starts a
process that computes hands it ``metal_variables``; ``apply_limits`` is called in that process, before the first
allocation (MACOS.md sections 1.3, 1.5, 1.6). On a CPU only the memory and cache limits mean anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mlx_finetune.hardware.limits import Limits, Machine, plan_limits
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.units import format_bytes

NOTHING: Mapping[str, int] = MappingProxyType({})
ENVIRONMENT_WINS = "the environment wins"


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that is set: the recipe's key, its name outside, its value there (None: not set), and why."""

    key: str
    name: str
    value: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Variable:
    """A variable of the environment, and the key of [hardware] that decides about it.

    ``default`` is what the absence of the variable means, ``write`` turns a value of the key into one of the variable
    (None leaves it out); ``automatic`` is the value and the reason of "auto", nothing where that leaves it out too.
    """

    name: str
    key: str
    default: str
    write: Callable[[object], str | None]
    automatic: tuple[str, str] | None = None
    is_metal: bool = True


def _flag(value: object) -> str:
    return "1" if value else "0"


_VARIABLES = (
    _Variable(
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT",
        "relax_gpu_watchdog",
        "macOS ends work on the GPU that makes the display wait",
        lambda value: "1" if value else None,
        ("1", "macOS 26 ends work on the GPU that makes the display wait (mlx#3267)"),
    ),
    _Variable("MLX_MAX_OPS_PER_BUFFER", "max_ops_per_buffer", "MLX's own: 40, on a Pro, Max or Ultra 50", str),
    _Variable("MLX_MAX_MB_PER_BUFFER", "max_mb_per_buffer", "MLX's own: 40, on a Pro, Max or Ultra 50", str),
    _Variable("MLX_RESIDENCY_SET_MAX_PCT", "residency_set_percent", "MLX's own: 5", str),
    _Variable("MLX_METAL_FAST_SYNCH", "fast_synch", "MLX's own: false", _flag),
    _Variable("MLX_ENABLE_TF32", "tf32", "MLX's own: true", _flag),
    _Variable("MLX_METAL_GPU_ARCH", "gpu_architecture", "that of this GPU", str),
    _Variable(
        "MLX_DISABLE_COMPILE", "compile", "MLX's own: true", lambda value: None if value else "1", is_metal=False
    ),
)


def metal_settings(
    hardware: HardwareRecipe, environment: Mapping[str, str], system: str, tuned: Mapping[str, int] = NOTHING
) -> tuple[Setting, ...]:
    """What each variable is to be in a process that computes, and why. ``environment`` is the user's.

    ``tuned`` are the values that ``mlxft tune`` found for keys that are "auto", by the name of the key, such as
    ``{"max_ops_per_buffer": 80}``. In an environment that has these settings already the result is the same.
    """
    return tuple(_decide(one, getattr(hardware, one.key), environment, system, tuned) for one in _VARIABLES)


def metal_variables(
    hardware: HardwareRecipe, environment: Mapping[str, str], system: str, tuned: Mapping[str, int] = NOTHING
) -> dict[str, str]:
    """The variables to add to ``environment``; none that stands in it."""
    found = metal_settings(hardware, environment, system, tuned)
    return {one.name: one.value for one in found if one.value is not None and one.name not in environment}


def _decide(
    variable: _Variable, asked: object, environment: Mapping[str, str], system: str, tuned: Mapping[str, int]
) -> Setting:
    value, reason = _wanted(variable, asked, tuned)
    if variable.is_metal and system != "darwin":
        value, reason = None, "a Mac's GPU alone has this" if asked != "auto" else ""
    theirs = environment.get(variable.name)
    if theirs is not None and theirs != value:
        return Setting(
            f"hardware.{variable.key}", variable.name, theirs, f"{ENVIRONMENT_WINS}: {variable.name}={theirs}"
        )
    if value is not None and reason:
        reason = f"{variable.name}={value}: {reason}"
    return Setting(f"hardware.{variable.key}", variable.name, value, reason)


def _wanted(variable: _Variable, asked: object, tuned: Mapping[str, int]) -> tuple[str | None, str]:
    """The variable's value, None to leave it out, and the reason."""
    if asked == "auto" and variable.key in tuned:
        return variable.write(tuned[variable.key]), "the fastest that mlxft tune found on this Mac"
    if asked == "auto" and variable.automatic is not None:
        return variable.automatic
    if asked in ("auto", "off"):
        return None, variable.default
    return variable.write(asked), "as the recipe says"


def explain_settings(
    hardware: HardwareRecipe,
    machine: Machine,
    environment: Mapping[str, str],
    system: str,
    *,
    predicted_bytes: int = 0,
    tuned: Mapping[str, int] = NOTHING,
) -> tuple[Setting, ...]:
    """Limits and variables of a training on ``machine`` with a predicted peak, each with its value and reason."""
    reasons: dict[str, str] = {}
    limits = plan_limits(hardware, machine, predicted_bytes, reasons)
    sizes = {"memory": limits.memory_bytes, "wired": limits.wired_bytes, "cache": limits.cache_bytes}
    found = (
        Setting(
            f"hardware.{name}_limit", f"{name} limit", format_bytes(size), reasons.get(f"hardware.{name}_limit", "")
        )
        for name, size in sizes.items()
    )
    return (*found, *metal_settings(hardware, environment, system, tuned))


def apply_limits(limits: Limits) -> None:
    """Set the limits in this process; call it before the model is loaded."""
    import mlx.core as mx

    mx.set_memory_limit(limits.memory_bytes)
    mx.set_cache_limit(limits.cache_bytes)
    if limits.wired_bytes and mx.metal.is_available():
        mx.set_wired_limit(limits.wired_bytes)

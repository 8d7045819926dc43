"""What ``mlxft tune`` found on one machine: the settings it kept, everything it tried, and who may use them.

A set is kept for each machine (``profile.machine_key``, which names the version of mlx) and for what it was measured
on: one for all recipes, and one for each recipe that was tuned by name. It is stale where mlx or macOS has changed
since, and then nobody uses it. Only "auto" is answered from it: what a recipe says counts.
"""

import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import Literal, Self, cast, get_args

from mlx_finetune.recipe.resolve import flatten_recipe
from mlx_finetune.recipe.schema import Recipe

#: Kept, no different beyond the noise, slower, faster but another one was faster still, not safe, or no result.
Verdict = Literal["kept", "tie", "slower", "beaten", "unsafe", "crashed", "timed_out", "no_memory", "refused", "unsure"]
Value = str | int | bool

#: What is tuned -> the key of a recipe that it answers.
KEYS: Mapping[str, str] = {
    "compute_dtype": "hardware.compute_dtype",
    "num_threads": "hardware.num_threads",
    "batch_size": "hardware.microbatch",
    "max_ops_per_buffer": "hardware.max_ops_per_buffer",
    "max_mb_per_buffer": "hardware.max_mb_per_buffer",
    "gradient_checkpointing": "training.gradient_checkpointing",
}
#: Read by mlx when it is imported, and only on a GPU.
VARIABLES: Mapping[str, str] = {
    "max_ops_per_buffer": "MLX_MAX_OPS_PER_BUFFER",
    "max_mb_per_buffer": "MLX_MAX_MB_PER_BUFFER",
}
BUFFER_RANGE = (1, 10_000)
GENERAL = ""  # the set that recipes without one of their own use
KEPT_SETS = 16
#: What a recipe's own set depends on; another learning rate or other rows need no other set.
_SHAPING = (
    *("model", "revision", "task", "quantize", "lora.rank", "lora.num_layers", "lora.target_modules"),
    *("data.max_seq_length", "data.packing", "training.batch_size", "training.gradient_accumulation_steps"),
)


@dataclass(frozen=True, slots=True)
class TunedSettings:
    """Settings, each None where nothing was found that is better than the default.

    ``batch_size`` is the microbatch: rows or packs at once, cut from or joined within a step whose rows stay the same.
    ``reasons`` says for each key of the recipe (``KEYS``) since when, and how much faster it was.
    """

    max_ops_per_buffer: int | None = None
    max_mb_per_buffer: int | None = None
    compute_dtype: str | None = None
    batch_size: int | None = None
    gradient_checkpointing: bool | None = None
    num_threads: int | None = None
    reasons: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    def values(self) -> dict[str, Value]:
        """The settings that are known, by the names of the fields."""
        named = {name: cast("Value | None", getattr(self, name)) for name in KEYS}
        return {name: value for name, value in named.items() if value is not None}

    def merged(self, other: "TunedSettings") -> "TunedSettings":
        """These settings, with those of ``other`` in their place where it has any."""
        return replace(self, **other.values())  # pyright: ignore[reportArgumentType]

    def overrides(self) -> list[str]:
        """What ``--set`` takes; settings that mlx reads from its environment are not among them."""
        known = [(name, value) for name, value in self.values().items() if name not in VARIABLES]
        return [f"{KEYS[name]}={str(value).lower()}" for name, value in known]

    def environment(self) -> dict[str, str]:
        """Variables of the process, which mlx reads when it is imported."""
        return {VARIABLES[name]: str(value) for name, value in self.values().items() if name in VARIABLES}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Self:
        """The inverse of ``values``. Raises ``ValueError`` for anything that was not written by it."""
        numbers = {"batch_size": (1, 4096), "num_threads": (1, 1024)} | dict.fromkeys(VARIABLES, BUFFER_RANGE)
        for name, value in values.items():
            is_good = (
                (name in numbers and type(value) is int and numbers[name][0] <= value <= numbers[name][1])
                or (name == "compute_dtype" and value in ("float32", "bfloat16", "float16"))
                or (name == "gradient_checkpointing" and isinstance(value, bool))
            )
            if not is_good:
                raise ValueError(f"{name} = {value!r}")
        return cls(**values)  # pyright: ignore[reportArgumentType]


NOTHING_TUNED = TunedSettings()


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate, and what became of it.

    ``settings`` differ from those it was compared with, ``instead_of``, both by key of a recipe. ``gain`` is how many
    times as fast it was (median of the pairs), ``noise`` the least difference that would have counted, as a share; both
    None without a comparison. ``message`` says why it was left out, or how it ended.
    """

    settings: Mapping[str, Value]
    instead_of: Mapping[str, Value]
    verdict: Verdict
    rounds: int
    gain: float | None = None
    noise: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class TunedSet:
    """Everything one ``mlxft tune`` found. ``made`` counts seconds since 1970, ``seconds`` is what it took.

    ``subject`` says what was trained meanwhile, ``recipe`` names its file ("" for the set of all recipes), ``system``
    is that of ``system_name``. ``ended_early`` says why not everything was tried, "" where it was.
    """

    settings: TunedSettings
    made: float
    system: str
    mlxft: str
    subject: str
    seconds: float
    tried: tuple[Tried, ...] = ()
    recipe: str = ""
    ended_early: str = ""

    @property
    def gain(self) -> float:
        """How many times as fast the settings are as the defaults: the product over what was kept."""
        return math.prod(one.gain or 1.0 for one in self.tried if one.verdict == "kept")

    @property
    def date(self) -> str:
        """``26 Nov 2026``, in local time."""
        made = time.localtime(self.made)
        return f"{made.tm_mday} {time.strftime('%b %Y', made)}"

    def with_reasons(self) -> TunedSettings:
        """The settings, each with a sentence for resolved.toml and the plan."""
        reasons: dict[str, str] = {}
        for one in self.tried:
            if one.verdict != "kept":
                continue
            others = dict.fromkeys(shown_value(one.instead_of.get(key)) for key in one.settings)
            sentence = f"mlxft tune, {self.date}: {one.gain or 1:.2f} times as fast as {' and '.join(others)}"
            reasons |= dict.fromkeys(one.settings, sentence)
        return replace(self.settings, reasons=reasons)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        values: dict[str, object] = asdict(self)
        return values | {"settings": self.settings.values()}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Self:
        """The inverse of ``to_json``. Raises ``ValueError``, ``TypeError`` or ``KeyError`` for anything else."""
        if set(values) != {one.name for one in fields(cls)}:
            raise ValueError("other fields")
        texts = [values[name] for name in ("system", "mlxft", "subject", "recipe", "ended_early")]
        if not all(isinstance(one, str) for one in texts):
            raise ValueError("no text")
        known = dict(values)
        known["settings"] = TunedSettings.from_json(cast("Mapping[str, object]", values["settings"]))
        known["tried"] = tuple(_tried(one) for one in cast("Sequence[Mapping[str, object]]", values["tried"]))
        known |= {name: _finite(values[name]) for name in ("made", "seconds")}
        return cls(**known)  # pyright: ignore[reportArgumentType]


def _tried(values: Mapping[str, object]) -> Tried:
    one = Tried(**values)  # pyright: ignore[reportArgumentType]
    if one.verdict not in get_args(Verdict) or not isinstance(values.get("message", ""), str):
        raise ValueError("another verdict")
    settings, instead = dict(one.settings), dict(one.instead_of)
    numbers = [None if number is None else _finite(number) for number in (one.gain, one.noise)]
    return replace(
        one, settings=settings, instead_of=instead, gain=numbers[0], noise=numbers[1], rounds=int(one.rounds)
    )


def _finite(number: object) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
        raise ValueError("not a number")
    return float(number)


def shown_value(value: object) -> str:
    """As a recipe spells it; "the default" for None."""
    return "the default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def system_name(system: str = sys.platform, release: str | None = None) -> str:
    """``macOS 26.1``, or ``Linux``, whose kernels change nothing here. ``release`` is this Mac's where it is None."""
    if system != "darwin":
        return "Linux"
    parts = (platform.mac_ver()[0] if release is None else release).split(".")
    return f"macOS {'.'.join(parts[:2])}"


def recipe_key(recipe: Recipe) -> str:
    """Equal for recipes that put the same model through the same shapes, whatever they learn and from which rows."""
    flat = flatten_recipe(recipe)
    parts = [f"{name}={flat.get(name)!r}" for name in _SHAPING]
    return sha256("\n".join([*parts, f"full={recipe.lora is None}"]).encode()).hexdigest()[:32]


def usable(sets: Mapping[str, TunedSet], recipe: Recipe, system: str) -> TunedSettings:
    """The settings for ``recipe`` on a machine with these ``sets``: those of its own set, else of the one for all.

    Of the set for all recipes recomputation does not count, which depends on the model, and the microbatch only where
    ``training.batch_size`` is automatic: a number there says how many rows go through the model at once. Sets of
    another ``system`` are stale.
    """
    own = sets.get(recipe_key(recipe))
    if own is not None and own.system == system:
        return own.with_reasons()
    general = sets.get(GENERAL)
    if general is None or general.system != system:
        return NOTHING_TUNED
    found = replace(general.with_reasons(), gradient_checkpointing=None)
    return found if recipe.training.batch_size == "auto" else replace(found, batch_size=None)


def stale_sentences(tuned: Mapping[str, Mapping[str, TunedSet]], machine: str, system: str) -> list[str]:
    """Why what was tuned here is not used any more, one sentence for each reason. ``machine`` is this machine's key.

    ``tuned`` are the sets of every machine in the profile.
    """
    found: list[str] = []
    hardware, _, version = machine.rpartition(", mlx ")
    others = sorted(key.rpartition(", mlx ")[2] for key in tuned if key.rpartition(", mlx ")[0] == hardware)
    if machine not in tuned and others:
        found.append(f"tuned with mlx {others[-1]}, and this is mlx {version}")
    systems = sorted({one.system for one in tuned.get(machine, {}).values()} - {system})
    found += [f"tuned on {one}, and this is {system}" for one in systems]
    return found

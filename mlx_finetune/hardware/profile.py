"""What earlier runs taught about this machine: one JSON file beside the other per-user files.

For each machine (chip, memory, backend, version of mlx) it keeps how far plans missed, newest last, the plans that
were made and not yet run, and what ``mlxft tune`` found there (``hardware.tuned``). The next plan is corrected by the
geometric mean of the misses, shrunk towards 1 as if ``PRIOR_RUNS`` runs had been planned exactly, so that one odd run
moves little. A file that is damaged or of another version is left out with one warning and replaced by the next run.
Two processes that write at once lose one run's line.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.errors import RunError
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.tuned import KEPT_SETS, TunedSet, TunedSettings, system_name, usable
from mlx_finetune.recipe.resolve import canonical_json
from mlx_finetune.recipe.schema import Recipe

FILE_NAME = "profile.json"
FORMAT_VERSION = 5  # goes up with the formulas of the plan, too: corrections hold for those they were learned from
KEPT_RUNS = 20
KEPT_PLANS = 32
PRIOR_RUNS = 4
SMALLEST_BYTES = 10**8  # runs of toy models teach nothing about others
FEWEST_STEPS = 20  # of a run that teaches times: the first ones compile, minutes of three steps on an H200
_FURTHEST = 8.0  # a run that missed by more than this factor was not the one that was planned


@dataclass(frozen=True, slots=True)
class Corrections:
    """Of the newest runs on one machine: actual over planned, and the speed that was reached.

    ``memory_ratios`` compare peaks without the frozen weights with the arithmetic, ``time_ratios`` with measured plans.
    """

    memory_ratios: tuple[float, ...] = ()
    time_ratios: tuple[float, ...] = ()
    flops_per_second: tuple[float, ...] = ()

    @property
    def num_runs(self) -> int:
        """Runs that the memory of a plan is corrected by."""
        return len(self.memory_ratios)

    @property
    def memory_factor(self) -> float:
        """What the arithmetic is multiplied by, the frozen weights left out."""
        return _factor(self.memory_ratios)

    @property
    def time_factor(self) -> float:
        """What a measured time is multiplied by."""
        return _factor(self.time_ratios)


@dataclass(frozen=True, slots=True)
class Planned:
    """The figures of a plan that was made before a run; ``step_seconds`` is None where nothing told.

    ``time_factor`` is the correction that is in it already, ``made`` the time of the plan (seconds since 1970).
    """

    peak_bytes: float
    step_seconds: float | None
    is_measured: bool
    time_factor: float = 1.0
    made: float = 0.0


@dataclass(frozen=True, slots=True)
class Happened:
    """What a run took: mean seconds of a step, and the rate of the arithmetic that ``hardware.planning.chips`` counts.

    ``memory_ratio`` is the peak over that of the arithmetic, both without the frozen weights. ``is_whole`` says that
    the run had its largest step, and on one machine; of others only a peak above the plan teaches something.
    ``is_warm``: it had so many steps that those which compiled do not count.
    """

    peak_bytes: int
    step_seconds: float
    flops_per_second: float
    memory_ratio: float
    is_whole: bool = True
    is_warm: bool = True


@dataclass(frozen=True, slots=True)
class Profile:
    """The whole file. ``warning`` says why it was not used, "" where it was or where there is none yet.

    ``tuned`` are the sets of each machine, by ``tuned.recipe_key``, "" for the one that all recipes may use.
    """

    machines: Mapping[str, Corrections] = field(default_factory=dict[str, Corrections])
    plans: Mapping[str, Planned] = field(default_factory=dict[str, Planned])
    tuned: Mapping[str, Mapping[str, TunedSet]] = field(default_factory=dict[str, Mapping[str, TunedSet]])
    warning: str = ""

    def of(self, key: str) -> Corrections:
        """What is known of one machine."""
        return self.machines.get(key, Corrections())


def machine_key(machine: Machine) -> str:
    """``Apple M4 Max, 40 GPU cores, 64.0 GiB, GPU, mlx 0.32.4``: what one set of corrections holds for."""
    try:
        mlx = version("mlx")
    except PackageNotFoundError:
        mlx = "none"
    backend = "GPU" if machine.on_gpu else "CPU"
    cores = f", {machine.gpu_cores} GPU cores" if machine.gpu_cores else ""
    return f"{machine.chip}{cores}, {machine.memory_bytes / 2**30:.1f} GiB, {backend}, mlx {mlx}"


def tuned_settings(profile: Profile, machine: Machine, recipe: Recipe, *, system: str | None = None) -> TunedSettings:
    """What ``mlxft tune`` found for ``recipe`` on ``machine``; nothing where it was not asked, or something changed
    since. ``system`` is this one where it is None."""
    return usable(profile.tuned.get(machine_key(machine), {}), recipe, system or system_name())


def plan_key(recipe: Recipe, machine: str) -> str:
    """The same for a plan and for the run after it, wherever that writes to."""
    anywhere = recipe.model_copy(update={"output_dir": "anywhere"})
    return sha256(f"{machine}\n{canonical_json(anywhere)}".encode()).hexdigest()[:32]


def read_profile(path: Path) -> Profile:
    """The profile in ``path``; an empty one where there is none, and with a warning where it cannot be used."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Profile()
    except OSError as error:
        return Profile(warning=f"{path} cannot be read ({error.strerror}); planned without it")
    try:
        return _parse(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        what = "is damaged or was written by another version of mlxft"
        return Profile(warning=f"{path} {what}; planned without it, and the next run writes it anew")


def remember_plan(path: Path, key: str, planned: Planned) -> None:
    """Keep a plan until its run is over. Raises ``OSError`` or ``RunError`` where the file cannot be written."""
    profile = read_profile(path)
    plans = {name: one for name, one in profile.plans.items() if name != key} | {key: planned}
    newest = sorted(plans.items(), key=lambda item: item[1].made)[-KEPT_PLANS:]
    _write(path, replace(profile, plans=dict(newest)))


def record_run(path: Path, machine: str, key: str, planned: Planned | None, happened: Happened) -> None:
    """Correct the profile by one run, whose plan is forgotten. Raises as ``remember_plan`` does."""
    profile = read_profile(path)
    known = profile.of(machine)
    if happened.peak_bytes >= SMALLEST_BYTES:
        memory = known.memory_ratios
        if happened.is_whole or happened.memory_ratio > 1:
            memory = _append(memory, happened.memory_ratio)
        times, rates = known.time_ratios, known.flops_per_second
        if happened.is_warm and planned is not None and planned.is_measured and planned.step_seconds:
            times = _append(times, happened.step_seconds / planned.step_seconds * planned.time_factor)
        if happened.is_warm:
            rates = (*rates, happened.flops_per_second)[-KEPT_RUNS:]
        known = Corrections(memory, times, rates)
    machines = dict(profile.machines) | {machine: known}
    plans = {name: one for name, one in profile.plans.items() if name != key}
    _write(path, replace(profile, machines=machines, plans=plans))


def remember_tuned(path: Path, machine: str, key: str, found: TunedSet) -> None:
    """Keep what was tuned in the place of what was kept before it. Raises as ``remember_plan`` does."""
    profile = read_profile(path)
    sets = {name: one for name, one in profile.tuned.get(machine, {}).items() if name != key} | {key: found}
    newest = sorted(sets.items(), key=lambda item: item[1].made)[-KEPT_SETS:]
    _write(path, replace(profile, tuned=dict(profile.tuned) | {machine: dict(newest)}))


def forget_tuned(path: Path, machine: str, key: str | None = None) -> int:
    """Forget the set ``key`` of a machine, or all of them, those for other versions of mlx included; how many it were.

    Raises as ``remember_plan`` does; without a set nothing is written.
    """
    profile = read_profile(path)
    hardware = machine.rpartition(", mlx ")[0]
    kept: dict[str, Mapping[str, TunedSet]] = {}
    for name, sets in profile.tuned.items():
        is_meant = name == machine or (key is None and name.rpartition(", mlx ")[0] == hardware)
        left = {one: found for one, found in sets.items() if not is_meant or key not in (None, one)}
        kept |= {name: left} if left else {}
    num_forgotten = sum(map(len, profile.tuned.values())) - sum(map(len, kept.values()))
    if num_forgotten:
        _write(path, replace(profile, tuned=kept))
    return num_forgotten


def _append(ratios: tuple[float, ...], ratio: float) -> tuple[float, ...]:
    return (*ratios, ratio)[-KEPT_RUNS:] if 1 / _FURTHEST < ratio < _FURTHEST else ratios


def _factor(ratios: Sequence[float]) -> float:
    return math.exp(sum(math.log(one) for one in ratios) / (PRIOR_RUNS + len(ratios)))


def _parse(value: object) -> Profile:
    """Raises ``ValueError`` or what comes of a wrong type for anything that ``_write`` did not write."""
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        raise ValueError("another version")
    machines = {
        str(name): Corrections(**{key: _positive(numbers) for key, numbers in fields.items()})
        for name, fields in value["machines"].items()
    }
    plans = {str(name): _planned(fields) for name, fields in value["plans"].items()}
    tuned = {
        str(machine): {str(name): TunedSet.from_json(fields) for name, fields in sets.items()}
        for machine, sets in value.get("tuned", {}).items()
    }
    return Profile(machines, plans, tuned)


def _planned(fields: Mapping[str, object]) -> Planned:
    planned = Planned(**fields)  # pyright: ignore[reportArgumentType]
    _positive([planned.peak_bytes, planned.time_factor, planned.step_seconds or 1])
    return replace(planned, is_measured=planned.is_measured is True, made=float(planned.made))


def _positive(numbers: Sequence[object]) -> tuple[float, ...]:
    found = [float(one) for one in numbers if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(found) != len(numbers) or not all(math.isfinite(one) and one > 0 for one in found):
        raise ValueError("not a positive number")
    return tuple(found)


def _write(path: Path, profile: Profile) -> None:
    value: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "written": round(time.time()),
        "machines": {name: asdict(one) for name, one in profile.machines.items()},
        "plans": {name: asdict(one) for name, one in profile.plans.items()},
        "tuned": {
            machine: {name: one.to_json() for name, one in sets.items()} for machine, sets in profile.tuned.items()
        },
    }
    if path.is_dir():
        raise RunError(f"{path} is a folder", "remove it")
    durable.make_folder(path.parent)
    durable.write_json(path, value)

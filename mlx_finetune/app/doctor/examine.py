"""Asks this machine once, and says everything that is wrong with it.

``examine`` returns ``Facts``; ``find_problems`` is arithmetic over them, so every finding can be shown in a test. mlx
is imported (0.05 s) and one matrix product is timed; mlx-lm and transformers are only looked up. The hub is asked one
small question meanwhile, for four seconds at most. Nothing is changed and nothing is fetched.
"""

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx_finetune
from mlx_finetune.app.desktop.installed import check, quarantine
from mlx_finetune.app.desktop.launcher import find_target
from mlx_finetune.app.doctor.environment import (
    PACKAGES,
    Environment,
    installed_version,
    package_problems,
    read_environment,
)
from mlx_finetune.app.doctor.finding import Finding, Typed, how_to_type, in_order
from mlx_finetune.app.doctor.mac import MacState, mac_problems, read_mac
from mlx_finetune.app.doctor.models import (
    HUB_TIMEOUT_SECONDS,
    HubState,
    Needs,
    hub_problems,
    read_needs,
    recipe_problems,
)
from mlx_finetune.app.doctor.places import Folder, look_at, place_problems
from mlx_finetune.app.doctor.runs import CRASH_FOLDERS, Crash, RunEnd, read_crashes, read_ends, run_problems
from mlx_finetune.app.doctor.system import memory_problems, speed_problems, system_problems, wheel_problems
from mlx_finetune.app.tune.buffers import tuned_buffers
from mlx_finetune.hardware import blas
from mlx_finetune.hardware.device import Device, read_device, read_metal, read_wheel_tag
from mlx_finetune.hardware.limits import Machine, working_set_share
from mlx_finetune.hardware.metal import Setting, explain_settings
from mlx_finetune.hardware.profile import FILE_NAME, machine_key, read_profile
from mlx_finetune.hardware.system.programs import Runner, run_program
from mlx_finetune.hardware.tuned import stale_sentences, system_name
from mlx_finetune.model.sources.catalogue import CachedModel, cache_folder, cached_models, hub_cache_folder
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.rundir import RunDir

if TYPE_CHECKING:
    from mlx_finetune.model.sources.hub_access import Access

_SIZE = 1024
_REPETITIONS = 8
_MEASURE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known. ``versions`` has None for a package that is missing, ``gflops`` None where not measured.

    ``mac`` is None on other systems, ``needs`` without a recipe; ``cached`` names the models on this disk;
    ``launchers`` are (what is wrong, command) for those on the Desktop and in the project; ``settings`` are what MLX is
    told before it starts, ``stale`` says why what ``mlxft tune`` has found is not used.
    """

    typed: Typed
    versions: Mapping[str, str | None]
    python: str
    device: Device
    blas: blas.BlasReport
    gflops: float | None
    mlx_error: str
    wheel_tag: str | None
    folders: tuple[Folder, ...]
    environment: Environment
    hub: HubState
    cached: tuple[str, ...] = ()
    mac: MacState | None = None
    runs: tuple[RunEnd, ...] = ()
    crashes: tuple[Crash, ...] = ()
    launchers: tuple[tuple[str, str], ...] = ()
    needs: Needs | None = None
    settings: tuple[Setting, ...] = ()
    stale: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked with: this machine's own in all but tests. ``go_on`` gives the lines that continue a run,
    ``check`` raises ``RecipeError`` for what a recipe names and is not there."""

    base: Path
    variables: Mapping[str, str]
    system: str = sys.platform
    run: Runner = run_program
    home: Path | None = None
    go_on: Callable[[RunDir], Sequence[str]] = lambda run: ()
    check: Callable[[LoadedRecipe, Path], None] = lambda recipe, base: None
    now: float | None = None
    package: Path = Path(mlx_finetune.__file__).resolve().parent


def examine(asked: Asked | None = None, recipe: LoadedRecipe | None = None) -> Facts:
    """Ask this machine, and what ``recipe`` needs on it. Takes a second or so; never raises for what it finds."""
    asked = asked or Asked(Path.cwd(), os.environ)
    now = time.time() if asked.now is None else asked.now
    hub_answer = _ask_hub_meanwhile()
    loaded = blas.prepare()
    metal, gflops, problem = None, None, ""
    try:
        metal = read_metal()
        gflops = measure_gflops()
    except (ImportError, OSError, RuntimeError) as error:
        problem = f"{type(error).__name__}: {error}"
    in_window = bool(asked.variables.get("MLXFT_LAUNCHER"))  # opened by a double-click
    typed = how_to_type(package=asked.package, base=None if in_window else asked.base)
    device = read_device(metal=metal, system=asked.system, run=asked.run)
    is_mac = asked.system == "darwin"
    cached = tuple(_cached())
    facts = Facts(
        typed=typed,
        versions={name: installed_version(name) for name in PACKAGES},
        python=platform.python_version(),
        device=device,
        blas=loaded,
        gflops=gflops,
        mlx_error=problem,
        wheel_tag=read_wheel_tag("mlx-metal"),
        folders=tuple(_folders(asked, typed, is_mac=is_mac)),
        environment=read_environment(asked.variables, typed.root),
        hub=hub_answer(),
        cached=tuple(dict.fromkeys(model.name for model in cached)),
        mac=read_mac(asked.run, _marked_paths(typed)) if is_mac else None,
        runs=tuple(read_ends(asked.base, now, asked.go_on)),
        crashes=tuple(read_crashes(CRASH_FOLDERS, now)) if is_mac else (),
        launchers=(*_project_launchers(typed), *(_desktop_launchers(asked, typed) if is_mac else ())),
        settings=_settings(asked, device, recipe),
        stale=tuple(_stale(device)),
    )
    if recipe is None:
        return facts
    on_gpu = device.metal is not None and device.metal.is_available
    needs = read_needs(recipe, asked.base, cached, on_gpu=on_gpu, ask=_asker(facts.hub), check=asked.check)
    return replace(facts, needs=needs)


def _ask_hub_meanwhile() -> Callable[[], HubState]:
    """Ask the hub in a thread; the function that waits for its answer."""
    answers: list[HubState] = []

    def ask() -> None:
        with suppress(ImportError):  # that huggingface_hub is missing is told elsewhere
            from mlx_finetune.model.sources import hub_access

            problem, is_refused = hub_access.ask_reachable(timeout=HUB_TIMEOUT_SECONDS)
            answers.append(HubState(problem, hub_access.has_token(), is_refused))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()

    def answer() -> HubState:
        thread.join(HUB_TIMEOUT_SECONDS + 1)
        return answers[0] if answers else HubState(None, False)

    return answer


def _asker(state: HubState) -> "Callable[[str], Access] | None":
    """Asks the hub about one model, where it can be asked."""
    if state.problem != "":
        return None
    from mlx_finetune.model.sources import hub_access

    return lambda hub_id: hub_access.ask_access(hub_id, timeout=HUB_TIMEOUT_SECONDS)


def measure_gflops() -> float:
    """The best of a few fp32 products of two 1024 x 1024 matrices on MLX's default device, in 10^9 operations/s.

    On a machine that is busy there are fewer, so that it takes half a second at most.
    """
    import mlx.core as mx

    matrix = mx.random.normal((_SIZE, _SIZE), key=mx.random.key(0))
    mx.eval(matrix @ matrix)
    best, first = float("inf"), time.perf_counter()
    for _ in range(_REPETITIONS):
        begin = time.perf_counter()
        mx.eval(matrix @ matrix)
        now = time.perf_counter()
        best = min(best, now - begin)
        if now - first > _MEASURE_SECONDS:
            break
    return 2 * _SIZE**3 / best / 1e9


def _cached() -> Iterator[CachedModel]:
    with suppress(OSError, ImportError):
        yield from cached_models(cache_folder(), hub_cache_folder())


def _folders(asked: Asked, typed: Typed, *, is_mac: bool) -> Iterator[Folder]:
    """Models, the hub's cache, runs, and on a Mac the project, whose place matters there."""
    home = (asked.home or Path.home()) if is_mac else None
    yield look_at("models", cache_folder(), home=home)
    with suppress(ImportError):
        yield look_at("hub cache", hub_cache_folder(), home=home)
    yield look_at("runs", asked.base / "adapters", home=home)
    if is_mac and typed.root:
        yield look_at("project", Path(typed.root), home=home, is_counted=False)


def _marked_paths(typed: Typed) -> list[str]:
    """What macOS must be willing to open: the project, its launchers, the libraries of mlx."""
    paths: list[Path] = []
    if typed.root:
        paths += [Path(typed.root), *sorted(Path(typed.root, "launchers").glob("*"))]
    for folder in (Path(entry) for entry in sys.path if entry.endswith("site-packages")):
        paths += [*sorted((folder / "mlx").glob("core*.so")), *sorted((folder / "mlx" / "lib").glob("*.dylib"))]
    return [str(path) for path in paths if os.path.exists(path)]


def _project_launchers(typed: Typed) -> Iterator[tuple[str, str]]:
    """Launchers of the project that a double-click would not start."""
    files = sorted(Path(typed.root, "launchers").glob("*.command")) if typed.root else []
    closed = [str(path) for path in files if not os.access(path, os.X_OK)]
    if closed:
        names = ", ".join(Path(path).name for path in closed)
        message = f'{names}: a double-click says "you do not have appropriate access privileges"'
        yield message, "chmod +x " + " ".join(typed.path(path) for path in closed)


def _settings(asked: Asked, device: Device, recipe: LoadedRecipe | None) -> tuple[Setting, ...]:
    """What MLX would be told; without a plan the wired limit is the most that one can ask for."""
    hardware = recipe.recipe.hardware if recipe is not None else HardwareRecipe.model_validate({})
    machine = machine_of(device)
    most = machine.working_set_bytes
    tuned = {} if recipe is None else tuned_buffers(recipe.recipe, machine=machine, system=asked.system)
    return explain_settings(hardware, machine, asked.variables, asked.system, predicted_bytes=most, tuned=tuned)


def _stale(device: Device) -> list[str]:
    known = read_profile(cache_folder() / FILE_NAME)
    return stale_sentences(known.tuned, machine_key(machine_of(device)), system_name())


def _desktop_launchers(asked: Asked, typed: Typed) -> Iterator[tuple[str, str]]:
    """What ``mlxft launchers check`` finds about those on the Desktop; nothing where none of ours is there."""
    target = find_target(asked.base, package=asked.package, prefix=Path(sys.prefix), python=Path(sys.executable))

    def marked(path: Path) -> str | None:
        return quarantine(path, asked.run)

    with suppress(OSError):
        for one in check((asked.home or Path.home()) / "Desktop", target, read_quarantine=marked):
            yield one.message, typed.command(one.command)


def find_problems(facts: Facts) -> tuple[Finding, ...]:
    """Everything wrong, blockers first, each with the command that mends it."""
    typed, device = facts.typed, facts.device
    system = system_problems(
        device, typed, is_virtual=device.is_virtual or (facts.mac is not None and facts.mac.is_virtual)
    )
    is_impossible = any(finding.level == "blocker" for finding in system)
    says_the_same = "No Metal device" in facts.mlx_error
    found = [
        *([] if says_the_same else system),
        *package_problems(facts.versions, facts.mlx_error, facts.environment, typed),
        *([] if is_impossible else wheel_problems(facts.wheel_tag, device, typed)),
        *speed_problems(device, facts.blas, facts.gflops, typed),
        *(mac_problems(facts.mac, device, typed) if facts.mac is not None else ()),
        *place_problems(facts.folders, typed),
        *memory_problems(device, typed),
        *(Finding("warning", message, command) for message, command in facts.launchers),
        *(Finding("note", f"what was tuned is not used: {one}", f"{typed.mlxft} tune") for one in facts.stale),
        *hub_problems(facts.hub, facts.cached, typed),
        *run_problems(facts.runs, facts.crashes, typed),
    ]
    if facts.needs is not None:
        free = next((one.free_bytes for one in facts.folders if one.name == "hub cache"), 0)
        found += recipe_problems(facts.needs, facts.hub, typed, machine=machine_of(device), free_bytes=free)
    return in_order(found)


def machine_of(device: Device) -> Machine:
    """The device as the memory limits see it."""
    metal = device.metal if device.metal is not None and device.metal.is_available else None
    working_set = metal.working_set_bytes if metal is not None else None
    return Machine(
        on_gpu=metal is not None,
        memory_bytes=device.memory_bytes,
        working_set_bytes=working_set or round(working_set_share(device.memory_bytes) * device.memory_bytes),
        chip=device.chip,
        gpu_cores=device.gpu_cores,
        macos=device.macos_version,
    )

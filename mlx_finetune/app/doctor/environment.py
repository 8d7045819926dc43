"""The Python environment: what is installed, whether its files are whole, and what is in its way.

Files are compared with the sizes in each package's RECORD, not with the hashes there: 12,000 files in 0.1 s instead of
seconds. Scripts are left out, as ``launchers/setup`` rewrites them. Packages are looked up, never imported.
"""

import csv
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.app.doctor.finding import Finding, Typed

#: What is shown with its version, the app itself first.
PACKAGES = ("mlx-finetune", "mlx", "mlx-lm", "transformers", "tokenizers", "numpy", "pip")
#: Package -> the module that is imported. These must come from the environment and nowhere else.
_MODULES = {
    "mlx": "mlx",
    "mlx-lm": "mlx_lm",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "huggingface-hub": "huggingface_hub",
    "pydantic": "pydantic",
    "numpy": "numpy",
}
#: What a training imports, with what that needs.
_CORE = frozenset(
    {*_MODULES, "mlx-metal", "mlx-cpu", "pydantic-core", "jinja2", "click", "rich", "psutil", "platformdirs", "regex"}
    | {
        "prompt-toolkit",
        "llguidance",
        "jsonschema",
        "httpx2",
        "pyyaml",
        "tqdm",
        "filelock",
        "packaging",
        "ngsolve-openblas",
    }
)
#: Variables that change what runs, shown with their values; nothing secret is in them.
_SHOWN = re.compile(
    r"(MLX_\w+|MLXFT_\w+|AGX_\w+|DYLD_\w+|LD_LIBRARY_PATH|PYTHON\w+|CONDA_PREFIX|OPENBLAS_NUM_THREADS|HF_HOME"
    r"|HF_HUB_CACHE|HF_HUB_OFFLINE|HF_ENDPOINT|SYSTEM_VERSION_COMPAT)"
)
_LIBRARY_PATHS = ("DYLD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "DYLD_FRAMEWORK_PATH")


@dataclass(frozen=True, slots=True)
class Damage:
    """Files of one package that are missing, or have another size than when they were installed, and one of them."""

    package: str
    version: str
    num_missing: int
    num_changed: int
    example: str


@dataclass(frozen=True, slots=True)
class Outside:
    """A package that is not imported from the environment; ``through`` is PYTHONPATH or "the user's packages"."""

    package: str
    folder: str
    through: str


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of an unfinished setup. ``process`` made it, None where it is gone; ``reason`` is pip's, if any."""

    path: str
    process: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Environment:
    """``unfit`` are requirements that the installed version does not meet; ``conda`` is the environment of conda that
    Python belongs to, "" elsewhere."""

    prefix: str
    damaged: tuple[Damage, ...] = ()
    unfit: tuple[tuple[str, str], ...] = ()
    outside: tuple[Outside, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    conda: str = ""
    is_venv: bool = True
    variables: Mapping[str, str] | None = None


def read_environment(variables: Mapping[str, str], root: str) -> Environment:
    """The environment of this process; ``root`` is the checkout, "" without one."""
    prefix, base_prefix = Path(sys.prefix), Path(sys.base_prefix)
    conda = next((str(folder) for folder in (prefix, base_prefix) if os.path.isdir(folder / "conda-meta")), "")
    return Environment(
        prefix=str(prefix),
        damaged=tuple(find_damage(importlib.metadata.distributions())),
        unfit=tuple(unfit_versions(_requirements(), installed_version)),
        outside=tuple(_outside(variables.get("PYTHONPATH", ""))),
        leftovers=tuple(read_leftovers(Path(root))) if root else (),
        conda=conda,
        is_venv=prefix != base_prefix,
        variables={name: value for name, value in sorted(variables.items()) if _SHOWN.fullmatch(name)},
    )


def installed_version(package: str) -> str | None:
    """Version of an installed package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_damage(distributions: Iterable[importlib.metadata.Distribution]) -> Iterator[Damage]:
    """Every package whose files are not those of its RECORD, or that cannot even say its name."""
    for distribution in distributions:
        folder = str(distribution.locate_file(""))
        fields, record = distribution.read_text("METADATA") or "", distribution.read_text("RECORD") or ""
        name, version = (_field(fields, key) for key in ("Name", "Version"))
        missing, changed = wrong_files(record, folder)
        if record and not name:
            owner = next((row.partition(".dist-info/")[0] for row in record.splitlines() if ".dist-info/" in row), "")
            yield Damage(owner or folder, version, 1, 0, "METADATA")
        elif missing or changed:
            yield Damage(name, version, len(missing), len(changed), (missing or changed)[0])


def _field(metadata: str, name: str) -> str:
    match = re.search(rf"^{name}: (.*)$", metadata, re.MULTILINE)
    return match[1].strip() if match else ""


def wrong_files(record: str, folder: str) -> tuple[list[str], list[str]]:
    """Names in ``record`` whose file below ``folder`` is missing, and those whose file has another size."""
    missing: list[str] = []
    changed: list[str] = []
    for row in csv.reader(record.splitlines()):
        if len(row) != 3 or not row[2].isdigit() or row[0].startswith("..") or row[0].endswith(".pyc"):
            continue
        try:
            if os.stat(os.path.join(folder, row[0])).st_size != int(row[2]):
                changed.append(row[0])
        except OSError:
            missing.append(row[0])
    return missing, changed


def _requirements() -> Sequence[str]:
    try:
        return importlib.metadata.requires("mlx-finetune") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def unfit_versions(requirements: Sequence[str], version_of: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
    """(requirement, installed version) where the two do not go together; packages that are missing are left out."""
    with suppress(ImportError):  # it comes with transformers, which may be what is missing
        from packaging.requirements import InvalidRequirement, Requirement

        for text in requirements:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = version_of(requirement.name)
            if version is not None and not requirement.specifier.contains(version, prereleases=True):
                yield f"{requirement.name}{requirement.specifier}", version


def _outside(python_path: str) -> Iterator[Outside]:
    import site

    entries = {os.path.realpath(entry) for entry in python_path.split(os.pathsep) if entry}
    users = os.path.realpath(site.getusersitepackages())
    for package, module in _MODULES.items():
        with suppress(ImportError, ValueError, AttributeError):
            spec = importlib.util.find_spec(module)
            places = list(spec.submodule_search_locations or ()) if spec is not None else []
            folder = os.path.realpath(os.path.dirname(places[0])) if places else ""
            if folder in entries or (folder == users and folder):
                yield Outside(package, folder, "PYTHONPATH" if folder in entries else "the user's packages")


def read_leftovers(root: Path) -> Iterator[Leftover]:
    """What an unfinished setup left in the checkout; nothing where one is at work."""
    owner = _number(root / ".venv.lock" / "pid")
    if owner is not None and _is_running(owner):
        return
    if os.path.isdir(root / ".venv.lock"):
        yield Leftover(str(root / ".venv.lock"), owner, "")
    for name in (".venv.part", ".venv.old"):
        if os.path.isdir(root / name):
            yield Leftover(str(root / name), None, _last_error(root / name / "setup.log"))


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text("utf-8").strip())
    return None


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _last_error(log: Path) -> str:
    """The last line that pip calls an error, without that word; of two about one package the one with the reason."""
    with suppress(OSError):
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.startswith("ERROR: ")]
        told = [line for line in lines if "from versions:" in line] or lines
        return told[-1].removeprefix("ERROR: ") if told else ""
    return ""


# --- what is wrong ---


def package_problems(
    versions: Mapping[str, str | None], mlx_error: str, environment: Environment, typed: Typed
) -> Sequence[Finding]:
    """Packages that are missing, damaged, unfit or not ours. ``mlx_error`` is what its import said."""
    missing = [name for name in PACKAGES[1:] if name in versions and versions[name] is None]
    if missing:
        return [Finding("blocker", f"not installed: {', '.join(missing)}", typed.install(missing))]
    found: list[Finding] = []
    if environment.damaged:
        found.append(_damaged(environment.damaged, typed))
    elif mlx_error:
        found.append(Finding("blocker", *_broken_mlx(mlx_error, typed)))
    for requirement, version in environment.unfit:
        message = f"{requirement} is needed, and {version} is installed"
        found.append(Finding("warning", message, typed.install([requirement])))
    return [*found, *_in_the_way(environment, typed), *_leftover_problems(environment.leftovers, typed)]


def _damaged(damaged: Sequence[Damage], typed: Typed) -> Finding:
    """One finding for all: only what training imports keeps it from running, and only where files are gone."""
    core = [one for one in damaged if one.num_missing and one.package.lower().replace("_", "-") in _CORE]
    first = (core or damaged)[0]
    number = first.num_missing or first.num_changed
    files = ("a file is" if number == 1 else f"{number} files are") + (" missing" if first.num_missing else " changed")
    more = f", and more in {len(damaged) - 1} other package{'s' if len(damaged) > 2 else ''}" if damaged[1:] else ""
    message = f"{files} in {first.package} {first.version} ({first.example}){more}"
    wanted = [f"{one.package}=={one.version}" if one.version else one.package for one in damaged]
    return Finding("blocker" if core else "warning", message, typed.install(wanted))


#: Text of a failed import -> what it means and the command, or "" for a new environment.
_IMPORT_ERRORS: tuple[tuple[str, str, str], ...] = (
    (
        r"No Metal device",
        "there is no GPU that Metal can use here: a session without a desktop, a sandbox or a virtual machine",
        "log in at the Mac itself, open Terminal there, then: mlxft doctor",
    ),
    (r"incompatible architecture|wrong architecture", "mlx was installed for another kind of processor", ""),
    (
        r"library load (disallowed|denied) by system policy|code signature",
        "macOS does not let mlx's library be loaded, as it was downloaded or copied from elsewhere",
        "",
    ),
    (r"built for macOS|newer than running OS", "mlx was installed for a newer macOS than this one", ""),
)


def _broken_mlx(error: str, typed: Typed) -> tuple[str, str]:
    for pattern, message, command in _IMPORT_ERRORS:
        if re.search(pattern, error):
            return message, typed.command(command) or typed.rebuild()
    return f"mlx does not work: {error}", typed.rebuild()


def _in_the_way(environment: Environment, typed: Typed) -> Iterator[Finding]:
    """Other Pythons, and variables that change what is loaded."""
    variables = environment.variables or {}
    ours = typed.path(f"{typed.root}/launchers/mlxft") if typed.root else ""
    for through in dict.fromkeys(one.through for one in environment.outside):
        here = [one for one in environment.outside if one.through == through]
        names = ", ".join(one.package for one in here)
        verb = "comes" if len(here) == 1 else "come"
        message = f"{names} {verb} from {here[0].folder} through {through}, not from the environment of mlxft"
        away = "unset PYTHONPATH" if through == "PYTHONPATH" else "export PYTHONNOUSERSITE=1"
        yield Finding("warning", message, f"{away} && {ours or typed.mlxft} doctor")
    if environment.conda and environment.conda == environment.prefix:
        message = f"mlxft runs in conda's environment {environment.conda}, where other packages can replace its own"
        yield Finding("warning", message, f"conda deactivate && {ours or typed.mlxft} doctor")
    elif environment.conda:
        message = f"the Python of this environment belongs to conda in {environment.conda} and goes when that goes"
        yield Finding("note", message, f"conda deactivate && {typed.rebuild()}")
    for name in _LIBRARY_PATHS:
        if name in variables:
            message = f"{name} is set, so other libraries than those of the environment may be loaded"
            yield Finding("warning", message, f"unset {name} && {typed.mlxft} doctor")
    if "MLX_DISABLE_COMPILE" in variables:
        yield Finding(
            "warning",
            "MLX_DISABLE_COMPILE is set: every step is slower",
            f"unset MLX_DISABLE_COMPILE && {typed.mlxft} doctor",
        )
    if variables.get("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1") == "0":
        message = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=0 takes away the patience of macOS with long work on the GPU"
        yield Finding("warning", message, "unset AGX_RELAX_CDM_CTXSTORE_TIMEOUT")


def _leftover_problems(leftovers: Sequence[Leftover], typed: Typed) -> Iterator[Finding]:
    if not leftovers:
        return
    names = ", ".join(Path(one.path).name for one in leftovers)
    message = f"a setup was left unfinished ({names})"
    reason = next((one.reason for one in leftovers if one.reason), "")
    if "from versions: none" in reason:
        message += f": {reason.partition(' (from')[0]}, as for Python under Rosetta, an Intel Mac or an old macOS"
    elif reason:
        message += f": {reason}"
    yield Finding("warning", message, "rm -r " + " ".join(typed.path(one.path) for one in leftovers))

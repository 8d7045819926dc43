"""What makes two runs the same run, and the differences between them in words.

A resumed run must be the run that was started: same recipe, same data bytes, same model, same tokenizer. Versions of
mlx and of the machine are recorded too; there a change is allowed and said, because equality to the last bit is then
no longer promised.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import cast

from mlx_finetune.errors import RunError
from mlx_finetune.hardware import blas
from mlx_finetune.recipe.resolve import flatten_recipe
from mlx_finetune.recipe.schema import Recipe

#: Keys that never change a weight: they may differ on resume, and the new value counts.
FREE_KEYS = frozenset(
    {
        "output_dir",
        "training.logging_steps",
        "training.save_steps",
        "training.save_minutes",
        "training.keep_checkpoints",
        "training.max_minutes",
        "training.save_at",
        "training.report_to",
        "hardware.memory_limit",
        "hardware.wired_limit",
        "hardware.cache_limit",
        "hardware.relax_gpu_watchdog",
        "hardware.max_ops_per_buffer",
        "hardware.max_mb_per_buffer",
        "hardware.residency_set_percent",
        "hardware.fast_synch",
        "hardware.sample_seconds",
        "hardware.min_battery_percent",
    }
)
FREE_SECTIONS = ("chat", "eval", "serve")
#: Keys of [training] that runs of earlier versions do not name, and what those runs did.
SETTINGS_BEFORE: Mapping[str, object] = {"reuse_frozen_layers": False}
#: Free keys whose automatic choice stays that of the first start: ``mlxft tune`` may have found another one since.
KEPT_WHEN_AUTO = frozenset({"hardware.max_ops_per_buffer", "hardware.max_mb_per_buffer"})
_DEFAULTS_SINCE: Mapping[str, object] = {
    "training.reuse_frozen_layers": "auto",
    "hardware.microbatch": "auto",
    "hardware.num_threads": "auto",
    "data.documents": "paragraph",
    "data.corrections": False,
    "data.corrections_weight": 1.0,
    "hardware.tf32": "auto",
    "hardware.gpu_architecture": "auto",
    "hardware.compile": "auto",
    "data.max_target_length": 256,
    "data.text_template": "{text}",
    "verifier.lm_loss_weight": 1.0,
    "grpo.rewards": ["number"],
    "grpo.reward_weights": [],
    "grpo.schema": None,
    "grpo.group_size": 8,
    "grpo.max_tokens": 256,
    "grpo.temperature": 1.0,
    "grpo.divide_by_sd": False,
    "grpo.updates": 1,
    "grpo.clip": 0.2,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything a resumed run must share with the one that was started. Hashes are SHA-256 in hex.

    ``measure_sha256`` is of what a validation loss is measured with: two of the same are comparable.
    """

    recipe: Mapping[str, object]
    data_sha256: str
    model_sha256: str
    tokenizer_sha256: str
    adapter_sha256: str
    order: str
    versions: Mapping[str, str]
    scorers_sha256: str = ""
    measure_sha256: str = ""

    def to_json(self) -> dict[str, object]:
        """Plain values for trainer_state.json and run.json."""
        return {
            "recipe": dict(self.recipe),
            "data_sha256": self.data_sha256,
            "model_sha256": self.model_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "adapter_sha256": self.adapter_sha256,
            "order": self.order,
            "versions": dict(self.versions),
            "scorers_sha256": self.scorers_sha256,
            "measure_sha256": self.measure_sha256,
        }


def recipe_identity(recipe: Recipe) -> dict[str, object]:
    """The recipe as asked for, flat, without the keys that never change a weight."""
    flat = flatten_recipe(recipe)
    return {
        key: value for key, value in flat.items() if key not in FREE_KEYS and key.partition(".")[0] not in FREE_SECTIONS
    }


def current_versions() -> dict[str, str]:
    """Versions that equality to the last bit depends on."""
    names = ("mlx", "mlx-lm", "numpy", "transformers", "tokenizers")
    versions = {name: metadata.version(name) for name in names}
    return versions | {
        "mlxft": metadata.version("mlx-finetune"),
        "python": platform.python_version(),
        "BLAS threads": str(blas.num_threads() or "not counted"),
        "system": f"{sys.platform} {platform.release()} {platform.machine()}",
    }


def measure_hash(recipe: Recipe, validation: str, files: Sequence[str]) -> str:
    """``measure_sha256`` of a resolved recipe with the hashes of its validation rows and of other ``files``."""
    preference = recipe.preference and recipe.preference.model_dump(mode="json", exclude={"share_prompt"})
    sections = [recipe.task, recipe.quantize, preference, recipe.verifier.model_dump(), recipe.grpo.model_dump()]
    return hashlib.sha256(json.dumps([validation, *files, *sections]).encode("ascii")).hexdigest()


def differences(saved: Mapping[str, object], now: Identity) -> Sequence[str]:
    """One sentence for each thing that differs between a saved identity and this one; versions are left out."""
    current = now.to_json()
    found = recipe_differences(saved, now.recipe)
    names = {
        "data_sha256": "the data files have changed",
        "model_sha256": "the model's files are others",
        "tokenizer_sha256": "the tokenizer or its chat template is another",
        "adapter_sha256": "the adapter that training started from is another",
        "order": "this version orders rows in another way",
        "scorers_sha256": "a verifier or reward run of grpo.rewards is another",
    }
    known = {"scorers_sha256": "", **saved}  # earlier versions had none
    found += [sentence for key, sentence in names.items() if known.get(key) != current[key]]
    return found


def fork_differences(saved: Mapping[str, object], now: Identity, resolved: object) -> Sequence[str]:
    """``differences`` for a fork: a key that now names what the run had decided on itself (``resolved``) is no change.

    resolved.toml of a run is such a recipe. Of rows nobody can tell files from corrections.
    """
    decided = flatten_values(resolved)
    recipe = saved.get("recipe")
    old = {
        key: now.recipe[key] if key in now.recipe and key in decided and decided[key] == now.recipe[key] else value
        for key, value in (cast("dict[str, object]", recipe) if isinstance(recipe, dict) else {}).items()
    }
    found = differences({**saved, "recipe": old}, now)
    return [sentence.replace("the data files have", "the training rows have") for sentence in found]


def flatten_values(resolved: object) -> dict[str, object]:
    """``{"training": {"batch_size": 4}}`` -> ``{"training.batch_size": 4}``; nothing for what is no recipe."""
    flat: dict[str, object] = {}
    for name, value in (cast("dict[str, object]", resolved) if isinstance(resolved, dict) else {}).items():
        inner = cast("dict[str, object]", value).items() if isinstance(value, dict) else ()
        flat |= {name: value} | {f"{name}.{key}": entry for key, entry in inner}
    return flat


def recipe_differences(saved: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """One sentence for each key whose value differs between a saved identity and the recipe of ``recipe_identity``."""
    recipe = saved.get("recipe")
    old = {**_DEFAULTS_SINCE, **recipe} if isinstance(recipe, dict) else {}
    return [
        f"{key}: was {old.get(key)!r}, is now {now.get(key)!r}"
        for key in sorted(old.keys() | now.keys())
        if old.get(key) != now.get(key)
    ]


def rank_differences(first: Mapping[str, object], now: Identity) -> list[str]:
    """What this rank would train with and rank 0, whose identity is ``first``, would not, one phrase each."""
    current = now.to_json()
    names = {
        "data_sha256": "other data files",
        "model_sha256": "other model files",
        "tokenizer_sha256": "another tokenizer or chat template",
        "adapter_sha256": "another adapter to start from",
        "order": "another order of rows, by another version of mlxft",
        "scorers_sha256": "other runs that grpo.rewards names",
    }
    found = [phrase for key, phrase in names.items() if first.get(key) != current[key]]
    recipe = first.get("recipe")
    theirs = recipe if isinstance(recipe, dict) else {}
    for key in sorted(theirs.keys() | now.recipe.keys()):
        if theirs.get(key) != now.recipe.get(key):
            found.append(f"{key} = {now.recipe.get(key)!r}, not {theirs.get(key)!r}")
    return found


def other_run(differences: Sequence[str]) -> RunError:
    """What is raised where the run that is continued is not the one that was started."""
    return RunError(
        "this is not the run that was started: " + "; ".join(differences),
        "undo the change, or go on with it from the last checkpoint with --fork",
    )


def version_changes(saved: Mapping[str, object], now: Identity) -> Sequence[str]:
    """``name: old -> new`` for each version that differs; with any of these, bitwise equality is not promised."""
    old = saved.get("versions")
    if not isinstance(old, dict):
        return ["versions were not recorded"]
    return [f"{name}: {old.get(name)} -> {value}" for name, value in now.versions.items() if old.get(name) != value]

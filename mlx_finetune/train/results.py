"""What a run leaves behind beside its checkpoints: the adapter for others to load, its card, the summary.

The weights come from the best checkpoint (the last one where the recipe says ``keep_best = false``), copied file by
file with the same bytes. Every file is replaced whole.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlx_finetune import durable, rundir
from mlx_finetune.errors import RunError
from mlx_finetune.events import summarise_resources
from mlx_finetune.journal import read_resources
from mlx_finetune.model.sources.catalogue import find_entry
from mlx_finetune.recipe.asking import talk_command
from mlx_finetune.recipe.heads import SCORED_TASKS
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.recipe.scratch import OWN_TYPE, TRAINED_HERE
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.checkpoints.state import RunState
from mlx_finetune.units import format_count

if TYPE_CHECKING:  # the child imports this before mlx may be loaded (hardware.blas)
    from mlx_finetune.model.load import ModelInfo

_NO_LICENSE = "unknown; see the base model's page"
_TRAINING_FILES = frozenset({rundir.MANIFEST, rundir.RUN_INFO, rundir.TRAINER_STATE, rundir.OPTIMIZER, rundir.ROLLOUTS})


def publish(run: RunDir, recipe: Recipe, step: int) -> None:
    """Copy the weights and tokenizer files of ``checkpoint-STEP`` to where other tools look for them.

    An adapter goes into the run folder itself, a fully trained model into its ``model/`` folder. Raises ``RunError``
    when that checkpoint is not there.
    """
    checkpoint = run.checkpoint(step)
    if not (checkpoint / rundir.MANIFEST).is_file():
        raise RunError(f"{run.path}: the checkpoint of step {step} is missing, so no result can be written")
    target = run.path if recipe.lora else run.path / rundir.MODEL_FOLDER
    if target.is_symlink() and target != run.path:
        raise RunError(f"{target} is a link; a run writes only to folders of its own", f"remove {target}")
    durable.make_folder(target)
    for path in sorted(checkpoint.iterdir()):
        if path.is_file() and path.name not in _TRAINING_FILES:
            durable.copy_file(path, target / path.name)


def result_step(recipe: Recipe, state: RunState) -> int:
    """The step whose weights are the result: the best trained one; the last where the recipe asks for it, or none
    was measured."""
    return (state.best_step if recipe.training.keep_best else None) or state.step


def write_metrics(
    run: RunDir,
    recipe: Recipe,
    info: "ModelInfo",
    state: RunState,
    reason: str,
    plan: Mapping[str, object] | None = None,
) -> None:
    """training_metrics.json: the summary of a run, for people and scripts; ``plan`` compares it with its plan."""
    fields: dict[str, object] = {
        "format_version": rundir.FORMAT_VERSION,
        "model": info.name,
        "model_sha256": info.sha256,
        "task": recipe.task,
        "reason": reason,
        "steps": state.step,
        "epochs": round(state.epoch, 4),
        "first_eval_loss": state.first_loss,
        "best_eval_loss": state.best_loss,
        "best_step": state.best_step,
        "result_step": result_step(recipe, state),
        "last_eval_loss": state.last_loss,
        "last_train_loss": state.loss,
        "train_seconds": round(state.train_seconds, 3),
        "targets_trained": state.targets_trained,
        "tokens_trained": state.tokens_trained,
        "targets_per_second": round(state.targets_trained / max(state.train_seconds, 1e-9), 2),
        "peak_memory_bytes": state.peak_memory_bytes,
        "plan": plan,
        "resources": summarise_resources(read_resources(run.file(rundir.EVENTS))),
        "skipped_steps": state.skipped_steps,
        "restarts": state.restarts,
        "log_history": state.log_history,
    }
    durable.write_json(run.file(rundir.METRICS), fields)


def write_card(run: RunDir, recipe: Recipe, info: "ModelInfo", state: RunState, *, source: str) -> None:
    """README.md of the run folder: base, data, settings, result, licence of the base."""
    lora = recipe.lora
    settings = (
        f"rank {lora.rank}, alpha {lora.alpha:g} (scale {lora.scale:g}), dropout {lora.dropout:g}, "
        f"target modules {lora.target_modules}, blocks {lora.num_layers}"
        if lora
        else "all weights trained"
    )
    data = recipe.data.source_of("train")
    corrected = "" if recipe.data.corrections is False else ", and answers put right in chats"
    head, origin = _origin(recipe, info, source)
    load = _how_to_load(run.path.name, info, is_adapter=lora is not None, task=recipe.task)
    text = f"""---
{head}
---
# {run.path.name}

{origin}
- Task: {recipe.task}; data: `{data}`{corrected}
- Settings: {settings}; learning rate {recipe.training.learning_rate}, {recipe.training.lr_scheduler} schedule
- {state.step} steps, {format_count(state.targets_trained)} targets. {_losses(recipe, state)}{_restarts(state)}

{load}
All settings are in `resolved.toml`, the course of the training in `events.jsonl`.
"""
    durable.write_text(run.file(rundir.CARD), text)


def _origin(recipe: Recipe, info: "ModelInfo", source: str) -> tuple[str, str]:
    """The card's front matter, and what its model was made from."""
    size = f"({format_count(info.num_parameters)} parameters), made with mlxft."
    if recipe.scratch is not None:
        kind = f"A language model trained from random weights {size}"
        begun = f"- Begun with: random weights of seed {recipe.seed}, `{info.name}`, SHA-256 `{info.sha256}`"
        made = recipe.scratch.tokenizer == TRAINED_HERE
        words = "made from the training rows" if made else f"that of `{recipe.scratch.tokenizer}`"
        return "library_name: mlx\ntags: [mlx, mlxft]", f"{kind}\n\n{begun}\n- Tokenizer: {words}"
    base = entry.hub_id if (entry := find_entry(info.name)) else info.name
    kind = "LoRA adapter" if recipe.lora else "Fully fine-tuned model"
    head = [
        f"base_model: {base}",
        f"library_name: {'peft' if recipe.lora else 'mlx'}",
        f"license: {info.license or 'unknown'}",
        f"tags: [mlx, mlxft, {'lora' if recipe.lora else 'full'}]",
    ]
    lines = [
        f"{kind} for `{base}` {size}",
        "",
        f"- Base model: `{info.name}` from {source}, revision {info.revision or 'none'}, SHA-256 `{info.sha256}`",
        f"- Licence of the base model: {info.license or _NO_LICENSE}",
    ]
    return "\n".join(head), "\n".join(lines)


def _trust(info: "ModelInfo") -> str:
    """What ``mlx_lm`` needs to run code that lies beside the weights."""
    return " (`trust_remote_code=True`: its architecture is the file beside it)" if info.model_type == OWN_TYPE else ""


def _how_to_load(name: str, info: "ModelInfo", *, is_adapter: bool, task: str) -> str:
    first = f"Load it with `{talk_command(task, name)}`"
    if task in SCORED_TASKS:
        other = "`peft` (the head is in `modules_to_save`)" if is_adapter else "its score head is `head.safetensors`"
        return f"{first}; {other}."
    if task == "seq2seq":
        other = "`peft`" if is_adapter else f"`{rundir.MODEL_FOLDER}/` with `transformers`"
        return f"{first}, or {other}."
    if is_adapter:
        return f"{first}, with `mlx_lm` (`adapter_path`) or with `peft`."
    return f"{first}, or `{rundir.MODEL_FOLDER}/` with `mlx_lm`{_trust(info)}."


def _losses(recipe: Recipe, state: RunState) -> str:
    """Validation loss of the base and of the weights that are the result."""
    if state.first_loss is None:
        return "There was no validation set."
    before = f"Validation loss {state.first_loss:.4f} before"
    if state.best_loss is None:
        return f"{before}; it was no number after a step."
    if result_step(recipe, state) == state.best_step or state.last_loss is None:
        still = "; the start was better still" if state.first_loss < state.best_loss else ""
        return f"{before}, {state.best_loss:.4f} at its best (step {state.best_step}), which is the result{still}."
    end = f"{state.last_loss:.4f} at the end, which is the result"
    return f"{before}, {end}; it was lowest at step {state.best_step} ({state.best_loss:.4f})."


def _restarts(state: RunState) -> str:
    """What a reader of the card should know about aborts on the way; "" where there were none."""
    if not state.restarts:
        return ""
    is_bitwise = all(entry.get("is_bitwise") for entry in state.restarts)
    equal = "with the same bits as without" if is_bitwise else "equal to a run without one up to rounding"
    return f"\n- Restarted {len(state.restarts)} times after an abort; {equal}."


def read_run_info(run: RunDir) -> Mapping[str, object]:
    """run.json of a run folder. Raises ``RunError`` where it is missing, damaged or of a newer version."""
    path = run.file(rundir.RUN_INFO)
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path} cannot be read ({what})", "start again with another output_dir") from error
    if value.get("format_version") != rundir.FORMAT_VERSION:
        raise RunError(f"{path} was written by another version of mlxft", "update mlxft, or use another output_dir")
    return value

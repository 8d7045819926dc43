"""The hub and its token, and what one recipe needs: its model, its data, room and memory for it.

The hub is asked one small question, within seconds, and only where it may be asked at all. Nothing is fetched.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune.app.doctor.finding import Finding, Typed
from mlx_finetune.errors import RecipeError
from mlx_finetune.hardware.limits import Machine, memory_limit
from mlx_finetune.model.sources import hub_access
from mlx_finetune.model.sources.catalogue import CATALOGUE, CachedModel, CatalogueEntry, find_entry
from mlx_finetune.model.sources.hub import is_hub_id
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.paths import check_paths, data_paths
from mlx_finetune.recipe.scratch import TRAINED_HERE
from mlx_finetune.units import format_bytes

HUB_TIMEOUT_SECONDS = 4.0
_SPARE_BYTES = 10**8


@dataclass(frozen=True, slots=True)
class HubState:
    """``problem``: why the hub cannot be reached, "" where it can, None where it was not asked."""

    problem: str | None
    has_token: bool
    token_is_refused: bool = False


@dataclass(frozen=True, slots=True)
class Needs:
    """What a recipe needs. ``access`` is what the hub says of a model that is not on this disk yet.

    ``download_bytes`` is 0 where nothing is fetched or nobody tells; ``weights_bytes`` are the weights in memory, by
    the catalogue; ``problems`` are sentences with a way out: its data, its place.
    """

    recipe: str
    model: str
    hub_id: str
    is_here: bool
    access: hub_access.Access | None = None
    has_other_source: bool = False
    download_bytes: int = 0
    weights_bytes: int = 0
    problems: tuple[tuple[str, str], ...] = ()


def read_needs(
    loaded: LoadedRecipe,
    base: Path,
    cached: Sequence[CachedModel],
    *,
    on_gpu: bool,
    ask: Callable[[str], hub_access.Access] | None,
    check: Callable[[LoadedRecipe, Path], None],
) -> Needs:
    """What ``loaded`` needs, started from ``base``. ``ask`` asks the hub about a model; None where it is not asked.

    ``check`` raises ``RecipeError`` for what the recipe names besides model and data: schemas, gates, trackers.
    """
    recipe = loaded.recipe
    if recipe.scratch is not None:  # a tokenizer that it names is a model's
        is_made_here = recipe.scratch.tokenizer == TRAINED_HERE
        name = "" if is_made_here else recipe.scratch.tokenizer
    else:
        is_made_here, name = False, recipe.model
    entry = find_entry(name)
    is_there = is_made_here or os.path.exists(os.path.expanduser(name))
    is_local = entry is None and not is_hub_id(name)
    is_local = is_local or (entry is None and is_there)
    hub_id = "" if is_local else entry.hub_id if entry is not None else name
    is_here = is_there if is_local else any(hub_id in (one.name, *_ids(one.name)) for one in cached)
    problems = [*_data_problems(loaded, base), *_named_problems(loaded, base, check)]
    if is_local and not is_here:
        problems.append((f"there is no file or folder {name}", "correct `model` in the recipe"))
    is_fetched = not is_here and not is_local
    return Needs(
        recipe=str(loaded.path),
        model=recipe.model,
        hub_id=hub_id,
        is_here=is_here,
        access=ask(hub_id) if is_fetched and ask is not None else None,
        has_other_source=entry is not None and entry.wheel is not None and recipe.revision is None,
        download_bytes=entry.hub_bytes if entry is not None and is_fetched else 0,
        weights_bytes=_weights_bytes(entry, recipe.quantize, on_gpu=on_gpu),
        problems=tuple(problems),
    )


def _data_problems(loaded: LoadedRecipe, base: Path) -> Iterator[tuple[str, str]]:
    """Data that is not where the recipe says, as far as names tell; what is in it says ``mlxft data check``."""
    try:
        check_paths(loaded, base)
    except RecipeError as error:
        yield from _told(error)
        return
    for key, text in data_paths(loaded.recipe.data):
        is_there = os.path.exists(os.path.join(base, os.path.expanduser(text)))
        if not is_there and (not is_hub_id(text) or os.path.isdir(base / Path(text).parent)):
            yield f"{loaded.path}: {key} = {text!r}: there is no such file or folder in {base}", ""


def _told(error: RecipeError) -> Iterator[tuple[str, str]]:
    return ((f"{one.where}: {one.message}" if one.where else one.message, one.hint) for one in error.problems)


def _named_problems(
    loaded: LoadedRecipe, base: Path, check: Callable[[LoadedRecipe, Path], None]
) -> Iterator[tuple[str, str]]:
    try:
        check(loaded, base)
    except RecipeError as error:
        yield from _told(error)


def _ids(name: str) -> tuple[str, ...]:
    entry = find_entry(name)
    return () if entry is None else (entry.hub_id,)


def _weights_bytes(entry: CatalogueEntry | None, quantize: int | None, *, on_gpu: bool) -> int:
    """Bytes of the frozen weights; quantized ones have half a bit more for scales, a CPU computes in fp32."""
    if entry is None:
        return 0
    if quantize is not None:
        return round(entry.num_parameters * (quantize + 0.5) / 8)
    is_stored_quantized = entry.hub_bytes < 1.5 * entry.num_parameters
    return entry.hub_bytes if is_stored_quantized else entry.num_parameters * (2 if on_gpu else 4)


# --- what is wrong ---


def hub_problems(state: HubState, cached: Sequence[str], typed: Typed) -> Iterator[Finding]:
    """A hub that does not answer is no reason not to train: what still works is told."""
    if state.problem:
        here = ", ".join(cached[:4]) + (" and others" if len(cached) > 4 else "")
        others = " and ".join(entry.name for entry in CATALOGUE if entry.wheel is not None)
        works = f"models on this disk ({here})" if cached else f"{others}, which the package index has too"
        message = f"the hub cannot be reached: {state.problem}; what still works is training with {works}"
        yield Finding("note", message, f"{typed.mlxft} models list")
    if state.token_is_refused:
        message = "the hub does not accept the token that is kept here: it has expired or was withdrawn"
        yield Finding("warning", message, f"{typed.tool('hf')} auth login")


def recipe_problems(
    needs: Needs, state: HubState, typed: Typed, *, machine: Machine, free_bytes: int
) -> Iterator[Finding]:
    """What keeps this recipe from training here, and is known before anything is loaded."""
    for message, way_out in needs.problems:
        yield Finding(
            "blocker", message, typed.command(way_out) or f"{typed.mlxft} data check {typed.path(needs.recipe)}"
        )
    if needs.hub_id and not needs.is_here:
        yield from _access_problems(needs, state, typed)
        if needs.download_bytes and free_bytes < needs.download_bytes + _SPARE_BYTES:
            sizes = f"{format_bytes(needs.download_bytes)}, and {format_bytes(free_bytes)} are free"
            message = f"{needs.model} is {sizes}; {typed.mlxft} models rm NAME makes room"
            yield Finding("blocker", message, f"{typed.mlxft} models list")
    limit = memory_limit(machine)
    if needs.weights_bytes > limit:
        message = (
            f"the weights of {needs.model} alone take {format_bytes(needs.weights_bytes)}, "
            f"and {format_bytes(limit)} of memory can be used"
        )
        yield Finding("blocker", message, f"{typed.mlxft} plan {typed.path(needs.recipe)}")


def _access_problems(needs: Needs, state: HubState, typed: Typed) -> Iterator[Finding]:
    entry = find_entry(needs.model)
    is_gated = needs.access == "gated" or (entry is not None and entry.needs_approval)
    page = hub_access.page_of(needs.hub_id)
    login = f"{typed.tool('hf')} auth login"
    again = f"{typed.mlxft} models get {needs.model}"
    if is_gated and not state.has_token:
        message = f"{needs.model} asks for its licence to be accepted ({page}), and there is no token of the hub here"
        yield Finding("blocker", message, login)
    elif needs.access == "gated":
        message = f"your account has not accepted the licence of {needs.model} yet; do that first: {page}"
        yield Finding("blocker", message, again)
    elif needs.access == "missing":
        message = f"there is no model {needs.hub_id} on the hub, or it is private"
        yield Finding("blocker", message, login if not state.has_token else f"{typed.mlxft} models list")
    elif state.problem and needs.has_other_source:
        message = f"{needs.model} is not on this disk yet; it will come from the package index"
        yield Finding("note", message, again)
    elif state.problem or (state.problem is None and needs.access is None):
        why = state.problem or "the hub is not asked"
        message = f"{needs.model} is not on this disk and cannot be fetched: {why}"
        yield Finding("blocker", message, again)

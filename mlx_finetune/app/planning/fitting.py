"""What would make a training fit: every change is planned, and only those that work are named, as options to type.

The cost of a change is the time for a token it learns from, as a ratio to the recipe as it is: by the operations that
recomputation, fewer adapted blocks or other lengths mean, and by what smaller microbatches and quantised weights were
seen to cost (``HALVING``, ``QUANTIZED``: E, to be measured on Metal). Rows that are left out are said, not counted as
time gained: ways with the same result come before all that learn less, and among equals the quicker one is first.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlx_finetune.dataset.stream import round_up
from mlx_finetune.errors import MlxftError
from mlx_finetune.hardware.planning.auto import Resolved, resolve_auto
from mlx_finetune.hardware.planning.chips import flops_per_token
from mlx_finetune.hardware.planning.facts import Facts
from mlx_finetune.hardware.planning.layout import epoch_positions, relative_cost
from mlx_finetune.recipe.schema import LoraRecipe, Recipe
from mlx_finetune.units import format_bytes

NUM_FIXES = 3
HALVING = 1.03  # time of a token when a microbatch is halved
QUANTIZED = 1.10  # time of a token when weights are unpacked in every product
NEW_RANK = 16


@dataclass(frozen=True, slots=True)
class Fix:
    """Settings that make the training fit. ``relative_time`` is of a token, 1.0 as it is; ``peak_bytes`` with them.

    ``price`` says in words what they cost; ``keeps_result``: what is learned stays the same up to rounding.
    """

    settings: tuple[tuple[str, str], ...]
    price: str
    relative_time: float
    peak_bytes: int
    keeps_result: bool

    @property
    def overrides(self) -> tuple[str, ...]:
        """``KEY=VALUE`` for each ``--set``."""
        return tuple(f"{name}={value}" for name, value in self.settings)

    @property
    def options(self) -> str:
        """``--set KEY=VALUE ...``, quoted for a shell."""
        return shlex.join([part for one in self.overrides for part in ("--set", one)])

    def sentence(self) -> str:
        """The options, then what they cost and need."""
        change = self.relative_time - 1
        time = "no more time" if abs(change) < 0.005 else f"{abs(change):.0%} {'more' if change > 0 else 'less'} time"
        return f"{self.options}  ({self.price}; {time} a token; {format_bytes(self.peak_bytes)})"

    def merged(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """``overrides`` with those that the fix replaces left out, and the fix."""
        changed = {name for name, _ in self.settings}
        kept = [one for one in overrides if one.partition("=")[0].strip() not in changed]
        return (*kept, *self.overrides)


@dataclass(frozen=True, slots=True)
class _Change:
    """One kind of edit at one strength. ``rank`` orders what is lost: 0 nothing, then more and more."""

    kind: str
    settings: Mapping[str, str]
    price: str
    keeps_result: bool
    penalty: float = 1.0


def find_fixes(recipe: Recipe, facts: Facts, *, margin: float = 1.0) -> tuple[Fix, ...]:
    """At most three ways to fit, those with the same result first, then by their cost in time; empty where none helps.

    Of each kind of change the weakest that is enough for ``margin`` times the peak. Where fewer than three are enough
    alone, or none with the same result is, pairs are tried, then everything together.
    """
    now = _seconds_per_token(resolve_auto(recipe, facts), facts)
    changes = list(_changes(recipe, facts))

    def plan(*chosen: _Change) -> Fix | None:
        return _planned(recipe, facts, chosen, now, margin)

    found = _weakest(changes, lambda change: plan(change))
    are_few = len(found) < NUM_FIXES
    if are_few or not any(fix.keeps_result for _, fix in found):
        enough = {change.kind for change, _ in found}
        rest = [change for change in changes if change.kind not in enough and (are_few or change.keeps_result)]
        pairs = [
            (one, other, fix)
            for at, one in enumerate(rest)
            for other in rest[at + 1 :]
            if one.kind != other.kind and (fix := plan(one, other)) is not None
        ]
        seen: set[frozenset[str]] = set()
        for one, other, fix in sorted(pairs, key=lambda pair: _order(pair[2])):
            kinds = frozenset((one.kind, other.kind))
            if kinds not in seen:
                seen.add(kinds)
                found.append((one, fix))
    if not found:
        strongest = {change.kind: change for change in changes}
        together = plan(*strongest.values())
        return (together,) if together is not None else ()
    return tuple(sorted((fix for _, fix in found), key=_order)[:NUM_FIXES])


def _order(fix: Fix) -> tuple[bool, float]:
    return not fix.keeps_result, fix.relative_time


def _weakest(changes: Sequence[_Change], plan: Callable[[_Change], Fix | None]) -> list[tuple[_Change, Fix]]:
    """Of each kind the first that is enough."""
    found: dict[str, tuple[_Change, Fix]] = {}
    for change in changes:
        if change.kind not in found and (fix := plan(change)) is not None:
            found[change.kind] = (change, fix)
    return list(found.values())


def _planned(recipe: Recipe, facts: Facts, changes: Sequence[_Change], now: float, margin: float) -> Fix | None:
    """The fix that ``changes`` are together; None where they do not make it fit or do not go together."""
    settings = {name: value for change in changes for name, value in change.settings.items()}
    changed = _apply(recipe, settings)
    shortened = _shortened(facts, changed)
    try:
        resolved = resolve_auto(changed, shortened)
    except (MlxftError, ValueError):
        return None
    if margin * resolved.peak_bytes > resolved.limits.memory_bytes:
        return None
    penalty = float(np.prod([change.penalty for change in changes]))
    keeps_result = all(change.keeps_result for change in changes)
    prices = [change.price for change in changes if keeps_result or not change.keeps_result]
    return Fix(
        settings=tuple(settings.items()),
        price="; ".join(dict.fromkeys(prices)),
        relative_time=_seconds_per_token(resolved, shortened) / now * penalty,
        peak_bytes=resolved.peak_bytes,
        keeps_result=keeps_result,
    )


def _seconds_per_token(resolved: Resolved, facts: Facts) -> float:
    """In arbitrary units: operations of a position, its attention, and the padding that comes with a token."""
    recipe = resolved.recipe
    recompute = recipe.training.gradient_checkpointing is True
    positions = epoch_positions(facts.lengths, resolved.packed_length, resolved.batch_size)
    length = resolved.packed_length or int(np.median(facts.lengths))
    attention = relative_cost(facts.shape, length)
    num_reused = resolved.kept.num_blocks if resolved.kept else 0
    work = flops_per_token(facts.shape, recipe.lora, recompute=recompute, num_reused=num_reused)
    return work * attention * positions / max(1, int(facts.lengths.sum()))


def _changes(recipe: Recipe, facts: Facts) -> Iterator[_Change]:
    """Every change there is for this recipe, each kind from the weakest to the strongest."""
    training, lora = recipe.training, recipe.lora
    if training.gradient_checkpointing is False:
        settings = {"training.gradient_checkpointing": "true"}
        yield _Change("recompute", settings, "the same result", keeps_result=True)
    batch = training.batch_size
    if batch != "auto":
        size, halvings = batch, 0
        while size > 1:
            size, halvings = size // 2, halvings + 1
            steps = training.gradient_accumulation_steps * -(-batch // size)
            settings = {"training.batch_size": str(size), "training.gradient_accumulation_steps": str(steps)}
            is_same = batch % size == 0
            price = "the same result" if is_same else f"{size * -(-batch // size)} rows a step"
            yield _Change("batch", settings, price, keeps_result=is_same, penalty=HALVING**halvings)
    if recipe.data.packing is True:
        yield _Change("packing", {"data.packing": "false"}, "rows one by one, padded", keeps_result=False)
    if recipe.quantize is None and lora is not None and facts.machine.on_gpu and facts.stored_bits is None:
        price = "a slightly less exact base"
        yield _Change("quantize", {"quantize": "8"}, price, keeps_result=False, penalty=QUANTIZED)
        yield _Change("quantize", {"quantize": "4"}, price, keeps_result=False, penalty=QUANTIZED)
    yield from _adapter_changes(recipe, lora, facts)
    yield from _length_changes(recipe, facts)


def _adapter_changes(recipe: Recipe, lora: LoraRecipe | None, facts: Facts) -> Iterator[_Change]:
    if lora is None:
        yield _Change("adapter", {"lora.rank": str(NEW_RANK)}, "an adapter instead of every weight", keeps_result=False)
        return
    rank = lora.rank
    while rank >= 16:
        rank //= 2
        yield _Change("rank", {"lora.rank": str(rank)}, "a smaller adapter learns less", keeps_result=False)
    layers = facts.shape.num_layers if lora.num_layers == "all" else min(lora.num_layers, facts.shape.num_layers)
    while layers >= 4:
        layers //= 2
        settings = {"lora.num_layers": str(layers)}
        price = f"only the upper {layers} of {facts.shape.num_layers} blocks learn"
        yield _Change("layers", settings, price, keeps_result=False)


def _length_changes(recipe: Recipe, facts: Facts) -> Iterator[_Change]:
    """Shorter rows only, where the recipe drops what is too long or cuts it."""
    known: set[int] = set()
    for share in (0.99, 0.95, 0.8, 0.5):
        limit = max(32, round_up(int(np.quantile(facts.lengths, share)), 32))
        beyond = int(np.count_nonzero(facts.lengths > limit))
        if not beyond or limit in known or limit >= recipe.data.max_seq_length:
            continue
        known.add(limit)
        fate = {"drop": "left out", "keep-end": "cut", "split": "split"}[recipe.data.truncation]
        price = f"{beyond} of {len(facts.lengths)} rows are longer and {fate}"
        yield _Change("length", {"data.max_seq_length": str(limit)}, price, keeps_result=False)


def _apply(recipe: Recipe, settings: Mapping[str, str]) -> Recipe:
    """``recipe`` with the settings, which are numbers and booleans; a section that is missing gets its defaults."""
    for name, text in settings.items():
        section, _, key = name.rpartition(".")
        value = {"true": True, "false": False}.get(text)
        changed = {key: int(text) if value is None else value}
        if not section:
            recipe = recipe.model_copy(update=changed)
            continue
        table = {
            "training": recipe.training,
            "data": recipe.data,
            "lora": recipe.lora or LoraRecipe.model_validate({}),
        }[section]
        recipe = recipe.model_copy(update={section: table.model_copy(update=changed)})
    return recipe


def _shortened(facts: Facts, recipe: Recipe) -> Facts:
    """The rows that ``data.max_seq_length`` leaves of those that another one left."""
    limit, lengths = recipe.data.max_seq_length, facts.lengths
    if int(lengths.max()) <= limit:
        return facts
    match recipe.data.truncation:
        case "drop":
            kept = lengths[lengths <= limit]
        case "keep-end":
            kept = np.minimum(lengths, limit)
        case "split":
            rest = lengths % limit
            kept = np.concatenate([np.full(int((lengths // limit).sum()), limit), rest[rest > 1]])
    return replace(facts, lengths=kept)

"""Settings of equal mathematics that ask less of the GPU: what a run that was aborted is resumed with.

Half the microbatch with twice as many of them, recomputation, a smaller cache, nothing wired. The recipe itself stays
as it was decided; a ``Safer`` beside it in run.json says how it is carried out. The first two change the order in which
sums are formed, hence their last bits; noise (dropout, NEFTune) is drawn anew for each piece of a microbatch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

from mlx_finetune.hardware.limits import Limits
from mlx_finetune.recipe.schema import Recipe

#: What a cause of an abort asks for. ``fewer_buffers`` and ``no_wiring`` change no bit of the result.
Need = Literal["less_memory", "shorter_commands", "fewer_buffers", "no_wiring"]

_MIN_CACHE_SHARE = 1 / 16


@dataclass(frozen=True, slots=True)
class Safer:
    """How a recipe is carried out more carefully than it says.

    ``pieces``: parts that each microbatch is cut into; ``recomputation``: activations are computed twice although the
    recipe does not ask for it; ``cache_share``: of the cache limit; ``wired`` False: no memory is wired.
    """

    pieces: int = 1
    recomputation: bool = False
    cache_share: float = 1.0
    wired: bool = True

    @property
    def is_bitwise(self) -> bool:
        """True where results have the same bits as without it."""
        return self.pieces == 1 and not self.recomputation

    def to_json(self) -> dict[str, object]:
        """Plain values, one key per field."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: object) -> Self:
        """The inverse of ``to_json``; the default for anything that ``to_json`` did not write."""
        if not isinstance(fields, Mapping):
            return cls()
        pieces, share = fields.get("pieces"), fields.get("cache_share")
        return cls(
            pieces=pieces if type(pieces) is int and pieces >= 1 else 1,
            recomputation=fields.get("recomputation") is True,
            cache_share=float(share) if isinstance(share, float | int) and 0 < share <= 1 else 1.0,
            wired=fields.get("wired") is not False,
        )

    def reasons(self) -> dict[str, str]:
        """Key of the recipe -> how it is carried out since the abort, for resolved.toml."""
        found: dict[str, str] = {}
        if self.pieces > 1:
            found["training.batch_size"] = f"since an abort in up to {self.pieces} pieces"
        if self.recomputation:
            found["training.gradient_checkpointing"] = "true since an abort, whatever it says here"
        if self.cache_share < 1:
            found["hardware.cache_limit"] = f"since an abort {_share(round(1 / self.cache_share))} of this"
        if not self.wired:
            found["hardware.wired_limit"] = "since an abort nothing is wired"
        return found

    def limits(self, limits: Limits) -> Limits:
        """``limits`` with the smaller cache, and nothing wired where that is asked for."""
        cache = round(limits.cache_bytes * self.cache_share)
        return replace(limits, cache_bytes=cache, wired_bytes=limits.wired_bytes if self.wired else 0)


def next_safer(recipe: Recipe, safer: Safer, need: Need) -> tuple[Safer, Sequence[str]] | None:
    """One step more careful than ``safer`` for a run with ``recipe``, and what changes, in words.

    None where nothing that helps is left. A batch_size that is not decided yet (the run never came to step 1) cannot
    be divided.
    """
    at_once = recipe.hardware.microbatch
    batch = at_once if isinstance(at_once, int) else recipe.training.batch_size
    batch = batch if isinstance(batch, int) else 1
    is_recomputing = recipe.training.gradient_checkpointing is True or safer.recomputation
    match need:
        case "no_wiring":
            return (replace(safer, wired=False), ["no memory is wired"]) if safer.wired else None
        case "fewer_buffers":
            return _smaller_cache(safer)
        case "less_memory" | "shorter_commands":
            pieces = min(2 * safer.pieces, batch)
            if pieces > safer.pieces:
                changed = [f"{_share(pieces)} of a microbatch at a time, {pieces} times as many of them"]
                smaller = _smaller_cache(safer) if need == "less_memory" and safer.cache_share == 1 else None
                base, also = smaller or (safer, [])
                return replace(base, pieces=pieces), [*changed, *also]
            if not is_recomputing and need == "less_memory":
                return replace(safer, recomputation=True), ["activations are computed twice instead of kept"]
            return _smaller_cache(safer) if need == "less_memory" else None


def _smaller_cache(safer: Safer) -> tuple[Safer, list[str]] | None:
    if safer.cache_share <= _MIN_CACHE_SHARE:
        return None
    share = safer.cache_share / 4
    return replace(safer, cache_share=share), [f"the cache limit is {_share(round(1 / share))} of what it was"]


def _share(parts: int) -> str:
    return {2: "half", 4: "a quarter"}.get(parts, f"1/{parts}")

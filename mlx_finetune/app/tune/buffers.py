"""The buffer sizes that a training process is started with, which MLX reads before anything there can decide.

They are those that the process will decide too: what the recipe says, what the run that is continued began with, or
what ``mlxft tune`` found. Never imports mlx.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from mlx_finetune.hardware.limits import Machine, read_machine
from mlx_finetune.hardware.profile import FILE_NAME, read_profile, tuned_settings
from mlx_finetune.hardware.tuned import VARIABLES
from mlx_finetune.model.sources.catalogue import cache_folder
from mlx_finetune.recipe.schema import Recipe


def tuned_buffers(
    recipe: Recipe,
    run_info: Mapping[str, object] | None = None,
    *,
    profile: Path | None = None,
    machine: Machine | None = None,
    system: str = sys.platform,
) -> dict[str, int]:
    """Numbers for the buffer sizes that are "auto" in ``recipe``, by key of [hardware]; none on anything but a Mac.

    ``run_info`` is the run.json of the run that is continued. ``profile``, ``machine`` and ``system`` are those of this
    machine in all but tests.
    """
    automatic = [name for name in VARIABLES if getattr(recipe.hardware, name) == "auto"]
    if system != "darwin" or not automatic:
        return {}
    if run_info is not None:
        found = _decided(run_info)
    else:
        known = read_profile(profile or cache_folder() / FILE_NAME)
        found = tuned_settings(known, machine or read_machine(), recipe).values()
    numbers = {name: found.get(name) for name in automatic}
    return {name: number for name, number in numbers.items() if type(number) is int}


def _decided(run_info: Mapping[str, object]) -> Mapping[str, object]:
    resolved = run_info.get("resolved")
    hardware = resolved.get("hardware") if isinstance(resolved, dict) else None
    return cast("dict[str, object]", hardware) if isinstance(hardware, dict) else {}

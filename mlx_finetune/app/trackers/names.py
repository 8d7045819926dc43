"""The trackers there are, and what to install for them. Nothing here imports one: that costs seconds."""

import importlib.util
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_finetune.errors import Problem


@dataclass(frozen=True, slots=True)
class Library:
    """``module`` is what is imported, ``requirement`` what pip installs, ``look`` how to see what was written."""

    module: str
    requirement: str
    look: str


#: Name in the recipe -> its library. tensorboardX writes TensorBoard's files without TensorBoard, which brings a web
#: server, gRPC and a Markdown renderer only to show them.
LIBRARIES: Mapping[str, Library] = {
    "wandb": Library("wandb", "wandb>=0.31", "https://wandb.ai, or offline: wandb sync FOLDER/wandb/offline-run-*"),
    "trackio": Library("trackio", "trackio>=0.43", "trackio show"),
    "tensorboard": Library("tensorboardX", "tensorboardX>=2.6", "tensorboard --logdir FOLDER"),
}


def missing(names: Sequence[str]) -> list[tuple[int, Problem]]:
    """The place in ``names``, and the problem, of each tracker whose library is not installed."""
    found: list[tuple[int, Problem]] = []
    for place, name in enumerate(names):
        library = LIBRARIES[name]
        if importlib.util.find_spec(library.module) is None:
            install = shlex.join([sys.executable, "-m", "pip", "install", library.requirement])
            found.append(
                (place, Problem("", f"{name} is not installed ({library.module} cannot be imported)", install))
            )
    return found

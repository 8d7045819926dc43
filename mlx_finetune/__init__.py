"""Fine-tuning of language models on Apple silicon: a recipe in, an adapter you can chat with out.

Other programs may use the names in ``__all__``; each is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_finetune.app.updates.series import load_series
    from mlx_finetune.errors import MlxftError
    from mlx_finetune.journal import read_events
    from mlx_finetune.recipe.load import load_recipe
    from mlx_finetune.recipe.schema import Recipe
    from mlx_finetune.rundir import RunDir, find_run, list_runs

__version__ = "0.1.0"

__all__ = [
    "MlxftError",
    "Recipe",
    "RunDir",
    "__version__",
    "find_run",
    "list_runs",
    "load_recipe",
    "load_series",
    "read_events",
]

_HOMES = {
    "MlxftError": "errors",
    "Recipe": "recipe.schema",
    "RunDir": "rundir",
    "find_run": "rundir",
    "list_runs": "rundir",
    "load_recipe": "recipe.load",
    "load_series": "app.updates.series",
    "read_events": "journal",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mlx_finetune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

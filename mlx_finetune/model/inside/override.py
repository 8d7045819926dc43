"""Another ``__call__`` for one instance of a module, without renaming a parameter or hiding an attribute.

Python looks up ``__call__`` on the class, and a wrapper module would rename parameters and hide attributes that models
read from their blocks, so the instance gets a subclass of its own class, and its own class back afterwards. Overrides
nest: the last one is called first.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import mlx.nn as nn

#: ``function(module, original_call, *args, **kwargs)``
Override = Callable[..., Any]


def override_call(module: nn.Module, function: Override) -> None:
    """Call ``function(module, original_call, *args)`` instead of this one instance."""
    original = type(module)

    def call(self: nn.Module, *args: object, **kwargs: object) -> Any:
        return function(self, original.__call__, *args, **kwargs)

    module.__class__ = type(original.__name__, (original,), {"__call__": call, "_mlxft_original": original})


def original_class(module: nn.Module) -> type | None:
    """The class that an override took from ``module``, None where there is none."""
    return type(module).__dict__.get("_mlxft_original")


def restore_call(module: nn.Module) -> None:
    """Undo the last ``override_call``; nothing happens where there is none.

    The subclass lets go of its function: a class is part of a reference cycle, so arrays that the function closes over
    would stay until Python's garbage collector comes by (GPT-NeoX, 2 x 512 positions: 110 MB more at the peak).
    """
    original = original_class(module)
    if original is not None:
        overriding: Any = type(module)
        module.__class__ = original
        del overriding.__call__


@contextmanager
def overridden(overrides: Iterable[tuple[nn.Module, Override]]) -> Generator[None]:
    """Inside, each module is called through its function."""
    modules: list[nn.Module] = []
    try:
        for module, function in overrides:
            override_call(module, function)
            modules.append(module)
        yield
    finally:
        for module in reversed(modules):
            restore_call(module)

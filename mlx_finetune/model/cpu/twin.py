"""A second model over the same arrays: its modules are copies, so two threads can trace and override them at once."""

from typing import cast

import mlx.nn as nn


def twin(model: nn.Module) -> nn.Module:
    """A copy of every module of ``model``; arrays and everything else are shared. Costs no memory for weights."""
    return cast(nn.Module, _copied(model, {}))


def _copied(value: object, known: dict[int, object]) -> object:
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, nn.Module):
        copy = type(value).__new__(type(value))
        known[id(value)] = copy
        for name, attribute in vars(value).items():
            object.__setattr__(copy, name, set(attribute) if isinstance(attribute, set) else attribute)
        for name, child in cast("dict[str, object]", value).items():
            cast("dict[str, object]", copy)[name] = _copied(child, known)
        return copy
    if isinstance(value, dict):
        return {name: _copied(child, known) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(child, known) for child in value)
    return value

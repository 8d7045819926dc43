"""Overriding one module's call, and what is left of it afterwards."""

import gc
import weakref
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_finetune.model.inside.override import original_class, overridden


class Held:
    """Something an override closes over."""


def test_an_override_taken_off_lets_go_of_what_its_function_closes_over_at_once(
    request: pytest.FixtureRequest,
) -> None:
    """A class is part of a reference cycle: without that, arrays stayed until the garbage collector came by."""
    module = nn.Linear(2, 2)
    gc.disable()
    request.addfinalizer(gc.enable)
    watched = call_with_something_held(module)
    assert watched() is None


def call_with_something_held(module: nn.Module) -> "weakref.ref[Held]":
    held = Held()

    def function(_: nn.Module, call: Any, *args: object) -> object:
        return call(module, *args), held

    with overridden([(module, function)]):
        return weakref.ref(held)


def test_a_module_is_what_it_was_after_an_override() -> None:
    module = nn.Linear(2, 2)
    with overridden([(module, lambda *_: 1), (module, lambda *_: 2)]):
        assert module(mx.zeros((1, 2))) == 2
    assert type(module) is nn.Linear
    assert original_class(module) is None

"""Loss and gradients block by block, each evaluated before the next: what training on a CPU does.

A forward pass keeps what enters each block that has something to learn. Then the part above the last block gives the
loss and the gradient of that block's output, and every block from the top down is computed once more, with a graph of
its own, for the gradients of its parameters and its input. Below the lowest block that learns nothing goes backward.

The mathematics is that of one graph with every block recomputed (``model.inside.noise.checkpoint_blocks``): same sums,
same noise. What differs is that MLX never holds more than one block's graph, so functions that need values while a
graph is being built (``model.cpu.cpu_math``) cost no memory. The price is an evaluation for every block: some 0.1 ms
each, nothing on a CPU, and too much on a GPU.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_finetune.model.cpu.context_parallel import ContextPart, PartCache
from mlx_finetune.model.cpu.tape import Tape, keeping_linears, use_tape
from mlx_finetune.model.inside.noise import noise_position, use_noise_from
from mlx_finetune.model.inside.override import overridden
from mlx_finetune.model.inside.parts import blocks, is_above
from mlx_finetune.model.inside.places import Places
from mlx_finetune.model.inside.prefix import evaluated, standing_in, states_above
from mlx_finetune.model.inside.split import SplitModel

FlatArrays = dict[str, mx.array]
#: ``loss(outer, hidden)``: a scalar, or sums whose first is what is learned, from parameters outside the blocks and
#: hidden states (B, T, H).
TailLoss = Callable[[FlatArrays, mx.array], mx.array]


@dataclass(slots=True)
class _Visit:
    """One call of a block: what entered it, beside what, how many noise keys had been drawn, and its part's cache."""

    x: mx.array | None
    args: tuple[object, ...]
    kwargs: dict[str, object]
    drawn: int
    tape: Tape | None
    cache: PartCache | None


class Blockwise:
    """``model`` with its blocks taken one at a time. ``parameters`` name what is learned.

    ``keeps_products`` spares most of the second computation of each block (``model.cpu.tape``) for more memory.
    """

    def __init__(self, split: SplitModel, parameters: Sequence[str], *, keeps_products: bool) -> None:
        self._split = split
        self._keeps_products = keeps_products
        self._blocks = blocks(split.model)
        prefixes = {id(module): path for path, module in cast("list[Any]", split.model.named_modules())}
        paths = [f"{prefixes[id(block)]}." for block in self._blocks]
        self._inner = [[name for name in parameters if name.startswith(path)] for path in paths]
        self._inner_places = [
            Places(block, [name.removeprefix(path) for name in names])
            for block, path, names in zip(self._blocks, paths, self._inner, strict=True)
        ]
        inside = {name for names in self._inner for name in names}
        self._outer = [name for name in parameters if name not in inside]
        self._outer_places = Places(split.model, self._outer)
        self._kept = keeping_linears(self._blocks) if keeps_products else []
        learning = [index for index, names in enumerate(self._inner) if names]
        self._below = [name for name in self._outer if not is_above(name)]
        self._lowest = 0 if self._below else min(learning, default=len(self._blocks))

    def hidden(self, tokens: mx.array, caches: Sequence[object] | None, entering: mx.array | None = None) -> mx.array:
        """The hidden states of ``tokens`` (B, T), evaluated block by block: (B, T, H).

        ``entering`` is what enters the lowest block that learns, (B, T, H), where that is known.
        """
        known = standing_in(self._blocks[: self._lowest], entering)
        with overridden((block, evaluated) for block in self._blocks), overridden(known):
            hidden = self._split.hidden(tokens, caches)
            mx.eval(hidden)
            return hidden

    def entering(self, tokens: mx.array) -> mx.array:
        """What enters the lowest block that learns for rows of ``tokens`` (B, T) that are not packed: (B, T, H)."""
        return states_above(self._split, self._lowest, tokens)

    def loss_and_gradients(
        self,
        parameters: FlatArrays,
        tokens: mx.array,
        caches: Sequence[object] | None,
        loss: TailLoss,
        entering: mx.array | None = None,
        part: ContextPart | None = None,
    ) -> tuple[mx.array, FlatArrays]:
        """``loss`` of the hidden states of ``tokens`` (B, T), and the gradient of the first of its sums for every
        parameter, evaluated.

        ``entering`` as in ``hidden``. Call it under ``use_noise`` where there is noise. The model must hold
        ``parameters``. With a ``part`` the tokens, caches and ``entering`` are the part's, ``loss`` gets hidden states
        of both, and the results are shares of two sums.
        """
        with overridden(self._kept):
            return self._loss_and_gradients(parameters, tokens, caches, loss, entering, part)

    def _loss_and_gradients(
        self,
        parameters: FlatArrays,
        tokens: mx.array,
        caches: Sequence[object] | None,
        loss: TailLoss,
        entering: mx.array | None,
        part: ContextPart | None,
    ) -> tuple[mx.array, FlatArrays]:
        start = noise_position()
        visits, last = self._forward(tokens, caches, entering)
        outer = {name: parameters[name] for name in self._outer}
        last = part.gather(last) if part else last
        sums, gradients, slope = self._tail(outer, tokens, caches, last, loss, start)
        del last
        if part:
            slope = part.scatter_sum(slope)
        for index in range(len(self._blocks) - 1, self._lowest - 1, -1):
            wants_input = index > self._lowest or bool(self._below)
            found, slope = self._backward(index, visits[index], parameters, slope, wants_input=wants_input)
            gradients |= found
        if self._below:
            assert slope is not None
            for name, more in self._front(outer, tokens, caches, slope, start).items():
                gradients[name] = gradients[name] + more
            mx.eval(gradients)  # a thread must not hand on what it has not computed: streams are its own
        return sums, gradients

    def _forward(
        self, tokens: mx.array, caches: Sequence[object] | None, entering: mx.array | None
    ) -> tuple[list[_Visit], mx.array]:
        """What entered each block, kept from the lowest that learns on, and the last block's output."""
        visits: list[_Visit] = []
        last: list[mx.array] = []

        def visit(block: nn.Module, call: Any, x: mx.array, *args: object, **kwargs: object) -> mx.array:
            is_kept = len(visits) >= self._lowest
            tape = Tape() if is_kept and self._keeps_products else None
            cache = caches[len(visits)] if caches is not None else None
            cache = cache if isinstance(cache, PartCache) else None
            visits.append(_Visit(x if is_kept else None, args, kwargs, noise_position(), tape, cache))
            if entering is not None and not is_kept:
                return entering
            with use_tape(tape):
                y = call(block, x, *args, **kwargs)
                mx.eval(y)
            if cache and not is_kept:
                cache.let_go()
            last[:] = [y]
            return y

        with overridden((block, visit) for block in self._blocks):
            self._split.hidden(tokens, caches)
        return visits, last[0]

    def _tail(
        self,
        outer: FlatArrays,
        tokens: mx.array,
        caches: Sequence[object] | None,
        last: mx.array,
        loss: TailLoss,
        start: int,
    ) -> tuple[mx.array, FlatArrays, mx.array]:
        """The sums of the loss, and gradients of the first for the outer parameters and the last block's output."""

        def above(outer: FlatArrays, x: mx.array) -> tuple[mx.array, mx.array]:
            hidden = self._around(outer, tokens, caches, start, x)
            sums = loss(outer, hidden).reshape(-1)
            return sums[0], sums

        (_, sums), (gradients, slope) = mx.value_and_grad(above, argnums=(0, 1))(outer, last)
        mx.eval(sums, gradients, slope)
        self._outer_places.put(outer)
        return sums, gradients, slope

    def _around(
        self, outer: FlatArrays, tokens: mx.array, caches: Sequence[object] | None, start: int, output: mx.array | None
    ) -> mx.array:
        """The model without its blocks: hidden states made of ``output``; without it, what enters the first block."""
        entered: list[mx.array] = []

        def skip(block: nn.Module, call: Any, x: mx.array, *args: object, **kwargs: object) -> mx.array:
            entered.append(x)
            return x if output is None else output

        self._outer_places.put(outer)
        with use_noise_from(start), overridden((block, skip) for block in self._blocks):
            hidden = self._split.hidden(tokens, caches)
        return entered[0] if output is None else hidden

    def _backward(
        self,
        index: int,
        visit: _Visit,
        parameters: FlatArrays,
        slope: mx.array,
        *,
        wants_input: bool,
    ) -> tuple[FlatArrays, mx.array]:
        """Gradients of one block's parameters and of what entered it (``slope`` itself where nobody wants that)."""
        block, names, places = self._blocks[index], self._inner[index], self._inner_places[index]
        own = [parameters[name] for name in names]

        x, cache = visit.x, visit.cache
        assert x is not None, "a block below the lowest that learns"
        visit.x = None
        received = cache.received if cache else []
        inputs = [x, *received] if wants_input else received

        def call(*arrays: mx.array) -> list[mx.array]:
            entering, values = arrays[: len(inputs)], arrays[len(inputs) :]
            places.put_in_order(values)
            if visit.tape is not None:
                visit.tape.is_replaying = True
            around = cache.replaying(entering[wants_input:]) if cache else nullcontext()
            with use_noise_from(visit.drawn), use_tape(visit.tape), around:
                y = cast(Any, block)(entering[0] if wants_input else x, *visit.args, **visit.kwargs)
            return [y, *(cache.given if cache else [])]

        cotangents = [slope, *(cache.slopes_of_given() if cache else [])]
        _, slopes = mx.vjp(call, [*inputs, *own], cotangents)
        mx.eval(slopes)
        if cache:
            cache.hand_back(slopes[wants_input : len(inputs)])
            cache.let_go()
        places.put_in_order(own)
        d_x = slopes[0] if wants_input else slope
        return dict(zip(names, slopes[len(inputs) :], strict=True)), d_x

    def _front(
        self, outer: FlatArrays, tokens: mx.array, caches: Sequence[object] | None, slope: mx.array, start: int
    ) -> FlatArrays:
        """Gradients of the outer parameters through what enters the first block."""
        names = self._below

        def below(*values: mx.array) -> mx.array:
            return self._around({**outer, **dict(zip(names, values, strict=True))}, tokens, caches, start, None)

        _, slopes = mx.vjp(below, [outer[name] for name in names], [slope])
        mx.eval(slopes)
        self._outer_places.put(outer)
        return dict(zip(names, slopes, strict=True))


def is_chain(split: SplitModel) -> bool:
    """True where blocks can be taken one at a time.

    Each must be called once, in order, with the output of the one before it and nothing else that could carry a
    gradient, and return one array.
    """
    order: list[int] = []
    outputs: list[object] = []

    def watch(block: nn.Module, call: Any, x: mx.array, *args: object, **kwargs: object) -> Any:
        others = [value for _, value in cast("list[tuple[str, object]]", tree_flatten([args, kwargs]))]
        is_alone = not any(isinstance(one, mx.array) and mx.issubdtype(one.dtype, mx.floating) for one in others)
        follows = not outputs or x is outputs[-1]
        y = call(block, x, *args, **kwargs)
        order.append(id(block) if is_alone and follows and isinstance(y, mx.array) else 0)
        outputs.append(y)
        return y

    members = blocks(split.model)
    if not split.is_split:
        return False
    with overridden((block, watch) for block in members):
        split.hidden(mx.array([[0, 1]]), None)
    return order == [id(one) for one in members]

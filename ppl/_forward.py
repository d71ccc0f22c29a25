"""Chains summed out of a product of factors: a forward recursion over log-weights (`_sum_product.py`)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ._layout import Layout
from ._unrolled import Split

Array = jax.Array


class Factor(Protocol):
    """Log-weights, an array or `Split`; `lag`: how many steps back they see chains, or None (`_sum_product.Factor`)."""

    @property
    def array(self) -> Any:
        """[lanes, axes]."""

    @property
    def lag(self) -> int | None:
        """In steps."""


class Chains:
    """Chains along one axis, summed out by a forward recursion.

    The state after step s holds the log-weights of all that lies before, for all values of the sites at the last `lag` steps.
    Digit s mod (lag + 1) of a lane is the site's state at step s, so that the recursion runs over blocks of lag + 1 steps and
    moves no axes. What is the same at all steps of a place, such as the transitions of a homogeneous chain, is a constant of
    the loop.

    Args:
        factors: [lanes, axes], all with the same number of axes.
        chains: (lane axis, layout) of each chain.
        axis: the time axis, which lies behind all lanes.
    """

    def __init__(
        self, factors: Sequence[Factor], chains: Sequence[tuple[int, Layout]], axis: int
    ) -> None:
        self.factors = factors
        self.states = {a: layout.num_states for a, layout in chains}
        self.lag = chains[0][1].lag
        self.places = self.lag + 1
        # Axis of digit 0 of each chain once lanes are opened into digits and time is gone.
        self.digits = [a + n * self.lag for n, a in enumerate(sorted(self.states))]
        of = lambda x: x.length if isinstance(x, Split) else x.shape[axis]
        self.length = max(of(f.array) for f in factors)
        self.steps = [self._by_places(f, axis) for f in factors]
        shapes = [x.shape[1:] for x in jax.tree.leaves(self.steps)]
        self.shape = list(np.broadcast_shapes(*shapes))

    def forward(self, reduce: Callable[..., Array]) -> Array:
        """The log-weights with all chains summed out."""
        lag, places = self.lag, self.places
        # Nothing depends on the digits that no step has set yet: any value serves.
        state = jnp.zeros(())
        for s in range(min(lag, self.length)):
            unset = [d + p for d in self.digits for p in range(s + 1, places)]
            steps = (_first_of(x, unset) for x in self._at(s))
            state = functools.reduce(operator.add, steps, state)
        state = self._full(state, range(min(lag, self.length)))
        state = self._loop(state, reduce) if self.length > lag else state
        return reduce(state, [d + p for d in self.digits for p in range(places)], self.length)

    def _loop(self, state: Array, reduce: Callable[..., Array]) -> Array:
        """The steps after the first `lag`."""
        if self._is_homogeneous():
            return self._one_by_one(state, reduce)
        lag, places = self.lag, self.places
        blocks, rest = divmod(self.length - lag, places)

        def block(state: Array, inputs: tuple[Any, Any]) -> tuple[Array, None]:
            moving, number = inputs
            for k in range(places):
                steps = [m if c is None else c for m, c in zip(moving[k], still[k], strict=True)]
                step = None if number is None else number * places + lag + k
                state = self._move(state, steps, (lag + k) % places, reduce, step)
            return state, None

        if blocks:
            still, moving = self._blocks(blocks)
            number = jnp.arange(blocks) if reduce.is_numbered else None  # type: ignore[attr-defined]
            state, _ = jax.lax.scan(block, state, (moving, number), blocks)
        for s in range(self.length - rest, self.length):
            state = self._move(state, self._at(s), s % places, reduce, s)
        return state

    def _is_homogeneous(self) -> bool:
        """Whether all that depends on the oldest state is the same at all steps; false where a place has too few to tell."""
        return (
            self.lag > 0
            and self.length > 2 * self.places
            and all(
                max(map(len, x.apart().parts)) == 1 or f.lag is not None and f.lag < self.lag
                for x, f in zip(self.steps, self.factors, strict=True)
            )
        )

    def _one_by_one(self, state: Array, reduce: Callable[..., Array]) -> Array:
        """A loop over single steps, with the digits of every step turned to those of place 0.

        What is the same at all steps of each place is so at all steps then: places differ by the names of their digits only.
        """
        still, moving = [], []
        for x in self.steps:
            later = x.apart().parts
            if max(map(len, later)) == 1:
                still.append(later[0][0])
                moving.append(None)
            else:
                turned = [self._turned(part, r, 1) for r, part in enumerate(x.joined())]
                still.append(None)
                moving.append(Split(turned, self.length).whole()[self.lag :])

        def step(state: Array, inputs: tuple[Any, Any]) -> tuple[Array, None]:
            moving, number = inputs
            steps = [m if c is None else c for m, c in zip(moving, still, strict=True)]
            return self._turned(self._move(state, steps, 0, reduce, number), 1), None

        number = jnp.arange(self.lag, self.length) if reduce.is_numbered else None  # type: ignore[attr-defined]
        start = self._turned(state, self.lag)
        return jax.lax.scan(step, start, (moving, number), self.length - self.lag)[0]

    def _turned(self, x: Array, place: int, offset: int = 0) -> Array:
        """The digits of a step at a place, renamed to those of a step at place 0."""
        order = list(range(x.ndim))
        for d in self.digits:
            for p in range(self.places):
                order[offset + d + p] = offset + d + (p + place) % self.places
        return jnp.transpose(x, order)

    def _move(
        self,
        state: Array,
        steps: list[Array],
        place: int,
        reduce: Callable[..., Array],
        number: Any,
    ) -> Array:
        """One step: the oldest digit is summed out, the step's own takes its place in the state."""
        gone = [d + (place + 1) % self.places for d in self.digits]
        before = [x for x in steps if any(x.shape[a] > 1 for a in gone)]
        after = [x for x in steps if all(x.shape[a] == 1 for a in gone)]
        joint = functools.reduce(operator.add, before, state)
        left = jnp.expand_dims(reduce(joint, gone, number), gone)
        left = functools.reduce(operator.add, after, left)
        return self._full(left, [p for p in range(self.places) if p != (place + 1) % self.places])

    def _full(self, state: Array, shown: Collection[int]) -> Array:
        """A state with all axes, and the digits `shown`, at full size."""
        shape = list(self.shape)
        for d in self.digits:
            for p in range(self.places):
                shape[d + p] = self.shape[d + p] if p in shown else 1
        return jnp.broadcast_to(state, shape)

    def _by_places(self, factor: Factor, axis: int) -> Split:
        """A factor by places, time in front, lanes opened into digits, of size 1 where a place sees nothing of them."""
        array, places = factor.array, self.places
        if not isinstance(array, Split):
            array = jnp.moveaxis(array, axis, 0)
            parts = [array if len(array) == 1 else array[r::places] for r in range(places)]
            array = Split(parts, self.length)
        else:
            array = jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), array)
        lag = self.lag if factor.lag is None else factor.lag

        def opened(x: Array, place: int) -> Array:
            shape = [x.shape[0]]
            for a, n in enumerate(x.shape[1:]):
                k = self.states.get(a)
                shape += [n] if k is None else [1 if n == 1 else k] * places
            unseen = {p for p in range(places) if (place - p) % places > lag}
            return _first_of(x.reshape(shape), [1 + d + p for d in self.digits for p in unseen])

        parts = [opened(x, r) for r, x in enumerate(array.parts)]
        first = None if array.first is None else opened(array.first, 0)
        return Split(parts, self.length, first)

    def _at(self, step: int) -> list[Array]:
        """All factors at one step."""
        found = []
        for x in self.steps:
            if step == 0 and x.first is not None:
                found.append(x.first[0])
                continue
            part = x.parts[step % self.places]
            at = step // self.places - (step % self.places == 0 and x.first is not None)
            found.append(part[0 if len(part) == 1 else at])
        return found

    def _blocks(self, blocks: int) -> tuple[list[list[Any]], list[list[Any]]]:
        """For each step of a block, the factors that are the same in all blocks (else None), and the others (else None)."""
        still, moving = [], []
        for k in range(self.places):
            place = (self.lag + k) % self.places
            parts = [
                x.apart().parts[0] if place == 0 and self.lag else x.joined()[place]
                for x in self.steps
            ]
            begin = 1 if 0 < place < self.lag else 0
            still.append([x[0] if len(x) == 1 else None for x in parts])
            moving.append([None if len(x) == 1 else x[begin : begin + blocks] for x in parts])
        return still, moving


def _first_of(x: Array, axes: Collection[int]) -> Array:
    """The first element along axes, which keep size 1."""
    return x[tuple(slice(0, 1) if a in axes else slice(None) for a in range(x.ndim))]

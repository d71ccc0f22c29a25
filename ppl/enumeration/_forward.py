"""Chains summed out of a product of factors: a forward recursion over log-weights (`_sum_product.py`)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..evaluation import Chain, Split, relative

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

    The state before a step holds the log-weights of all that lies before, for all values of the sites at the last `lag` steps. A
    step sums the oldest digit of its (relative) lanes out and appends its own. What is the same at all steps, such as the
    transitions of a homogeneous chain, is a constant of the loop.

    Args:
        factors: [lanes, axes], all with the same number of axes.
        chains: (lane axis, layout) of each chain.
        axis: the time axis, behind all lanes, of those that are not split.
    """

    def __init__(self, factors: Sequence[Factor], chains: Sequence[Chain], axis: int) -> None:
        self.chains, self.axis = sorted(chains), axis
        self.lag = chains[0].layout.lag
        # Axis of the oldest digit of each chain once lanes are opened into digits and time is gone.
        self.oldest = [chain.axis + n * self.lag for n, chain in enumerate(self.chains)]
        of = lambda x: x.length if isinstance(x, Split) else x.shape[axis]
        self.length = max(of(f.array) for f in factors)
        self.steps = [self._opened(f) for f in factors]
        known = {site: state for x in self.steps for site, state in x.start}
        # Digits that no step has set yet: nothing depends on them, or they show the state before the first step.
        self.before = {
            d + i: known.get(chain.site, 0) if i == self.lag - 1 else 0
            for d, chain in zip(self.oldest, self.chains, strict=True)
            for i in range(self.lag)
        }
        shapes = [x.shape[1:] for x in jax.tree.leaves(self.steps)]
        self.shape = np.broadcast_shapes(*shapes)

    def forward(self, reduce: Callable[..., Array]) -> Array:
        """The log-weights with all chains summed out."""
        state = jnp.zeros((1,) * len(self.shape))
        count = max([self.lag, *(len(x.first) for x in self.steps)])
        for s in range(min(count, self.length)):
            state = self._move(state, [x.steps(s, s + 1)[0] for x in self.steps], reduce, s, s)
        if self.length > count:
            steps = [x.steps(count, self.length) for x in self.steps]
            still = [x[0] if len(x) == 1 else None for x in steps]
            moving = [x if s is None else None for x, s in zip(steps, still, strict=True)]

            def step(state: Array, inputs: tuple[Any, Any]) -> tuple[Array, None]:
                moving, number = inputs
                here = [m if s is None else s for m, s in zip(moving, still, strict=True)]
                return self._move(state, here, reduce, self.lag, number), None

            number = jnp.arange(count, self.length) if reduce.is_numbered else None  # type: ignore[attr-defined]
            inputs = moving, number
            state, _ = jax.lax.scan(step, state, inputs, self.length - count)
        digits = [d + i for d in self.oldest for i in range(self.lag + 1)]
        return reduce(state, digits, self.length)

    def _move(
        self,
        state: Array,
        steps: list[Array],
        reduce: Callable[..., Array],
        past: int,
        number: Any,
    ) -> Array:
        """One step, with `past` steps of the chains before it: the oldest digit is summed out, the step's own appended."""
        if past < self.lag:
            unset = {d + i: self.before[d + i] for d in self.oldest for i in range(self.lag - past)}
            left = functools.reduce(operator.add, (_taken(x, unset) for x in steps), state)
        else:
            before = [x for x in steps if any(x.shape[a] > 1 for a in self.oldest)]
            after = [x for x in steps if all(x.shape[a] == 1 for a in self.oldest)]
            joint = functools.reduce(operator.add, before, state)
            left = jnp.expand_dims(reduce(joint, self.oldest, number), self.oldest)
            left = functools.reduce(operator.add, after, left)
        left = jnp.expand_dims(jnp.squeeze(left, self.oldest), [d + self.lag for d in self.oldest])
        return jnp.broadcast_to(left, self._shape_after(past + 1))

    def _shape_after(self, past: int) -> list[int]:
        """The shape of a state with `past` steps of the chains before it."""
        shape = list(self.shape)
        for chain, d in zip(self.chains, self.oldest, strict=True):
            for i in range(self.lag + 1):
                shape[d + i] = chain.layout.num_states if 0 < self.lag - i <= past else 1
        return shape

    def _opened(self, factor: Factor) -> Split:
        """A factor with time in front, lanes opened into digits, of size 1 where it sees nothing of them."""
        array = factor.array
        if not isinstance(array, Split):
            array = relative(array, self.axis, self.chains, self.length)
        unseen = range(0 if factor.lag is None else self.lag - factor.lag)
        states = {chain.axis: chain.layout.num_states for chain in self.chains}

        def opened(x: Array) -> Array:
            shape = [x.shape[0]]
            for a, n in enumerate(x.shape[1:]):
                k = states.get(a)
                shape += [n] if k is None else [1 if n == 1 else k] * (self.lag + 1)
            return _taken(x.reshape(shape), {1 + d + i: 0 for d in self.oldest for i in unseen})

        return jax.tree.map(opened, array)


def _taken(x: Array, index: Mapping[int, int]) -> Array:
    """One element along each of some axes, which keep size 1."""
    at = lambda i: slice(i, i + 1)
    shown = [at(index[a]) if a in index and n > 1 else slice(None) for a, n in enumerate(x.shape)]
    return x[tuple(shown)]

"""Probabilities of enumeration lanes: products of the sites' probabilities, summed over what is not shown.

Input: for each listed site upstream of a number, its probabilities in the lanes of its open sites. Output: the probability of
each lane that is kept. Sites are summed out one by one, chains by a forward recursion (`_layout.py`): for the window
w_t = z[t - lag .. t],

    P(w_t) = q(z_t | ...) sum over z[t - lag - 1] of P(w_{t - 1}),

linear in the number of steps. The recursion works in lane coordinates: digit t mod (lag + 1) is the one that step t
overwrites, so that it runs over blocks of lag + 1 steps and moves no axes.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._analyse import Analysed
from ._engine import StrategySite
from ._layout import Layout, elimination
from ._relation import Relation, Relations

Array = jax.Array


def digits(layout: Layout, length: int) -> Array:
    """The state that each lane of a chain shows at each step, shape (lanes, steps)."""
    lane = jnp.arange(layout.num_lanes)[:, None]
    place = jnp.arange(length) % (layout.lag + 1)
    return lane // layout.num_states ** (layout.lag - place) % layout.num_states


def states(site: StrategySite, layout: Layout) -> np.ndarray:
    """The support's value of each joint element in each state, shape (states, elements)."""
    elements = math.prod(site.sizes[i] for i in layout.joint)
    assert site.num_values is not None
    return np.indices((site.num_values,) * elements).reshape(elements, -1).T


def lane_values(site: StrategySite, layout: Layout, *, step: bool = False) -> Array:
    """All values of an enumerated site, one lane each: (lanes, *elements, *event).

    Of a chain, all windows at all steps; with `step` all states of one step, without the time axis.
    """
    shape = [site.sizes[i] if i in layout.joint else 1 for i in range(len(site.sizes))]
    values = site.support[states(site, layout).reshape(-1, *shape)]
    event = values.shape[1 + len(shape) :]
    sizes = list(site.sizes)
    if step:
        assert layout.axis is not None
        values = np.squeeze(values, 1 + layout.axis)
        del sizes[layout.axis]
    elif layout.axis is not None:
        shown = digits(layout, site.sizes[layout.axis])
        values = jnp.moveaxis(jnp.asarray(values)[shown], 1, 1 + layout.axis)
        values = jnp.squeeze(values, 2 + layout.axis)
    return jnp.broadcast_to(values, (values.shape[0], *sizes, *event))


def windows(
    probabilities: Array, chains: Sequence[tuple[int, Layout]], axis: int, lag: int
) -> Array:
    """Probability of the window that each lane shows at each step, in the layout of `probabilities`.

    Args:
        probabilities: of each step's states given the window before, all chains' multiplied.
        chains: (lane axis, layout) of each chain.
        axis: the time axis.
        lag: memory of the chains.
    """
    if lag == 0:
        return probabilities
    q = jnp.moveaxis(probabilities, axis, 0)
    lanes = [
        (a + 1 if a < axis else a, layout) for a, layout in chains
    ]  # where they are behind the time axis
    shape, newest = _with_digits(q.shape, lanes, lag)
    steps, *behind = q.shape
    blocks = -(-steps // (lag + 1))
    q = jnp.pad(q, [(0, blocks * (lag + 1) - steps)] + [(0, 0)] * (q.ndim - 1), constant_values=1)
    q = q.reshape(blocks, lag + 1, *shape[1:])
    # Before the first step all windows count alike: nothing depends on them.
    states = 1
    for _, layout in lanes:
        states *= layout.num_states
    start = jnp.full(shape[1:], 1.0 / states ** (lag + 1), q.dtype)

    def block(window: Array, q: Array) -> tuple[Array, list[Array]]:
        shown = []
        for place in range(lag + 1):
            window = q[place] * window.sum([a + place for a in newest], keepdims=True)
            shown.append(window)
        return window, shown

    shown = jnp.stack(jax.lax.scan(block, start, q)[1], axis=1)
    shown = shown.reshape(blocks * (lag + 1), *behind)[:steps]
    return jnp.moveaxis(shown, 0, axis)


def _with_digits(
    shape: tuple[int, ...], lanes: Sequence[tuple[int, Layout]], lag: int
) -> tuple[tuple[int, ...], list[int]]:
    """`shape` (time first) with every chain's lane axis opened into its digits; and where (without time) the first digits are."""
    by_axis = dict(lanes)
    out: list[int] = []
    first: list[int] = []
    for a, n in enumerate(shape):
        if a in by_axis:
            first.append(len(out) - 1)
            out += [by_axis[a].num_states] * (lag + 1)
        else:
            out.append(n)
    return tuple(out), first


def product(arrays: Sequence[Array]) -> Array:
    """The product of broadcasting arrays."""
    return functools.reduce(operator.mul, arrays)


def spread(array: Array, lanes: Sequence[int], target: Sequence[int]) -> Array:
    """Add the lanes of `target` that the array does not have, of size 1."""
    return jnp.expand_dims(array, tuple(a for a, lane in enumerate(target) if lane not in lanes))


class _Factor(NamedTuple):
    """Probabilities in the lanes of some sites, [replicates, lanes, extra lanes, axes]; `name` tells equal ones."""

    name: Any
    lanes: frozenset[int]
    array: Array


class LaneWeights:
    """Lane weights of terms and sites; what several of them sum out is summed once.

    Args:
        program: the analysed program.
        replicates: the lane of replicates, if there is one.
        extra: lanes of replays.
        probabilities: enumerated site -> its probabilities [replicates, its lanes, extra lanes, elements].
    """

    def __init__(
        self,
        program: Analysed,
        replicates: tuple[int, ...],
        extra: tuple[int, ...],
        probabilities: dict[int, Array],
    ) -> None:
        self.program, self.probabilities = program, probabilities
        self.replicates, self.extra = replicates, extra
        self.made: dict[Any, _Factor] = {}

    def of(self, closed: Relations, keep: frozenset[int], num_axes: int) -> Array | None:
        """Weights [replicates, kept lanes, extra lanes, axes (1 where equal)] of an array that relates to sites by `closed`.

        None where there is no enumerated site.
        """
        program = self.program
        upstream: list[int] = sorted(i for i in closed if i in program.layouts)  # type: ignore[misc]
        if not upstream:
            return None
        chains = [i for i in upstream if program.layouts[i].is_chain]
        placed = {i: self._placed(i, closed[i], num_axes) for i in upstream}
        factors = [f for i, f in placed.items() if i not in chains]
        if chains:
            axis = closed[chains[0]][program.layouts[chains[0]].axis].axis  # type: ignore[index]
            assert isinstance(axis, int)
            factors.append(self._chained(chains, [placed[i] for i in chains], axis))
        order, _ = elimination(closed, keep, program.layouts, program.lanes.sites)
        for i in order:
            met = [f for f in factors if i in f.lanes]
            factors = [f for f in factors if i not in f.lanes] + [self._product(met, i)]
        weight = self._product(factors)
        return self._spread(weight, keep)

    def _placed(self, index: int, relation: Relation, num_axes: int) -> _Factor:
        """A site's probabilities on the axes of an array that relates to it by `relation`."""
        program = self.program
        array, joint = self.probabilities[index], program.layouts[index].joint
        lanes = program.lanes.sites[index]
        first = len(self._order(lanes))
        target: dict[int, int] = {}
        for i, link in enumerate(relation):
            if i not in joint:
                assert isinstance(link.axis, int)
                target[i] = link.axis
        name = (index, tuple(target.items()), num_axes)
        if name not in self.made:
            source = sorted(target, key=target.__getitem__)
            shape = list(array.shape[:first]) + [1] * num_axes
            for i in source:
                shape[first + target[i]] = array.shape[first + i]
            axes = [*range(first), *(first + i for i in source), *(first + i for i in joint)]
            self.made[name] = _Factor(name, lanes, jnp.transpose(array, axes).reshape(shape))
        return self.made[name]

    def _chained(self, chains: list[int], factors: list[_Factor], axis: int) -> _Factor:
        """The windows' probabilities of chains that run along one axis."""
        steps = self._product(factors)
        name = (steps.name, "windows", axis)
        if name not in self.made:
            order = self._order(steps.lanes)
            met = [(order.index(i), self.program.layouts[i]) for i in chains]
            shape = list(steps.array.shape)
            for a, layout in met:
                shape[a] = layout.num_lanes
            array = windows(
                jnp.broadcast_to(steps.array, shape), met, len(order) + axis, met[0][1].lag
            )
            self.made[name] = _Factor(name, steps.lanes, array)
        return self.made[name]

    def _product(self, factors: list[_Factor], summed: int | None = None) -> _Factor:
        """The product of factors, summed over the lanes of one site."""
        if summed is None and len(factors) == 1:
            return factors[0]
        name = (frozenset(f.name for f in factors), summed)
        if name not in self.made:
            lanes = frozenset().union(*(f.lanes for f in factors))
            array = product([self._spread(f, lanes) for f in factors])
            if summed is not None:
                array = array.sum(self._order(lanes).index(summed))
                lanes -= {summed}
            self.made[name] = _Factor(name, lanes, array)
        return self.made[name]

    def _order(self, lanes: Collection[int]) -> tuple[int, ...]:
        return self.replicates + tuple(sorted(lanes)) + self.extra

    def _spread(self, factor: _Factor, lanes: Collection[int]) -> Array:
        return spread(factor.array, self._order(factor.lanes), self._order(lanes))

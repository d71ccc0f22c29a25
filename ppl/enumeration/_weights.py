"""Probabilities of enumeration lanes: products of the sites' probabilities, summed over what is not shown.

Input: for each listed site upstream of a number, its probabilities in the lanes of its open sites. Output: the probability of
each lane that is kept. Sites are summed out one by one, chains by a forward recursion (`_layout.py`): for the window
w_t = z[t - lag .. t],

    P(w_t) = q(z_t | ...) sum over z[t - lag - 1] of P(w_{t - 1}),

linear in the number of steps. In relative lanes (`evaluation/_split.py`) a step drops the oldest digit and appends its own.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..evaluation import (
    Chain,
    Layout,
    Split,
    begun,
    by_parts,
    chains_of,
    relative,
    spread,
    whole_at,
)
from ..jaxprs import Relation, Relations
from ..strategies import StrategySite
from ._layout import elimination

Array = jax.Array


def digits(layout: Layout, length: int) -> Array:
    """The state that each lane of a chain, by place, shows at each step, shape (lanes, steps)."""
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
    probabilities: Any, chains: Sequence[Chain], axis: int, start: Mapping[int, int] | None = None
) -> Any:
    """Probability of the window that each lane shows at each step, in the lanes of `probabilities`.

    Args:
        probabilities: of each step's states given the window before, all chains' multiplied.
        chains: (lane axis, layout) of each chain.
        axis: the time axis, behind all lanes, where they are not split.
        start: site -> the state before its first step, where that counts.
    """
    lag = chains[0].layout.lag
    if lag == 0:
        return probabilities
    if not isinstance(probabilities, Split):
        q = relative(probabilities, axis, chains, probabilities.shape[axis])
        return whole_at(windows(q, chains, axis, start), axis, chains)
    shape, oldest = [], []
    by_axis = {c.axis: c.layout for c in chains}
    behind = probabilities.rest.shape[1:]
    for a, n in enumerate(behind):
        if a in by_axis:
            oldest.append(len(shape))
            shape += [by_axis[a].num_states] * (lag + 1)
        else:
            shape.append(n)
    opened = lambda x: x.reshape(-1, *shape)
    closed = lambda x: x.reshape(-1, *behind)
    known = start or {}
    begin = {d + lag - 1: known.get(c.site) for d, c in zip(oldest, sorted(chains), strict=True)}
    found = _windows(jax.tree.map(opened, probabilities), oldest, lag, begin)
    return jax.tree.map(closed, found)


def _windows(q: Split, oldest: list[int], lag: int, begin: dict[int, int | None]) -> Split:
    """The same with lanes opened into digits, the oldest ones at the axes `oldest` behind time.

    Args:
        q: probabilities.
        oldest: axes of the oldest digits.
        lag: memory.
        begin: axis of age 1 -> the state before the first step, if it is known.
    """
    own = [a + lag for a in oldest]

    def move(before: Array, q: Array) -> tuple[Array, Array]:
        """What is before the next step: the probability of the window without the oldest digit."""
        return jnp.expand_dims((q * before).sum(oldest), own), before

    # What is before the first step counts alike in all states, for nothing depends on it, or is known.
    shape = [1 if a in own else n for a, n in enumerate(q.rest.shape[1:])]
    past = [a + i for a in oldest for i in range(lag)]
    start = np.ones([n if a in past else 1 for a, n in enumerate(shape)])
    for axis, state in begin.items():
        if state is not None:
            hot = np.arange(shape[axis]) == state
            start = start * hot.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    before = jnp.broadcast_to(jnp.asarray(start / start.sum(), q.rest.dtype), shape)
    first = []
    for x in q.first:
        first.append(x * before)
        before, _ = move(before, x[0])
    count = q.length - len(first)
    if len(q.rest) == 1:
        _, shown = jax.lax.scan(lambda b, _: move(b, q.rest[0]), before, None, count)
    else:
        _, shown = jax.lax.scan(move, before, q.rest)
    return Split(first, q.rest * shown, q.length)


def product(arrays: Sequence[Array]) -> Array:
    """The product of broadcasting arrays."""
    return functools.reduce(operator.mul, arrays)


class _Factor(NamedTuple):
    """Probabilities in the lanes of some sites, [replicates, lanes, extra lanes, axes]; `name` tells equal ones.

    They may be split along the first of the axes.
    """

    name: Any
    lanes: frozenset[int]
    array: Any  # an array, or `Split`


class LaneWeights:
    """Lane weights of terms and sites; what several of them sum out is summed once.

    Args:
        layouts: of the enumerated sites, by index.
        at_sites: the sites in whose lanes the numbers of a site are, by index.
        replicates: the lane of replicates, if there is one.
        extra: lanes of replays.
        probabilities: enumerated site -> its probabilities [replicates, its lanes, extra lanes, elements].
        start: chain -> the state in which it begins, where that is known.
    """

    def __init__(
        self,
        layouts: Mapping[int, Layout],
        at_sites: Mapping[int, frozenset[int]],
        replicates: tuple[int, ...],
        extra: tuple[int, ...],
        probabilities: Mapping[int, Array | Split],
        start: Mapping[int, int],
    ) -> None:
        self.layouts, self.at_sites, self.probabilities = layouts, at_sites, probabilities
        self.replicates, self.extra = replicates, extra
        self.start = start
        self.made: dict[Any, _Factor] = {}

    def of(self, closed: Relations, keep: frozenset[int], num_axes: int) -> Any:
        """Weights [replicates, kept lanes, extra lanes, axes (1 where equal)] of an array that relates to sites by `closed`.

        They may be split along the first of the axes. None where there is no enumerated site.
        """
        upstream: list[int] = sorted(i for i in closed if i in self.layouts)  # type: ignore[misc]
        if not upstream:
            return None
        chains = [i for i in upstream if self.layouts[i].is_chain]
        placed = {i: self._placed(i, closed[i], num_axes) for i in upstream}
        factors = [f for i, f in placed.items() if i not in chains]
        if chains:
            axis = closed[chains[0]][self.layouts[chains[0]].axis].axis  # type: ignore[index]
            assert isinstance(axis, int)
            factors.append(self._chained(chains, [placed[i] for i in chains], axis))
        order, _ = elimination(closed, keep, self.layouts, self.at_sites)
        for i in order:
            met = [f for f in factors if i in f.lanes]
            factors = [f for f in factors if i not in f.lanes] + [self._product(met, i)]
        weight = self._product(factors)
        return self._spread(weight, keep)

    def _placed(self, index: int, relation: Relation, num_axes: int) -> _Factor:
        """A site's probabilities on the axes of an array that relates to it by `relation`."""
        array, joint = self.probabilities[index], self.layouts[index].joint
        lanes = self.at_sites[index]
        first = len(self._order(lanes))
        target: dict[int, int] = {}
        for i, link in enumerate(relation):
            if i not in joint:
                assert isinstance(link.axis, int)
                target[i] = link.axis
        if isinstance(array, Split):
            chains = chains_of(self._order(lanes), self.layouts)
            if not self.layouts[index].is_chain:  # only chains tell what the lanes of step 0 count
                array = begun(array, chains)
            if target.get(0) != 0:
                array = whole_at(array, first, chains)
        name = (index, tuple(target.items()), num_axes)

        front = 1 if isinstance(array, Split) else 0  # time, the site's and the array's axis 0

        def placed(array: Array) -> Array:
            source = sorted(set(target) - set(range(front)), key=target.__getitem__)
            shape = list(array.shape[: first + front]) + [1] * (num_axes - front)
            for i in source:
                shape[first + target[i]] = array.shape[first + i]
            axes = [*source, *joint]
            order = [*range(first + front), *(first + i for i in axes)]
            return jnp.transpose(array, order).reshape(shape)

        if name not in self.made:
            self.made[name] = _Factor(name, lanes, jax.tree.map(placed, array))
        return self.made[name]

    def _chained(self, chains: list[int], factors: list[_Factor], axis: int) -> _Factor:
        """The windows' probabilities of chains that run along one axis."""
        steps = self._product(factors)
        name = (steps.name, "windows", axis)
        if name not in self.made:
            order = self._order(steps.lanes)
            met = chains_of(order, self.layouts)

            array = steps.array
            if isinstance(array, Split) and axis != 0:
                array = whole_at(array, len(order), met)
            front = 1 if isinstance(array, Split) else 0

            def full(x: Array) -> Array:
                shape = list(x.shape)
                for chain in met:
                    shape[front + chain.axis] = chain.layout.num_lanes
                return jnp.broadcast_to(x, shape)

            array = windows(jax.tree.map(full, array), met, len(order) + axis, self.start)
            self.made[name] = _Factor(name, steps.lanes, array)
        return self.made[name]

    def _product(self, factors: list[_Factor], summed: int | None = None) -> _Factor:
        """The product of factors, summed over the lanes of one site."""
        if summed is None and len(factors) == 1:
            return factors[0]
        name = (frozenset(f.name for f in factors), summed)
        if name not in self.made:
            lanes = frozenset().union(*(f.lanes for f in factors))
            order = self._order(lanes)
            spreads = [self._spread(f, lanes) for f in factors]
            known = chains_of(order, self.layouts)
            array = by_parts(lambda *x: product(x), *spreads, axis=len(order), chains=known)
            if summed is not None:
                at = order.index(summed) + isinstance(array, Split)
                array = jax.tree.map(lambda x: x.sum(at), array)
                lanes -= {summed}
            self.made[name] = _Factor(name, lanes, array)
        return self.made[name]

    def _order(self, lanes: Collection[int]) -> tuple[int, ...]:
        return self.replicates + tuple(sorted(lanes)) + self.extra

    def _spread(self, factor: _Factor, lanes: Collection[int]) -> Array | Split:
        return spread(factor.array, self._order(factor.lanes), self._order(lanes))

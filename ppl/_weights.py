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
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._analyse import Analysed
from ._engine import StrategySite
from ._layout import Layout, elimination
from ._relation import Relation, Relations
from ._unrolled import Split, by_parts, whole_at

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


def windows(probabilities: Any, chains: Sequence[tuple[int, Layout]], axis: int, lag: int) -> Any:
    """Probability of the window that each lane shows at each step, in the layout of `probabilities`.

    Args:
        probabilities: of each step's states given the window before, all chains' multiplied.
        chains: (lane axis, layout) of each chain.
        axis: the time axis, which lies behind all lanes.
        lag: memory of the chains.
    """
    if lag == 0:
        return probabilities
    places = lag + 1
    if not isinstance(probabilities, Split):
        length = probabilities.shape[axis]
        missing = [
            (0, max(places - length, 0) if a == axis else 0) for a in range(probabilities.ndim)
        ]
        q = jnp.pad(probabilities, missing, constant_values=1)
        parts = [jax.lax.slice_in_dim(q, r, None, places, axis) for r in range(places)]
        found = windows(Split(parts, q.shape[axis]), chains, axis, lag)
        return jax.lax.slice_in_dim(whole_at(found, axis), 0, length, axis=axis)
    num_states, shape, newest = 1, [], []
    by_axis = dict(chains)
    for a, n in enumerate(np.delete(probabilities.parts[0].shape, axis)):
        if a in by_axis:
            num_states *= by_axis[a].num_states
            newest.append(len(shape))
            shape += [by_axis[a].num_states] * places
        else:
            shape.append(int(n))
    opened = lambda x: jnp.moveaxis(x, axis, 0).reshape(-1, *shape)
    closed = lambda x: jnp.moveaxis(x.reshape(-1, *behind), 0, axis)
    behind = np.delete(probabilities.parts[0].shape, axis)
    return jax.tree.map(closed, _windows(jax.tree.map(opened, probabilities), newest, num_states))


def _windows(q: Split, newest: list[int], num_states: int) -> Split:
    """The same with time in front and lanes opened into digits, those of place 0 at the axes `newest` behind time."""
    # Both are read in many places, and XLA would rather compute them again in each.
    keep = jax.lax.optimization_barrier
    places, q = len(q.parts), keep(q.apart())
    assert q.first is not None

    def move(before: Array, q: Array, place: int) -> Array:
        """What is before the next step: the probability of the window without the oldest digit."""
        oldest = [a + (place + 1) % places for a in newest]
        return (q * before).sum(oldest, keepdims=True)

    # Before the first step all windows count alike: nothing depends on them.
    shape = [1 if a in newest else n for a, n in enumerate(q.first.shape[1:])]
    start = jnp.full(shape, 1.0 / num_states ** (places - 1), q.first.dtype)
    order = [*range(1, places), 0]
    blocks, rest = divmod(q.length - 1, places)

    def block(before: Array, moving: list[Any]) -> tuple[Array, list[Array]]:
        shown = []
        for place, x in zip(order, moving, strict=True):
            shown.append(before)
            before = move(before, q.parts[place][0] if x is None else x, place)
        return before, shown

    moving = [None if len(q.parts[r]) == 1 else q.parts[r][:blocks] for r in order]
    before, shown = jax.lax.scan(block, move(start, q.first[0], 0), moving, blocks)
    for k, place in enumerate(order[:rest]):
        shown[k] = jnp.concatenate([shown[k], before[None]])
        if k < rest - 1:
            part = q.parts[place]
            before = move(before, part[0 if len(part) == 1 else blocks], place)
    parts = [q.parts[r] * shown[order.index(r)] for r in range(places)]
    return keep(Split(parts, q.length, q.first * start))


def product(arrays: Sequence[Array]) -> Array:
    """The product of broadcasting arrays."""
    return functools.reduce(operator.mul, arrays)


def spread(array: Any, lanes: Sequence[int], target: Sequence[int]) -> Any:
    """Add the lanes of `target` that the array does not have, of size 1."""
    missing = tuple(a for a, lane in enumerate(target) if lane not in lanes)
    return jax.tree.map(lambda x: jnp.expand_dims(x, missing), array)


class _Factor(NamedTuple):
    """Probabilities in the lanes of some sites, [replicates, lanes, extra lanes, axes]; `name` tells equal ones.

    They may be split along the first axis.
    """

    name: Any
    lanes: frozenset[int]
    array: Any  # an array, or `Split`


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
        probabilities: Mapping[int, Array | Split],
    ) -> None:
        self.program, self.probabilities = program, probabilities
        self.replicates, self.extra = replicates, extra
        self.made: dict[Any, _Factor] = {}

    def of(self, closed: Relations, keep: frozenset[int], num_axes: int) -> Any:
        """Weights [replicates, kept lanes, extra lanes, axes (1 where equal)] of an array that relates to sites by `closed`.

        They may be split along the first axis. None where there is no enumerated site.
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
        if isinstance(array, Split) and target.get(0) != 0:
            array = whole_at(array, first)
        name = (index, tuple(target.items()), num_axes)

        def placed(array: Array) -> Array:
            source = sorted(target, key=target.__getitem__)
            shape = list(array.shape[:first]) + [1] * num_axes
            for i in source:
                shape[first + target[i]] = array.shape[first + i]
            axes = [*range(first), *(first + i for i in source), *(first + i for i in joint)]
            return jnp.transpose(array, axes).reshape(shape)

        if name not in self.made:
            self.made[name] = _Factor(name, lanes, jax.tree.map(placed, array))
        return self.made[name]

    def _chained(self, chains: list[int], factors: list[_Factor], axis: int) -> _Factor:
        """The windows' probabilities of chains that run along one axis."""
        steps = self._product(factors)
        name = (steps.name, "windows", axis)
        if name not in self.made:
            order = self._order(steps.lanes)
            met = [(order.index(i), self.program.layouts[i]) for i in chains]

            def full(x: Array) -> Array:
                shape = list(x.shape)
                for a, layout in met:
                    shape[a] = layout.num_lanes
                return jnp.broadcast_to(x, shape)

            array = steps.array
            if isinstance(array, Split) and (axis, len(array.parts)) != (0, met[0][1].lag + 1):
                array = whole_at(array, len(order))
            array = windows(jax.tree.map(full, array), met, len(order) + axis, met[0][1].lag)
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
            array = by_parts(lambda *x: product(x), *spreads, axis=len(order))
            if summed is not None:
                at = order.index(summed)
                array = jax.tree.map(lambda x: x.sum(at), array)
                lanes -= {summed}
            self.made[name] = _Factor(name, lanes, array)
        return self.made[name]

    def _order(self, lanes: Collection[int]) -> tuple[int, ...]:
        return self.replicates + tuple(sorted(lanes)) + self.extra

    def _spread(self, factor: _Factor, lanes: Collection[int]) -> Array | Split:
        return spread(factor.array, self._order(factor.lanes), self._order(lanes))

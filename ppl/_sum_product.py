"""Sums of products over named discrete sites: variable elimination with plates and chains.

Input: factors, each an array of log-weights in the lanes of some sites, with one named axis for each batch axis (plate or
time). Output: log of the sum, over all values of all sites, of the product of all factors' elements. A site whose
elements separate along an axis is summed row by row, a chain by a forward recursion over its windows (`_layout.py`), and

    log sum_z prod_n f(z, n) = reduce_z sum_n log f(z, n)

folds an axis that no remaining site has. The reduction is the only operation that knows what is asked: log-sum-exp (with its
own derivative, the posterior), or a reduction whose derivative marks one value, the largest (max-product) or one drawn in
proportion. Differentiating the whole in a bias on the sites' values therefore gives marginals, the most probable
assignment, or, by the recursion run backwards, an exact joint draw.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._layout import Layout
from ._unrolled import Split, whole_at

Array = jax.Array
Kind = Literal["sum", "max", "sample"]


class Factor(NamedTuple):
    """Log-weights [lanes of `sites`, sorted; axes], with the scale that they count with.

    They may be split along the first axis, a chain's time. `lag`: how many steps back a factor of chains sees them; None: as
    far as their lanes show.
    """

    sites: frozenset[int]
    axes: tuple[str, ...]
    array: Any  # an array, or `Split`
    scales: frozenset[float | None]
    lag: int | None = None


@dataclasses.dataclass(frozen=True)
class Unit:
    """Sites that are summed at once: one site, or all chains along one axis.

    Attributes:
        sites: their indices.
        axes: named axes along which they separate (time included).
        time: the chains' time axis, else None.
    """

    sites: frozenset[int]
    axes: frozenset[str]
    time: str | None


class Intractable(Exception):
    """No unit can be summed out: `site` and others have axes of their own in one factor."""

    def __init__(self, site: int, axes: frozenset[str]) -> None:
        super().__init__()
        self.site, self.axes = site, axes


def order_of(
    factors: Sequence[tuple[frozenset[int], frozenset[str]]],
    units: Sequence[Unit],
    layouts: dict[int, Layout],
) -> tuple[list[Unit], frozenset[int]]:
    """The order in which to sum units out, fewest lanes first; and the largest set of lanes on the way.

    A unit is ready when no other site in its factors separates along an axis that it does not have itself.

    Raises:
        Intractable: none is ready.
    """
    axes_of = {i: unit.axes for unit in units for i in unit.sites}
    left, order = list(units), []
    largest: frozenset[int] = frozenset()
    live = list(factors)

    def size(sites: Collection[int]) -> int:
        return math.prod(layouts[i].num_lanes for i in sites)

    while left:
        ready = []
        for unit in left:
            met = [f for f in live if f[0] & unit.sites]
            sites = unit.sites.union(*(s for s, _ in met))
            axes = frozenset().union(*(a for _, a in met)) - unit.axes
            if not any(axes & axes_of[i] for i in sites - unit.sites):
                ready.append((size(sites), len(order), unit, sites))
        if not ready:
            worst = max(left, key=lambda u: len(u.axes))
            raise Intractable(min(worst.sites), worst.axes)
        _, _, unit, sites = min(ready, key=lambda r: (r[0], min(r[2].sites)))
        largest = max(largest, sites, key=size)
        live = [f for f in live if not f[0] & unit.sites] + [
            (sites - unit.sites, unit.axes - {unit.time})
        ]  # type: ignore[arg-type]
        left.remove(unit)
        order.append(unit)
    return order, largest


def sum_product(
    factors: Sequence[Factor],
    order: Sequence[Unit],
    layouts: dict[int, Layout],
    kind: Kind = "sum",
    key: Array | None = None,
) -> list[Factor]:
    """Sum all units out; returns factors without sites, whose arrays add up to the log of the total."""
    live = list(factors)
    for number, unit in enumerate(order):
        reduce = _reduction(kind, None if key is None else jax.random.fold_in(key, number))
        met = [f for f in live if f.sites & unit.sites]
        if not met:
            continue  # nothing depends on these sites, not even a density
        live = [f for f in live if not f.sites & unit.sites] + [
            _sum_out(_join(met, unit, layouts), unit, layouts, reduce)
        ]
    return live


class _Joined(NamedTuple):
    """Factors that meet, all [lanes of `sites`, sorted; axes], of size 1 where one does not depend on a site or axis."""

    sites: frozenset[int]
    axes: tuple[str, ...]
    factors: list[Factor]


def _join(factors: Sequence[Factor], unit: Unit, layouts: dict[int, Layout]) -> _Joined:
    """Give factors common lanes and axes; they are summed along axes that the unit does not have."""
    sites = frozenset().union(*(f.sites for f in factors))
    axes = tuple(dict.fromkeys(a for f in factors for a in f.axes if a in unit.axes))
    places = layouts[min(unit.sites)].lag + 1
    joined = []
    for f in factors:
        lanes, array = sorted(f.sites), f.array
        if isinstance(array, Split) and (f.axes[0], len(array.parts)) != (unit.time, places):
            array = whole_at(array, len(lanes))
        gone = [len(lanes) + n for n, a in enumerate(f.axes) if a not in unit.axes]
        kept = [a for a in f.axes if a in unit.axes]
        order = [*range(len(lanes)), *(len(lanes) + kept.index(a) for a in axes if a in kept)]
        missing = [n for n, i in enumerate(sorted(sites)) if i not in f.sites]
        missing += [len(sites) + n for n, a in enumerate(axes) if a not in kept]
        array = jax.tree.map(
            lambda x, gone=gone, order=order, missing=missing: jnp.expand_dims(
                jnp.transpose(x.sum(gone), order), missing
            ),
            array,
        )
        joined.append(f._replace(array=array))
    return _Joined(sites, axes, joined)


def _sum_out(
    joined: _Joined, unit: Unit, layouts: dict[int, Layout], reduce: Callable[..., Array]
) -> Factor:
    lanes = sorted(joined.sites)
    where = [lanes.index(i) for i in sorted(unit.sites)]
    axes = joined.axes
    if unit.time is None:
        total = functools.reduce(operator.add, (f.array for f in joined.factors))
        shape = list(total.shape)
        for n, i in zip(where, sorted(unit.sites), strict=True):
            shape[n] = layouts[i].num_lanes
        array = reduce(jnp.broadcast_to(total, shape), where, 0)
    else:
        chains = [(n, layouts[i]) for n, i in zip(where, sorted(unit.sites), strict=True)]
        time = len(lanes) + axes.index(unit.time)
        array = _Chains(joined.factors, chains, time).forward(reduce)
        axes = tuple(a for a in axes if a != unit.time)
    scales = frozenset().union(*(f.scales for f in joined.factors))
    return Factor(joined.sites - unit.sites, axes, array, scales)


class _Chains:
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


class _reduction:
    """Reduce axes of log-weights. `is_numbered`: it depends on the number of the step."""

    def __init__(self, kind: Kind, key: Array | None) -> None:
        self.kind, self.key = kind, key
        self.is_numbered = kind == "sample"

    def __call__(self, x: Array, axes: Sequence[int], number: Any) -> Array:
        if self.kind == "sum":
            return log_sum_exp(x, tuple(axes))
        kept = [a for a in range(x.ndim) if a not in axes]
        x = jnp.transpose(x, [*kept, *axes]).reshape(*(x.shape[a] for a in kept), -1)
        if self.kind == "max":
            return _marked(x, x, True)
        assert self.key is not None
        noise = jax.random.gumbel(jax.random.fold_in(self.key, number), x.shape, x.dtype)
        return _marked(x, x + noise, False)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_sum_exp(x: Array, axes: tuple[int, ...]) -> Array:
    """`logsumexp` whose derivative is zero, not NaN, where all terms are -inf (a state that is never reached)."""
    largest, _, total = _exponentials(x, axes)
    return jnp.log(total) + largest


@log_sum_exp.defjvp
def _(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    largest, terms, total = _exponentials(primals[0], axes)
    weights = terms / jnp.expand_dims(jnp.where(total > 0, total, 1.0), axes)
    return jnp.log(total) + largest, (weights * tangents[0]).sum(axes)


def _exponentials(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The largest term (0 if all are -inf); all terms relative to it; their sum."""
    largest = jax.lax.stop_gradient(x.max(axes))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    terms = jnp.exp(x - jnp.expand_dims(largest, axes))
    return largest, terms, terms.sum(axes)


def _marked(x: Array, race: Array, is_max: bool) -> Array:
    """Max or log-sum-exp over the last axis, whose derivative is one at the winner of the race and zero elsewhere."""
    value = x.max(-1) if is_max else jax.nn.logsumexp(x, axis=-1)
    hot = jax.nn.one_hot(race.argmax(-1), x.shape[-1], dtype=x.dtype)
    stop = jax.lax.stop_gradient
    chosen = jnp.where(hot > 0, x, 0.0).sum(-1)
    return stop(value) + jnp.where(jnp.isfinite(chosen), chosen - stop(chosen), 0.0)

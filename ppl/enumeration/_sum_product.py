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

from ..evaluation import Chain, Layout, Split, chains_of, whole_at
from ._forward import Chains

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


Way = dict[int, frozenset[str]]  # site -> axes along which its elements are to be joint


class Intractable(Exception):
    """No unit can be summed out: sites have axes of their own in one factor. Each of `ways` lets one unit go on."""

    def __init__(self, ways: Sequence[Way]) -> None:
        super().__init__()
        self.ways = ways


def order_of(
    factors: Sequence[tuple[frozenset[int], frozenset[str]]],
    units: Sequence[Unit],
    layouts: dict[int, Layout],
) -> tuple[list[Unit], frozenset[int]]:
    """The order in which to sum units out, fewest lanes first; and the largest set of lanes on the way.

    A unit is ready when no other site in its factors separates along an axis that it does not have itself, nor along the time of
    chains: the sum over their paths leaves one number, which would join the other site's elements at all times.

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
        ready, ways = [], []
        for unit in left:
            met = [f for f in live if f[0] & unit.sites]
            sites = unit.sites.union(*(s for s, _ in met))
            axes = frozenset().union(*(a for _, a in met)) - unit.axes
            gone = axes if unit.time is None else axes | {unit.time}
            way = {i: gone & axes_of[i] for i in sites - unit.sites if gone & axes_of[i]}
            if way:
                ways.append(way)
            else:
                ready.append((size(sites), unit, sites))
        if not ready:
            raise Intractable(ways)
        _, unit, sites = min(ready, key=lambda r: (r[0], min(r[1].sites)))
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
    found = [a for f in factors for a in f.axes if a in unit.axes]
    axes = tuple(dict.fromkeys(found if unit.time is None else [unit.time, *found]))
    joined = []
    for f in factors:
        lanes, array = sorted(f.sites), f.array
        if isinstance(array, Split) and f.axes[0] != unit.time:
            array = whole_at(array, len(lanes), chains_of(lanes, layouts, f.axes[0]))
        gone = [len(lanes) + n for n, a in enumerate(f.axes) if a not in unit.axes]
        kept = [a for a in f.axes if a in unit.axes]
        order = [*range(len(lanes)), *(len(lanes) + kept.index(a) for a in axes if a in kept)]
        front = isinstance(array, Split)  # time, axis 0
        if front:
            order = [0, *(1 + n for n in order if n < len(lanes)), *order[len(lanes) + 1 :]]
        missing = [front + n for n, i in enumerate(sorted(sites)) if i not in f.sites]
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
        chains = [Chain(n, layouts[i], i) for n, i in zip(where, sorted(unit.sites), strict=True)]
        time = len(lanes) + axes.index(unit.time)
        array = Chains(joined.factors, chains, time).forward(reduce)
        axes = tuple(a for a in axes if a != unit.time)
    scales = frozenset().union(*(f.scales for f in joined.factors))
    return Factor(joined.sites - unit.sites, axes, array, scales)


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

"""Factors of a product over enumerated sites, and how they are brought to common dimensions.

Axis order of every array here: enumeration dimensions, outermost first, then named axes (of a plate, of time). Of a `Split`
the first of the named axes stands in front of all, and the windows of chains are by age (`evaluation/_split.py`).

Dimensions of no site have negative numbers: `REPLICATE` stands before those of sites, which are sorted, `ELEMENT` behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..evaluation import Layout, Split, by_parts, chains_of, whole_at
from ._semirings import Semiring

REPLICATE, ELEMENT = -1, -2
Layouts = Mapping[int, Layout]


@dataclasses.dataclass(frozen=True, eq=False)  # told by identity
class Factor:
    """Probabilities or log-weights [enumeration dimensions of `sites`, axes], with the scales that they count with.

    `lag`: how many steps back it sees chains; None: as far as their windows show.
    """

    sites: frozenset[int]
    axes: tuple[Any, ...]
    array: Any  # an array, or `Split`
    scales: frozenset[float] = frozenset()
    lag: int | None = None


def ordered(sites: Collection[int]) -> tuple[int, ...]:
    """Enumeration dimensions, outermost first."""
    return tuple(sorted(sites, key=lambda i: (i <= ELEMENT, i)))


def sites_of(factors: Sequence[Factor]) -> frozenset[int]:
    """All sites that factors depend on."""
    return frozenset().union(*(f.sites for f in factors))


def aligned(
    factor: Factor,
    sites: Collection[int],
    axes: Sequence[int | str],
    layouts: Layouts,
    time: int | str | None = None,
) -> Array | Split:
    """The array of a factor as [dimensions of `sites`, `axes`], of size 1 where it depends on none of them.

    It stays split along `time`, the first of the axes, if it was, and along nothing else.
    """
    own, array = ordered(factor.sites), factor.array
    if isinstance(array, Split) and factor.axes[0] != time:
        array = whole_at(array, len(own), chains_of(own, layouts, factor.axes[0]))
    front = int(isinstance(array, Split))
    kept = [len(own) + factor.axes.index(a) for a in axes if a in factor.axes]
    order = [*range(front + len(own)), *kept[front:]]
    wanted = ordered(sites)
    missing = [front + n for n, i in enumerate(wanted) if i not in factor.sites]
    missing += [len(wanted) + n for n, a in enumerate(axes) if a not in factor.axes]
    return jax.tree.map(lambda x: jnp.expand_dims(jnp.transpose(x, order), missing), array)


def product(
    factors: Sequence[Factor],
    axes: Sequence[int | str],
    layouts: Layouts,
    ring: Semiring,
    time: PyTree = None,
) -> Factor:
    """The product of factors on common axes."""
    sites = sites_of(factors)
    arrays = [aligned(f, sites, axes, layouts, time) for f in factors]
    chains = chains_of(ordered(sites), layouts, time)
    array = by_parts(ring.times, *arrays, axis=len(sites), chains=chains)
    return Factor(sites, tuple(axes), array, frozenset().union(*(f.scales for f in factors)))


def sum_out(factor: Factor, sites: Collection[int], layouts: Layouts, ring: Semiring) -> Factor:
    """A factor summed over all states of sites."""
    own = ordered(factor.sites)
    front = int(isinstance(factor.array, Split))
    where = [own.index(i) for i in ordered(sites)]

    def summed(x: Array) -> Array:
        shape = list(x.shape)
        for n in where:
            shape[front + n] = layouts[own[n]].size
        return ring.sum(jnp.broadcast_to(x, shape), [front + n for n in where])

    array = jax.tree.map(summed, factor.array)
    return dataclasses.replace(factor, sites=factor.sites - frozenset(sites), array=array)

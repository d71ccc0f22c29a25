"""The log of a sum over all values of all sites of a product of factors: variable elimination with plates and chains.

Input: factors in logs, each with a named axis for each of its batch axes (plate or time), and an order (`_structure.py`).
A site whose elements separate along an axis is summed row by row, a chain by a forward recursion, and

    log sum_z prod_n f(z, n) = reduce_z sum_n log f(z, n)

folds an axis that no remaining site has.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from ..evaluation import Chain, Split, chains_of, whole_at
from ._factors import Factor, Layouts, aligned, ordered, product, sites_of, sum_out
from ._forward import total
from ._order import Unit
from ._semirings import Kind, LogWeights

Array = jax.Array


def sum_product(
    factors: Sequence[Factor],
    order: Sequence[Unit],
    layouts: Layouts,
    kind: Kind = "sum",
    key: Array | None = None,
) -> list[Factor]:
    """Sum all units out; returns factors without sites, whose arrays add up to the log of the total."""
    live, logs = list(factors), LogWeights(kind, key)
    for number, unit in enumerate(order):
        met = [_folded(f, unit, layouts) for f in live if f.sites & unit.sites]
        if met:  # else nothing depends on these sites, not even a density
            live = [f for f in live if not f.sites & unit.sites]
            live.append(_without(unit, met, layouts, logs.numbered(number)))
    return live


def _folded(factor: Factor, unit: Unit, layouts: Layouts) -> Factor:
    """The product of a factor along the axes that the unit does not have."""
    own, array = ordered(factor.sites), factor.array
    gone = [n for n, a in enumerate(factor.axes) if a not in unit.axes]
    if isinstance(array, Split) and 0 in gone:
        array = whole_at(array, len(own), chains_of(own, layouts, factor.axes[0]))
    array = jax.tree.map(lambda x: x.sum([len(own) + n for n in gone]), array)
    axes = tuple(a for a in factor.axes if a in unit.axes)
    return factor._replace(axes=axes, array=array)


def _without(unit: Unit, met: Sequence[Factor], layouts: Layouts, logs: LogWeights) -> Factor:
    """The sum over a unit of the product of all factors that have it."""
    found = [a for f in met for a in f.axes]
    if unit.time is None:
        joined = product(met, tuple(dict.fromkeys(found)), layouts, logs)
        return sum_out(joined, unit.sites, layouts, logs)
    sites, axes = sites_of(met), tuple(dict.fromkeys([unit.time, *found]))
    arrays = [aligned(f, sites, axes, layouts, unit.time) for f in met]
    own = ordered(sites)
    chains = [Chain(n, layouts[i], i) for n, i in enumerate(own) if i in unit.sites]
    array = total(arrays, [f.lag for f in met], chains, len(own), logs)
    scales = frozenset().union(*(f.scales for f in met))
    return Factor(sites - unit.sites, axes[1:], array, scales)

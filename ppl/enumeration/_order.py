"""In which order sites are summed out of a product of factors.

Only what each factor depends on counts here: sites, and named axes along which it has an element each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..evaluation import Layout
from ._layout import size_of

Axes = frozenset[Any]
Way = Mapping[int, Axes]  # site -> axes along which its elements are to be joint


@dataclasses.dataclass(frozen=True)
class Unit:
    """Sites that are summed at once: one site, or all chains that share one recursion.

    Attributes:
        sites: their indices.
        axes: named axes along which they separate (time included).
        time: the chains' time axis, else None.
    """

    sites: frozenset[int]
    axes: Axes = frozenset()
    time: Any = None


class Intractable(Exception):
    """No unit can be summed out: sites have axes of their own in one factor. Each of `ways` lets one unit go on."""

    def __init__(self, ways: Sequence[Way]) -> None:
        super().__init__()
        self.ways = ways


def order_of(
    factors: Iterable[tuple[frozenset[int], Axes]],
    units: Sequence[Unit],
    layouts: Mapping[int, Layout],
) -> tuple[list[Unit], frozenset[int]]:
    """The order in which to sum units out, fewest states first; and the largest set of sites that meet on the way.

    A unit is ready when no other site in its factors separates along an axis that it does not have itself, nor along the time of
    chains: the sum over their paths leaves one number, which would join the other site's elements at all times.

    Raises:
        Intractable: none is ready.
    """
    # Variable elimination: a factor is (sites it sees, axes along which it separates).
    axes_of = {i: unit.axes for unit in units for i in unit.sites}
    left, order = list(units), []
    largest: frozenset[int] = frozenset()
    live = list(factors)
    while left:
        ready, ways = [], []
        for unit in left:
            # Summing the unit out multiplies all factors that see it, and leaves one factor of the other sites in them.
            met = [f for f in live if f[0] & unit.sites]
            sites = unit.sites.union(*(s for s, _ in met))
            # Axes over which that product has to be reduced, since the unit is not separate along them.
            gone = frozenset().union(*(a for _, a in met)) - unit.axes
            gone |= {unit.time} - {None}
            # A site that separates along such an axis stands in the way: its elements would meet in one number.
            way = {i: gone & axes_of.get(i, frozenset()) for i in sites - unit.sites}
            if any(way.values()):
                ways.append({i: axes for i, axes in way.items() if axes})
            else:
                ready.append((size_of(sites, layouts), min(unit.sites), unit, sites))
        if not ready:
            raise Intractable(ways)
        # Greedy, by the number of joint states that the product has; the lowest site breaks ties.
        _, _, unit, sites = min(ready, key=lambda r: r[:2])
        largest = max(largest, sites, key=lambda s: size_of(s, layouts))
        live = [f for f in live if not f[0] & unit.sites]
        live.append((sites - unit.sites, unit.axes - {unit.time}))
        left.remove(unit)
        order.append(unit)
    return order, largest

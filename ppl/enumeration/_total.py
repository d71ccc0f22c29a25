"""The log of a sum over all values of all sites of a product of factors: variable elimination with plates and chains.

Input: factors in logs and their relations to the sites. Every axis of a site or factor starts as a name of its own; names are
made one where a factor's axis is aligned with a site's (or, along a chain, sees a window of it). An axis of a site that some
factor mixes is enumerated jointly, and so is one that would stand twice in one array.

A site whose elements separate along an axis is summed row by row, a chain by a forward recursion, and

    log sum_z prod_n f(z, n) = reduce_z sum_n log f(z, n)

folds an axis that no remaining site has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..evaluation import Chain, Layout, Split, chains_of, whole_at
from ..jaxprs import Relation
from ..strategies import StrategySite
from ._chains import Chains, memory_of, recursions
from ._factors import Factor, Layouts, aligned, ordered, product, sites_of, sum_out
from ._forward import total
from ._layout import Asker, check_together, layout_of, mixing
from ._order import Intractable, Unit, Way, order_of
from ._semirings import Kind, LogWeights

Array = jax.Array
Axis = tuple[Any, int]  # (site or factor, position)
FactorRelations = Mapping[str, dict[int, Relation]]


@dataclasses.dataclass(frozen=True)
class Structure:
    """A way to sum sites out.

    Attributes:
        layouts: of each site.
        names: of each axis of sites and factors.
        labels: named axes of each factor.
        free: named axes of each site outside the joint ones.
        order: units in the order of summation.
    """

    layouts: dict[int, Layout]
    names: Mapping[Axis, str]
    labels: dict[str, tuple[str, ...]]
    free: dict[int, tuple[str, ...]]
    order: list[Unit]


def structure_of(
    label: str,
    sites: dict[int, StrategySite],
    relations: FactorRelations,
    ranks: Mapping[str, int],
) -> Structure:
    """Find layouts and order for an elimination, from the relations of factors to sites and their numbers of axes.

    Raises:
        ValueError: too many states.
    """
    asker = Asker(
        label,
        elements="Let the densities separate by row or by step, or keep the site as a choice.",
        sites="Keep one of them as a choice, or estimate the marginal with ppl.marginal.",
        error=lambda _, text: ValueError(text),
    )
    mixed, names = _named(sites, relations, ranks)
    # What all assignments fit into is never refused, whatever windows and rows together would take.
    whole = {i: set(range(len(s.sizes))) for i, s in sites.items()}
    refusals = []
    for joint in (mixed, whole):
        try:
            return _Planner(sites, relations, names, joint, asker).structure()
        except ValueError as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _named(
    sites: dict[int, StrategySite], relations: FactorRelations, ranks: Mapping[str, int]
) -> tuple[dict[int, set[int]], dict[Axis, str]]:
    """Joint axes of each site, and the name of every axis of sites and factors."""
    sizes: dict[Any, int] = {**ranks} | {i: len(s.sizes) for i, s in sites.items()}
    # Union-find by sets: an axis and all axes that are the same one share one set object.
    groups: dict[Axis, set[Axis]] = {(o, a): {(o, a)} for o, n in sizes.items() for a in range(n)}
    joint: dict[int, set[int]] = {i: set() for i in sites}
    links = [
        (n, i, a, link) for n, r in relations.items() for i in r for a, link in enumerate(r[i])
    ]
    for name, i, a, link in links:
        # A factor that mixes the elements along an axis sees all of them: their states are combined.
        if link.lag is None:
            joint[i].add(a)
            continue
        assert isinstance(link.axis, int)
        union = groups[(i, a)] | groups[(name, link.axis)]
        # Two axes of one owner would be one axis of its array: a diagonal, which no array axis can be.
        if len({owner for owner, _ in union}) < len(union):
            joint[i].add(a)
        else:
            groups |= dict.fromkeys(union, union)
    first = {axis: min(g, key=lambda x: (str(x[0]), x[1])) for axis, g in groups.items()}
    return joint, {axis: f"{owner}.{a}" for axis, (owner, a) in first.items()}


class _Planner:
    """A search for a structure with at least the axes in `joint`, which grows, enumerated jointly."""

    def __init__(
        self,
        sites: dict[int, StrategySite],
        relations: FactorRelations,
        names: Mapping[Axis, str],
        joint: dict[int, set[int]],
        asker: Asker,
    ) -> None:
        self.sites, self.relations, self.names, self.joint = sites, relations, names, joint
        self.asker = asker
        self.uses = {i: [r[i] for r in relations.values() if i in r] for i in sites}

    def structure(self) -> Structure:
        """The structure.

        Raises:
            ValueError: too many states.
        """
        labels = {n: tuple(self.names[x] for x in self.names if x[0] == n) for n in self.relations}
        factors = [(frozenset(r), frozenset(labels[n])) for n, r in self.relations.items() if r]
        # Where no order exists, the cheapest way out joins more elements, and the search begins anew; it ends, since joint axes
        # only grow.
        while True:
            chains = self._chains()
            try:
                units = self._units(chains)
                layouts = {i: self._layout(i, chains) for i in self.sites}
                order, largest = order_of(factors, units, layouts)
            except Intractable as stuck:
                self.joint |= min(
                    map(self._joined, stuck.ways), key=lambda j: self._cost(j, chains)
                )
                continue
            check_together(largest, self.sites, layouts, self.asker)
            free = {i: self._free(i) for i in self.sites}
            return Structure(layouts, self.names, labels, free, order)

    def _free(self, index: int) -> tuple[str, ...]:
        axes = range(len(self.sites[index].sizes))
        return tuple(self.names[(index, a)] for a in axes if a not in self.joint[index])

    def _chains(self) -> Chains:
        """The chains; a second axis along which the elements of one meet becomes joint."""
        chains: Chains = {}
        for i, site in self.sites.items():
            for a, length in enumerate(site.sizes):
                lag = 0 if a in self.joint[i] else memory_of(self.uses[i], a, length)
                assert isinstance(lag, int)  # else it is joint
                if lag > 0 and i in chains:
                    self.joint[i].add(a)
                elif lag > 0:
                    chains[i] = a, lag
        return chains

    def _units(self, chains: Chains) -> list[Unit]:
        """Single sites, and the chains that share one recursion: these have one time, and meet in it.

        Raises:
            Intractable: chains in one recursion have different axes.
        """
        # Sites without time are units of their own; chains along one time that some factor ties together step together.
        groups: list[tuple[list[int], str | None]] = [
            ([i], None) for i in self.sites if i not in chains
        ]
        time_of = {i: self.names[(i, axis)] for i, (axis, _) in chains.items()}
        for time in sorted(set(time_of.values())):
            here = {i for i in self.sites if time in self._free(i)}
            met = [here & r.keys() for r in self.relations.values()]
            among = {i for i in chains if time_of[i] == time}
            groups += [(group, time) for group in recursions(met, chains, among)]
        units = []
        for group, time in groups:
            # One recursion runs over arrays of one shape: an axis that only some of its chains have is no axis of it.
            axes = {i: frozenset(self._free(i)) for i in group}
            shared = frozenset.intersection(*axes.values())
            if own := {i: a - shared for i, a in axes.items() if a != shared}:
                raise Intractable([own])
            units.append(Unit(frozenset(group), shared, time))
        return units

    def _layout(self, index: int, chains: Chains) -> Layout:
        joint, chain = self.joint[index], chains.get(index)
        why = mixing(self.uses[index], joint) or "other sites share their axes"
        layout = layout_of(self.sites[index], joint, chain, why, self.asker)
        return dataclasses.replace(layout, time=chain and self.names[(index, chain[0])])

    def _joined(self, way: Way) -> dict[int, set[int]]:
        """Joint axes of sites once their elements are joined in this way."""
        axes = lambda i: range(len(self.sites[i].sizes))
        named = lambda i, names: {a for a in axes(i) if self.names[(i, a)] in names}
        return {i: self.joint[i] | named(i, names) for i, names in way.items()}

    def _cost(self, joint: Mapping[int, set[int]], chains: Chains) -> float:
        """The logarithm of how many states joint axes take."""
        total = 0.0
        for i, axes in joint.items():
            time, lag = chains.get(i, (None, 0))
            elements = math.prod(self.sites[i].sizes[a] for a in axes)
            elements *= 1 if time in axes else lag + 1
            total += elements * math.log(self.sites[i].num_values or 1)
        return total


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
        # sum_z prod_n f_n = prod_{n without z} f_n * sum_z prod_{n with z} f_n
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
    # A product over rows is a sum of logarithms.
    array = jax.tree.map(lambda x: x.sum([len(own) + n for n in gone]), array)
    axes = tuple(a for a in factor.axes if a in unit.axes)
    return dataclasses.replace(factor, axes=axes, array=array)


def _without(unit: Unit, met: Sequence[Factor], layouts: Layouts, logs: LogWeights) -> Factor:
    """The sum over a unit of the product of all factors that have it."""
    found = [a for f in met for a in f.axes]
    if unit.time is None:
        joined = product(met, tuple(dict.fromkeys(found)), layouts, logs)
        return sum_out(joined, unit.sites, layouts, logs)
    # A chain: all factors as arrays [windows of all sites, time, other axes], and the forward recursion over time.
    sites, axes = sites_of(met), tuple(dict.fromkeys([unit.time, *found]))
    arrays = [aligned(f, sites, axes, layouts, unit.time) for f in met]
    own = ordered(sites)
    chains = [Chain(n, layouts[i], i) for n, i in enumerate(own) if i in unit.sites]
    array = total(arrays, [f.lag for f in met], chains, len(own), logs)
    scales = frozenset().union(*(f.scales for f in met))
    return Factor(sites - unit.sites, axes[1:], array, scales)

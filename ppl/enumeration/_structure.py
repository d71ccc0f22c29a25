"""How a total is summed out of a product of factors: plates, chains, and an order.

Input: relations of every factor to the sites. Every axis of a site or factor starts as a name of its own; names are made one
where a factor's axis is aligned with a site's (or, along a chain, sees a window of it). An axis of a site that some factor
mixes is enumerated jointly, and so is one that would stand twice in one array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ..evaluation import Layout
from ..jaxprs import Link, Relation
from ..strategies import StrategySite
from ..traces import SiteInfo
from ._chains import Chains, memory_of, recursions
from ._layout import Asker, check_together, layout_of, mixing
from ._order import Intractable, Unit, Way, order_of

Axis = tuple[Any, int]


@dataclasses.dataclass(frozen=True)
class Structure:
    """A way to sum sites out.

    Attributes:
        layouts: of each site.
        free: named axes of each site outside the joint ones.
        labels: named axes of each factor.
        order: units in the order of summation.
        members: name of an axis -> the factors' axes that it stands for.
    """

    layouts: dict[int, Layout]
    free: dict[int, tuple[str, ...]]
    labels: dict[str, tuple[str, ...]]
    order: list[Unit]
    members: dict[str, list[Axis]]

    def dim_of(self, label: str, infos: Mapping[str, SiteInfo]) -> str | None:
        """The plate or region that an axis belongs to, if the sites agree on it."""
        dims = {
            infos[owner].dims[axis]
            for owner, axis in self.members[label]
            if owner in infos and axis < len(infos[owner].dims)
        }
        return dims.pop() if len(dims) == 1 else None


def structure_of(
    label: str,
    sites: dict[int, StrategySite],
    relations: Mapping[str, dict[int, Relation]],
    ranks: Mapping[str, int],
) -> Structure:
    """Find layouts and order.

    Args:
        label: of the elimination, for messages.
        sites: by index.
        relations: of the factors to the sites.
        ranks: number of axes of each factor.

    Raises:
        ValueError: too many states.
    """
    joint, classes = _classes(sites, relations, ranks)
    try:
        return _Planner(label, sites, relations, joint, classes).structure()
    except ValueError:
        # What all assignments fit into is never refused, whatever windows and rows together would take.
        whole = {i: set(range(len(s.sizes))) for i, s in sites.items()}
        try:
            return _Planner(label, sites, relations, whole, classes).structure()
        except ValueError:
            pass
        raise


def _classes(
    sites: dict[int, StrategySite],
    relations: Mapping[str, dict[int, Relation]],
    ranks: Mapping[str, int],
) -> tuple[dict[int, set[int]], dict[Axis, str]]:
    """Joint axes of each site, and the name of every axis of sites and factors."""
    groups: dict[Axis, set[Axis]] = {
        axis: {axis}
        for owner, rank in [*((i, len(s.sizes)) for i, s in sites.items()), *ranks.items()]
        for axis in ((owner, a) for a in range(rank))
    }
    joint: dict[int, set[int]] = {i: set() for i in sites}
    for name, i, a, link in _links(relations):
        if link.kind == "mixed" or link.lag is None:
            joint[i].add(a)
            continue
        assert isinstance(link.axis, int)
        union = groups[(i, a)] | groups[(name, link.axis)]
        owners = [owner for owner, _ in union]
        if len(set(owners)) < len(owners):
            joint[i].add(a)
            continue
        groups |= dict.fromkeys(union, union)
    names: dict[Axis, str] = {}
    for axis in groups:
        first = min(groups[axis], key=lambda x: (str(x[0]), x[1]))
        names[axis] = f"{first[0]}.{first[1]}"
    return joint, names


def _links(
    relations: Mapping[str, dict[int, Relation]],
) -> Iterator[tuple[str, int, int, Link]]:
    """(factor, site, axis of the site, link)."""
    for name, relation in relations.items():
        for i, links in relation.items():
            for a, link in enumerate(links):
                yield name, i, a, link


class _Planner:
    """A search for a structure with at least the axes in `joint`, which grows, enumerated jointly."""

    def __init__(
        self,
        label: str,
        sites: dict[int, StrategySite],
        relations: Mapping[str, dict[int, Relation]],
        joint: dict[int, set[int]],
        classes: Mapping[Axis, str],
    ) -> None:
        self.sites, self.relations, self.joint, self.classes = sites, relations, joint, classes
        self.asker = Asker(
            label,
            "Let the densities separate by row or by step, or keep the site as a choice.",
            "Keep one of them as a choice, or estimate the marginal with ppl.marginal.",
            lambda _, text: ValueError(text),
        )

    def structure(self) -> Structure:
        """The structure.

        Raises:
            ValueError: too many states.
        """
        labels: dict[str, tuple[str, ...]] = dict.fromkeys(self.relations, ())
        members: dict[str, list[Axis]] = {}
        for (owner, a), name in self.classes.items():
            members.setdefault(name, []).append((owner, a))
            if owner in labels:
                labels[owner] += (name,)
        while True:
            chains = self._chains()
            groups = self._groups(chains)
            layouts = {i: self._layout(i, chains) for i in self.sites}
            free = {i: self._free(i) for i in self.sites}
            try:
                units = _units(groups, layouts, free)
                factors = [
                    (frozenset(r), frozenset(labels[n])) for n, r in self.relations.items() if r
                ]
                order, largest = order_of(factors, units, layouts)
            except Intractable as stuck:
                self._join_cheapest(stuck.ways, layouts)
                continue
            check_together(largest, self.sites, layouts, self.asker)
            return Structure(layouts, free, labels, order, members)

    def _uses(self, index: int) -> list[Relation]:
        return [r[index] for r in self.relations.values() if index in r]

    def _free(self, index: int) -> tuple[str, ...]:
        """Named axes of a site outside the joint ones."""
        axes = range(len(self.sites[index].sizes))
        return tuple(self.classes[(index, a)] for a in axes if a not in self.joint[index])

    def _chains(self) -> Chains:
        """The chains; a second axis along which the elements of one meet becomes joint."""
        chains: Chains = {}
        for i, site in self.sites.items():
            for a, length in enumerate(site.sizes):
                if a in self.joint[i]:
                    continue
                lag = memory_of(self._uses(i), a, length)
                assert isinstance(lag, int)  # else it is joint
                if lag > 0 and i in chains:
                    self.joint[i].add(a)
                elif lag > 0:
                    chains[i] = a, lag
        return chains

    def _groups(self, chains: Chains) -> list[list[int]]:
        """Chains that end up in one recursion: these have one time, and meet in it."""
        groups = []
        time_of = {i: self.classes[(i, axis)] for i, (axis, _) in chains.items()}
        for time in sorted(set(time_of.values())):
            here = {i for i in self.sites if time in self._free(i)}
            sets = [here & r.keys() for r in self.relations.values()]
            groups += recursions(sets, chains, [i for i in chains if time_of[i] == time])
        return groups

    def _layout(self, index: int, chains: Chains) -> Layout:
        axes, chain = self.joint[index], chains.get(index)
        why = mixing(self._uses(index), axes) or "other sites share their axes"
        layout = layout_of(self.sites[index], axes, chain, why, self.asker)
        time = None if chain is None else self.classes[(index, chain[0])]
        return dataclasses.replace(layout, time=time)

    def _join_cheapest(self, ways: Sequence[Way], layouts: dict[int, Layout]) -> None:
        """Enumerate elements jointly, in the way that takes the fewest states."""

        def axes(i: int, names: Collection[Any]) -> set[int]:
            free = set(range(len(self.sites[i].sizes))) - self.joint[i]
            return {a for a in free if self.classes[(i, a)] in names}

        def log_states(way: Way) -> float:
            total = 0.0
            for i, names in way.items():
                site, new = self.sites[i], axes(i, names)
                lag = 0 if layouts[i].axis in new else layouts[i].lag
                elements = math.prod(site.sizes[a] for a in self.joint[i] | new)
                total += elements * (lag + 1) * math.log(site.num_values or 1)
            return total

        for i, names in min(ways, key=log_states).items():
            self.joint[i] |= axes(i, names)


def _units(
    groups: list[list[int]], layouts: dict[int, Layout], free: dict[int, tuple[str, ...]]
) -> list[Unit]:
    """Single sites, and the chains that share one recursion.

    Raises:
        Intractable: chains in one recursion have different axes.
    """
    single = [[i] for i in layouts if not layouts[i].is_chain]
    units = []
    for group in [*groups, *single]:
        axes = [frozenset(free[i]) for i in group]
        shared = frozenset.intersection(*axes)
        own: Way = {i: a - shared for i, a in zip(group, axes, strict=True) if a != shared}
        if own:
            raise Intractable([own])
        units.append(Unit(frozenset(group), frozenset(shared), layouts[group[0]].time))
    return sorted(units, key=lambda u: min(u.sites))

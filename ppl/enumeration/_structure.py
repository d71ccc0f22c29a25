"""How discrete sites can be summed out of a product of factors: plates, chains, and an order.

Input: relations of every factor to the sites. Every axis of a site or factor starts as a name of its own; names are made one
where a factor's axis is aligned with a site's (or, along a chain, sees a window of it). An axis of a site that some factor
mixes is enumerated jointly, and so is one that would stand twice in one array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..evaluation import Layout
from ..jaxprs import Relation
from ..strategies import StrategySite
from ..traces import SiteInfo
from ._layout import MAX_LANES
from ._sum_product import Intractable, Unit, Way, order_of

Axis = tuple[Any, int]


@dataclasses.dataclass(frozen=True)
class Structure:
    """A way to sum sites out.

    Attributes:
        layouts: lanes of each site.
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
        ValueError: too many lanes.
    """
    joint, classes = _classes(sites, relations, ranks)
    labels = {n: tuple(classes[(n, a)] for a in range(ranks[n])) for n in relations}
    try:
        return _planned(label, sites, relations, joint, classes, labels)
    except ValueError:
        # What all assignments fit into is never refused, whatever windows and rows together would take.
        whole = {i: set(range(len(s.sizes))) for i, s in sites.items()}
        try:
            return _planned(label, sites, relations, whole, classes, labels)
        except ValueError:
            pass
        raise


def _planned(
    label: str,
    sites: dict[int, StrategySite],
    relations: Mapping[str, dict[int, Relation]],
    joint: dict[int, set[int]],
    classes: Mapping[Axis, str],
    labels: dict[str, tuple[str, ...]],
) -> Structure:
    """The structure with at least the axes in `joint`, which grows, enumerated jointly.

    Raises:
        ValueError: too many lanes.
    """
    while True:
        chains = _chains(sites, relations, joint)
        groups = _groups(chains, relations, joint, classes)
        for group in groups:
            lag = max(chains[i][1] for i in group)
            chains.update({i: (chains[i][0], lag) for i in group})
        layouts = {i: _layout(label, i, s, joint[i], chains, relations) for i, s in sites.items()}
        for i, layout in layouts.items():
            if layout.axis is not None:
                time = classes[(i, layout.axis)]
                layouts[i] = dataclasses.replace(layout, time=time)
        free = {
            i: tuple(classes[(i, a)] for a in range(len(s.sizes)) if a not in joint[i])
            for i, s in sites.items()
        }
        try:
            units = _units(groups, layouts, free)
            factors = [(frozenset(r), frozenset(labels[n])) for n, r in relations.items() if r]
            order, largest = order_of(factors, units, layouts)
        except Intractable as stuck:
            _join_cheapest(stuck.ways, sites, joint, layouts, classes)
            continue
        break
    count = math.prod(layouts[i].num_lanes for i in largest)
    if count > MAX_LANES:
        names = sorted(sites[i].address for i in largest)
        raise ValueError(
            f"{label}: summing out needs {count} lanes at once (the limit is {MAX_LANES}), because {names} meet. Keep one "
            "of them as a choice, or estimate the marginal with ppl.marginal."
        )
    members: dict[str, list[Axis]] = {}
    for axis, name in classes.items():
        members.setdefault(name, []).append(axis)
    return Structure(layouts, free, labels, order, members)


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
    for name, relation in relations.items():
        for i, links in relation.items():
            for a, link in enumerate(links):
                if link.kind == "mixed" or link.lag is None:
                    joint[i].add(a)
                    continue
                assert isinstance(link.axis, int)
                union = groups[(i, a)] | groups[(name, link.axis)]
                owners = [owner for owner, _ in union]
                if len(set(owners)) < len(owners):
                    joint[i].add(a)
                    continue
                for axis in union:
                    groups[axis] = union
    names: dict[Axis, str] = {}
    for axis in groups:
        first = min(groups[axis], key=lambda x: (str(x[0]), x[1]))
        names[axis] = f"{first[0]}.{first[1]}"
    return joint, names


def _chains(
    sites: dict[int, StrategySite],
    relations: Mapping[str, dict[int, Relation]],
    joint: dict[int, set[int]],
) -> dict[int, tuple[int, int]]:
    """Chain -> (time axis, memory); a second axis along which its elements meet becomes joint."""
    chains: dict[int, tuple[int, int]] = {}
    for i, site in sites.items():
        for a, length in enumerate(site.sizes):
            if a in joint[i]:
                continue
            lag = max([r[i][a].lag or 0 for r in relations.values() if i in r], default=0)
            lag = min(lag, length - 1)
            if lag and i in chains:
                joint[i].add(a)
            elif lag:
                chains[i] = a, lag
    return chains


def _groups(
    chains: Mapping[int, tuple[int, int]],
    relations: Mapping[str, dict[int, Relation]],
    joint: Mapping[Any, Collection[int]],
    classes: Mapping[Axis, str],
) -> list[list[int]]:
    """Chains that end up in one recursion, and so share one memory.

    These have one time and meet, directly or through other sites with elements at this time, which have to be summed out before.
    """
    groups = []
    time_of = {i: classes[(i, axis)] for i, (axis, _) in chains.items()}
    for time in sorted(set(time_of.values())):
        here = {i for (i, a), name in classes.items() if name == time and a not in joint.get(i, ())}
        for group in _components([here & r.keys() for r in relations.values()]):
            members = sorted(i for i in group if time_of.get(i) == time)
            groups += [members] if members else []
    return groups


def _components(sets: Iterable[set[int]]) -> list[set[int]]:
    """Unions of the sets that overlap."""
    groups: list[set[int]] = []
    for new in sets:
        met = [g for g in groups if g & new]
        groups = [g for g in groups if not g & new] + [new.union(*met)]
    return groups


def _layout(
    label: str,
    index: int,
    site: StrategySite,
    joint: set[int],
    chains: Mapping[int, tuple[int, int]],
    relations: Mapping[str, dict[int, Relation]],
) -> Layout:
    axis, lag = chains.get(index, (None, 0))
    axes = tuple(sorted(joint))
    elements = math.prod(site.sizes[a] for a in axes)
    assert site.num_values is not None
    if elements * (lag + 1) * math.log(site.num_values) > math.log(MAX_LANES):
        reasons = {
            r[index][a].why or "elements depend on all earlier ones"
            for r in relations.values()
            if index in r
            for a in axes
            if r[index][a].kind == "mixed" or r[index][a].lag is None
        }
        raise ValueError(
            f"Site '{site.address}': {label} would need {site.num_values}^{elements * (lag + 1)} lanes, because {elements} "
            f"elements (of shape {site.sizes}) meet: {', '.join(sorted(reasons)) or 'other sites share their axes'}. "
            "Let the densities separate by row or by step, or keep the site as a choice."
        )
    states = site.num_values**elements
    return Layout(axes, states ** (lag + 1), states, axis, lag)


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
        own = {i: a - shared for i, a in zip(group, axes, strict=True) if a != shared}
        if own:
            raise Intractable([own])
        units.append(Unit(frozenset(group), shared, layouts[group[0]].time))
    return sorted(units, key=lambda u: min(u.sites))


def _join_cheapest(
    ways: Sequence[Way],
    sites: dict[int, StrategySite],
    joint: dict[int, set[int]],
    layouts: dict[int, Layout],
    classes: Mapping[Axis, str],
) -> None:
    """Enumerate elements jointly, in the way that takes the fewest lanes."""

    def axes(i: int, names: frozenset[str]) -> set[int]:
        free = set(range(len(sites[i].sizes))) - joint[i]
        return {a for a in free if classes[(i, a)] in names}

    def log_lanes(way: Way) -> float:
        total = 0.0
        for i, names in way.items():
            new = axes(i, names)
            lag = 0 if layouts[i].axis in new else layouts[i].lag
            elements = math.prod(sites[i].sizes[a] for a in joint[i] | new)
            total += elements * (lag + 1) * math.log(sites[i].num_values or 1)
        return total

    for i, names in min(ways, key=log_lanes).items():
        joint[i] |= axes(i, names)

"""How discrete sites can be summed out of a product of factors: plates, chains, and an order.

Input: relations of every factor to the sites. Every axis of a site or factor starts as a name of its own; names are made one
where a factor's axis is aligned with a site's (or, along a chain, sees a window of it). An axis of a site that some factor
mixes is enumerated jointly, and so is one that would stand twice in one array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ._engine import StrategySite
from ._layout import MAX_LANES, Layout
from ._relation import Relation
from ._sites import SiteInfo
from ._sum_product import Intractable, Unit, order_of

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
    index: dict[str, int],
    relations: Mapping[str, dict[int, Relation]],
    ranks: Mapping[str, int],
) -> Structure:
    """Find layouts and order.

    Args:
        label: of the elimination, for messages.
        sites: by index.
        index: of the factors that are the density of a site.
        relations: of the factors to the sites.
        ranks: number of axes of each factor.

    Raises:
        ValueError: too many lanes.
    """
    joint, classes = _classes(sites, relations, ranks)
    while True:
        chains = _chains(sites, relations, joint, classes)
        layouts = {i: _layout(label, i, s, joint[i], chains, relations) for i, s in sites.items()}
        free = {
            i: tuple(classes[(i, a)] for a in range(len(s.sizes)) if a not in joint[i])
            for i, s in sites.items()
        }
        labels = {
            n: free[index[n]] if n in index else tuple(classes[(n, a)] for a in range(ranks[n]))
            for n in relations
        }
        try:
            units = _units(sites, relations, layouts, free, classes)
            factors = [(frozenset(r), frozenset(labels[n])) for n, r in relations.items() if r]
            order, largest = order_of(factors, units, layouts)
        except Intractable as stuck:
            site = sites[stuck.site]
            joint[stuck.site] |= {
                a
                for a in range(len(site.sizes))
                if a not in joint[stuck.site] and classes[(stuck.site, a)] in stuck.axes
            }
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
    classes: Mapping[Axis, str],
) -> dict[int, tuple[int, int]]:
    """Chain -> (time axis, memory); a second axis along which its elements meet becomes joint."""
    chains: dict[int, tuple[int, int]] = {}
    for i, site in sites.items():
        for a in range(len(site.sizes)):
            lags = [r[i][a].lag for r in relations.values() if i in r]
            if a in joint[i] or not any(lags):
                continue
            if i in chains:
                joint[i].add(a)
            else:
                chains[i] = a, max(lag for lag in lags if lag is not None)
    changed = True
    while changed:  # chains that meet share one memory
        changed = False
        for r in relations.values():
            for i in r.keys() & chains.keys():
                met = [
                    j
                    for j in r
                    if j in chains and _time(j, chains, classes) == _time(i, chains, classes)
                ]
                lag = max(chains[j][1] for j in met)
                changed |= any(chains[j][1] != lag for j in met)
                chains.update({j: (chains[j][0], lag) for j in met})
    return chains


def _time(i: int, chains: Mapping[int, tuple[int, int]], classes: Mapping[Axis, str]) -> str:
    return classes[(i, chains[i][0])]


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
    sites: dict[int, StrategySite],
    relations: Mapping[str, dict[int, Relation]],
    layouts: dict[int, Layout],
    free: dict[int, tuple[str, ...]],
    classes: Mapping[Axis, str],
) -> list[Unit]:
    """Single sites, and the chains that meet along one axis.

    Raises:
        Intractable: chains that meet have different axes.
    """
    groups = {i: {i} for i in sites}
    time = {i: classes[(i, n.axis)] if n.axis is not None else None for i, n in layouts.items()}
    for r in relations.values():
        for i in r:
            for j in r:
                if time[i] is not None and time[i] == time[j]:
                    union = groups[i] | groups[j]
                    for k in union:
                        groups[k] = union
    units = []
    for group in {frozenset(g) for g in groups.values()}:
        shared = frozenset.intersection(*(frozenset(free[i]) for i in group))
        for i in group:
            if frozenset(free[i]) != shared:
                raise Intractable(i, frozenset(free[i]) - shared)
        units.append(Unit(group, shared, time[min(group)]))
    return sorted(units, key=lambda u: min(u.sites))

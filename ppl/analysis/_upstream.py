"""Relations between sites: what a site's distribution depends on, directly and through other sites."""

from __future__ import annotations

from collections.abc import Mapping

from .._compat import Atom, Var
from ..jaxprs import Analysis, Relations, compose, join, mixed
from ..strategies import StrategySite


def relations_of(facts: Analysis, atom: Atom, sites: dict[int, StrategySite]) -> Relations:
    """Relations of a variable to the elements of sites (axes of single events dropped, region axes in the outside order)."""
    out: Relations = {}
    for source, relation in facts[atom].relations.items():
        if isinstance(source, int):
            order = axis_order(sites[source])
            out[source] = tuple(relation[i] for i in order)
    return out


def axis_order(site: StrategySite) -> list[int]:
    """Position in the marker's layout (times, particles, elements) of each outside axis of a site (regions, elements)."""
    regions = [r for r in site.regions if r.axis is not None]
    inner = [i for i, r in enumerate(regions) if r.kind == "scan"] + [
        i for i, r in enumerate(regions) if r.kind != "scan"
    ]
    return [inner.index(i) for i in range(len(regions))] + [
        len(regions) + i for i in range(len(site.shape))
    ]


def direct_relations(
    sites: dict[int, StrategySite], log_probs: Mapping[int, Var], facts: Analysis
) -> dict[int, Relations]:
    """Relations of each site's distribution to the sites that it depends on directly."""
    direct: dict[int, Relations] = {}
    for index, site in sites.items():
        relations = relations_of(facts, log_probs[index], sites)
        parameters = facts.parameters[index].relations
        own = relations.pop(index, None)
        # The log-prob sees the site's own value. What else it sees of the site itself reaches it through a
        # scan carry.
        if index in parameters and own is not None:
            relations[index] = own
        for source in parameters:
            if isinstance(source, int) and source not in relations:
                relations[source] = tuple(
                    mixed(f"parameters of '{site.address}'") for _ in sites[source].sizes
                )  # type: ignore[index]
        direct[index] = relations
    return direct


def closed_relations(direct: dict[int, Relations]) -> dict[int, Relations]:
    """Relations of each site's distribution to all that is upstream, directly or through others of these sites."""
    closed = {i: dict(r) for i, r in direct.items()}
    changed = True
    while changed:
        changed = False
        for index in closed:
            new = through_sites(direct[index], closed)
            if new != closed[index]:
                closed[index], changed = new, True
    return closed


def through_sites(relations: Relations, upstream: dict[int, Relations]) -> Relations:
    """Add what the sites in `relations` depend on themselves."""
    indirect = (
        {source: compose(outer, inner)}
        for middle, outer in relations.items()
        for source, inner in upstream.get(middle, {}).items()  # type: ignore[call-overload]
    )
    return join([relations, *indirect])

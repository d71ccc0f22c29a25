"""Which sites are chains, how far back they are seen, and which of them share one recursion.

`ppl.eliminate` takes for a chain what every factor sees a window of, and lets the order of elimination decide what else has to
be joined (`_structure.py`). Within an expectation each number is an elimination of its own (`chains_within`): along the way
to it a site may mix what it reads directly, and no order mends that, so the relations through other sites count too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ..jaxprs import Link, Relation, Relations, aligned, join
from ..strategies import StrategySite
from ._layout import mixing

Chains = dict[int, tuple[int, int]]  # site -> (time axis, memory)


@dataclasses.dataclass(frozen=True)
class Dependences:
    """Relations of the terms, and of the numbers of each site, to the sites.

    Attributes:
        terms: closed over all sites, per term.
        sites: closed over all sites, per site.
        direct_terms: up to the nearest enumerated sites, per term.
        direct_sites: up to the nearest enumerated sites, per number that is read of a site (log-prob, local numbers).
    """

    terms: list[Relations]
    sites: dict[int, Relations]
    direct_terms: list[Relations]
    direct_sites: dict[int, list[Relations]]

    def uses(self, index: int) -> list[Relation]:
        """How the terms depend on a site."""
        return [r[index] for r in self.terms if index in r]


def is_fully_enumerated(site: StrategySite) -> bool:
    """Whether the site is enumerated over its support."""
    return site.strategy.is_enumerated and not site.strategy.is_weighted


def is_sampled(site: StrategySite) -> bool:
    """Whether the site has a surrogate of its own."""
    return not site.strategy.is_pathwise and not site.strategy.is_enumerated


def memory_of(uses: Iterable[Relation], axis: int, length: int) -> int | Link:
    """How many steps back a site is seen along an axis of some length; or a link that is no window."""
    links = [u[axis] for u in uses]
    for link in links:
        if link.kind == "mixed" or link.lag is None:
            return link
    return min(max((link.lag or 0 for link in links), default=0), length - 1)


def recursions(
    meeting: Iterable[Collection[int]], chains: Chains, among: Collection[int]
) -> list[list[int]]:
    """The chains `among` all that end up in one recursion, group by group; these get one memory.

    They meet in one of the sets, or through other sites of these sets, which have to be summed out before.
    """
    groups: list[set[int]] = []
    for new in map(set, meeting):
        met = [g for g in groups if g & new]
        groups = [g for g in groups if not g & new] + [new.union(*met)]
    members = [sorted(g & set(among)) for g in groups if g & set(among)]
    for group in members:
        lag = max(chains[i][1] for i in group)
        chains.update({i: (chains[i][0], lag) for i in group})
    return members


def meeting(site: StrategySite, uses: list[Relation]) -> list[int]:
    """Element axes along which elements meet."""
    is_met = lambda link, size: link.kind == "mixed" or (link.kind == "causal" and size > 1)
    return [i for i, size in enumerate(site.sizes) if any(is_met(u[i], size) for u in uses)]


class _Reader(NamedTuple):
    """Numbers of a term or site, in words; their relations, closed and direct."""

    what: str
    closed: Relations
    direct: list[Relations]
    site: int | None = None


def chains_within(
    sites: Mapping[int, StrategySite], known: Dependences
) -> tuple[Chains, dict[int, str]]:
    """The chains within an expectation; and why the other sites whose times meet are none."""
    axes: dict[int, int] = {}
    reasons: dict[int, str] = {}
    readers = [
        _Reader("a cost", closed, [direct])
        for closed, direct in zip(known.terms, known.direct_terms, strict=True)
    ]
    for index, site in sites.items():
        uses = known.uses(index)
        if site.strategy.is_pathwise or not uses:
            continue
        own: Relations = {index: tuple(aligned(a) for a in range(len(site.sizes)))}
        closed, direct = join([own, known.sites[index]]), known.direct_sites[index]
        readers.append(_Reader(f"site '{site.address}'", closed, direct, index))
        if not is_fully_enumerated(site):
            continue
        times = [i for i in meeting(site, uses) if _is_time(site, i)]
        found = [i for i in times if all(u[i].kind != "mixed" for u in uses)]
        if found:
            axes[index] = found[0]
        elif times:
            why = mixing(uses, times[:1])
            reasons[index] = f"a cost is not a sum over the steps ({why}); return one cost a step"
    while True:  # what meets the steps of a site that is no chain is none either
        memory = {i: _memory(i, sites[i], axes, readers, known) for i in axes}
        failed = {i: why for i, why in memory.items() if isinstance(why, str)}
        if not failed:
            break
        reasons |= failed
        axes = {i: axis for i, axis in axes.items() if i not in failed}
    chains: Chains = {i: (axes[i], lag) for i, lag in memory.items() if isinstance(lag, int)}
    recursions([chains.keys() & r.closed.keys() for r in readers], chains, chains)
    return chains, reasons


def _memory(
    index: int,
    site: StrategySite,
    axes: Mapping[int, int],
    readers: Iterable[_Reader],
    known: Dependences,
) -> int | str:
    """How many steps back anything depends on a site along its time axis; or why it is no chain."""
    axis, lags = axes[index], [0]
    for what, closed, direct, other in readers:
        if index not in closed:
            continue
        at = closed[index][axis].axis
        if not isinstance(at, int):
            return f"{what} depends on several steps ({closed[index][axis].why})"
        if other is not None and axes.get(other) != at:
            if any(u[at].kind != "aligned" for u in known.uses(other)):
                return f"the steps of {what}, which depends on it, meet"
        if any(y in closed and closed[y][a].axis != at for y, a in axes.items()):
            return f"chains of different scans meet in {what}"
        uses = [r[index] for r in direct if index in r]
        lag = memory_of(uses, axis, site.sizes[axis])
        if isinstance(lag, Link) or any(u[axis].axis != at for u in uses):
            why = lag.why if isinstance(lag, Link) else ""
            return f"{what} depends on all earlier steps ({why or 'carried along'})"
        lags.append(lag)
    return max(lags)


def _is_time(site: StrategySite, axis: int) -> bool:
    """Whether an element axis is that of a scan."""
    regions = [r.kind for r in site.regions if r.axis is not None]
    return axis < len(regions) and regions[axis] == "scan"

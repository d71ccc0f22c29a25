"""Which sites are chains, how far back they are seen, and which of them share one recursion.

`ppl.eliminate` takes for a chain what every factor sees a window of, and lets the order of elimination decide what else has to
be joined (`_total.py`). Within an expectation each number is an elimination of its own (`chains_within`): on the way to it a
site may mix what reads a chain, and no order mends that, so the relations through other sites count too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..jaxprs import Link, Relation, Relations
from ..strategies import StrategySite
from ._layout import mixing

Chains = dict[int, tuple[int, int]]  # site -> (time axis, memory)


class Reader(NamedTuple):
    """Numbers of a term (`site` is None) or of a site, and how they depend on sites.

    Attributes:
        what: in words.
        closed: through all other sites; a site's with itself, element by element.
        direct: up to the nearest enumerated sites, per number.
        site: its index.
    """

    what: str
    closed: Relations
    direct: Sequence[Relations]
    site: int | None = None


def is_fully_enumerated(site: StrategySite) -> bool:
    """Whether the site is enumerated over its support."""
    return site.strategy.is_enumerated and not site.strategy.is_weighted


def is_sampled(site: StrategySite) -> bool:
    """Whether the site has a surrogate of its own."""
    return not site.strategy.is_pathwise and not site.strategy.is_enumerated


def uses_of(index: int, readers: Iterable[Reader]) -> list[Relation]:
    """How terms depend on a site."""
    return [r.closed[index] for r in readers if r.site is None and index in r.closed]


def memory_of(uses: Iterable[Relation], axis: int, length: int) -> int | Link:
    """How many steps back a site is seen along an axis of some length; or a link that is no window."""
    lags = [0]
    for link in (u[axis] for u in uses):
        if link.lag is None:
            return link
        lags.append(link.lag)
    return min(max(lags), length - 1)


def recursions(met: Iterable[Collection[int]], chains: Chains, among: set[int]) -> list[list[int]]:
    """The chains `among` all that end up in one recursion, group by group; these get one memory.

    They meet in one of the sets, or through other sites of these sets, which have to be summed out before.
    """
    groups: list[set[int]] = []
    for new in map(set, met):
        new = new.union(*(g for g in groups if g & new))
        groups = [g for g in groups if not g & new] + [new]
    members = [sorted(g & among) for g in groups if g & among]
    for group in members:
        lag = max(chains[i][1] for i in group)
        chains.update({i: (chains[i][0], lag) for i in group})
    return members


def meeting(site: StrategySite, uses: list[Relation]) -> list[int]:
    """Element axes along which elements meet."""
    is_met = lambda link, size: link.kind == "mixed" or (link.kind == "causal" and size > 1)
    return [i for i, size in enumerate(site.sizes) if any(is_met(u[i], size) for u in uses)]


def chains_within(
    sites: Mapping[int, StrategySite], readers: Sequence[Reader]
) -> tuple[Chains, dict[int, str]]:
    """The chains within an expectation; and why the other sites whose times meet are none."""
    readers = [r for r in readers if r.site is None or uses_of(r.site, readers)]
    axes: dict[int, int] = {}
    reasons: dict[int, str] = {}
    for index in (r.site for r in readers if r.site is not None):
        site, uses = sites[index], uses_of(index, readers)
        if not is_fully_enumerated(site):
            continue
        kinds = [r.kind for r in site.regions if r.axis is not None]
        times = [i for i in meeting(site, uses) if kinds[i : i + 1] == ["scan"]]
        windows = [i for i in times if all(u[i].kind != "mixed" for u in uses)]
        if windows:
            axes[index] = windows[0]
        elif times:
            why = mixing(uses, times[:1])
            reasons[index] = f"a cost is not a sum over the steps ({why}); return one cost a step"
    while True:  # what meets the steps of a site that is no chain is none either
        memory = {i: _memory(i, sites[i], axes, readers) for i in axes}
        failed = {i: why for i, why in memory.items() if isinstance(why, str)}
        if not failed:
            break
        reasons |= failed
        axes = {i: axis for i, axis in axes.items() if i not in failed}
    chains: Chains = {i: (axes[i], lag) for i, lag in memory.items() if isinstance(lag, int)}
    recursions([axes.keys() & r.closed.keys() for r in readers], chains, set(axes))
    return chains, reasons


def _memory(
    index: int, site: StrategySite, axes: Mapping[int, int], readers: Sequence[Reader]
) -> int | str:
    """How many steps back anything depends on a site along its time axis; or why it is no chain."""
    axis, lags = axes[index], [0]
    for what, closed, direct, other in readers:
        if index not in closed:
            continue
        # The axis of the reader along which its elements go with the steps of the chain.
        at = closed[index][axis].axis
        if not isinstance(at, int):
            return f"{what} depends on several steps ({closed[index][axis].why})"
        # A reader that is a site, and no chain of the same scan, joins the steps of all that read it in turn.
        if other is not None and axes.get(other) != at:
            if any(u[at].kind != "aligned" for u in uses_of(other, readers)):
                return f"the steps of {what}, which depends on it, meet"
        if any(y in closed and closed[y][a].axis != at for y, a in axes.items()):
            return f"chains of different scans meet in {what}"
        # Direct uses alone tell the lag: 1 for what sees the step before; indirect ones add up along the chain.
        uses = [r[index] for r in direct if index in r]
        lag = memory_of(uses, axis, site.sizes[axis])
        if isinstance(lag, Link) or any(u[axis].axis != at for u in uses):
            why = lag.why if isinstance(lag, Link) else ""
            return f"{what} depends on all earlier steps ({why or 'carried along'})"
        lags.append(lag)
    return max(lags)

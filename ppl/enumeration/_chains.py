"""What both planners need to know of chains: how far back they are seen, and which share one recursion."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..jaxprs import Link, Relation

Chains = dict[int, tuple[int, int]]  # site -> (time axis, memory)


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
    members = [sorted(g & set(among)) for g in groups]
    members = [m for m in members if m]
    for group in members:
        lag = max(chains[i][1] for i in group)
        chains.update({i: (chains[i][0], lag) for i in group})
    return members

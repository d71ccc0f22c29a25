"""Replays: elements of a site that meet in one cost are run again one by one, with the other values at their draw."""

from __future__ import annotations

import math

from ..enumeration import MAX_STATES, mixing
from ..jaxprs import Relation, Relations
from ..strategies import StrategyError, StrategySite


def replay_axes(
    site: StrategySite, index: int, upstream: dict[int, Relations], *, together: bool
) -> tuple[int, ...]:
    """Element axes along which elements that meet are replayed one by one.

    `together`: only those along which one element can depend on another. These are times of scans, and none where
    the site does not depend on itself: elements of one statement are independent given all that is upstream.
    """
    if not together:
        return tuple(range(len(site.sizes)))
    if index not in upstream[index]:
        return ()
    regions = [r for r in site.regions if r.axis is not None]
    return tuple(i for i, r in enumerate(regions) if r.kind == "scan")


def replay_groups(
    site: StrategySite, index: int, relations: list[Relations], axes: tuple[int, ...]
) -> dict[tuple[int, ...], list[int]]:
    """Terms that depend on a site, by those of `axes` along which elements meet and are replayed one by one."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for j, term in enumerate(relations):
        if index in term:
            links = enumerate(term[index])
            joint = tuple(
                i for i, link in links if i in axes and link.kind != "aligned" and site.sizes[i] > 1
            )
            groups.setdefault(joint, []).append(j)
    return groups


def check_replay(site: StrategySite, joint: tuple[int, ...], uses: list[Relation]) -> None:
    """Refuse to replay too many elements one by one."""
    elements = math.prod(site.sizes[i] for i in joint)
    if elements > MAX_STATES:
        raise StrategyError(
            site.name,
            f"Site '{site.address}': strategy '{site.strategy.name}' would replay {elements} elements one by "
            f"one, because they meet in one cost: {mixing(uses, joint)}. Let the costs separate by row, or use "
            "'reinforce'.",
        )

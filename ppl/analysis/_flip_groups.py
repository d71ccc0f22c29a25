"""Which elements of a decision (`strategies/_boundary.py`) are replayed together."""

from __future__ import annotations

import math

from ..jaxprs import Relations, join
from ..strategies import Decision, StrategySite
from ._replay import check_replay, replay_groups


def flip_groups(
    site: StrategySite, index: int, relations: list[Relations]
) -> dict[tuple[int, ...], list[int]]:
    """Terms that depend on a decision, by the element axes along which its elements are replayed one by one.

    By row, the site and the peers are replaced with it, so that these count as well. Else every element is replayed alone.
    """
    decision = site.strategy
    assert isinstance(decision, Decision)
    axes = tuple(range(len(site.sizes)))
    if not decision.is_by_row:
        members = [j for j, r in enumerate(relations) if index in r]
        return {axes: members} if members else {}
    replaced = [index, decision.site, *(p.index for p in decision.peers)]
    together = [
        join({index: r[i]} for i in replaced if i in r) if index in r else {} for r in relations
    ]
    return replay_groups(site, index, together, axes)


def check_flips(site: StrategySite, index: int, relations: list[Relations]) -> None:
    """Refuse too many replays.

    Raises:
        StrategyError: more than `MAX_STATES`.
    """
    for joint, members in flip_groups(site, index, relations).items():
        check_replay(site, joint, [relations[j][index] for j in members])


def num_flips(site: StrategySite, index: int, relations: list[Relations]) -> int:
    """How many elements are replayed one by one."""
    groups = flip_groups(site, index, relations)
    return max([1, *(math.prod(site.sizes[i] for i in joint) for joint in groups)])

"""Enumeration within an expectation: which sites are enumerated how, and in whose dimensions any one number is needed.

Terms
- Along its enumeration dimension a site's values are forced. What is computed there therefore depends on an enumerated site
  only as far as the traced program reaches it without passing through another one: its *direct* dependence. Terms and
  log-probs are evaluated in the dimensions of these sites only; those further up are summed out of the product of
  probabilities, one by one (`_weights.py`).
- A *chain* is a site in a scan along whose time everything reaches back a bounded number of steps, directly.

Invariant: with all enumerated sites forced, every number that is read is a function of the windows that its dimensions show.
The sums are therefore those of the joint enumeration of all paths, reordered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ..evaluation import Layout
from ..jaxprs import Link, Relation, Relations
from ..strategies import StrategyError, StrategySite
from ._chains import Chains, memory_of, recursions
from ._layout import Asker, check_together, layout_of, mixing, size_of
from ._order import Unit, order_of

STRATEGY = Asker(
    "strategy 'enum'",
    "Let the costs separate by row or by step, or use 'mvd' or 'reinforce', e.g. strategies={{'{name}': 'mvd'}}.",
    "Use 'mvd' or 'reinforce' for some of them, e.g. strategies={{'{name}': 'mvd'}}.",
    lambda site, text: StrategyError(site.name, text),
)


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


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """Sets of enumerated sites, in whose dimensions numbers are evaluated.

    Attributes:
        read: per term, those in whose dimensions it is evaluated.
        kept: per term, those in whose dimensions sampled sites meet it; all others are summed out.
        sites: per site, those in whose dimensions its numbers are evaluated.
    """

    read: list[frozenset[int]]
    kept: list[frozenset[int]]
    sites: dict[int, frozenset[int]]


def is_fully_enumerated(site: StrategySite) -> bool:
    """Whether the site is enumerated over its support."""
    return site.strategy.is_enumerated and not site.strategy.is_weighted


def is_sampled(site: StrategySite) -> bool:
    """Whether the site has a surrogate of its own."""
    return not site.strategy.is_pathwise and not site.strategy.is_enumerated


def layouts_of(sites: dict[int, StrategySite], known: Dependences) -> dict[int, Layout]:
    """The layout of every enumerated site with something downstream.

    Raises:
        StrategyError: too many states.
    """
    chains, reasons = _chains(sites, known)
    layouts = {}
    for index, site in sites.items():
        uses = known.uses(index)
        if not site.strategy.is_enumerated or not uses:
            continue
        time = chains[index][0] if index in chains else None
        joint = [i for i in _meeting(site, uses) if i != time]
        why = mixing(uses, joint)
        if index in reasons:
            why += f"; no forward recursion, since {reasons[index]}"
        layouts[index] = layout_of(site, joint, chains.get(index), why, STRATEGY)
    return layouts


def dimensions_of(
    sites: dict[int, StrategySite], known: Dependences, layouts: dict[int, Layout]
) -> Dimensions:
    """In whose dimensions everything is evaluated.

    A term stays in the dimensions of a sampled site that it depends on, whose surrogate meets it there.

    Raises:
        StrategyError: too many states at once.
    """

    def enumerated(sources: Collection[Any]) -> frozenset[int]:
        return frozenset(s for s in sources if s in layouts)

    def met(sources: Collection[Any], at: Mapping[int, frozenset[int]]) -> frozenset[int]:
        """Dimensions of the sampled sites among `sources`."""
        sampled = [s for s in sources if isinstance(s, int) and is_sampled(sites[s])]
        return frozenset().union(*(at[s] for s in sampled))

    own = {i: enumerated({i}.union(*reads)) for i, reads in known.direct_sites.items()}
    # Replays force sampled sites in their own dimensions, so what is computed from them has these at least.
    at_sites = {
        i: own[i] | met(frozenset().union(*reads), own) for i, reads in known.direct_sites.items()
    }
    read = [enumerated(direct) | met(direct, at_sites) for direct in known.direct_terms]
    kept = [r | met(closed, at_sites) for r, closed in zip(read, known.terms, strict=True)]
    targets = list(zip(known.terms, kept, strict=True))
    targets += [(known.sites[i], at_sites[i]) for i in at_sites if is_sampled(sites[i])]
    for closed, keep in targets:
        _, largest = elimination(closed, keep, layouts, at_sites)
        check_together(largest, sites, layouts, STRATEGY)
    return Dimensions(read, kept, at_sites)


def elimination(
    closed: Collection[Any],
    keep: Collection[int],
    layouts: Mapping[int, Layout],
    at_sites: Mapping[int, frozenset[int]],
) -> tuple[list[Unit], frozenset[int]]:
    """The order in which the sites in `closed` that are not kept are summed out, and the largest set that meets on the way.

    The probabilities of all chains stand as one factor, that of their windows.
    """
    upstream = [i for i in closed if i in layouts]
    factors = [at_sites[i] for i in upstream if not layouts[i].is_chain]
    chains = [at_sites[i] for i in upstream if layouts[i].is_chain]
    factors += [frozenset().union(*chains)] if chains else []
    gone = sorted(frozenset().union(*factors) - frozenset(keep))
    units = [Unit(frozenset({i})) for i in gone]
    order, largest = order_of([(f, frozenset()) for f in factors], units, layouts)
    return order, max(frozenset(keep), largest, key=lambda s: size_of(s, layouts))


def _chains(sites: dict[int, StrategySite], known: Dependences) -> tuple[Chains, dict[int, str]]:
    """The chains; and why the other sites whose times meet are none."""
    axes: dict[int, int] = {}
    reasons: dict[int, str] = {}
    for index, site in sites.items():
        uses = known.uses(index)
        if not is_fully_enumerated(site) or not uses:
            continue
        times = [i for i in _meeting(site, uses) if _region(site, i) == "scan"]
        found = [i for i in times if all(u[i].kind != "mixed" for u in uses)]
        if found:
            axes[index] = found[0]
        elif times:
            reasons[index] = (
                f"a cost is not a sum over the steps ({mixing(uses, times[:1])}); return one cost a step"
            )
    while True:  # what meets the steps of a site that is no chain is none either
        memory = {i: _memory(i, axes, sites, known) for i in axes}
        failed = {i: why for i, why in memory.items() if isinstance(why, str)}
        if not failed:
            break
        reasons |= failed
        axes = {i: axis for i, axis in axes.items() if i not in failed}
    chains: Chains = {i: (axes[i], lag) for i, lag in memory.items() if isinstance(lag, int)}
    recursions(
        [chains.keys() & closed.keys() for closed in [*known.terms, *known.sites.values()]],
        chains,
        chains,
    )
    return chains, reasons


def _memory(
    index: int, axes: Mapping[int, int], sites: dict[int, StrategySite], known: Dependences
) -> int | str:
    """How many steps back anything depends on a site along its time axis; or why it is no chain."""
    axis, uses = axes[index], []

    def reach(what: str, direct: list[Relations], closed: Relations, at: Any) -> str:
        """Check that numbers are windows of this chain and all others along axis `at`."""
        if any(y in closed and closed[y][i].axis != at for y, i in axes.items()):
            return f"chains of different scans meet in {what}"
        found = [r[index] for r in direct if index in r]
        uses.extend(found)
        link = memory_of(found, axis, sites[index].sizes[axis])
        if isinstance(link, Link) or any(u[axis].axis != at for u in found):
            why = link.why if isinstance(link, Link) else ""
            return f"{what} depends on all earlier steps ({why or 'carried along'})"
        return ""

    for closed, direct in zip(known.terms, known.direct_terms, strict=True):
        if index in closed:
            failure = reach("a cost", [direct], closed, closed[index][axis].axis)
            if failure:
                return failure
    for other, site in sites.items():
        closed = known.sites[other]
        if site.strategy.is_pathwise or not known.uses(other):
            continue
        if other != index and index not in closed:
            continue
        at = axis if other == index else closed[index][axis].axis
        name = f"site '{site.address}'"
        if not isinstance(at, int):
            return f"{name} depends on several steps ({closed[index][axis].why})"
        if other != index:
            if any(u[at].kind != "aligned" for u in known.uses(other)) and axes.get(other) != at:
                return f"the steps of {name}, which depends on it, meet"
            if any(
                index in r and r[other][at].axis != r[index][axis].axis
                for r in known.terms
                if other in r
            ):
                return f"a cost of {name} runs along another axis"
        failure = reach(name, known.direct_sites[other], closed, at)
        if failure:
            return failure
    lag = memory_of(uses, axis, sites[index].sizes[axis])
    assert isinstance(lag, int)
    return lag


def _meeting(site: StrategySite, uses: list[Relation]) -> list[int]:
    """Element axes along which elements meet."""
    return [
        i
        for i, size in enumerate(site.sizes)
        if any(u[i].kind == "mixed" or (u[i].kind == "causal" and size > 1) for u in uses)
    ]


def _region(site: StrategySite, axis: int) -> str | None:
    """The kind of region that an element axis belongs to."""
    regions = [r.kind for r in site.regions if r.axis is not None]
    return regions[axis] if axis < len(regions) else None

"""How enumerated sites are laid out in lanes, and how little of that any one number needs.

Terms
- *Listed* sites are enumerated over their support: in a lane their values are forced. What is computed in a lane
  therefore depends on a listed site only as far as the traced program reaches it without passing through another listed
  site: its *open* relations. Terms and log-probs are evaluated in the lanes of their open sites only; the listed sites
  further up are summed out of the product of probabilities, one by one (`_weights.py`).
- A *chain* is a listed site in a scan along whose time everything reaches back at most `lag` steps (open relations). Its
  element t is then forced to digit t mod (lag + 1) of the lane's number, so that (number of states)^(lag + 1) lanes show every
  number under every window z[t - lag], ..., z[t], for all t at once; a forward recursion gives the windows'
  probabilities.

Invariant: with all listed sites forced, every number that is read is a function of the windows that its lane shows. The sums
below are therefore those of the joint enumeration of all paths, reordered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from ..evaluation import Layout
from ..jaxprs import Link, Relation, Relations
from ..strategies import StrategyError, StrategySite

MAX_LANES = 65_536


@dataclasses.dataclass(frozen=True)
class Dependences:
    """Relations of the terms, and of the numbers of each site, to the sites.

    Attributes:
        terms: closed over all sites, per term.
        sites: closed over all sites, per site.
        open_terms: up to the nearest listed sites, per term.
        open_sites: up to the nearest listed sites, per number that is read of a site (log-prob, local numbers).
    """

    terms: list[Relations]
    sites: dict[int, Relations]
    open_terms: list[Relations]
    open_sites: dict[int, list[Relations]]

    def uses(self, index: int) -> list[Relation]:
        """How the terms depend on a site."""
        return [r[index] for r in self.terms if index in r]


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Sets of enumerated sites, in whose lanes numbers are evaluated.

    Attributes:
        read: per term, those in whose lanes it is evaluated.
        kept: per term, those in whose lanes sampled sites meet it; all others are summed out.
        sites: per site, those in whose lanes its numbers are evaluated.
    """

    read: list[frozenset[int]]
    kept: list[frozenset[int]]
    sites: dict[int, frozenset[int]]


def is_listed(site: StrategySite) -> bool:
    """Whether the site is enumerated over its support."""
    return site.strategy.is_enumerated and not site.strategy.is_weighted


def is_sampled(site: StrategySite) -> bool:
    """Whether the site has a surrogate of its own."""
    return not site.strategy.is_pathwise and not site.strategy.is_enumerated


def layouts_of(sites: dict[int, StrategySite], known: Dependences) -> dict[int, Layout]:
    """The layout of every enumerated site with something downstream.

    Raises:
        StrategyError: too many lanes.
    """
    chains, reasons = _chains(sites, known)
    layouts = {}
    for index, site in sites.items():
        uses = known.uses(index)
        if not site.strategy.is_enumerated or not uses:
            continue
        axis, lag = chains.get(index, (None, 0))
        joint = tuple(i for i in _meeting(site, uses) if i != axis)
        elements = math.prod(site.sizes[i] for i in joint)
        assert site.num_values is not None
        why = mixing(uses, joint) if joint else ""
        if index in reasons:
            why += f"; no forward recursion, since {reasons[index]}"
        if elements * (lag + 1) * math.log(site.num_values) > math.log(MAX_LANES):
            raise StrategyError(
                site.name,
                f"Site '{site.address}': strategy 'enum' would need {site.num_values}^{elements * (lag + 1)} lanes, "
                f"because {elements} elements (of shape {site.sizes}) meet in one cost: {why}. Let the costs separate "
                f"by row or by step, or use 'mvd' or 'reinforce', e.g. strategies={{'{site.name}': 'mvd'}}.",
            )
        states = site.num_values**elements
        layouts[index] = Layout(joint, states ** (lag + 1), states, axis, lag, why)
    return layouts


def lanes_of_terms(
    sites: dict[int, StrategySite], known: Dependences, layouts: dict[int, Layout]
) -> Lanes:
    """In whose lanes everything is evaluated.

    A term stays in the lanes of a sampled site that it depends on, whose surrogate meets it there.

    Raises:
        StrategyError: too many lanes at once.
    """

    def listed(sources: Collection[Any]) -> frozenset[int]:
        return frozenset(s for s in sources if s in layouts)

    def met(sources: Collection[Any], at: Mapping[int, frozenset[int]]) -> frozenset[int]:
        """Lanes of the sampled sites among `sources`."""
        sampled = [s for s in sources if isinstance(s, int) and is_sampled(sites[s])]
        return frozenset().union(*(at[s] for s in sampled))

    own = {i: listed({i}.union(*reads)) for i, reads in known.open_sites.items()}
    # Replays force sampled sites in their own lanes, so what is computed from them has these lanes at least.
    at_sites = {
        i: own[i] | met(frozenset().union(*reads), own) for i, reads in known.open_sites.items()
    }
    read = [listed(opened) | met(opened, at_sites) for opened in known.open_terms]
    kept = [r | met(closed, at_sites) for r, closed in zip(read, known.terms, strict=True)]
    targets = list(zip(known.terms, kept, strict=True))
    targets += [(known.sites[i], at_sites[i]) for i in at_sites if is_sampled(sites[i])]
    for closed, lanes in targets:
        _, largest = elimination(closed, lanes, layouts, at_sites)
        count = math.prod(layouts[i].num_lanes for i in largest)
        if count > MAX_LANES:
            last = max(largest)
            names = [sites[i].address for i in sorted(largest)]
            raise StrategyError(
                sites[last].name,
                f"Site '{sites[last].address}': strategy 'enum' would need {count} lanes, because the enumerated sites "
                f"{names} meet in one cost. Use 'mvd' or 'reinforce' for some of them, e.g. "
                f"strategies={{'{sites[last].address}': 'mvd'}}.",
            )
    return Lanes(read, kept, at_sites)


def elimination(
    closed: Collection[Any],
    keep: Collection[int],
    layouts: Mapping[int, Layout],
    at_sites: Mapping[int, frozenset[int]],
) -> tuple[list[int], frozenset[int]]:
    """The order in which the sites in `closed` that are not kept are summed out, and the largest set of lanes on the way.

    Greedy: the site whose factors span the fewest lanes first. The log-probs of chains stand as one factor.
    """
    upstream = [i for i in closed if i in layouts]
    factors = merged([at_sites[i] for i in upstream], [layouts[i].is_chain for i in upstream])
    order: list[int] = []
    largest = frozenset(keep)
    size = lambda lanes: math.prod(layouts[i].num_lanes for i in lanes)
    for factor in factors:
        largest = max(largest, factor, key=size)
    left = {i for f in factors for i in f} - set(keep)
    while left:
        spans = {i: frozenset().union(*(f for f in factors if i in f)) for i in left}
        index = min(left, key=lambda i: (size(spans[i]), i))
        largest = max(largest, spans[index], key=size)
        factors = [f for f in factors if index not in f] + [spans[index] - {index}]
        left.remove(index)
        order.append(index)
    return order, max(largest, frozenset().union(*factors), key=size)


def merged(lanes: list[frozenset[int]], is_chain: list[bool]) -> list[frozenset[int]]:
    """The lanes of the factors once all chains are joined into one (the last)."""
    plain = [f for f, c in zip(lanes, is_chain, strict=True) if not c]
    chains = [f for f, c in zip(lanes, is_chain, strict=True) if c]
    return plain + ([frozenset().union(*chains)] if chains else [])


def mixing(uses: list[Relation], axes: Collection[int]) -> str:
    """Why the elements of a site do not separate along `axes`, in words."""
    reasons = {
        u[i].why or "a scan carry (later steps depend on earlier ones)"
        for u in uses
        for i in axes
        if u[i].kind != "aligned"
    }
    return ", ".join(sorted(reasons)) or "unknown"


# Chains.


def _chains(
    sites: dict[int, StrategySite], known: Dependences
) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
    """Chain -> (time axis, memory); and why the other sites whose times meet are none."""
    axes: dict[int, int] = {}
    reasons: dict[int, str] = {}
    for index, site in sites.items():
        uses = known.uses(index)
        if not is_listed(site) or not uses:
            continue
        times = [i for i in _meeting(site, uses) if _region(site, i) == "scan"]
        for i in times:
            if all(u[i].kind != "mixed" for u in uses):
                axes[index] = i
                break
        if times and index not in axes:
            reasons[index] = (
                f"a cost is not a sum over the steps ({mixing(uses, times[:1])}); return one cost a step"
            )
    memory: dict[int, int] = {}
    while True:
        memory.clear()
        failed = {}
        for index, axis in axes.items():
            found = _memory(index, axis, axes, sites, known)
            if isinstance(found, str):
                failed[index] = found
            else:
                memory[index] = found
        if not failed:
            break
        for index in failed:
            axes.pop(index)
        reasons.update(failed)
    # Chains that meet share one recursion, hence one memory.
    changed = True
    while changed:
        changed = False
        for closed in [*known.terms, *known.sites.values()]:
            met = [i for i in memory if i in closed]
            longest = max((memory[i] for i in met), default=0)
            changed |= any(memory[i] != longest for i in met)
            memory.update(dict.fromkeys(met, longest))
    return {i: (axes[i], memory[i]) for i in axes}, reasons


def _memory(
    index: int,
    axis: int,
    axes: Mapping[int, int],
    sites: dict[int, StrategySite],
    known: Dependences,
) -> int | str:
    """How many steps back anything depends on the site along its time axis; or why it is no chain."""
    lags = [0]

    def reach(what: str, relations: list[Relations], at: Any) -> str | None:
        """Check that `relations` are windows along axis `at`."""
        for relation in relations:
            if index not in relation:
                continue
            link: Link = relation[index][axis]
            if link.kind == "mixed" or link.axis != at or link.lag is None:
                return f"{what} depends on all earlier steps ({link.why or 'carried along'})"
            lags.append(link.lag)
        return None

    for closed, opened in zip(known.terms, known.open_terms, strict=True):
        if index in closed:
            at = closed[index][axis].axis
            if any(y in closed and closed[y][i].axis != at for y, i in axes.items()):
                return "chains of different scans meet in one cost"
            failure = reach("a cost", [opened], at)
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
        if any(y in closed and closed[y][i].axis != at for y, i in axes.items()):
            return f"chains of different scans meet in {name}"
        failure = reach(name, known.open_sites[other], at)
        if failure:
            return failure
    return max(lags)


def _meeting(site: StrategySite, uses: list[Relation]) -> list[int]:
    """Element axes along which elements meet."""
    return [i for i in range(len(site.sizes)) if any(u[i].kind != "aligned" for u in uses)]


def _region(site: StrategySite, axis: int) -> str | None:
    """The kind of region that an element axis belongs to."""
    regions = [r.kind for r in site.regions if r.axis is not None]
    return regions[axis] if axis < len(regions) else None

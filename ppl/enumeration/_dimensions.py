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
from ..strategies import StrategyError, StrategySite
from ._chains import Dependences, chains_within, is_sampled, meeting
from ._layout import Asker, check_together, layout_of, mixing, size_of
from ._order import Unit, order_of

STRATEGY = Asker(
    "strategy 'enum'",
    elements="Let the costs separate by row or by step, or use 'mvd' or 'reinforce', e.g. strategies={{'{name}': 'mvd'}}.",
    sites="Use 'mvd' or 'reinforce' for some of them, e.g. strategies={{'{name}': 'mvd'}}.",
    error=lambda site, text: StrategyError(site.name, text),
)


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


def layouts_of(sites: dict[int, StrategySite], known: Dependences) -> dict[int, Layout]:
    """The layout of every enumerated site with something downstream.

    Raises:
        StrategyError: too many states.
    """
    chains, reasons = chains_within(sites, known)
    layouts = {}
    for index, site in sites.items():
        uses = known.uses(index)
        if not site.strategy.is_enumerated or not uses:
            continue
        time, _ = chains.get(index, (None, 0))
        joint = [i for i in meeting(site, uses) if i != time]
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

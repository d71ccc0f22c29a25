"""What an expectation needs: in whose enumeration dimensions each number is evaluated, and with which probabilities.

Along its dimension an enumerated site's values are forced. What is computed there depends on an enumerated site only as far as
the traced program reaches it without passing through another one: its *direct* dependence. Terms and log-probs are evaluated
in the dimensions of these sites only; those further up are summed out of the product of probabilities, one by one.

`ppl.eliminate` multiplies the same factors (`_total.py`), with two differences:

- The factors are conditional probabilities here, so what is not upstream of a number sums to one and is left out, later steps
  of a chain too. Windows are kept at all steps, where a total needs the last one only.
- Each number is an elimination of its own, whose axes stay. An element of it sees one element of each site along every axis
  that is not joint, so there are no products over rows, and an axis of a site may be another one in each number.

Invariant: with all enumerated sites forced, every number that is read is a function of the windows that its dimensions show.
The sums are therefore those of the joint enumeration of all paths, reordered.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..evaluation import Layout, Split, begun, chains_of
from ..jaxprs import Relations
from ..strategies import StrategyError, StrategySite
from ._chains import Reader, chains_within, is_sampled, meeting, uses_of
from ._factors import Factor, aligned, ordered, product, sum_out
from ._forward import windows
from ._layout import Asker, check_together, layout_of, mixing, size_of
from ._order import Unit, order_of
from ._semirings import Probabilities

Array = jax.Array
Sites = frozenset[int]
PROBABILITIES = Probabilities()
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

    read: list[Sites]
    kept: list[Sites]
    sites: dict[int, Sites]


def layouts_of(sites: dict[int, StrategySite], readers: Sequence[Reader]) -> dict[int, Layout]:
    """The layout of every enumerated site with something downstream.

    Raises:
        StrategyError: too many states.
    """
    chains, reasons = chains_within(sites, readers)
    layouts = {}
    for index, site in sites.items():
        uses = uses_of(index, readers)
        if site.strategy.is_enumerated and uses:
            time, _ = chains.get(index, (None, 0))
            joint = [i for i in meeting(site, uses) if i != time]
            why = mixing(uses, joint)
            if index in reasons:
                why += f"; no forward recursion, since {reasons[index]}"
            layouts[index] = layout_of(site, joint, chains.get(index), why, STRATEGY)
    return layouts


def dimensions_of(
    sites: dict[int, StrategySite], readers: Sequence[Reader], layouts: dict[int, Layout]
) -> Dimensions:
    """In whose dimensions everything is evaluated.

    A term stays in the dimensions of a sampled site that it depends on, whose surrogate meets it there.

    Raises:
        StrategyError: too many states at once.
    """

    def enumerated(sources: Collection[Any]) -> Sites:
        return frozenset(s for s in sources if s in layouts)

    def met(sources: Collection[Any], at: Mapping[int, Sites]) -> Sites:
        """Dimensions of the sampled sites among `sources`."""
        sampled = [s for s in sources if isinstance(s, int) and is_sampled(sites[s])]
        return frozenset().union(*(at[s] for s in sampled))

    terms = [r for r in readers if r.site is None]
    direct = {r.site: frozenset().union(*r.direct) for r in readers if r.site is not None}
    own = {i: enumerated({i} | sources) for i, sources in direct.items()}
    # Replays force sampled sites in their own dimensions, so what is computed from them has these at least.
    at_sites = {i: own[i] | met(sources, own) for i, sources in direct.items()}
    read = [enumerated(r) | met(r, at_sites) for t in terms for r in t.direct]
    kept = [r | met(t.closed, at_sites) for r, t in zip(read, terms, strict=True)]
    targets = [(t.closed, k) for t, k in zip(terms, kept, strict=True)]
    targets += [
        (r.closed, at_sites[r.site])
        for r in readers
        if r.site in at_sites and is_sampled(sites[r.site])
    ]
    for closed, keep in targets:
        _, largest = elimination(closed, keep, layouts, at_sites)
        check_together(largest, sites, layouts, STRATEGY)
    return Dimensions(read, kept, at_sites)


def elimination(
    closed: Collection[PyTree],
    keep: Sites,
    layouts: Mapping[int, Layout],
    at_sites: Mapping[int, Sites],
) -> tuple[list[Unit], Sites]:
    """The order in which the sites in `closed` that are not kept are summed out, and the largest set that meets on the way.

    The probabilities of all chains stand as one factor, that of their windows.
    """
    upstream = [i for i in closed if i in layouts]
    # What multiplies what: a factor is the set of sites in whose dimensions a probability stands, own site included.
    chains = [at_sites[i] for i in upstream if layouts[i].is_chain]
    factors = [at_sites[i] for i in upstream if not layouts[i].is_chain]
    factors.append(frozenset().union(*chains))
    units = [Unit(frozenset({i})) for i in frozenset().union(*factors) - keep]
    order, largest = order_of([(f, frozenset()) for f in factors], units, layouts)
    return order, max(keep, largest, key=lambda s: size_of(s, layouts))


def _once(make: Callable[..., Factor]) -> Callable[..., Factor]:
    """A method whose results are kept by its arguments (in the instance: a cache around it would outlive tracing)."""

    @functools.wraps(make)
    def made(self: StateWeights, *of: int | tuple[Factor | int, ...]) -> Factor:
        name = make.__name__, *of
        if name not in self.made:
            self.made[name] = make(self, *of)
        return self.made[name]

    return made


class StateWeights:
    """Probabilities of the states of terms and sites; what several of them sum out is summed once.

    Args:
        layouts: of the enumerated sites, by index.
        at_sites: the sites in whose dimensions the numbers of a site are, by index.
        others: dimensions of no site: of replicates, of replays.
        probabilities: enumerated site -> its probabilities [its dimensions and the others, elements].
        start: chain -> the state in which it begins, where that is known.
    """

    def __init__(
        self,
        layouts: Mapping[int, Layout],
        at_sites: Mapping[int, Sites],
        others: Sequence[int],
        probabilities: Mapping[int, Array | Split],
        start: Mapping[int, int],
    ) -> None:
        self.layouts, self.at_sites, self.probabilities = layouts, at_sites, probabilities
        self.others, self.start = frozenset(others), start
        self.made: dict[Any, Factor] = {}

    def of(self, closed: Relations, keep: Sites, num_axes: int) -> PyTree:
        """Weights [kept dimensions and the others, axes (1 where equal)] of an array that relates to sites by `closed`.

        They may be split along the first of the axes. None where there is no enumerated site.
        """
        upstream: list[int] = sorted(i for i in closed if i in self.layouts)  # type: ignore[misc]
        if not upstream:
            return None
        axes = tuple(range(num_axes))
        # Each site's probabilities with their element axes named after the axes of the array that they are aligned with.
        free = lambda i: [a for a in range(len(closed[i])) if a not in self.layouts[i].joint]
        placed = {i: self._placed(i, tuple(closed[i][a].axis for a in free(i))) for i in upstream}
        chains = [i for i in upstream if self.layouts[i].is_chain]
        factors = [f for i, f in placed.items() if i not in chains]
        # All chains upstream run along one axis of the array: their conditional probabilities are multiplied, and a forward
        # recursion makes the probabilities of windows of them.
        if chains:
            time: Any = closed[chains[0]][self.layouts[chains[0]].axis].axis  # type: ignore[index]
            order = (time, *(a for a in axes if a != time))
            factors.append(self._windows(tuple(placed[i] for i in chains), order))
        # w(kept states) = sum over the states of the others of the product of all probabilities, one site after the other.
        units, _ = elimination(closed, keep, self.layouts, self.at_sites)
        for unit in units:
            met = tuple(f for f in factors if f.sites & unit.sites)
            factors = [f for f in factors if f not in met]
            factors.append(self._summed(met, axes, unit.sites))
        weight = self._product(tuple(factors), axes)
        return aligned(weight, keep | self.others, axes, self.layouts, _first(axes))

    @_once
    def _placed(self, index: int, axes: tuple[int, ...]) -> Factor:
        """A site's probabilities, with the names `axes` of the axes that are not joint."""
        sites = self.at_sites[index] | self.others
        own, array = ordered(sites), self.probabilities[index]
        if isinstance(array, Split) and not self.layouts[index].is_chain:
            # Only chains tell which of the states at step 0 count.
            array = begun(array, chains_of(own, self.layouts))
        gone = [len(own) + a for a in self.layouts[index].joint]
        return Factor(sites, axes, jax.tree.map(lambda x: jnp.squeeze(x, gone), array))

    @_once
    def _windows(self, factors: tuple[Factor, ...], axes: tuple[int, ...]) -> Factor:
        """The windows' probabilities of chains that run along the first of the axes."""
        steps = self._product(factors, axes)
        own = ordered(steps.sites)
        array = windows(steps.array, chains_of(own, self.layouts), len(own), self.start)
        return dataclasses.replace(steps, array=array)

    @_once
    def _product(self, factors: tuple[Factor, ...], axes: tuple[int, ...]) -> Factor:
        return product(factors, axes, self.layouts, PROBABILITIES, _first(axes))

    @_once
    def _summed(self, factors: tuple[Factor, ...], axes: tuple[int, ...], sites: Sites) -> Factor:
        return sum_out(self._product(factors, axes), sites, self.layouts, PROBABILITIES)


def _first(axes: Sequence[int]) -> int | None:
    return axes[0] if axes else None

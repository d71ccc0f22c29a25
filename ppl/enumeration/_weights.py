"""Probabilities of enumerated states within an expectation: products of the sites' own, summed over what is not shown.

Input: for each enumerated site upstream of a number, its probabilities in the dimensions of the sites that it depends on
directly. Output: the probability of what is kept, for each element of the number. `ppl.eliminate` asks the same of the same
factors, orders and recursion (`_sum_product.py`), but for two things:

- The factors are conditional probabilities here, so what is not upstream of a number sums to one, and is left out, later steps of a
  chain too. Windows of all steps are kept, where a total needs the last only.
- Each number is an elimination of its own, and its axes stay. An element of it sees one element of each site along every axis
  that is not joint, so there are no products over rows, and an axis of a site may be another one in each number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..evaluation import Layout, Split, begun, chains_of
from ..jaxprs import Relation, Relations
from ._dimensions import elimination
from ._factors import Factor, aligned, ordered, product, sum_out
from ._forward import windows
from ._semirings import Probabilities

Array = jax.Array
PROBABILITIES = Probabilities()


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
        at_sites: Mapping[int, frozenset[int]],
        others: Sequence[int],
        probabilities: Mapping[int, Array | Split],
        start: Mapping[int, int],
    ) -> None:
        self.layouts, self.at_sites, self.probabilities = layouts, at_sites, probabilities
        self.others = frozenset(others)
        self.start = start
        self.made: dict[Any, Factor] = {}

    def of(self, closed: Relations, keep: frozenset[int], num_axes: int) -> Any:
        """Weights [kept dimensions and the others, axes (1 where equal)] of an array that relates to sites by `closed`.

        They may be split along the first of the axes. None where there is no enumerated site.
        """
        upstream: list[int] = sorted(i for i in closed if i in self.layouts)  # type: ignore[misc]
        if not upstream:
            return None
        axes = tuple(range(num_axes))
        placed = {i: self._placed(i, closed[i]) for i in upstream}
        chains = [i for i in upstream if self.layouts[i].is_chain]
        factors = [f for i, f in placed.items() if i not in chains]
        if chains:
            time = closed[chains[0]][self.layouts[chains[0]].axis].axis  # type: ignore[index]
            factors.append(self._windows([placed[i] for i in chains], time, axes))
        order, _ = elimination(closed, keep, self.layouts, self.at_sites)
        for unit in order:
            met = [f for f in factors if f.sites & unit.sites]
            factors = [f for f in factors if not f.sites & unit.sites]
            factors.append(self._summed(self._product(met, axes), unit.sites))
        weight, first = self._product(factors, axes), next(iter(axes), None)
        return aligned(weight, keep | self.others, axes, self.layouts, first)

    def _once(self, name: Hashable, make: Callable[[], Factor]) -> Factor:
        """A factor by what it is made of; factors in a name are told by their identity, for each is made once."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def _placed(self, index: int, relation: Relation) -> Factor:
        """A site's probabilities, with the axes of an array that relates to it by `relation`."""
        joint, sites = self.layouts[index].joint, self.at_sites[index] | self.others
        axes = tuple(link.axis for i, link in enumerate(relation) if i not in joint)

        def make() -> Factor:
            own, array = ordered(sites), self.probabilities[index]
            if isinstance(array, Split) and not self.layouts[index].is_chain:
                # Only chains tell which of the states at step 0 count.
                array = begun(array, chains_of(own, self.layouts))
            gone = [len(own) + i for i in joint]
            return Factor(sites, axes, jax.tree.map(lambda x: jnp.squeeze(x, gone), array))

        return self._once((index, axes), make)

    def _windows(self, factors: Sequence[Factor], time: Any, axes: tuple[int, ...]) -> Factor:
        """The windows' probabilities of chains that run along one axis."""
        steps = self._product(factors, (time, *(a for a in axes if a != time)))

        def make() -> Factor:
            own = ordered(steps.sites)
            array = windows(steps.array, chains_of(own, self.layouts), len(own), self.start)
            return steps._replace(array=array)

        return self._once((id(steps), "windows"), make)

    def _product(self, factors: Sequence[Factor], axes: tuple[int, ...]) -> Factor:
        make = lambda: product(factors, axes, self.layouts, PROBABILITIES, next(iter(axes), None))
        return self._once((frozenset(map(id, factors)), axes), make)

    def _summed(self, factor: Factor, sites: frozenset[int]) -> Factor:
        make = lambda: sum_out(factor, sites, self.layouts, PROBABILITIES)
        return self._once((id(factor), sites), make)

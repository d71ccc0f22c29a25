"""The terms of an objective in all states of enumerated sites, times the probabilities of the states.

For a term c_j with coefficient a_j and a joint state v of the sites whose dimensions it is kept in, a weighted term is

    w_v a_j c_j(v).

w_v is the probability of v, differentiable: the product of the probabilities of all enumerated sites on which the term
depends, summed over the states of the others (`enumeration/_expectation.py`).

Axis order of every array here: replicates, enumeration dimensions (by site index), then the axes of the term or of the
site's elements. In a `Split`, the first of the latter (time, or rows) comes before all others.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from ..analysis import Analysed
from ..enumeration import StateWeights
from ..evaluation import (
    Forced,
    Invariants,
    Split,
    agreed,
    begun,
    by_parts,
    chains_of,
    close_windows,
    is_on,
    open_windows,
    spread,
    total_of,
    whole_at,
)
from ..strategies import stop
from ._reading import REPLICATE, Dims, ValueReader

Array = jax.Array


class Terms:
    """The terms of an analysed program, at given inputs and noise.

    Args:
        program: the analysed program.
        inputs: leaves of the parameters.
        key: random key; it decides all noise.
        invariants: values that do not depend on replaced sites, computed once for several evaluations; None: made here,
            or, with replicates, not used.
    """

    def __init__(
        self,
        program: Analysed,
        inputs: Sequence[PyTree],
        key: Array,
        invariants: Invariants | None = None,
    ) -> None:
        self.program, self.inputs, self.key = program, list(inputs), key
        self.replicates: Dims = (REPLICATE,) if program.num_replicates > 1 else ()
        keys = jax.random.split(key, program.num_replicates) if self.replicates else key
        if invariants is None and not self.replicates and is_on("invariants"):
            invariants = Invariants(
                program.closed, [*inputs, key], is_lazy=bool(program.layouts) and is_on("numbers")
            )
        self.reader = ValueReader(program, self.inputs, keys, self.replicates, invariants)

    def fixed(self) -> Terms:
        """These terms without derivatives in the parameters.

        The derivative of a score is not left out: `Costs.slope` takes it in the value that replaces the site's draw.
        """
        program = dataclasses.replace(self.program, scores=frozenset())
        invariants = self.reader.invariants
        fixed = invariants and invariants.fixed()
        return Terms(program, [stop(x) for x in self.inputs], self.key, fixed)

    def dims(self, enumerated: Collection[int]) -> Dims:
        """The dimension of replicates, if there is one, and those of enumerated sites by index."""
        return self.replicates + tuple(sorted(enumerated))

    def result(self) -> Array:
        """The program's scalar result at the sites' own draws, averaged over replicates."""
        value = self.reader.evaluate(self.replicates, [self.program.result])[0]
        return value.mean() if self.replicates else value

    def total(self) -> Array:
        """The sum of all weighted terms over states and replicates, for programs in which no site has a surrogate."""
        terms, _ = self._weighted({}, range(len(self.program.terms)))
        return sum(map(total_of, terms.values()), jnp.zeros(()))

    def weighted(
        self,
        forced: dict[int, tuple[Forced, Forced]],
        which: object,
        wanted: Sequence[int] = (),
        extra: Dims = (),
    ) -> tuple[dict[int, Array], dict[int, tuple[PyTree, Array]]]:
        """Weighted terms by index, and the numbers of sites with the weights of the states in which they were computed.

        Args:
            forced: site -> (replacement of its value, the same tree with the dimensions of each part).
            which: indices of terms.
            wanted: indices of sites.
            extra: dimensions of no site, such as those of replays.

        Returns:
            term -> array [replicates, the dimensions it is kept in, extra ones, its axes], where terms with the same
            relations, dimensions and shape are summed at the index of the first; site -> (numbers, weight), both
            [replicates, its dimensions, extra ones, elements], where numbers are what `Strategy.local` returned, and
            probabilities that may be 0.
        """
        terms, local = self._weighted(forced, which, wanted, extra)
        kept = {j: self.dims(self.program.dimensions.kept[j]) + extra for j in terms}
        return {j: self._whole(t, kept[j]) for j, t in terms.items()}, {
            i: self._whole(found, self.dims(self.program.dimensions.sites[i]) + extra)
            for i, found in local.items()
        }

    def _whole(self, tree: PyTree, dims: Dims) -> PyTree:
        """A tree with each `Split` in it replaced by the array [dimensions, time, other axes]."""
        chains = chains_of(dims, self.program.layouts)
        return jax.tree.map(
            lambda x: whole_at(x, len(dims), chains) if is_split(x) else x, tree, is_leaf=is_split
        )

    def _weighted(
        self,
        forced: dict[int, tuple[Forced, Forced]],
        which: Any,
        wanted: Sequence[int] = (),
        extra: Dims = (),
    ) -> tuple[dict[int, PyTree], dict[int, tuple[PyTree, PyTree]]]:
        """What `weighted` returns, some of the arrays as `Split`."""
        program = self.program
        # Enumerated sites that a term or a wanted site depends on: only their probabilities are needed.
        targets = [program.relations[j] for j in which] + [
            program.site_relations[i] for i in wanted
        ]
        enumerated = sorted({i for t in targets for i in t if i in program.layouts})  # type: ignore[misc]
        # What to evaluate and in which dimensions: c_j and the factors of its coefficient in the dimensions that c_j
        # reads; the numbers of a site in the dimensions of the enumerated sites upstream of it.
        items: dict[tuple[str, int], tuple[Dims, list[Any]]] = {}
        for j in which:
            factors = [f.atom for _, path in program.terms[j].paths for f in path]
            items["term", j] = (
                self.dims(program.dimensions.read[j]),
                [program.terms[j].variable, *factors],
            )
        for i in enumerated:
            numbers = program.numbers[i]
            atoms = [*(numbers.local or [numbers.log_prob]), numbers.active]
            items["weight", i] = self.dims(program.dimensions.sites[i]), atoms
        for i in wanted:
            items["site", i] = (
                self.dims(program.dimensions.sites[i]),
                list(program.numbers[i].local),
            )
        values, start = self._agreed(items, self.reader.read(items, forced, extra), extra)
        # q_i(v_i | the states upstream of i): [replicates, dimensions of site i, extra, element axes].
        probabilities = {i: self._probabilities(i, extra, values["weight", i]) for i in enumerated}
        weights = StateWeights(
            program.layouts, program.dimensions.sites, self.replicates + extra, probabilities, start
        )
        # a_j c_j(v): [replicates, kept dimensions, extra, axes that a relation names].
        terms: dict[int, Any] = {}
        alike: dict[Any, int] = {}
        for j in which:
            dims = self.dims(program.dimensions.read[j]) + extra
            kept = self.dims(program.dimensions.kept[j]) + extra
            term = self._term(j, dims, *values["term", j])
            array = spread(self._folded(j, term, dims), dims, kept)
            # sum_j w_v c_j(v) = w_v sum_j c_j(v): terms that meet the same weights and scores are one term.
            name = (kept, frozenset(program.relations[j].items()), _shape_of(array, len(kept)))
            first = alike.setdefault(name, j)
            if first in terms:
                array = self._by_parts(operator.add, kept, terms[first], array)
            terms[first] = array
        # w_v a_j c_j(v), in the axes of a_j c_j(v); no weight where no enumerated site is upstream.
        for j, array in terms.items():
            kept = program.dimensions.kept[j]
            dims = self.dims(kept) + extra
            axes = jax.tree.leaves(array)[0].ndim - len(dims)
            weight = weights.of(program.relations[j], kept, axes)
            if weight is not None:
                terms[j] = self._expectation(dims, array, weight)
        # A wanted site's numbers count with the probability of the states upstream in which they were read.
        local: dict[int, tuple[PyTree, PyTree]] = {}
        for i in wanted:
            numbers = jax.tree.unflatten(program.numbers[i].local_tree, values["site", i])
            own, axes = program.dimensions.sites[i], len(program.sites[i].sizes)
            weight = weights.of(program.site_relations[i], own, axes)
            ndim = len(self.dims(own) + extra) + axes
            local[i] = (numbers, jnp.ones((1,) * ndim) if weight is None else weight)
        return terms, local

    def _by_parts(self, fn: Callable[..., PyTree], dims: Dims, *arrays: PyTree) -> PyTree:
        """`fn(*arrays)` of arrays [dimensions, axes], part by part where all of them are split."""
        chains = chains_of(dims, self.program.layouts)
        return by_parts(fn, *arrays, axis=len(dims), chains=chains)

    def _expectation(self, dims: Dims, cost: PyTree, weight: PyTree) -> PyTree:
        """Costs times probabilities elementwise, all [dimensions, axes]."""
        if not (is_split(cost) and is_split(weight)):
            return self._by_parts(_expected, dims, cost, weight)
        # Multiplied with windows opened into digits, as in the recursion that made the weights: with a reshape in
        # between, XLA would compute the costs twice.
        chains = chains_of(dims, self.program.layouts)
        count = max(len(cost.first), len(weight.first))
        both = (open_windows(begun(x, chains) if count else x, chains) for x in (cost, weight))
        found = by_parts(_expected, *both, axis=0)
        # At step 0, windows that do not show the known state before it have weight 0: `start` is not needed any more.
        return dataclasses.replace(close_windows(found, chains), start=())

    def _agreed(
        self, items: dict[tuple[str, int], tuple[Dims, list[PyTree]]], values: PyTree, extra: Dims
    ) -> tuple[PyTree, dict[int, int]]:
        """Item -> the values of its atoms, and site -> the state in which its chain begins in all of them."""
        chains = {
            n: chains_of(dims + extra, self.program.layouts) for n, (dims, _) in items.items()
        }
        found, start = agreed([(x, chains[n]) for n in items for x in values[n]])
        left = iter(found)
        return {n: [next(left) for _ in values[n]] for n in items}, start

    def _term(self, j: int, dims: Dims, variable: Array, *factors: Array) -> Any:
        """A term times its coefficient, a_j c_j: [dims, axes of the term]."""
        # A score log q(z) at its own draw: E[d log q] = 0, so its derivative is left out and its value stays.
        program = self.program
        variable = stop(variable) if j in program.scores else variable
        atoms = [f.atom for _, path in program.terms[j].paths for f in path]
        values = {id(a): value for a, value in zip(atoms, factors, strict=True)}
        coefficient = program.terms[j].coefficient(lambda a: values[id(a)])
        # The coefficient has the dimensions only, [dims]; the term has axes behind them, and a `Split` time in front.
        shape = jnp.shape(coefficient)
        if isinstance(variable, Split):
            shape = 1, *shape
        return jax.tree.map(
            lambda x: x * jnp.reshape(coefficient, shape + (1,) * (x.ndim - len(shape))), variable
        )

    def _folded(self, j: int, array: ArrayLike, dims: Dims) -> Any:
        """A term summed over those of its axes that no relation links to an axis of a site (those of events, say)."""
        # Scores and weights vary along linked axes only, so they are multiplied with a smaller array.
        linked = {link.axis for relation in self.program.relations[j].values() for link in relation}
        if isinstance(array, Split) and 0 not in linked:
            array = self._whole(array, dims)
        # Summed axes behind the last linked one are dropped; the others keep size 1, so that links still name the
        # right axes.
        last = max((a for a in linked if isinstance(a, int)), default=-1)

        def folded(x: Array) -> Array:
            axes = [a for a in range(x.ndim - len(dims)) if a not in linked]
            x = x.sum([len(dims) + a for a in axes if a > last])
            return x.sum([len(dims) + a for a in axes if a < last], keepdims=True)

        return jax.tree.map(folded, array)

    def _probabilities(self, index: int, extra: Dims, read: list[PyTree]) -> PyTree:
        """Probability of an enumerated site in each state: [its dimensions, element axes with size 1 where joint]."""
        site, layout = self.program.sites[index], self.program.layouts[index]
        assert site.num_values is not None
        is_given = bool(
            self.program.numbers[index].local
        )  # the probability itself, not its logarithm
        absent = 1 / site.num_values if is_given else -math.log(site.num_values)

        def probability(number: Array, active: Array) -> Array:
            active = active.reshape(active.shape + (1,) * (number.ndim - active.ndim))
            # In a branch that is not taken the cost is the same in all states of the site: any probabilities that sum
            # to one give it, and these are equal.
            number = jnp.where(active > 0, number, absent)
            # Elements enumerated jointly have one state together: its probability is the product over them.
            first = number.ndim - len(site.sizes)
            joint = tuple(first + i for i in layout.joint)
            if is_given:
                return number.prod(joint, keepdims=True)
            return jnp.exp(number.sum(joint, keepdims=True))

        dims = self.dims(self.program.dimensions.sites[index]) + extra
        number, active = read
        if is_split(number) and not is_split(active) and active.ndim == len(dims):
            active = Split([], active[None], number.length)  # alike in all rows
        return self._by_parts(probability, dims, number, active)


@jax.custom_jvp
def _expected(cost: Array, weight: Array) -> Array:
    """Costs times probabilities, 0 where the probability is 0, whatever the cost (0 log 0 = 0).

    The derivative in a probability is the cost; in a probability of 0, the cost if it is finite, else 0.
    """
    return jnp.where(weight > 0, cost, 0.0) * weight


@_expected.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> PyTree:
    (cost, weight), (d_cost, d_weight) = primals, tangents
    kept = jnp.where(weight > 0, cost, 0.0)
    felt = jnp.where((weight > 0) | jnp.isfinite(cost), cost, 0.0)
    return kept * weight, weight * d_cost + felt * d_weight


def is_split(
    x: Array
    | dict[str, Array | None]
    | tuple[Array | dict[str, Array | None] | tuple[PyTree, ...], ...]
    | None,
) -> bool:
    """Whether an array is split along time."""
    return isinstance(x, Split)


def _shape_of(array: PyTree, num_dims: int) -> PyTree:
    """The shape behind the dimensions; of a `Split`, its length comes first."""
    if isinstance(array, Split):
        return array.length, *array.rest.shape[1 + num_dims :]
    return array.shape[num_dims:]

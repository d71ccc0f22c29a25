"""The estimator: a surrogate whose value is the estimate and whose gradient is the unbiased gradient estimate.

For terms c_j of the objective, sites s with strategies and enumeration lanes v:

    surrogate = sum_j sum_v w_v c_j(v)  +  sum_s surrogate_s(numbers of s, stop(costs downstream of s))

w_v is the probability of lane v, differentiable: the product of the enumerated sites' probabilities, summed over those
that the term does not see itself (`_layout.py`). Each surrogate_s is zero in value. Terms are grouped by the
enumerated sites they see.

Axis order of every array here: replicates, enumeration lanes (by site index), then the axes of the term or of
the site's elements.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._analyse import Analysed, check_replay, replay_axes, replay_groups
from ._engine import StrategySite
from ._evaluate import Forced
from ._reading import ELEMENT, REPLICATE, Lanes, Reader
from ._relation import Relation
from ._split import (
    Split,
    agreed,
    begun,
    by_parts,
    chains_of,
    close_lanes,
    open_lanes,
    spread,
    total_of,
    whole_at,
)
from ._strategy import Downstream, stop
from ._weights import LaneWeights

Array = jax.Array


class Estimator:
    """One estimate of an analysed program.

    Args:
        program: the analysed program.
        inputs: leaves of the parameters.
        key: random key; it decides all noise.
        state: site address -> state of its strategy.
    """

    def __init__(
        self, program: Analysed, inputs: Sequence[Any], key: Array, state: dict[str, Any]
    ) -> None:
        self.program, self.inputs, self.state = program, list(inputs), state
        self.replicates: Lanes = (REPLICATE,) if program.num_replicates > 1 else ()
        self.key = jax.random.split(key, program.num_replicates) if self.replicates else key

    def surrogate(self) -> tuple[Array, dict[str, Any]]:
        """(surrogate, new state)."""
        if self.program.is_pathwise:
            value = self._reader.evaluate(self.replicates, [self.program.result])[0]
            value = value.mean() if self.replicates else value
            return value, self.state
        program = self.program
        wanted = [
            i
            for i, s in program.sites.items()
            if not s.strategy.is_pathwise and not s.strategy.is_enumerated
        ]
        wanted = [i for i in wanted if any(i in r for r in program.relations)]
        if not wanted:
            return self._total() / program.num_replicates, dict(self.state)
        terms, local = self._weighted_terms({}, range(len(program.terms)), wanted)
        total = sum((jnp.sum(t) for t in terms.values()), jnp.zeros(()))
        state = dict(self.state)
        # Replays have no derivative in the parameters, but in the value a site's own log-prob has one.
        fixed = copy.copy(self)
        fixed.inputs = [stop(x) for x in self.inputs]
        fixed.program = dataclasses.replace(program, scores=frozenset())
        for index in wanted:
            site = program.sites[index]
            numbers, weight = local[index]
            downstream = Downstream(
                cost=self._gather(index, {j: stop(t) for j, t in terms.items()}),
                weight=stop(weight),
                replay=lambda value, index=index: fixed._replay(index, value),
                replay_together=lambda value, index=index: fixed._replay(
                    index, value, together=True
                ),
                slope=lambda value, index=index: fixed._slope(index, value),
                num_replicates=program.num_replicates,
                state=self.state[site.address],
            )
            total = total + _once(jnp.sum(site.strategy.surrogate(numbers, downstream)))
            state[site.address] = jax.tree.map(
                stop, site.strategy.update(jax.tree.map(stop, numbers), downstream)
            )
        return total / program.num_replicates, state

    @property
    def _reader(self) -> Reader:
        return Reader(self.program, self.inputs, self.key, self.replicates)

    def _lanes(self, enumerated: Collection[int]) -> Lanes:
        """Replicates and the lanes of enumerated sites, in canonical order."""
        return self.replicates + tuple(sorted(enumerated))

    # Terms.

    def _total(self) -> Array:
        """The sum of all terms where no site has a surrogate."""
        terms, _ = self._split_terms({}, range(len(self.program.terms)))
        return sum(map(total_of, terms.values()), jnp.zeros(()))

    def _weighted_terms(
        self,
        forced: dict[int, tuple[Forced, Forced]],
        which: Any,
        wanted: Sequence[int] = (),
        extra: Lanes = (),
    ) -> tuple[dict[int, Array], dict[int, tuple[Any, Array]]]:
        """Terms times coefficients times lane weights, and the numbers of the `wanted` sites.

        Returns:
            term -> array [replicates, the lanes it is kept in, extra lanes, its axes], where the first of several terms with the
            same relations stands for all; site -> (numbers, weight), [replicates, its lanes, elements].
        """
        terms, local = self._split_terms(forced, which, wanted, extra)
        kept = {j: self._lanes(self.program.lanes.kept[j]) + extra for j in terms}
        return {j: self._whole(t, kept[j]) for j, t in terms.items()}, {
            i: self._whole(found, self._lanes(self.program.lanes.sites[i]) + extra)
            for i, found in local.items()
        }

    def _whole(self, tree: Any, lanes: Lanes) -> Any:
        """A tree of arrays, some of them split, as arrays."""
        chains = chains_of(lanes, self.program.layouts)
        return jax.tree.map(
            lambda x: whole_at(x, len(lanes), chains) if is_split(x) else x, tree, is_leaf=is_split
        )

    def _split_terms(
        self,
        forced: dict[int, tuple[Forced, Forced]],
        which: Any,
        wanted: Sequence[int] = (),
        extra: Lanes = (),
    ) -> tuple[dict[int, Any], dict[int, tuple[Any, Any]]]:
        """The same with times of chains left split."""
        program = self.program
        targets = [program.relations[j] for j in which] + [
            program.site_relations[i] for i in wanted
        ]
        enumerated = sorted({i for t in targets for i in t if i in program.layouts})  # type: ignore[misc]
        items: dict[tuple[str, int], tuple[Lanes, list[Any]]] = {}
        for j in which:
            factors = [f.atom for _, path in program.terms[j].paths for f in path]
            items["term", j] = (
                self._lanes(program.lanes.read[j]),
                [program.terms[j].variable, *factors],
            )
        for i in enumerated:
            atoms = [program.numbers[i].log_prob, program.numbers[i].active]
            items["weight", i] = self._lanes(program.lanes.sites[i]), atoms
        for i in wanted:
            items["site", i] = self._lanes(program.lanes.sites[i]), list(program.numbers[i].local)
        values, start = self._agreed(items, self._reader.read(items, forced, extra), extra)
        probabilities = {i: self._probabilities(i, extra, values["weight", i]) for i in enumerated}
        weights = LaneWeights(program, self.replicates, extra, probabilities, start)
        terms: dict[int, Any] = {}
        alike: dict[Any, int] = {}
        for j in which:
            lanes = self._lanes(program.lanes.read[j]) + extra
            kept = self._lanes(program.lanes.kept[j]) + extra
            term = self._term(j, lanes, *values["term", j])
            array = spread(self._folded(j, term, lanes), lanes, kept)
            # Terms that meet the same weights and scores are one term.
            name = (kept, frozenset(program.relations[j].items()), _shape_of(array, len(kept)))
            first = alike.setdefault(name, j)
            if first in terms:
                array = self._by_parts(operator.add, kept, terms[first], array)
            terms[first] = array
        for j, array in terms.items():
            kept = program.lanes.kept[j]
            lanes = self._lanes(kept) + extra
            axes = jax.tree.leaves(array)[0].ndim - len(lanes)
            weight = weights.of(program.relations[j], kept, axes)
            if weight is not None:
                terms[j] = self._expectation(lanes, array, weight)
        local: dict[int, tuple[Any, Any]] = {}
        for i in wanted:
            numbers = jax.tree.unflatten(program.numbers[i].local_tree, values["site", i])
            own, axes = program.lanes.sites[i], len(program.sites[i].sizes)
            weight = weights.of(program.site_relations[i], own, axes)
            ndim = len(self._lanes(own) + extra) + axes
            local[i] = (numbers, jnp.ones((1,) * ndim) if weight is None else weight)
        return terms, local

    def _by_parts(self, fn: Any, lanes: Lanes, *arrays: Any) -> Any:
        """`by_parts` of arrays [lanes, axes]."""
        chains = chains_of(lanes, self.program.layouts)
        return by_parts(fn, *arrays, axis=len(lanes), chains=chains)

    def _expectation(self, lanes: Lanes, cost: Any, weight: Any) -> Any:
        """Costs times probabilities, both [lanes, axes]."""
        if not (is_split(cost) and is_split(weight)):
            return self._by_parts(_expected, lanes, cost, weight)
        # In the shape that the recursion has: across a reshape XLA would compute costs twice.
        chains = chains_of(lanes, self.program.layouts)
        count = max(len(cost.first), len(weight.first))
        both = (open_lanes(begun(x, chains) if count else x, chains) for x in (cost, weight))
        found = by_parts(_expected, *both, axis=0)
        # Lanes in which the first step does not count have no weight.
        return dataclasses.replace(close_lanes(found, chains), start=())

    def _agreed(
        self, items: dict[tuple[str, int], tuple[Lanes, list[Any]]], values: Any, extra: Lanes
    ) -> tuple[Any, dict[int, int]]:
        """The values of the items' atoms such that all agree on the states in which chains begin; and these states."""
        chains = {
            n: chains_of(lanes + extra, self.program.layouts) for n, (lanes, _) in items.items()
        }
        found, start = agreed([(x, chains[n]) for n in items for x in values[n]])
        left = iter(found)
        return {n: [next(left) for _ in values[n]] for n in items}, start

    def _term(self, j: int, lanes: Lanes, variable: Any, *factors: Array) -> Any:
        """A term times its coefficient, from the values of both."""
        program = self.program
        variable = stop(variable) if j in program.scores else variable
        atoms = [f.atom for _, path in program.terms[j].paths for f in path]
        values = {id(a): value for a, value in zip(atoms, factors, strict=True)}
        coefficient = program.terms[j].coefficient(lambda a: values[id(a)])
        shape = jnp.shape(coefficient)  # lanes
        if isinstance(variable, Split):
            shape = 1, *shape
        return jax.tree.map(
            lambda x: x * jnp.reshape(coefficient, shape + (1,) * (x.ndim - len(shape))), variable
        )

    def _folded(self, j: int, array: Any, lanes: Lanes) -> Any:
        """A term summed over the axes that are no site's (events, say): weights and scores meet less.

        Such axes have size 1 then, and are gone at the end.
        """
        linked = {link.axis for relation in self.program.relations[j].values() for link in relation}
        if isinstance(array, Split) and 0 not in linked:
            array = self._whole(array, lanes)
        last = max((a for a in linked if isinstance(a, int)), default=-1)

        def folded(x: Array) -> Array:
            axes = [a for a in range(x.ndim - len(lanes)) if a not in linked]
            x = x.sum([len(lanes) + a for a in axes if a > last])
            return x.sum([len(lanes) + a for a in axes if a < last], keepdims=True)

        return jax.tree.map(folded, array)

    def _probabilities(self, index: int, extra: Lanes, read: list[Any]) -> Any:
        """Probability of an enumerated site in each lane: [its lanes, element axes with size 1 where joint]."""
        site, layout = self.program.sites[index], self.program.layouts[index]
        assert site.num_values is not None
        absent = -math.log(site.num_values)

        def probability(log_prob: Array, active: Array) -> Array:
            active = active.reshape(active.shape + (1,) * (log_prob.ndim - active.ndim))
            # A site of a branch that is not taken has no probability: spread its lanes evenly, they all hold the
            # same cost.
            log_prob = jnp.where(active > 0, log_prob, absent)
            first = log_prob.ndim - len(site.sizes)
            return jnp.exp(log_prob.sum(tuple(first + i for i in layout.joint), keepdims=True))

        lanes = self._lanes(self.program.lanes.sites[index]) + extra
        return self._by_parts(probability, lanes, *read)

    # Downstream costs.

    def _gather(
        self, index: int, terms: dict[int, Array], joint: tuple[int, ...] | None = None
    ) -> Array:
        """Sum of the terms that each element of a site can influence: [replicates, the site's lanes, elements (or 1)].

        Args:
            index: the site.
            terms: weighted terms; those that do not depend on the site are skipped.
            joint: element axes that were replayed one element at a time; the terms then have an ELEMENT lane
                axis.
        """
        site = self.program.sites[index]
        own = self._lanes(self.program.lanes.sites[index])
        total = jnp.zeros((1,) * (len(own) + len(site.sizes)))
        for j, array in terms.items():
            if index in self.program.relations[j]:
                lanes = self._lanes(self.program.lanes.kept[j])
                gone = tuple(a for a, lane in enumerate(lanes) if lane not in own)
                array = array.sum(gone)
                total = total + _to_elements(
                    array, len(own), self.program.relations[j][index], site, joint
                )
        return total

    def _replay(self, index: int, value: Array, *, together: bool = False) -> Array:
        """Downstream cost of each element with the value of a site replaced: element by element, or all at once."""
        program, site = self.program, self.program.sites[index]
        own, value = self._full(index, value)
        axes = replay_axes(site, index, program.site_relations, together=together)
        by_joint = replay_groups(site, index, program.relations, axes)
        total = jnp.zeros(())
        for joint, members in by_joint.items():
            sizes = [site.sizes[i] for i in joint]
            check_replay(site, joint, [program.relations[j][index] for j in members])
            mask = None
            if joint:
                mask = jnp.eye(math.prod(sizes), dtype=bool).reshape(
                    -1, *[n if i in joint else 1 for i, n in enumerate(site.sizes)]
                )
                mask = jnp.broadcast_to(mask, (mask.shape[0], *site.sizes))
            where = Forced(own, (ELEMENT,) if joint else None)  # type: ignore[arg-type]
            extra = (ELEMENT,) if joint else ()
            terms, _ = self._weighted_terms(
                {index: (Forced(value, mask), where)}, members, (), extra
            )
            total = total + self._gather(
                index, {j: stop(t) for j, t in terms.items()}, joint or None
            )
        return total

    def _slope(self, index: int, value: Array) -> tuple[Array, Array]:
        """Downstream cost of each element, all values replaced, and its derivative in the element's value."""
        own, value = self._full(index, value)
        members = [j for j, r in enumerate(self.program.relations) if index in r]

        def total(value: Array) -> tuple[Array, Any]:
            forced = {index: (Forced(value), Forced(own, None))}  # type: ignore[arg-type]
            terms, _ = self._weighted_terms(forced, members)
            return sum((jnp.sum(t) for t in terms.values()), jnp.zeros(())), terms

        slope, terms = jax.grad(total, has_aux=True)(value)
        return self._gather(index, terms), slope

    def _full(self, index: int, value: Array) -> tuple[Lanes, Array]:
        """The lanes that a site sits in, and a replacement of its value with all axes at full size."""
        site, own = (
            self.program.sites[index],
            self._lanes(self.program.lanes.sites[index]),
        )
        event = value.ndim - len(own) - len(site.sizes)
        shape = tuple(self._reader.size(lane, {}) for lane in own) + site.sizes
        return own, jnp.broadcast_to(value, shape + value.shape[value.ndim - event :])


@jax.custom_jvp
def _one(x: Array) -> Array:
    """1, whose derivative is refused."""
    return jnp.ones_like(x)


@_one.defjvp
def _(*_: Any) -> Any:
    raise TypeError(
        "A gradient estimate was differentiated again, but only Reparam, Implicit and Enum sites have an unbiased second "
        "derivative here. Make every site one of these, or differentiate once only."
    )


@jax.custom_jvp
def _once(x: Array) -> Array:
    """`x`, to be differentiated once: the derivative of a surrogate is an estimator, its second derivative is none."""
    return x


@_once.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] * _one(primals[0])


def _expected(cost: Array, weight: Array) -> Array:
    """Costs times probabilities. A lane of probability zero counts nothing, whatever its cost (0 log 0 = 0)."""
    return jnp.where(weight > 0, cost, 0.0) * weight


def is_split(x: Any) -> bool:
    """Whether an array is split along time."""
    return isinstance(x, Split)


def _shape_of(array: Any, num_lanes: int) -> Any:
    """Shape without lanes."""
    if isinstance(array, Split):
        return array.length, *array.rest.shape[1 + num_lanes :]
    return array.shape[num_lanes:]


def _to_elements(
    array: Array,
    num_lanes: int,
    relation: Relation,
    site: StrategySite,
    joint: tuple[int, ...] | None,
) -> Array:
    """Sum a weighted term onto the elements of a site along their links (later costs only, along causal axes)."""
    if joint:
        sizes = [site.sizes[i] for i in joint]
        array = array.reshape(array.shape[:num_lanes] + tuple(sizes) + array.shape[num_lanes + 1 :])
        num_joint = len(joint)
    else:
        num_joint = 0
    first = num_lanes + num_joint
    letters = {axis: first + axis for axis in range(array.ndim - first)}
    used: dict[int, int] = {}
    for i, link in enumerate(relation):
        if link.kind == "mixed" or link.axis in used.values():
            continue
        assert isinstance(link.axis, int)
        if link.kind == "causal":
            array = jax.lax.cumsum(array, letters[link.axis], reverse=True)
        used[i] = link.axis
    # einsum: repeated labels take the diagonal between a replayed element and the step whose later costs it
    # meets.
    labels = list(range(array.ndim))
    out = list(range(num_lanes))
    shape = list(array.shape[:num_lanes])
    for i in range(len(relation)):
        if joint and i in joint:
            own = num_lanes + joint.index(i)
            if i in used:
                labels[letters[used[i]]] = own
            out.append(own)
            shape.append(site.sizes[i])
        elif i in used:
            out.append(letters[used[i]])
            shape.append(array.shape[letters[used[i]]])
        else:
            shape.append(1)
    return jnp.einsum(array, labels, out).reshape(shape)

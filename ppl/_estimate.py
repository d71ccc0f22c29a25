"""The estimator: a surrogate whose value is the estimate and whose gradient is the unbiased gradient estimate.

For terms c_j of the objective, sites s with strategies and enumeration lanes v:

    surrogate = sum_j sum_v w_v c_j(v)  +  sum_s surrogate_s(numbers of s, stop(costs downstream of s))

w_v is the product of the enumerated sites' probabilities in lane v, differentiable; each surrogate_s is zero
in value. Sites that never meet in one term are not enumerated jointly: terms are grouped by the enumerated
sites they depend on.

Axis order of every array here: replicates, enumeration lanes (by site index), then the axes of the term or of
the site's elements.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._analyse import Analysed, axis_order, check_replay, replay_axes, replay_groups
from ._engine import StrategySite
from ._evaluate import Forced, evaluate
from ._relation import Relation
from ._strategy import Downstream, stop

Array = jax.Array
REPLICATE, ELEMENT = -1, -2
Lanes = tuple[int, ...]


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
            value = self._sweep(self.replicates, {}, [self.program.result])[0]
            value = value.mean() if self.replicates else value
            return value, self.state
        program = self.program
        wanted = [
            i
            for i, s in program.sites.items()
            if not s.strategy.is_pathwise and not s.strategy.is_enumerated
        ]
        wanted = [i for i in wanted if any(i in r for r in program.relations)]
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

    # Lanes.

    def _lanes_of(self, sites: Any) -> Lanes:
        """Replicates and the lanes of the enumerated sites among `sites`, in canonical order."""
        return self.replicates + tuple(sorted({i for i in sites if i in self.program.layouts}))

    def _sweep(
        self, lanes: Lanes, forced: dict[int, tuple[Forced, Forced]], read: list[Any]
    ) -> list[Array]:
        """Evaluate the program in every lane; outputs get the lane axes in front.

        Args:
            lanes: the lanes, outermost first.
            forced: site -> (replacement, the same tree holding each part's lanes as a tuple).
            read: atoms to return.
        """
        program = self.program
        order = {i: list(np.argsort(axis_order(program.sites[i]))) for i in forced}

        def base(key: Array, forced_values: dict[int, Forced]) -> list[Array]:
            inside = {
                i: Forced(_reorder(f.value, order[i]), _reorder(f.mask, order[i]))  # type: ignore[arg-type]
                for i, f in forced_values.items()
            }
            return evaluate(program.closed, [*self.inputs, key], inside, read)

        def level(depth: int, key: Array, values: dict[int, Forced]) -> list[Array]:
            if depth == len(lanes):
                return base(key, values)
            lane = lanes[depth]
            axes = {i: Forced(*(_axis(lane, l) for l in forced[i][1])) for i in values}
            return jax.vmap(
                lambda k, v: level(depth + 1, k, v),
                in_axes=(0 if lane == REPLICATE else None, axes),
                axis_size=self._size(lane, forced),
            )(key, values)

        return level(0, self.key, {i: f[0] for i, f in forced.items()})

    def _size(self, lane: int, forced: dict[int, tuple[Forced, Forced]]) -> int:
        if lane == REPLICATE:
            return self.program.num_replicates
        if lane == ELEMENT:
            return next(f.mask.shape[0] for f, where in forced.values() if where.mask == (ELEMENT,))  # type: ignore[union-attr]
        return self.program.layouts[lane].num_lanes

    def _enumerate(self, index: int) -> Forced:
        """All values of an enumerated site, one lane each."""
        site, layout = self.program.sites[index], self.program.layouts[index]
        sizes = [site.sizes[i] if i in layout.joint else 1 for i in range(len(site.sizes))]
        elements = math.prod(sizes)
        assert site.num_values is not None
        grid = np.indices((site.num_values,) * elements).reshape(elements, -1).T.reshape(-1, *sizes)
        values = site.support[grid]
        event = values.shape[1 + len(sizes) :]
        return Forced(jnp.broadcast_to(values, (layout.num_lanes, *site.sizes, *event)))

    # Terms.

    def _weighted_terms(
        self,
        forced: dict[int, tuple[Forced, Forced]],
        which: Any,
        wanted: Sequence[int] = (),
        extra: Lanes = (),
    ) -> tuple[dict[int, Array], dict[int, tuple[Any, Array]]]:
        """Terms times coefficients times lane weights, and the numbers of the `wanted` sites.

        Returns:
            term -> array [replicates, its lanes, extra lanes, its axes]; site -> (numbers, weight),
            [replicates, its lanes, elements].
        """
        program = self.program
        lanes_of_term = {j: self._lanes_of(program.relations[j]) for j in which}
        terms: dict[int, Array] = {}
        local: dict[int, tuple[Any, Array]] = {}
        for group in _maximal(lanes_of_term.values()):
            members = [
                j
                for j, lanes in lanes_of_term.items()
                if j not in terms and set(lanes) <= set(group)
            ]
            sites = [
                i
                for i in wanted
                if i not in local and set(self._lanes_of(program.site_relations[i])) <= set(group)
            ]
            atoms = _Atoms()
            for j in members:
                atoms.add(program.terms[j].variable)
                for _, factors in program.terms[j].paths:
                    for factor in factors:
                        atoms.add(factor.atom)
            enumerated = [i for i in group if i >= 0]
            for i in enumerated:
                atoms.add(program.numbers[i].log_prob, program.numbers[i].active)
            for i in sites:
                atoms.add(*program.numbers[i].local)
            all_lanes = group + extra
            listed = [i for i in enumerated if not program.sites[i].strategy.is_weighted]
            together = {i: (self._enumerate(i), Forced((i,), None)) for i in listed} | forced  # type: ignore[arg-type]
            values = dict(zip(atoms.ids, self._sweep(all_lanes, together, atoms.list), strict=True))

            def read(
                atom: Any,
                lanes: Lanes,
                values: dict[int, Array] = values,
                all_lanes: Lanes = all_lanes,
            ) -> Array:
                return _keep_lanes(values[id(atom)], all_lanes, lanes)

            weights = {i: self._log_weight(i, read, extra) for i in enumerated}
            for j in members:
                lanes = lanes_of_term[j] + extra
                array = read(program.terms[j].variable, lanes)
                if j in program.scores:
                    array = stop(array)
                coefficient = program.terms[j].coefficient(
                    lambda a, lanes=lanes, read=read: read(a, lanes)
                )
                coefficient = jnp.reshape(
                    coefficient,
                    jnp.shape(coefficient) + (1,) * (array.ndim - jnp.ndim(coefficient)),
                )
                array = array * coefficient
                for i in lanes_of_term[j]:
                    if i >= 0:
                        weight = jnp.exp(
                            self._place(weights[i], i, program.relations[j][i], lanes, array.ndim)
                        )
                        # A lane of probability zero counts nothing, whatever its cost (0 log 0 = 0).
                        array = jnp.where(weight > 0, array, 0.0) * weight
                terms[j] = array
            for i in sites:
                lanes = self._lanes_of(program.site_relations[i])
                numbers = jax.tree.unflatten(
                    program.numbers[i].local_tree,
                    [read(a, lanes) for a in program.numbers[i].local],
                )
                ndim = len(lanes) + len(program.sites[i].sizes)
                weight = jnp.ones((1,) * ndim)
                for e in lanes:
                    if e >= 0:
                        weight = weight * jnp.exp(
                            self._place(weights[e], e, program.site_relations[i][e], lanes, ndim)
                        )
                local[i] = (numbers, weight)
        return terms, local

    def _log_weight(self, index: int, read: Any, extra: Lanes) -> tuple[Array, Lanes]:
        """Log-probability of an enumerated site in each lane: [lanes, element axes with size 1 where joint], and its lanes."""
        program = self.program
        site, layout = program.sites[index], program.layouts[index]
        lanes = self._lanes_of([*program.site_relations[index], index]) + extra
        log_prob = read(program.numbers[index].log_prob, lanes)
        active = read(program.numbers[index].active, lanes)
        active = active.reshape(active.shape + (1,) * (log_prob.ndim - active.ndim))
        # A site of a branch that is not taken has no probability: spread its lanes evenly, they all hold the
        # same cost.
        assert site.num_values is not None
        log_prob = jnp.where(active > 0, log_prob, -math.log(site.num_values))
        axes = tuple(len(lanes) + i for i in layout.joint)
        return log_prob.sum(axes, keepdims=True), lanes

    def _place(
        self, weight: tuple[Array, Lanes], index: int, relation: Relation, lanes: Lanes, ndim: int
    ) -> Array:
        """Bring a site's log-weights to the axes (lanes, then axes) of an array that relates to it by `relation`."""
        array, own = weight
        shape = [1] * ndim
        source: list[int] = []
        target: list[int] = []
        for position, lane in enumerate(own):
            source.append(position)
            target.append(lanes.index(lane))
        for i, link in enumerate(relation):
            if i not in self.program.layouts[index].joint:
                assert isinstance(link.axis, int)
                source.append(len(own) + i)
                target.append(len(lanes) + link.axis)
        kept = array.reshape([n for a, n in enumerate(array.shape) if a in source])
        order = np.argsort(target)
        for position in target:
            shape[position] = array.shape[source[target.index(position)]]
        return jnp.transpose(kept, [int(i) for i in order]).reshape(shape)

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
        own = self._lanes_of(self.program.site_relations[index])
        total = jnp.zeros((1,) * (len(own) + len(site.sizes)))
        for j, array in terms.items():
            if index in self.program.relations[j]:
                lanes = self._lanes_of(self.program.relations[j])
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
            self._lanes_of(self.program.site_relations[index]),
        )
        event = value.ndim - len(own) - len(site.sizes)
        shape = tuple(self._size(lane, {}) for lane in own) + site.sizes
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


class _Atoms:
    """A list of distinct jaxpr atoms (literals are not hashable)."""

    def __init__(self) -> None:
        self.list: list[Any] = []
        self.ids: list[int] = []

    def add(self, *atoms: Any) -> None:
        for atom in atoms:
            if id(atom) not in self.ids:
                self.list.append(atom)
                self.ids.append(id(atom))


def _maximal(sets: Any) -> list[Lanes]:
    """The lane tuples that are contained in no other."""
    distinct = sorted(set(sets), key=len, reverse=True)
    return [a for i, a in enumerate(distinct) if not any(set(a) < set(b) for b in distinct[:i])]


def _keep_lanes(array: Array, lanes: Lanes, keep: Lanes) -> Array:
    """Drop lanes on which the array does not depend (any one serves)."""
    index = tuple(slice(None) if lane in keep else 0 for lane in lanes)
    return array[index]


def _axis(lane: int, lanes: Any) -> Any:
    """Where an array with the leading axes `lanes` is mapped by `lane`."""
    return 0 if lanes is not None and lane in lanes else None


def _reorder(x: Array | None, order: list[int]) -> Array | None:
    """From the outside axis order of a site to the marker's layout."""
    if x is None:
        return None
    return jnp.transpose(x, [int(i) for i in order] + list(range(len(order), x.ndim)))


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

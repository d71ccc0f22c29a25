"""What lies downstream of a sampled site, element by element: costs at its draw, replayed at other values, and their slopes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._precision import full_precision
from ..analysis import check_replay, replay_axes, replay_groups
from ..evaluation import Forced
from ..jaxprs import Relation, opened
from ..strategies import StrategyError, StrategySite, stop
from ._reading import ELEMENT, Dims
from ._terms import Terms

Array = jax.Array
_MOST_PARTS = 16  # sums that are looked at, the last made


class _Sum(NamedTuple):
    """The sum of some terms at a site without elements, in its dimensions."""

    own: Dims
    members: frozenset[int]
    total: Array


class Costs:
    """Costs downstream of sampled sites.

    Args:
        terms: of the program, without derivatives in its parameters.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms, self.program = terms, terms.program
        self._opened: Terms | None = None

    def gather_each(self, indices: Sequence[int], terms: dict[int, Array]) -> dict[int, Array]:
        """What `gather` returns for each of some sites, in as many additions as there are terms where sites stand in a chain."""
        sums: list[_Sum] = []
        # The last first: what it can influence is part of what those before it can.
        found = {index: self.gather(index, terms, sums=sums) for index in reversed(indices)}
        return {index: found[index] for index in indices}

    def gather(
        self,
        index: int,
        terms: dict[int, Array],
        joint: tuple[int, ...] | None = None,
        sums: list[_Sum] | None = None,
    ) -> Array:
        """Sum of the terms that each element of a site can influence: [replicates, the site's dimensions, elements (or 1)].

        Args:
            index: the site.
            terms: weighted terms; those that do not depend on the site are skipped.
            joint: element axes that were replayed one element at a time; the terms then have an ELEMENT dimension
                axis.
            sums: of subsets of these terms, to be begun with; this one is added.
        """
        site = self.program.sites[index]
        own = self.terms.dims(self.program.dimensions.sites[index])
        total = jnp.zeros((1,) * (len(own) + len(site.sizes)))
        members = frozenset(j for j in terms if index in self.program.relations[j])
        begun: frozenset[int] = frozenset()
        is_whole = not site.sizes  # its one element is influenced by a term or not
        if sums and is_whole:
            parts = [s for s in sums[-_MOST_PARTS:] if s.own == own and s.members <= members]
            part = max(parts, key=lambda s: len(s.members), default=None)
            begun, total = (begun, total) if part is None else (part.members, part.total)
        for j in sorted(members - begun):
            dims = self.terms.dims(self.program.dimensions.kept[j])
            # Weights hold the probabilities of states: E over enumerated sites that this one does not see is a sum.
            gone = tuple(a for a, dim in enumerate(dims) if dim not in own)
            array = terms[j].sum(gone)
            total = total + _to_elements(
                array, len(own), self.program.relations[j][index], site, joint
            )
        if sums is not None and is_whole:
            sums.append(_Sum(own, members, total))
        return total

    def replay(self, index: int, value: Array, *, together: bool = False) -> Array:
        """Downstream cost of each element with the value of a site replaced: element by element, or all at once."""
        program, site = self.program, self.program.sites[index]
        own, value = self.full(index, value)
        axes = replay_axes(site, index, program.site_relations, together=together)
        by_joint = replay_groups(site, index, program.relations, axes)
        total = jnp.zeros(())
        for joint, members in by_joint.items():
            sizes = [site.sizes[i] for i in joint]
            check_replay(site, joint, [program.relations[j][index] for j in members])
            mask = None
            # One row of the mask for each joint element: the replay of row e replaces element e and keeps all others.
            if joint:
                mask = jnp.eye(math.prod(sizes), dtype=bool).reshape(
                    -1, *[n if i in joint else 1 for i, n in enumerate(site.sizes)]
                )
                mask = jnp.broadcast_to(mask, (mask.shape[0], *site.sizes))
            where = Forced(own, (ELEMENT,) if joint else None)  # type: ignore[arg-type]
            extra = (ELEMENT,) if joint else ()
            terms, _ = self.terms.weighted(
                {index: (Forced(value, mask), where)}, members, (), extra
            )
            total = total + self.gather(
                index, {j: stop(t) for j, t in terms.items()}, joint or None
            )
        return total

    def slope(self, index: int, value: Array) -> tuple[Array, Array]:
        """Downstream cost of each element, all values replaced, and its derivative in the element's value.

        Both are of one function: where the program stops gradients or has others of its own, its value is differentiated.
        """
        own, value = self.full(index, value)
        members = [j for j, r in enumerate(self.program.relations) if index in r]
        true = self._with_true_derivatives()

        def total(value: Array) -> tuple[Array, PyTree]:
            forced = {index: (Forced(value), Forced(own, None))}  # type: ignore[arg-type]
            terms, _ = true.weighted(forced, members)
            return sum((jnp.sum(t) for t in terms.values()), jnp.zeros(())), terms

        try:
            slope, terms = jax.grad(total, has_aux=True)(value)
        except (ValueError, TypeError, NotImplementedError) as err:
            if true is self.terms:
                raise
            raise _without_derivative(self.program.sites[index], err) from err
        return self.gather(index, terms), slope

    def _with_true_derivatives(self) -> Terms:
        if self._opened is None:
            closed, terms = opened(self.program.closed), self.terms
            if closed is self.program.closed:
                self._opened = terms
            else:
                program = dataclasses.replace(self.program, closed=closed)
                self._opened = Terms(program, terms.inputs, terms.key, terms.reader.invariants)
        return self._opened

    def full(self, index: int, value: Array, own: Dims | None = None) -> tuple[Dims, Array]:
        """The dimensions that a site stands in (or `own`), and a replacement of its value with all axes at full size."""
        site = self.program.sites[index]
        own = self.terms.dims(self.program.dimensions.sites[index]) if own is None else own
        event = value.ndim - len(own) - len(site.sizes)
        shape = tuple(self.terms.reader.size(dim, {}) for dim in own) + site.sizes
        return own, jnp.broadcast_to(value, shape + value.shape[value.ndim - event :])


def _without_derivative(site: StrategySite, err: Exception) -> StrategyError:
    return StrategyError(
        site.name,
        f"Site '{site.address}': strategy '{site.strategy.name}' differentiates the cost at relaxed values, but a function "
        f"with a custom derivative downstream has none of its own ({type(err).__name__}: {str(err).splitlines()[0]}). Use "
        f"'disarm', 'mvd' or 'reinforce', e.g. strategies={{'{site.name}': 'mvd'}}.",
    )


@full_precision
def _to_elements(
    array: Array,
    num_dims: int,
    relation: Relation,
    site: StrategySite,
    joint: tuple[int, ...] | None,
) -> Array:
    """Sum a weighted term onto the elements of a site along their links (later costs only, along causal axes)."""
    if joint:
        sizes = [site.sizes[i] for i in joint]
        array = array.reshape(array.shape[:num_dims] + tuple(sizes) + array.shape[num_dims + 1 :])
        num_joint = len(joint)
    else:
        num_joint = 0
    # array [dims, replayed elements, axes of the term]; a letter for each axis. A link says which axis of the term shows the
    # site's element axis i: aligned ones are kept, causal ones are summed from each step on, all others summed out.
    first = num_dims + num_joint
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
    out = list(range(num_dims))
    shape = list(array.shape[:num_dims])
    for i in range(len(relation)):
        if joint and i in joint:
            own = num_dims + joint.index(i)
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

"""The values of a program's variables along the enumeration dimensions that they need.

Input: items, each a list of variables and the dimensions along which they are wanted. Items share sweeps: one evaluation serves
all items whose dimensions it has.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from .._compat import Var
from ..analysis import Analysed
from ..enumeration import ELEMENT, REPLICATE
from ..evaluation import Apply, Forced, Invariants, at_dims, is_on, optimised
from ._sweep import Sweep

Array = jax.Array
Dims = tuple[int, ...]
Item = tuple[Dims, list[Any]]
# Site -> (replacement, the same tree holding each part's dimensions as a tuple).
Replaced = Mapping[int, tuple[Forced, Forced]]


@dataclasses.dataclass(frozen=True)
class ValueReader:
    """Evaluate an analysed program.

    Attributes:
        program: the analysed program.
        inputs: leaves of the parameters.
        key: random key; several for replicates.
        replicates: the dimension of replicates, if there is one.
        invariants: what several evaluations share; None where replicates differ in it.
    """

    program: Analysed
    inputs: Sequence[Any]
    key: Array
    replicates: Dims
    invariants: Invariants | None

    def read(
        self, items: Mapping[PyTree, Item], forced: Replaced, extra: Dims
    ) -> dict[PyTree, list[PyTree]]:
        """The values of each item's atoms along the item's dimensions (and the extra ones), some of them split."""
        values: dict[Any, list[Any]] = {}
        for group in _maximal(dims for dims, _ in items.values()):
            members = _within(group, items, values)
            # By id: literals are not hashable.
            atoms = {id(atom): atom for _, wanted in members.values() for atom in wanted}
            swept = self._run(self._sweep(group + extra, forced), list(atoms.values()))
            found = dict(zip(atoms, swept, strict=True))
            if any(dim != REPLICATE for dim in group + extra):
                found |= _kept_for_all(found, members)
            for name, (dims, wanted) in members.items():
                shown = group + extra, dims + extra
                values[name] = [_kept(found[id(a)], *shown) for a in wanted]
        return values

    def evaluate(self, dims: Dims, read: list[Var]) -> list[Array]:
        """The values of variables along dimensions, outermost first."""
        return self._run(self._sweep(dims, {}), read)

    def size(self, dim: int, forced: Replaced) -> int:
        """The length of a dimension."""
        if dim == REPLICATE:
            return self.program.num_replicates
        if dim == ELEMENT:
            return next(f.mask.shape[0] for f, where in forced.values() if where.mask == (ELEMENT,))  # type: ignore[union-attr]
        return self.program.layouts[dim].size

    def _sweep(self, dims: Dims, forced: Replaced) -> Sweep:
        """A sweep of all dimensions; enumerated sites among them take all their values.

        A replaced site with a dimension that is not among `dims` is left alone: nothing that is read depends on it.
        """
        program = self.program
        sizes = {dim: self.size(dim, forced) for dim in dims if dim < 0}
        sweep = Sweep(program.sites, program.layouts, dims, sizes)
        for i in dims:
            if i >= 0 and not program.sites[i].strategy.is_weighted:
                sweep.enumerate(i)
        for i, (given, where) in forced.items():
            if set(where.value) <= set(dims):  # type: ignore[arg-type]
                sweep.force(i, given, where.value, where.mask or ())  # type: ignore[arg-type]
        if is_on("rows"):
            sweep.put_rows_first()
        return sweep

    def _run(self, sweep: Sweep, read: list[PyTree]) -> list[PyTree]:
        given = self.invariants.around(sweep.values, read) if self.invariants else {}

        def base(key: Array, values: dict[int, PyTree], apply: Apply) -> list[PyTree]:
            closed, inputs = self.program.closed, [*self.inputs, key]
            return optimised(closed, inputs, values, read, given, apply)

        return sweep.run(base, self.key, self.replicates)


def _within(
    group: Dims, items: Mapping[PyTree, Item], values: Mapping[str, PyTree]
) -> dict[PyTree, Item]:
    """The items without values whose dimensions are in a group."""
    return {
        name: item
        for name, item in items.items()
        if name not in values and set(item[0]) <= set(group)
    }


def _kept_for_all(found: Mapping[int, Array], items: Mapping[PyTree, Item]) -> dict[int, Array]:
    """The real numbers that several items read: XLA would compute them again for each of them (4 % of a mixture's gradient)."""
    readers = Counter(id(atom) for _, wanted in items.values() for atom in wanted)
    is_real = lambda x: jnp.issubdtype(jax.tree.leaves(x)[0].dtype, jnp.floating)
    shared = {i: x for i, x in found.items() if readers[i] > 1 and is_real(x)}
    return jax.lax.optimization_barrier(shared)


def _kept(x: Array, group: Dims, dims: Dims) -> ArrayLike:
    """Without dimensions on which an array does not depend (any one serves)."""
    return at_dims([slice(None) if a in dims else 0 for a in group], x)


def _maximal(sets: Iterable[Dims]) -> list[Dims]:
    """The tuples of dimensions that are contained in no other."""
    distinct = sorted(set(sets), key=len, reverse=True)
    return [a for i, a in enumerate(distinct) if not any(set(a) < set(b) for b in distinct[:i])]

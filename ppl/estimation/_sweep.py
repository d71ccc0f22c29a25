"""Evaluate a traced program in all states of some enumerated sites.

A window of a chain is opened into its digits, one vmap each, so that what sees few steps is computed for these alone; outside,
the digits are one axis again. All steps are evaluated at once (`evaluation/_unrolled.py`), and what sees the chain comes out
`Split`. Where that cannot be done, the program's own loops run, and all comes out as arrays, in windows by place
(`evaluation/_split.py`).

Rows of a plate can stand in front of the dimensions as well, as time does (`Sweep.put_rows_first`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import bind
from ..analysis import axis_order
from ..enumeration import enumerated_values
from ..evaluation import (
    Apply,
    Forced,
    Given,
    Layout,
    NeedsLoop,
    Split,
    States,
    Uniform,
    Windows,
    is_on,
    row_by_row,
)
from ..strategies import StrategySite

Array = jax.Array
Level = tuple[int, int]
Base = Callable[[Any, dict[int, Given], Apply], list[Any]]
VECTOR = 4  # numbers in the shortest vector registers


class Sweep:
    """The dimensions of one sweep.

    Args:
        sites: by index.
        layouts: of the enumerated sites.
        dims: outermost first; negative ones belong to no site.
        sizes: of the negative ones.
    """

    def __init__(
        self,
        sites: Mapping[int, StrategySite],
        layouts: Mapping[int, Layout],
        dims: Sequence[int],
        sizes: Mapping[int, int],
    ) -> None:
        self.sites, self.layouts, self.dims = sites, layouts, tuple(dims)
        self.sizes = {dim: layouts[dim].size if dim >= 0 else sizes[dim] for dim in self.dims}
        self.values: dict[int, Given] = {}
        self.numbers: dict[int, np.ndarray] = {}
        self.levels: dict[int, Any] = {}
        self.rows = 0  # the size of the axis that stands in front of the dimensions, if one does

    def enumerate(self, index: int) -> None:
        """Force a site to all its values, along its own dimension."""
        site, layout = self.sites[index], self.layouts[index]
        # Integers whose values are known in each state let comparisons and look-ups be done at trace time.
        if self._is_number(index) and np.asarray(site.support).dtype.kind in "iub":
            self.numbers[index] = np.asarray(site.support)
        if self._is_split(index):
            one = enumerated_values(site, layout, step=True)
            # A chain's dimension counts the values of lag + 1 steps, a digit each.
            self.values[index] = Windows((one,) * (layout.lag + 1))
            self.levels[index] = Windows(tuple(frozenset({l}) for l in self._opened((index,))))  # type: ignore[arg-type]
        elif self._is_uniform(index):
            values = enumerated_values(site, layout)
            self.values[index] = Uniform(values.reshape(len(values), -1)[:, 0])
            self.levels[index] = Uniform(frozenset(self._opened((index,))))  # type: ignore[arg-type]
        else:
            self.force(index, Forced(enumerated_values(site, layout)), (index,), ())

    def force(
        self, index: int, given: Forced, dims: Sequence[int], mask_dims: Sequence[int]
    ) -> None:
        """Force a site to values with the leading axes `dims`; those of the mask are `mask_dims`."""
        value = given.value.reshape(*self._shape(dims), *given.value.shape[len(dims) :])
        self.values[index] = Forced(value, given.mask)
        mask = None if given.mask is None else frozenset(self._opened(mask_dims))
        self.levels[index] = Forced(frozenset(self._opened(dims)), mask)  # type: ignore[arg-type]

    def put_rows_first(self) -> None:
        """Let the rows of a plate stand in front of the dimensions, where that is faster; what has rows then comes out `Split`.

        A CPU works along the last axis. States are best last if they fill its vector registers (4, 8 or 64: up to 1.4 times
        as fast), rows are best last if not (3 or 10: up to 1.9 times as fast).
        """
        sizes = {self.sites[i].sizes for i in self.values}
        # Rows in front only where every dimension is a site's own and all sites have the same rows.
        is_plain = set(self.dims) == set(self.values) and not any(
            layout.is_chain for layout in self.layouts.values()
        )
        if not is_plain or not all(self._is_uniform(i) for i in self.dims) or len(sizes) != 1:
            return
        (shape,) = sizes
        if len(shape) == 1 and self._shape(self.dims)[-1] % VECTOR == 0:
            self.rows = shape[0]

    def run(self, base: Base, key: Any = None, key_dims: Sequence[int] = ()) -> list[PyTree]:
        """`base(key, forced, apply)` in every state; outputs (or their parts) get the dimensions in front.

        The program's equations are to be evaluated by `apply`.
        """
        if is_on("windows"):
            with contextlib.suppress(NeedsLoop):
                return self._run(base, key, key_dims, in_loop=False)
        return self._run(base, key, key_dims, in_loop=True)

    def _run(self, base: Base, key: Any, key_dims: Sequence[int], *, in_loop: bool) -> list[PyTree]:
        # One vmap for each digit of each dimension, the outermost first: values [digits of their own dims, ...] lose an axis at
        # each level that they have, and `base` sees one state.
        levels = self._opened(self.dims)
        sizes = self._shape(self.dims)
        by_key = self._opened(key_dims)

        def go(depth: int, key: Any, values: dict[int, Given]) -> list[Any]:
            if depth == len(levels):
                apply = row_by_row(self.rows, jax.tree.leaves(values)) if self.rows else bind
                forced = {i: self._in_marker(i, v, in_loop) for i, v in values.items()}
                return base(key, forced, apply)
            level = levels[depth]
            axes = jax.tree.map(lambda mapped: 0 if level in mapped else None, self.levels)
            return jax.vmap(
                lambda k, v: go(depth + 1, k, v),
                in_axes=(0 if level in by_key else None, axes),
                axis_size=sizes[depth],
            )(key, values)

        # The digits of a chain are one axis of windows again: [digits, ..., rest] -> [dims, rest]; of a `Split` time is in front.
        dims = tuple(self.sizes[dim] for dim in self.dims)

        def joined(x: PyTree) -> PyTree:
            if isinstance(x, Split):
                return jax.tree.map(with_time, x)
            if self.rows and x.shape[len(levels) : len(levels) + 1] == (self.rows,):
                return Split([], with_time(x), self.rows)
            return x.reshape(dims + x.shape[len(levels) :])

        def with_time(x: Array) -> Array:
            x = jnp.moveaxis(x, len(levels), 0)
            return x.reshape(x.shape[0], *dims, *x.shape[1 + len(levels) :])

        return [joined(x) for x in go(0, key, self.values)]

    def _is_number(self, index: int) -> bool:
        """Whether a dimension (of a chain, a digit) holds one number in all elements of the site."""
        site = self.sites[index]
        is_number = is_on("numbers") and np.ndim(site.support) == 1
        return is_number and not self.layouts[index].joint and 0 not in site.sizes

    def _is_uniform(self, index: int) -> bool:
        """Whether a dimension holds one number outside of regions."""
        return self._is_number(index) and not self.sites[index].regions

    def _is_split(self, dim: int) -> bool:
        """Whether the dimension is that of a chain whose time is the outermost axis of its marker."""
        if dim < 0 or self.layouts[dim].axis is None:
            return False
        return axis_order(self.sites[dim])[self.layouts[dim].axis] == 0  # type: ignore[index]

    def _opened(self, dims: Collection[int]) -> list[Level]:
        return [
            (dim, digit)
            for dim in dims
            for digit in range(self.layouts[dim].lag + 1 if self._is_split(dim) else 1)
        ]

    def _shape(self, dims: Collection[int]) -> list[int]:
        return [
            self.layouts[dim].num_states if self._is_split(dim) else self.sizes[dim]
            for dim, _ in self._opened(dims)
        ]

    def _in_marker(self, index: int, given: Given, in_loop: bool) -> Given:
        """From the outside order of a site's axes to the marker's."""
        numbers = self.numbers.get(index)
        if isinstance(given, Uniform):
            return given if numbers is None else Uniform(given.value, States((index, 0), numbers))
        order = [int(a) for a in np.argsort(axis_order(self.sites[index]))]
        if isinstance(given, Windows):
            time = order[0]
            order = [a - (a > time) for a in order[1:]]
            windows = Windows(tuple(_transposed(v, order) for v in given.values))
            if in_loop:
                site, axis = self.sites[index], self.layouts[index].axis
                return windows.in_loop(site.sizes[axis])  # type: ignore[index]
            if numbers is None:
                return windows
            ages = range(len(windows.values) - 1, -1, -1)
            return windows._replace(states=tuple(States((index, age), numbers) for age in ages))
        mask = None if given.mask is None else _transposed(given.mask, order)
        return Forced(_transposed(given.value, order), mask)


def _transposed(x: Array, order: list[int]) -> Array:
    return jnp.transpose(x, [*order, *range(len(order), x.ndim)])

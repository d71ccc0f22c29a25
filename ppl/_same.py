"""Arrays whose elements are all equal, carried along as one number.

An enumerated site whose rows separate takes one value in all rows of a lane. What is looked up there, `means[k]` or the
log-probability of class k, is then one slice of the table instead of one element a row, and so is its derivative: XLA
does not find out by itself. The number stays one through elementwise operations on such arrays and numbers and through changes of
shape; elsewhere the array is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._axis_rules import ELEMENTWISE
from ._compat import bind

Array = jax.Array
SHAPES = frozenset("broadcast_in_dim reshape squeeze expand_dims transpose slice rev copy".split())
CALLS = frozenset("jit pjit".split())


class Uniform(NamedTuple):
    """A replacement for a site's value by one number, in all of its elements."""

    value: Array


@dataclasses.dataclass(frozen=True)
class Same:
    """An array of `shape` whose elements are all `value`, a scalar."""

    value: Array
    shape: tuple[int, ...]

    def whole(self) -> Array:
        """The array."""
        return jnp.broadcast_to(self.value, self.shape)


def on_same(eqn: Any, args: list[Any], run: Callable[..., list[Any]]) -> list[Any] | None:
    """An equation of which some operands are `Same`; None where it needs them whole.

    Args:
        eqn: the equation.
        args: its operands.
        run: evaluates an inner jaxpr, `(jaxpr, consts, inputs) -> outputs`.
    """
    name = eqn.primitive.name
    if name in CALLS:
        inner = eqn.params["jaxpr"]
        return run(inner.jaxpr, inner.consts, args)
    if len(eqn.outvars) > 1:
        return None
    shape = tuple(eqn.outvars[0].aval.shape)
    if name in SHAPES:
        return [Same(args[0].value, shape)]
    if name in ELEMENTWISE and all(isinstance(a, Same) or jnp.ndim(a) == 0 for a in args):
        values = [a.value if isinstance(a, Same) else a for a in args]
        return [Same(bind(eqn, values)[0], shape)]
    if name == "gather" and isinstance(args[1], Same) and args[1].shape[-1] == 1:
        return [_gather(eqn, args[0].whole() if isinstance(args[0], Same) else args[0], args[1])]
    return None


def _gather(eqn: Any, operand: Array, indices: Same) -> Any:
    """The same slice everywhere: taken once, and repeated."""
    numbers, shape = eqn.params["dimension_numbers"], tuple(eqn.outvars[0].aval.shape)
    batched = numbers.operand_batching_dims
    sizes = list(eqn.params["slice_sizes"])
    for axis in batched:
        sizes[axis] = operand.shape[axis]
    kept = [a for a in range(operand.ndim) if a not in numbers.collapsed_slice_dims]
    once = jax.lax.GatherDimensionNumbers(
        offset_dims=tuple(range(len(kept))),
        collapsed_slice_dims=numbers.collapsed_slice_dims,
        start_index_map=numbers.start_index_map,
    )
    found = jax.lax.gather(
        operand,
        indices.value[None],
        once,
        tuple(sizes),
        mode=eqn.params["mode"],
        fill_value=eqn.params["fill_value"],
    )
    rows = [a for a in range(len(shape)) if a not in numbers.offset_dims]
    places = dict(zip(batched, (rows[i] for i in numbers.start_indices_batching_dims), strict=True))
    offsets = iter(numbers.offset_dims)
    where = [places[a] if a in places else next(offsets) for a in kept]
    if not where:
        return Same(found, shape)
    order = sorted(range(len(where)), key=where.__getitem__)
    found = jnp.transpose(found, order)
    return jax.lax.broadcast_in_dim(found, shape, [where[a] for a in order])

"""All steps of a loop, or all rows of a plate, as one batch, outside of all dimensions of enumeration.

`jax.vmap` over steps inside of other `jax.vmap`s would put their dimensions in front of time, where most arrays have none of
them, and XLA would transpose back and forth. Time goes in front here, as in code written by hand: the others are batched in one
step. The same is done for rows where that is faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from .._compat import Primitive, bind, own_trace, set_batching
from .._types import Key
from ..jaxprs import ELEMENTWISE
from ._same import Same, Uniform

Array = jax.Array
Step = Callable[[list[PyTree], list[PyTree]], list[Array]]

steps_p = Primitive("lapilli_steps")
steps_p.multiple_results = True


def at_all_steps(
    fn: Callable[..., list[Array]],
    size: int,
    moving: PyTree,
    still: PyTree,
    batched: Sequence[PyTree],
) -> list[Array]:
    """`fn(moving, still)` at `size` steps: `moving` along its leading axes, `still` as it is.

    Args:
        fn: one step; it closes over no arrays.
        size: number of steps.
        moving: a pytree of arrays, `Same` and `Uniform`.
        still: likewise.
        batched: values in whose `jax.vmap`s this runs, and which are to be batched in one step.

    Returns:
        The results of `fn`, with time in front.
    """
    moving, moving_of = _arrays(moving)
    still, still_of = _arrays(still)
    traces = [t for x in batched if (t := own_trace(x)) is not None]
    return _steps(lambda m, s: fn(moving_of(m), still_of(s)), size, moving, still, traces)


def row_by_row(
    size: int, batched: Sequence[bool]
) -> Callable[[PyTree, list[PyTree]], list[PyTree]]:
    """How to evaluate an equation so that other dimensions stand behind the rows of its result, if it has `size` of them.

    Args:
        size: number of rows.
        batched: values in whose `jax.vmap`s this runs.
    """

    def run(eqn: PyTree, args: list[PyTree]) -> list[PyTree]:
        shape = eqn.outvars[0].aval.shape
        if (
            eqn.primitive.name not in ELEMENTWISE
            or shape[:1] != (size,)
            or any(jnp.shape(x) not in ((), shape) for x in args)
        ):
            return bind(eqn, args)
        moving = [x if jnp.ndim(x) else None for x in args]
        still = [None if jnp.ndim(x) else x for x in args]

        def row(moving: list[PyTree], still: list[PyTree]) -> list[Array]:
            return bind(eqn, [s if m is None else m for m, s in zip(moving, still, strict=True)])

        return at_all_steps(row, size, moving, still, batched)

    return run


def _steps(
    fn: Step, size: int, moving: list[PyTree], still: list[PyTree], traces: list[PyTree]
) -> list[Array]:
    if any(own_trace(x) is t for x in [*moving, *still] for t in traces):
        shared = {"fn": fn, "size": size, "num_moving": len(moving), "traces": traces}
        return steps_p.bind(*moving, *still, **shared)
    return jax.vmap(fn, (0, None), axis_size=size)(moving, still)


def _batch(
    args: Sequence[PyTree],
    dims: Sequence[int | None],
    *,
    fn: Step,
    size: int,
    num_moving: int,
    traces: list[PyTree],
) -> tuple[list[Array], list[int]]:
    width = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    moving = [
        x if d is None else jnp.moveaxis(x, d, 1)
        for x, d in zip(args[:num_moving], dims[:num_moving], strict=True)
    ]
    axes = [None if d is None else 0 for d in dims[:num_moving]], list(dims[num_moving:])
    side_by_side = jax.vmap(fn, axes, axis_size=width)
    found = _steps(side_by_side, size, moving, list(args[num_moving:]), traces)
    return found, [1] * len(found)


set_batching(steps_p, _batch)


def _arrays(tree: ArrayLike | None) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """The arrays in a pytree, and the pytree from others in their place; known numbers stay known."""
    is_leaf = lambda x: isinstance(x, Same | Uniform)
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_leaf)
    values = [x.value if is_leaf(x) else x for x in leaves]
    is_array = [isinstance(v, jax.Array) or jnp.ndim(v) > 0 for v in values]

    def rebuilt(
        arrays: list[Array],
    ) -> Array | tuple[Array | dict[int, Uniform] | list[Key | None], ...]:
        left = iter(arrays)
        return jax.tree.unflatten(
            structure,
            [
                _with_value(x, next(left)) if given else x
                for x, given in zip(leaves, is_array, strict=True)
            ],
        )

    arrays = [jnp.asarray(v) for v, given in zip(values, is_array, strict=True) if given]
    return arrays, rebuilt


def _with_value(x: Array | Key | Uniform, value: Array) -> Array | Key | Uniform:
    if isinstance(x, Same):
        return dataclasses.replace(x, value=value)
    return x._replace(value=value) if isinstance(x, Uniform) else value

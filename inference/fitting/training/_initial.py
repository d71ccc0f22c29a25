"""Parameters to start from: the objective's own, or given ones that fit its."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from ....ppl._shared_jit import shared_jit
from ..._abstract_objective import AbstractObjective
from ..._arguments import Arguments, shapes
from ._loop import run_keys, strong


def initial_params(
    objective: AbstractObjective,
    given: Mapping[str, object] | None,
    keys: jax.Array,
    num_seeds: int | None,
    args: tuple,
    place: Callable[[PyTree], Callable[[PyTree], PyTree]] | None = None,
) -> PyTree:
    """Parameters with strong types, with a leading seed axis if there are several seeds.

    Args:
        objective: the objective.
        given: parameters to start from, with or without a seed axis; None for the objective's own.
        keys: the run's key, or one per seed.
        num_seeds: number of seeds, or None.
        args: arguments of the program.
        place: of the parameters' shapes, a function from a tree to where its leaves lie, which are then made there; None to make
            them on one device.

    Raises:
        ValueError: if the names or shapes of `given` are not the objective's.
    """
    split = Arguments(args)
    arrays = split.arrays(args)  # not closed over: some lie on devices of other processes
    init = lambda key, arrays: objective.init(run_keys(key)[0], *split.join(arrays))
    first = keys if num_seeds is None else keys[0]
    if place is not None:
        own = jax.eval_shape(init, first, arrays)
        there = place(own)
        if given is None:
            run = init if num_seeds is None else jax.vmap(init, (0, None))
            lie = there(jax.eval_shape(run, keys, arrays))
            return strong(jax.jit(run, out_shardings=lie)(keys, arrays))
    else:
        # The first call is concrete, since an autoguide keeps the shapes (and would keep the tracers) of its first call.
        own = init(first, arrays)
    if given is None:
        return strong(
            own if num_seeds is None else shared_jit(jax.vmap(init, (0, None)))(keys, arrays)
        )
    missing, extra = set(own) - set(given), set(given) - set(own)
    if missing or extra:
        raise ValueError(
            f"Argument 'params': missing {sorted(missing)}, unknown {sorted(extra)}; the objective has {list(own)}. To start "
            "some parameters afresh, update the result of objective.init(key, *args)."
        )
    leaves: list[PyTree] = [None] * len(jax.tree.leaves(own))
    # By number, since the parameters' own order of leaves is theirs to choose.
    numbers = jax.tree.unflatten(jax.tree.structure(own), list(range(len(leaves))))
    for name in own:
        fitting = _fit_leaves(name, own[name], given[name], num_seeds)
        for number, leaf in zip(jax.tree.leaves(numbers[name]), fitting, strict=True):
            leaves[number] = leaf
    found = jax.tree.unflatten(jax.tree.structure(own), leaves)
    return strong(found if place is None else jax.device_put(found, place(own)(found)))


def _fit_leaves(name: str, own: ArrayLike, given: PyTree, num_seeds: int | None) -> list[jax.Array]:
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    needed: list[PyTree] = [x if is_shape(x) else jnp.asarray(x) for x in jax.tree.leaves(own)]
    found = [jnp.asarray(leaf) for leaf in jax.tree.leaves(given)]
    seeds = () if num_seeds is None else (num_seeds,)
    allowed = [[leaf.shape for leaf in needed], [(*seeds, *leaf.shape) for leaf in needed]]
    if [leaf.shape for leaf in found] not in allowed:
        raise ValueError(
            f"Argument 'params': '{name}' has {shapes(found)}, but the objective needs {shapes(needed)}"
            + (f", optionally with a leading axis of {num_seeds} seeds." if seeds else ".")
        )
    return [
        jnp.broadcast_to(leaf.astype(like.dtype), (*seeds, *like.shape))
        for leaf, like in zip(found, needed, strict=True)
    ]

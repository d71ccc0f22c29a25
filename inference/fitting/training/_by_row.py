"""Optimisers for tables of parameters of which a minibatch uses some rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def by_row(optimizer: PyTree) -> PyTree:
    """The optax transformation run for each row (leading axis) by itself; a row without a gradient is left alone.

    For local parameters, one row per data point, read by `table[index]`: a row that the minibatch does not read has a gradient of
    exactly zero. Under a plain Adam its moments would decay and its momentum would go on moving it; here neither its value
    nor its state (moments, step count, hence bias correction) changes until it is read again.

    Args:
        optimizer: an optax transformation for one row, e.g. `optax.adam(1e-2)`. A norm that it takes is that of the row.

    Returns:
        A transformation for trees of arrays with one common leading axis.

    Validity: a row that is read but has a gradient of exactly zero in every entry counts as absent.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from lapilli import inference
        >>> rows = inference.fitting.by_row(optax.adam(0.1))
        >>> table = jnp.zeros((3, 2))
        >>> updates, _ = rows.update(table.at[1].set(1.0), rows.init(table), table)
        >>> updates[:, 0].round(3).tolist()
        [0.0, -0.10000000149011612, 0.0]
    """
    import optax

    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> PyTree:
        _num_rows(params)
        return jax.vmap(inner.init)(params)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, PyTree]:
        num_rows = _num_rows(updates)
        present = jnp.zeros(num_rows, bool)
        for g in jax.tree.leaves(updates):
            present = present | jnp.any(g.reshape(num_rows, -1) != 0, axis=1)

        def row(
            grads: PyTree, state: PyTree, params: PyTree, present: PyTree
        ) -> tuple[PyTree, PyTree]:
            moves, new = inner.update(grads, state, params, **extra)
            keep = lambda a, b: jnp.where(present, a, b)
            still = jax.tree.map(jnp.zeros_like, moves)
            return jax.tree.map(keep, moves, still), jax.tree.map(keep, new, state)

        axes = (0, 0, None if params is None else 0, 0)
        return jax.vmap(row, axes)(updates, state, params, present)

    return optax.GradientTransformationExtraArgs(init, update)


def _num_rows(tree: PyTree) -> int:
    shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
    sizes = {shape[0] if shape else -1 for shape in shapes}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(
            f"by_row: the parameters have shapes {shapes}, without one common leading axis of rows. Give tables to it by a "
            "pattern of their own, e.g. {'adaptive': fitting.by_row(optax.adam(1e-2)), 'network': optax.adam(1e-3)}."
        )
    return sizes.pop()

"""Particles that run together, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


def is_key(x: Any) -> bool:
    """Whether `x` is an array of random keys."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


class Batch(NamedTuple):
    """Lanes that run together.

    Attributes:
        size: how many.
        number: number of the batch, None where all lanes run at once.
    """

    size: int
    number: Array | None

    def stream(self, key: Array) -> Array:
        """The batch's own key, or keys, from those of all lanes."""
        number = self.number
        if number is None:
            return key
        fold = lambda k: jax.random.fold_in(k, number)
        for _ in range(key.ndim):
            fold = jax.vmap(fold)
        return fold(key)


def in_batches(
    fn: Callable[..., Any], num_lanes: int, batch_size: int | None
) -> Callable[..., Any]:
    """`fn(lanes, batch, *shared)` for all lanes; `lanes` and the results have a leading lane axis.

    Args:
        fn: function of the lanes of one batch.
        num_lanes: number of lanes.
        batch_size: lanes run at once, the batches one after the other (memory); None for all.
    """
    if batch_size is None or batch_size == num_lanes:
        return lambda lanes, *shared: fn(lanes, Batch(num_lanes, None), *shared)
    num_batches = num_lanes // batch_size

    def run(lanes: Any, *shared: Any) -> Any:
        cut = lambda x: x.reshape(num_batches, batch_size, *x.shape[1:])
        one = lambda inputs: fn(inputs[1], Batch(batch_size, inputs[0]), *shared)
        outs = jax.lax.map(one, (jnp.arange(num_batches), jax.tree.map(cut, lanes)))
        return jax.tree.map(lambda x: x.reshape(num_lanes, *x.shape[2:]), outs)

    return run

"""Particles that run together, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

Array = jax.Array


def is_key(x: Array) -> bool:
    """Whether `x` is an array of random keys."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


class Batch(NamedTuple):
    """Particles that run together.

    Attributes:
        size: how many.
        number: number of the batch, None where all run at once.
    """

    size: int
    number: Array | None

    def stream(self, key: Array) -> Array:
        """The batch's own key, or keys, from those of all particles."""
        number = self.number
        if number is None:
            return key
        fold = lambda k: jax.random.fold_in(k, number)
        for _ in range(key.ndim):
            fold = jax.vmap(fold)
        return fold(key)


def in_batches(
    fn: Callable[..., PyTree], num_particles: int, batch_size: int | None
) -> Callable[..., PyTree]:
    """`fn(particles, batch, *shared)` for all; `particles` and the results have a leading particle axis.

    Args:
        fn: function of the particles of one batch.
        num_particles: how many.
        batch_size: particles run at once, the batches one after the other (memory); None for all.
    """
    if batch_size is None or batch_size == num_particles:
        return lambda particles, *shared: fn(particles, Batch(num_particles, None), *shared)
    num_batches = num_particles // batch_size

    def run(particles: PyTree, *shared: PyTree) -> PyTree:
        cut = lambda x: x.reshape(num_batches, batch_size, *x.shape[1:])
        one = lambda inputs: fn(inputs[1], Batch(batch_size, inputs[0]), *shared)
        outs = jax.lax.map(one, (jnp.arange(num_batches), jax.tree.map(cut, particles)))
        return jax.tree.map(lambda x: x.reshape(num_particles, *x.shape[2:]), outs)

    return run

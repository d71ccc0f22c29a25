"""Schrödinger bridges between two data sets, by flow matching on pairs that the last bridge has drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PyTree

from ...inference import fit
from ...ppl._checks import check_counts
from ...ppl._types import Key
from ._diffusions import diffuse
from ._matching import Field, flow_matching, from_network, row_starts
from ._path import linear


def bridge(
    network: Callable[..., PyTree],
    start: dist.Distribution | Float[ArrayLike, " rows *shape"],
    end: Float[ArrayLike, " rows *shape"],
    key: Key,
    *,
    noise: float,
    optimizer: Any = None,
    num_rounds: int = 4,
    num_training_steps: int = 1000,
    batch_size: int = 256,
    num_steps: int = 100,
) -> Field:
    """The Schrödinger bridge between two laws, learned by iterated Markovian fitting.

    It is, of all processes with these ends, the one closest to a Brownian motion of variance noise^2 per unit of time. Rows of
    the ends are paired at random first. Each round learns the field of `linear(noise)` between the pairs, which is the Markov
    process with the marginals of their Brownian bridges, and draws new pairs from it, forth from x_0 and back from x_1 in turn.
    Pairs tend to the entropic coupling, with E |x_1 - x_0|^2 / (2 noise^2) - H least.

    Args:
        network: as for `flow_matching` along a path with noise: called as network(x, t, context), it returns a pair, for u and
            for z. Each round goes on from the weights of the last.
        start: law of x_0 for one point, or rows of data.
        end: rows of x_1; there are as many pairs.
        key: PRNG key.
        noise: standard deviation of the Brownian motion after a unit of time.
        optimizer: as for `fit`.
        num_rounds: of pairs; after 4, normals of equal ends are at the entropic coupling to 0.1 %.
        num_training_steps: of each round.
        batch_size: pairs that a step of training sees.
        num_steps: Euler steps of the diffusion that draws pairs.

    Returns:
        A field: `diffuse(field, key, x_0, noise=noise**2 / 2, num_steps=...)` draws x_1 given x_0, and with `field.reversed` x_0
        given x_1.

    Raises:
        ValueError: noise or counts that are not positive.

    Validity: exact in the limit of many rounds, rows, steps of training and of the diffusion. An end that was drawn is that of
        the learned process, whose error goes on into the next round; that it is forth and back in turn keeps either end true
        every second time.

    Reference: Shi et al. 2023, arXiv:2303.16852, algorithm 1; Peluchetti 2023, arXiv:2304.00917.
    """
    if not noise > 0:
        raise ValueError(
            f"bridge: noise must be positive, got {noise}. For none use transport as coupling of flow_matching."
        )
    check_counts("bridge", num_rounds=num_rounds)
    path, end = linear(noise), jnp.asarray(end, float)
    matching = flow_matching(network, path, batch_size=batch_size, drop_context=0.0)

    @jax.jit
    def carried(
        params: PyTree, key: Key, begin: Array, end: Array, is_back: Array
    ) -> tuple[Array, Array]:
        field = from_network(network, path, params=params)
        draw = lambda field, x: diffuse(field, key, x, noise=noise**2 / 2, num_steps=num_steps)
        return jax.lax.cond(
            is_back,
            lambda: (draw(field.reversed, end), end),
            lambda: (begin, draw(field, begin)),
        )

    params, pairs = None, None
    for n in range(num_rounds):
        keys = jax.random.split(jax.random.fold_in(key, n), 4)
        begin = row_starts(start, end.shape, keys[0])
        shuffled = end[jax.random.permutation(keys[1], len(end))]
        pairs = (begin, shuffled)
        if params is not None:
            pairs = carried(params, keys[2], *pairs, jnp.asarray(n % 2 == 0))
        params = fit(
            matching, optimizer, (pairs[1], None, pairs[0]), params=params, num_steps=num_training_steps, key=keys[3],
            progress=False,
        ).params  # fmt: skip
    return from_network(network, path, params=params)

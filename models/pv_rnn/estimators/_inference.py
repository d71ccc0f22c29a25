"""Error regression along many series, in parts of one size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..._series import Series
from ..._series_inputs import digest
from .._network import Network
from .._regression import ErrorRegression

PART = 16  # series at once


class Inferred(NamedTuple):
    """Predictions of some series.

    Attributes:
        network: the trained one.
        keys: PRNG keys of draws, one for each series.
        rows: which series.
        size: how many; arrays have `PART` rows.
        emitted: of the step after each, [PART, time, horizon, draws, out].
        emitted_at_end: after the last one, [PART, horizon, draws, out].
    """

    network: Network
    keys: Array
    rows: Int[np.ndarray, " series"]
    size: int
    emitted: Array
    emitted_at_end: Array


def inferred(regression: ErrorRegression, data: Series, seed: int) -> Iterator[Inferred]:
    """Predictions along the series, which depend on the seed and on each series alone."""
    words = np.array([[seed, digest(data, row)] for row in range(len(data.valid))], np.uint32)
    key_of = jax.vmap(lambda w: jax.random.fold_in(jax.random.key(w[0]), w[1]))
    lengths = np.asarray(data.valid).sum(1)
    for start in range(0, len(lengths), PART):
        size = min(PART, len(lengths) - start)
        rows = np.resize(np.arange(start, start + size), PART)
        keys = key_of(jnp.asarray(words[rows]))
        parts = map(jnp.asarray, (data.values[rows], data.observed[rows], lengths[rows]))
        emitted, at_end = _run(regression, keys, *parts)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        yield Inferred(regression.network, own, rows[:size], size, emitted, at_end)


@eqx.filter_jit
def _run(
    regression: ErrorRegression, keys: Array, xs: Array, seen: Array, lengths: Array
) -> tuple[Array, Array]:
    def one(key: Array, xs: Array, seen: Array, length: Array) -> tuple[Array, Array]:
        emitted = regression.run(regression.init(key), xs, seen)[1].emitted
        return emitted, emitted[length - 1]

    return jax.vmap(one)(keys, xs, seen, lengths)

"""Couplings: which draw of one end belongs to which draw of the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ...inference._sinkhorn import log_coupling
from ...ppl._checks import check_counts
from ...ppl._types import Key

type Points = Float[Array, " rows *shape"]
# (key, rows of x_0, rows of x_1) -> for each row of x_1 the row of x_0 that it belongs to.
type Coupling = Callable[[Key, Points, Points], Int[Array, " rows"]]


def independent(key: Key, start: Points, end: Points) -> Int[Array, " rows"]:
    """Each row of x_1 with a row of x_0 of its own, in the order in which they were drawn.

    Args:
        key: PRNG key.
        start: rows of x_0.
        end: rows of x_1.
    """
    return jnp.arange(len(end))


def transport(key: Key, start: Points, end: Points) -> Int[Array, " rows"]:
    """The pairing of two equally large batches with the least sum of squared distances.

    Args:
        key: PRNG key.
        start: rows of x_0.
        end: rows of x_1.

    Validity: the coupling of a batch, which tends to that of the laws as it grows. Ends keep their laws at any size.

    Reference: Tong et al. 2024, arXiv:2302.00482, section 3.2; Pooladian et al. 2023, arXiv:2304.14772; SciPy solves it, on the
        host, in a tenth of the time of a solver that is compiled.
    """
    costs = jax.lax.stop_gradient(_costs(end, start))
    found = jax.ShapeDtypeStruct((len(end),), jnp.int32)
    return jax.pure_callback(_assigned, found, costs, vmap_method="sequential")


def _assigned(costs: ArrayLike) -> np.ndarray:
    """For each row the column of the least assignment; the order as it is where a cost is not finite."""
    from scipy.optimize import linear_sum_assignment  # late: the other couplings need none

    costs = np.asarray(costs)
    if not np.isfinite(costs).all():
        return np.arange(len(costs), dtype=np.int32)
    return linear_sum_assignment(costs)[1].astype(np.int32)


def entropic(noise: float, *, num_steps: int = 200) -> Coupling:
    """The coupling of two batches that minimises E |x_1 - x_0|^2 / (2 noise^2) - H, from which rows of x_1 draw rows of x_0.

    With it, `linear(noise)` is the Schrödinger bridge of a Brownian motion whose variance grows by noise^2 per unit of
    time.

    Args:
        noise: standard deviation of the Brownian motion after a unit of time.
        num_steps: Sinkhorn steps.

    Raises:
        ValueError: noise or steps are not positive.

    Validity: as `transport`; rows of x_0 may be taken more than once, so that their law is kept in the mean over draws, up to
        what the last Sinkhorn step has left.

    Reference: Cuturi 2013, arXiv:1306.0895; Tong et al. 2024, arXiv:2307.03672.
    """  # fmt: skip
    if not noise > 0:
        raise ValueError(f"entropic: noise must be positive, got {noise}. For none use transport.")
    check_counts("entropic", num_steps=num_steps)

    def coupling(key: Key, start: Points, end: Points) -> Int[Array, " rows"]:
        kernel = -0.5 * _costs(start, end) / noise**2
        equal = jnp.full(len(start), -math.log(len(start)))
        return jax.random.categorical(key, log_coupling(kernel, equal, num_steps), axis=0)

    return coupling


def _costs(one: Points, other: Points) -> Float[Array, " rows others"]:
    """Squared Euclidean distances of all pairs."""
    flat = lambda x: x.reshape(len(x), -1)
    return jnp.sum((flat(one)[:, None] - flat(other)[None]) ** 2, -1)

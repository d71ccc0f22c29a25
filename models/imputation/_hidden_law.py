"""A law for cells that hide themselves: about p(x | z, s = 0), to draw missing cells from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

PROBIT = 1 / 1.702  # logistic(u) is within 0.01 of Phi(PROBIT u)
MIN_SHARE = 0.6  # of the variance; above one half, or p / q would have an infinite one
LOWEST = -10.0


def hidden_law[Law: (dist.Normal, dist.StudentT)](
    law: Law, slope: Float[Array, " D"], bias: Float[Array, " D"], cells: Bool[Array, "*batch D"]
) -> Law:
    """The law with location and scale moved, in `cells`, to about those of p(x) logistic(a x + b).

    With a probit in the place of the logistic function, Phi(c (a x + b)), the moments of N(m, v) times it have closed forms:

        k = 1 + c^2 a^2 v,   h = c (a m + b) / sqrt(k),   r = N(h; 0, 1) / Phi(h),
        mean = m + c a v r / sqrt(k),   variance = v (1 - (1 - 1/k) r (h + r)).

    It is a proposal: draws from it are to be weighted by p(x) / q(x), which makes up for the probit. The variance is kept above
    0.6 v, so that weights have a variance however steep the logistic function is.

    Args:
        law: p(x) of every cell, [*batch, D].
        slope: a of each channel; cells with high a x + b are hidden.
        bias: b.
        cells: where to move the law; it is p(x) elsewhere.

    Reference: MacKay 1992 for the probit; Owen 1980, integrals 10,010.8 and 10,011.1, for the moments.
    """
    loc: Any = law.loc  # NumPyro annotates them as anything
    scale: Any = law.scale
    variance, alpha = scale**2, PROBIT * slope
    steepness = alpha**2 * variance
    root = jnp.sqrt(1 + steepness)
    h = jnp.maximum((alpha * loc + PROBIT * bias) / root, LOWEST)
    r = jnp.sqrt(2 / jnp.pi) * jnp.exp(-0.5 * h**2) / jax.lax.erfc(-h / jnp.sqrt(2.0))
    share = jnp.maximum(1 - steepness / (1 + steepness) * r * (h + r), MIN_SHARE)
    loc = jnp.where(cells, loc + alpha * variance * r / root, loc)
    scale = scale * jnp.where(cells, jnp.sqrt(share), 1.0)
    if isinstance(law, dist.Normal):
        return dist.Normal(loc, scale)
    return dist.StudentT(law.df, loc, scale)

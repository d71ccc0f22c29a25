"""Categories of a table: multinomial logistic regressions, one for each column of categories, by Metropolis steps.

With g and H the gradient and the negative Hessian of the log-posterior at w, and m = w + H^-1 g, a step proposes from the normal
law of mean m + rho (w - m) and covariance (1 - rho^2) H^-1, and accepts by the ratio with the same law at the proposal: exact at
any number of rows, and always accepted where the posterior is normal. With rho = 0 it is Gamerman's step (1997, Statistics and
Computing 7, 57), which comes to rest in the tails of skew posteriors; rho is drawn from (0, 1), so that some steps are short.
Coefficients of all levels have a Normal(0, SCALE^2) prior on standard units, so
that levels which the other columns separate have a posterior (Gelman et al. 2008, arXiv:0901.4011, take 2.5 as well).

Columns with fewer levels than the most are filled up with levels of probability zero, so that all run in one loop.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from ....ppl._precision import full_precision
from ....ppl._types import Key

SCALE = 2.5
INTERCEPT_SCALE = 10.0
NEVER = -1e9  # logit of a level that does not exist


@full_precision
def logits(
    weights: Float[Array, "levels p"],
    design: Float[Array, "rows p"],
    exists: Bool[Array, " levels"],
) -> Float[Array, "rows levels"]:
    """Log-odds of the levels of each row."""
    return jnp.where(exists, design @ weights.T, NEVER)


@full_precision
def draw_weights(
    key: Key,
    weights: Float[Array, "levels p"],
    design: Float[Array, "rows p"],
    levels: Int[Array, " rows"],
    seen: Bool[Array, " rows"],
    exists: Bool[Array, " levels"],
) -> Float[Array, "levels p"]:
    """The coefficients after one step that leaves their posterior given the observed rows as it is."""
    shape = weights.shape
    precision = jnp.full(shape[1], SCALE**-2.0).at[0].set(INTERCEPT_SCALE**-2.0)
    hits = jax.nn.one_hot(levels, shape[0]) * seen[:, None]

    def around(w: Array) -> tuple[Array, Array, Array]:
        """Log-posterior at w; mean and Cholesky factor of the precision of the proposal."""
        log_probs = jax.nn.log_softmax(logits(w, design, exists))
        probs = jnp.exp(log_probs) * seen[:, None]
        log_p = (hits * log_probs).sum() - 0.5 * (precision * w**2).sum()
        slope = (hits - probs).T @ design - precision * w
        # sum_n (diag(p) - p p') x (f f'): blocks of the levels, less a product of rows p x f.
        blocks = jnp.einsum("nl,ni,nj->lij", probs, design, design)
        spread = (probs[:, :, None] * design[:, None, :]).reshape(len(design), -1)
        hessian = jax.scipy.linalg.block_diag(*blocks) - spread.T @ spread
        hessian = hessian + jnp.diag(jnp.tile(precision, shape[0]))
        factor = jnp.linalg.cholesky(hessian)
        step = jax.scipy.linalg.cho_solve((factor, True), slope.ravel())
        return log_p, w.ravel() + step, factor

    def log_density(value: Array, at: Array, mean: Array, factor: Array) -> Array:
        gap = (factor.T @ (value - mean - rho * (at - mean))) ** 2
        return jnp.log(jnp.diagonal(factor)).sum() - 0.5 * gap.sum() / (1 - rho**2)

    rho_key, noise_key, accept_key = jax.random.split(key, 3)
    rho, old = jax.random.uniform(rho_key), weights.ravel()
    old_p, mean, factor = around(weights)
    noise = jax.random.normal(noise_key, mean.shape) * jnp.sqrt(1 - rho**2)
    new = mean + rho * (old - mean) + solve_triangular(factor, noise, lower=True, trans="T")
    new_p, back, back_factor = around(new.reshape(shape))
    there, home = log_density(new, old, mean, factor), log_density(old, new, back, back_factor)
    log_ratio = new_p - old_p + home - there
    accepts = jnp.log(jax.random.uniform(accept_key)) < log_ratio  # NaN refuses
    return jnp.where(accepts, new.reshape(shape), weights)

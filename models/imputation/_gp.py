"""A Gaussian process over the steps of each series, as the prior of latent paths.

Each series has the covariance K = L L' of its own steps: with T_n steps, the leading T_n x T_n block. A path is L u with
u ~ N(0, I), so that the first t steps of the path are functions of the first t numbers in u. Steps that do not exist are
N(0, 1), in the prior as in the guide, so that they cancel from every weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float


def cauchy_kernel(
    times: Float[Array, "*batch T"],
    *,
    length_scale: float = 7.0,
    variance: float = 1.005,
    jitter: float = 1e-3,
) -> Float[Array, "*batch T T"]:
    """K_tt' = variance / (1 + (t - t')^2 / length_scale^2) + jitter [t = t'].

    Args:
        times: of the steps; `length_scale` has their unit.
        length_scale: at which the covariance has halved.
        variance: of one step, without the jitter.
        jitter: keeps K positive definite in float32; 0.001 is needed at a length of seven steps.

    Reference: Fortuin et al. 2020, arXiv:1907.04155 (GP-VAE).
    """
    gap = (times[..., :, None] - times[..., None, :]) / length_scale
    return variance / (1 + gap**2) + jitter * jnp.eye(times.shape[-1])


def own_cholesky(
    covariance: Float[Array, "*batch T T"], valid: Bool[Array, "*batch T"]
) -> Float[Array, "*batch T T"]:
    """Cholesky factor of each series' own block of K, with ones on the diagonal of the other steps."""
    pair = valid[..., :, None] & valid[..., None, :]
    return jnp.linalg.cholesky(jnp.where(pair, covariance, jnp.eye(valid.shape[-1])))


def smoothed(
    scale_tril: Float[Array, "series T T"],
    pseudo: Float[Array, "series latents T"],
    precision: Float[Array, "series latents T"],
) -> dist.MultivariateNormal:
    """The posterior of white noise u, path L u, given noisy looks at each step of the path.

    With looks h_t of precision r_t and the prior u ~ N(0, I):

        u | h ~ N(B^-1 L' diag(r) h, B^-1),   B = I + L' diag(r) L.

    A step of precision 0 is not looked at, and the path goes through it as the prior has it.

    Args:
        scale_tril: L.
        pseudo: h.
        precision: r >= 0.

    Reference: the conjugate part of Johnson et al. 2016, arXiv:1603.06277, and of Pearce 2020 (GP-VAE).
    """
    looked = jnp.einsum("nts,ndt,ntr->ndsr", scale_tril, precision, scale_tril)
    b = looked + jnp.eye(scale_tril.shape[-1])
    weighted = jnp.einsum("nts,ndt->nds", scale_tril, precision * pseudo)
    loc = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(b), True), weighted[..., None])[..., 0]
    return dist.MultivariateNormal(loc, precision_matrix=b)


def step_log_prob(
    z: Float[Array, "*batch T"], scale_tril: Float[Array, "*batch T T"]
) -> Float[Array, "*batch T"]:
    """Log p(z_t | z_1, ..., z_{t-1}) of every step, nats: with u = L^-1 z, log N(u_t; 0, 1) - log L_tt.

    Their cumulative sum is the log-density of each prefix, which is what a filter may know at step t.
    """
    scale = jnp.broadcast_to(scale_tril, (*z.shape, z.shape[-1]))
    u = jax.scipy.linalg.solve_triangular(scale, z[..., None], lower=True)[..., 0]
    diagonal = jnp.diagonal(scale_tril, axis1=-2, axis2=-1)
    return -0.5 * (u**2 + jnp.log(2 * jnp.pi)) - jnp.log(diagonal)

"""A Gaussian process over the steps of each series, as the prior of latent paths.

Each series has the covariance K = L L' of its own steps: with T_n steps, the leading T_n x T_n block. A path is L u with
u ~ N(0, I), so that the first t steps of the path are functions of the first t numbers in u. Steps that do not exist are
N(0, 1), in the prior as in the guide, so that they cancel from every weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, PyTree
from numpyro.distributions import constraints

from ...ppl._checks import check_event
from ...ppl._precision import full_precision
from ...ppl._types import Key


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
    """Cholesky factor of each series' own block of K, with ones on the diagonal of the other steps.

    Args:
        covariance: K, [*batch, T, T].
        valid: whether a step belongs to the series, [*batch, T].
    """
    pair = valid[..., :, None] & valid[..., None, :]
    return jnp.linalg.cholesky(jnp.where(pair, covariance, jnp.eye(valid.shape[-1])))


class PrecisionNormal(dist.Distribution):
    """N(loc, (R' R)^-1) for a lower triangular R: noise R (x - loc), whose first t entries are those of x_1:t.

    Cheaper than a `MultivariateNormal` from its precision: no inverse of R is formed, and a log-density is one product.

    Args:
        loc: [*batch, T].
        root: R, [*batch, T, T], with a positive diagonal.
    """

    arg_constraints = {"loc": constraints.real_vector, "root": constraints.lower_cholesky}
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["loc", "root"]

    def __init__(
        self,
        loc: Float[Array, "*batch T"],
        root: Float[Array, "*batch T T"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.root = loc, root
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, [*sample_shape, *batch, T]."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(
        self, key: Key, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[PyTree]]:
        """Draws, and [their noise], by which `log_prob` is spared the product with R."""
        noise = jax.random.normal(key, sample_shape + self.shape(), self.loc.dtype)
        root = jnp.broadcast_to(self.root, (*noise.shape, noise.shape[-1]))
        return self.loc + _solved(root, noise), [noise]

    @full_precision
    def log_prob(self, value: Array, intermediates: PyTree = None) -> Array:
        """Log-density, nats [*batch]."""
        check_event("PrecisionNormal: a value", value, self.event_shape)
        if intermediates:
            (noise,) = intermediates
        else:
            noise = jnp.einsum("...ts,...s->...t", self.root, value - self.loc)
        log_det = jnp.log(jnp.diagonal(self.root, axis1=-2, axis2=-1)).sum(-1)
        return log_det - 0.5 * (noise**2 + jnp.log(2 * jnp.pi)).sum(-1)

    @property
    def scale_tril(self) -> Array:
        """R^-1, the Cholesky factor of the covariance, [*batch, T, T]."""
        eye = jnp.broadcast_to(jnp.eye(self.loc.shape[-1]), self.root.shape)
        return jax.scipy.linalg.solve_triangular(self.root, eye, lower=True)


@full_precision
def smoothed(
    scale_tril: Float[Array, "series T T"],
    pseudo: Float[Array, "series latents T"],
    precision: Float[Array, "series latents T"],
) -> PrecisionNormal:
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
    # B = R' R with R lower triangular: a Cholesky factor of B read backwards.
    root = jnp.linalg.cholesky(b[..., ::-1, ::-1])[..., ::-1, ::-1].mT
    weighted = jnp.einsum("nts,ndt->nds", scale_tril, precision * pseudo)
    loc = _solved(root, _solved(root, weighted, is_transposed=True))
    return PrecisionNormal(loc, root)


def _solved(root: Array, x: Array, is_transposed: bool = False) -> Array:
    """R^-1 x, or R'^-1 x."""
    solve = jax.scipy.linalg.solve_triangular
    return solve(root, x[..., None], trans=int(is_transposed), lower=True)[..., 0]


def step_log_prob(
    z: Float[Array, "*batch T"], scale_tril: Float[Array, "*batch T T"]
) -> Float[Array, "*batch T"]:
    """Log p(z_t | z_1, ..., z_{t-1}) of every step, nats: with u = L^-1 z, log N(u_t; 0, 1) - log L_tt.

    Their cumulative sum is the log-density of each prefix, which is what a filter may know at step t.

    Args:
        z: values, [*batch, T].
        scale_tril: L, lower triangular, [*batch, T, T].
    """
    scale = jnp.broadcast_to(scale_tril, (*z.shape, z.shape[-1]))
    u = _solved(scale, z)
    diagonal = jnp.diagonal(scale_tril, axis1=-2, axis2=-1)
    return -0.5 * (u**2 + jnp.log(2 * jnp.pi)) - jnp.log(diagonal)

"""Densities of continuous laws, at large and small parameters and far out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import betaln, xlogy
from jaxtyping import ArrayLike, PyTree

from ..._compat import validate_sample
from ._special import (
    continuous,
    log1p_square,
    log_beta_kernel,
    log_gamma_kernel,
    log_gamma_ratio,
    log_i0e,
    log_ray_in_space,
    log_ray_in_the_plane,
)
from ._tails import log_student_density

Array = jax.Array


def arrays(*values: PyTree) -> tuple[Array, ...]:
    """The values as arrays of one type, at least as wide as the default one."""
    dtype = jnp.result_type(float, *values)
    return tuple(jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in values)))


@validate_sample
def gamma(self: dist.Gamma, value: ArrayLike) -> Array:
    value, a, rate = arrays(value, self.concentration, self.rate)
    log_value = jnp.log(value)
    return log_gamma_kernel(rate * value, jnp.log(rate) + log_value, a) - log_value


@validate_sample
def inverse_gamma(self: dist.InverseGamma, value: ArrayLike) -> Array:
    value, a, rate = arrays(value, self.concentration, self.rate)
    log_value = jnp.log(value)
    return log_gamma_kernel(rate / value, jnp.log(rate) - log_value, a) - log_value


@validate_sample
def beta(self: dist.Beta, value: ArrayLike) -> Array:
    value, a, b = arrays(value, self.concentration1, self.concentration0)
    is_end = (value == 0) | (value == 1)
    inside = jnp.where(is_end, 0.5, value)
    log_prob = log_beta_kernel(inside, 1 - inside, a, b) - jnp.log(inside) - jnp.log1p(-inside)
    # As NumPyro has it, without a derivative.
    at_end = xlogy(a - 1, value) + xlogy(b - 1, 1 - value) - betaln(a, b)
    return jnp.where(is_end, jax.lax.stop_gradient(at_end), log_prob)


@validate_sample
def cauchy(self: dist.Cauchy, value: ArrayLike) -> Array:
    value, loc, scale = arrays(value, self.loc, self.scale)
    return -np.log(np.pi) - jnp.log(scale) - log1p_square((value - loc) / scale)


@validate_sample
def student_t(self: dist.StudentT, value: ArrayLike) -> Array:
    value, df, loc, scale = arrays(value, self.df, self.loc, self.scale)
    return log_student_density((value - loc) / scale, df) - jnp.log(scale)


@validate_sample
def multivariate_student_t(self: Any, value: Array) -> Array:
    root, dim = self.scale_tril, self.scale_tril.shape[-1]
    off = value - self.loc
    shape = jnp.broadcast_shapes(off.shape[:-1], root.shape[:-2])
    off = jnp.broadcast_to(off, (*shape, dim))[..., None]
    root = jnp.broadcast_to(root, (*shape, dim, dim))
    whitened = jax.scipy.linalg.solve_triangular(root, off, lower=True)[..., 0]
    half = jnp.broadcast_to(0.5 * self.df, shape)
    log_det = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
    peak = log_gamma_ratio(half, 0.5 * dim) - 0.5 * dim * jnp.log(2 * np.pi * half) - log_det
    return peak - (half + 0.5 * dim) * jnp.log1p((whitened**2).sum(-1) / (2 * half))


def projected_normal_2(concentration: ArrayLike, value: Array) -> Array:
    """Along the direction an integral, across it a normal law."""
    c, v = arrays(concentration, value)
    across = (c[..., 0] * v[..., 1] - c[..., 1] * v[..., 0]) ** 2
    ray = log_ray_in_the_plane((c * v).sum(-1), across, (c**2).sum(-1))
    return ray - np.log(2 * np.pi)


def projected_normal_3(concentration: ArrayLike, value: Array) -> Array:
    c, v = arrays(concentration, value)
    across = (jnp.cross(c, v) ** 2).sum(-1)
    ray = log_ray_in_space((c * v).sum(-1), across, (c**2).sum(-1))
    return ray - 1.5 * np.log(2 * np.pi)


@validate_sample
def von_mises(self: dist.VonMises, value: ArrayLike) -> Array:
    value, loc, concentration = arrays(value, self.loc, self.concentration)
    bend = 2 * concentration * jnp.sin(0.5 * (value - loc)) ** 2
    return -np.log(2 * np.pi) - log_i0e(concentration) - bend


@continuous
def log_kumaraswamy(x: Array, a: Array, b: Array) -> Array:
    """Log-density of Kumaraswamy's law, with 1 - x^a = -expm1(a log x), which is not 0 below x = 1."""
    tiny = jnp.finfo(x.dtype).tiny
    rest = jnp.maximum(-jnp.expm1(a * jnp.log(x)), tiny)
    return jnp.log(a) + jnp.log(b) + xlogy(a - 1, x) + (b - 1) * jnp.log(rest)


@validate_sample
def kumaraswamy(self: dist.Kumaraswamy, value: ArrayLike) -> Array:
    return log_kumaraswamy(*arrays(value, self.concentration1, self.concentration0))

"""The normal-inverse-gamma law: mean and variance of a normal variable, element by element."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

from ..._types import Key
from ..mends import log_gamma_kernel
from ._mean_and_scale import mean_and_scale

LOG_2PI = 1.8378770664093453


class ExpectedNormal(NamedTuple):
    """E_q of the natural parameters of N(mean, Sigma) where (mean, Sigma) ~ q.

    Attributes:
        precision_mean: E[Sigma^-1 mean].
        precision: E[Sigma^-1].
        quadratic: E[mean' Sigma^-1 mean].
        log_det: E[log |Sigma|], nats.
    """

    precision_mean: Array
    precision: Array
    quadratic: Array
    log_det: Array


def weighted_moments(
    x: Array, weight: Array, variance: Array | float
) -> tuple[Array, Array, Array]:
    """Over rows, the first axis: sum of the weights, weighted mean, and weighted sum of squares about it and of variances.

    `weight`: broadcasts against x, with all its rows.
    """
    count = weight.sum(0)
    mean = (weight * x).sum(0) / jnp.where(count == 0, 1.0, count)
    return count, mean, (weight * ((x - mean) ** 2 + variance)).sum(0)


class NormalInverseGamma(dist.Distribution):
    """Conjugate law of the mean and the variance of a normal variable.

        s2 ~ InverseGamma(concentration, rate),   mean | s2 ~ Normal(loc, s2 / mean_precision).

    One event is [mean, scale], scale = sqrt(s2), shape (2,); densities are in these coordinates. Vectors of d independent
    pairs are `NormalInverseGamma(...).to_event(1)`, events of shape (d, 2). It equals `NormalInverseWishart` with d = 1, df = 2
    concentration and scale matrix 2 rate, at a cost of O(d).

    Args:
        loc: shape [*batch].
        mean_precision: precision of the mean in units of 1 / s2 (pseudo-observations of the mean), positive.
        concentration: half the degrees of freedom, positive.
        rate: positive, in units of s2.

    Validity: `sample` is differentiable in all parameters; the concentration's part is the implicit derivative that JAX's
    gamma sampler carries.
    Reference: Murphy 2007, Conjugate Bayesian analysis of the Gaussian distribution, section 6.

    Example:
        >>> from lapilli import ppl
        >>> prior = ppl.distributions.NormalInverseGamma(0.0, 2.0, 1.5, 0.5)
        >>> posterior = prior.posterior(jax.numpy.array([0.5, 1.5, -0.2]))
        >>> round(float(posterior.loc), 2), float(posterior.mean_precision)
        (0.36, 5.0)
    """

    arg_constraints = {
        "loc": constraints.real,
        "mean_precision": constraints.positive,
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    support = mean_and_scale  # pyright: ignore[reportAssignmentType]
    reparametrized_params = ["loc", "mean_precision", "concentration", "rate"]
    pytree_data_fields = ("loc", "mean_precision", "concentration", "rate")

    def __init__(
        self,
        loc: Float[Array, "*batch"] | float,
        mean_precision: Float[Array, "*batch"] | float,
        concentration: Float[Array, "*batch"] | float,
        rate: Float[Array, "*batch"] | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.mean_precision, self.concentration, self.rate = jnp.broadcast_arrays(
            *(jnp.asarray(x, float) for x in (loc, mean_precision, concentration, rate))
        )
        super().__init__(jnp.shape(self.loc), (2,), validate_args=validate_args)

    @staticmethod
    def unpack(value: Float[Array, "*batch 2"]) -> tuple[Array, Array]:
        """(mean, scale) of packed values, each [*batch]."""
        return value[..., 0], value[..., 1]

    @staticmethod
    def conditional(value: Float[Array, "*batch 2"]) -> dist.Normal:
        """The normal law of a variable given its packed mean and scale."""
        return dist.Normal(value[..., 0], value[..., 1])

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Packed draws, shape [*sample_shape, *batch, 2]."""
        shape = (*sample_shape, *self.batch_shape)
        key_scale, key_mean = jax.random.split(key)
        # On the log scale, since gamma draws of a small concentration underflow.
        log_gamma = jax.random.loggamma(
            key_scale, jnp.broadcast_to(self.concentration, shape), shape
        )
        scale = jnp.exp(0.5 * (jnp.log(self.rate) - log_gamma))
        noise = jax.random.normal(key_mean, shape, self.loc.dtype)
        return jnp.stack([self.loc + scale * noise / jnp.sqrt(self.mean_precision), scale], -1)

    def log_prob(self, value: Array) -> Array:
        """Log-density of [mean, scale], nats, shape [*batch]."""
        mean, scale = self.unpack(value)
        return self.log_prob_moments(mean, scale**2) + jnp.log(2 * scale)

    def log_prob_moments(self, mean: Array, variance: Array) -> Array:
        """Log-density of (mean, variance), nats."""
        normal = dist.Normal(self.loc, jnp.sqrt(variance / self.mean_precision)).log_prob(mean)
        log_variance = jnp.log(variance)
        log_ratio = jnp.log(self.rate) - log_variance
        return (
            normal
            + log_gamma_kernel(self.rate / variance, log_ratio, self.concentration)
            - log_variance
        )

    def expected_natural_params(self) -> ExpectedNormal:
        """Expectations of the natural parameters of `conditional`, each [*batch]."""
        precision = self.concentration / self.rate
        quadratic = 1 / self.mean_precision + precision * self.loc**2
        log_det = jnp.log(self.rate) - digamma(self.concentration)
        return ExpectedNormal(precision * self.loc, precision, quadratic, log_det)

    def expected_conditional(self) -> tuple[dist.Normal, Array]:
        """(r, gap) with E_phi[log N(x; phi)] = log r(x) - gap / 2 for phi ~ this law.

        r is the normal law with the expected natural parameters; the gap, nats [*batch], is not negative, and zero only
        where mean_precision and concentration are infinite.
        """
        normal = dist.Normal(self.loc, jnp.sqrt(self.rate / self.concentration))
        a = self.concentration
        return normal, 1 / self.mean_precision + jnp.log(a) - digamma(a)

    def expected_kl(self, normal: dist.Distribution) -> Array:
        """E_phi[KL(normal || N(phi))] for phi ~ this law, nats [*batch]; `normal` a NumPyro Normal."""
        expected, gap = self.expected_conditional()
        return kl_divergence(normal, expected) + 0.5 * gap

    @property
    def mode(self) -> tuple[Array, Array]:
        """(mean, variance) where the density of (mean, variance) is largest: (loc, rate / (concentration + 3 / 2))."""
        return self.loc, self.rate / (self.concentration + 1.5)

    def entropy(self) -> Array:
        """-E[log_prob], nats [*batch]."""
        a, log_rate = self.concentration, jnp.log(self.rate)
        log_variance = log_rate - digamma(a)
        mean = 0.5 * (1 + LOG_2PI - jnp.log(self.mean_precision) + log_variance)
        variance = a + log_rate + gammaln(a) - (1 + a) * digamma(a)
        return mean + variance - jnp.log(2.0) - 0.5 * log_variance

    def posterior(
        self,
        x: Float[Array, " rows *batch"],
        *,
        variance: Float[Array, " rows *batch"] | float = 0.0,
        weight: Float[Array, " rows *batch"] | float = 1.0,
    ) -> NormalInverseGamma:
        """The law given independent observations of the normal variable.

        Args:
            x: observations, rows first.
            variance: variance of each observation that is itself uncertain, x_i ~ N(x_i, variance_i) (its expected
                sufficient statistics are used, as in variational message passing).
            weight: how often each row counts; zero for padding, N / B for a subsample.
        """
        count, mean, scatter = weighted_moments(x, jnp.broadcast_to(weight, jnp.shape(x)), variance)
        total = self.mean_precision + count
        shrinkage = self.mean_precision * count / total
        return NormalInverseGamma(
            (self.mean_precision * self.loc + count * mean) / total,
            total,
            self.concentration + 0.5 * count,
            self.rate + 0.5 * (scatter + shrinkage * (mean - self.loc) ** 2),
        )

    def predictive(self) -> dist.StudentT:
        """The marginal law of the normal variable: StudentT with 2 concentration degrees of freedom."""
        scale = jnp.sqrt(
            self.rate * (self.mean_precision + 1) / (self.concentration * self.mean_precision)
        )
        return dist.StudentT(2 * self.concentration, self.loc, scale)

    def natural_params(self) -> tuple[Array, Array, Array, Array]:
        """Coefficients of (mean / s2, -mean^2 / 2 s2, -1 / 2 s2, -log s2 / 2), which interpolate and add under conjugacy."""
        loc, precision = self.loc, self.mean_precision
        return (
            precision * loc, precision, 2 * self.rate + precision * loc**2, 2 * self.concentration + 3
        )  # fmt: skip

    @classmethod
    def from_natural_params(cls, params: tuple[Array, Array, Array, Array]) -> NormalInverseGamma:
        """The law with these `natural_params`."""
        first, precision, second, count = params
        loc = first / precision
        return cls(loc, precision, 0.5 * (count - 3), 0.5 * (second - first * loc))


def _kl_normal_inverse_gamma(p: NormalInverseGamma, q: NormalInverseGamma) -> Array:
    """KL(p || q), nats."""
    precision = p.concentration / p.rate
    ratio = q.mean_precision / p.mean_precision
    mean = ratio - 1 - jnp.log(ratio) + q.mean_precision * precision * (p.loc - q.loc) ** 2
    a, b = p.concentration, q.concentration
    variance = (
        a * (q.rate / p.rate - 1)
        + b * (jnp.log(p.rate) - jnp.log(q.rate))
        + gammaln(b)
        - gammaln(a)
        + (a - b) * digamma(a)
    )
    return 0.5 * mean + variance


kl_divergence.register(NormalInverseGamma, NormalInverseGamma)(_kl_normal_inverse_gamma)

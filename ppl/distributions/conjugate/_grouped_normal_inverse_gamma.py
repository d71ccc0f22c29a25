"""The normal-inverse-gamma law of vectors whose elements share variances by groups.

Terms: s2_g ~ InverseGamma(a, b) for each group of n elements, mean_j | s2 ~ Normal(m_j, s2_g / k), x_j ~ Normal(mean_j, s2_g).
What follows for one group; groups are independent.

Expected conditional. log N(x; mean, s2) = sum_j -1/2 [log 2 pi + log s2 + (x_j - mean_j)^2 / s2] is a sum over elements, and so
is its expectation, in which sharing s2 has no say: with E[1 / s2] = a / b, E[log s2] = log b - digamma(a) and
E[(x_j - mean_j)^2 / s2] = (a / b) (x_j - m_j)^2 + 1 / k it is

    log N(x; m, b / a) - (n / 2) [1 / k + log a - digamma(a)].

Mode. The density of (mean, s2) at mean = m is proportional to s2^(-n / 2) s2^(-a - 1) exp(-b / s2): one factor s2^(-1/2) for each
mean. Its logarithm is flat where s2 = b / (a + 1 + n / 2).

Marginal. Given s2, x_j ~ Normal(m_j, s2 (1 + 1 / k)), independent; s2 = (b / a) / tau with tau ~ Gamma(a, a). So x is one
multivariate Student t of 2 a degrees of freedom with scale matrix (b / a)(1 + 1 / k) times the unit matrix: its elements are
uncorrelated, and not independent.

Divergence. KL(q || p) is that of the variances, which is one of gammas (of 1 / s2), once for the group, and the expectation of

    KL(N(m_q, s2 / k_q) || N(m_p, s2 / k_p)) = 1/2 [n (r - 1 - log r) + k_p |m_q - m_p|^2 / s2],   r = k_p / k_q,

in which 1 / s2 becomes a_q / b_q.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

from ..._types import Key
from ._grouped_student_t import GroupedStudentT
from ._groups import Groups
from ._mean_and_scale import MeansAndScales
from ._normal_inverse_gamma import LOG_2PI, weighted_moments

POSITIVE = constraints.independent(constraints.positive, 1)


class GroupedNormalInverseGamma(dist.Distribution):
    """Conjugate law of the means of a normal vector, and of variances that its elements share by groups.

        s2_g ~ InverseGamma(concentration_g, rate_g),   mean_j | s2 ~ Normal(loc_j, s2_g / mean_precision_g),   g the group of j.

    One event is [mean_1 ... mean_d, scale_1 ... scale_G], scale = sqrt(s2), shape (d + G,); densities are in these coordinates.
    With groups of one element it equals d independent pairs, `NormalInverseGamma(...).to_event(1)`, arranged otherwise.

    Args:
        loc: shape [*batch, d].
        mean_precision: precision of the means in units of 1 / s2 (pseudo-observations of the means), positive, [*batch, G] or one
            number.
        concentration: half the degrees of freedom, positive, [*batch, G] or one number.
        rate: positive, in units of s2, [*batch, G] or one number.
        group: number of the group of each element, d whole numbers 0 ... G - 1.

    Raises:
        ValueError: the shapes do not fit, or a group has no element.

    Validity: `sample` is differentiable in all parameters; the concentration's part is the implicit derivative that JAX's
    gamma sampler carries.
    Reference: Murphy 2007, Conjugate Bayesian analysis of the Gaussian distribution, section 6; what sharing changes is derived
    in the module.

    Example:
        >>> from lapilli import ppl
        >>> import jax.numpy as jnp
        >>> prior = ppl.distributions.GroupedNormalInverseGamma(jnp.zeros(3), 2.0, 1.5, 0.5, group=[0, 0, 1])
        >>> posterior = prior.posterior(jnp.array([[0.5, 1.5, -0.2]]))
        >>> posterior.concentration.tolist()  # two observations of the first variance, one of the second
        [2.5, 2.0]
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "mean_precision": POSITIVE,
        "concentration": POSITIVE,
        "rate": POSITIVE,
    }
    reparametrized_params = ["loc", "mean_precision", "concentration", "rate"]
    pytree_data_fields = ("loc", "mean_precision", "concentration", "rate")
    pytree_aux_fields = ("groups",)

    def __init__(
        self,
        loc: Float[Array, "*batch elements"],
        mean_precision: Float[Array, "*batch groups"] | float,
        concentration: Float[Array, "*batch groups"] | float,
        rate: Float[Array, "*batch groups"] | float,
        *,
        group: Sequence[int],
        validate_args: bool | None = None,
    ) -> None:
        loc = jnp.asarray(loc, float)
        given = {"mean_precision": mean_precision, "concentration": concentration, "rate": rate}
        others = {name: jnp.asarray(x, float) for name, x in given.items()}
        self.groups = Groups.of("GroupedNormalInverseGamma", group, loc, others)
        batch = jnp.broadcast_shapes(loc.shape[:-1], *(x.shape[:-1] for x in others.values()))
        d, num_groups = loc.shape[-1], self.groups.count
        self.loc = jnp.broadcast_to(loc, (*batch, d))
        self.mean_precision, self.concentration, self.rate = (
            jnp.broadcast_to(x, (*batch, num_groups)) for x in others.values()
        )
        super().__init__(batch, (d + num_groups,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)  # pyright: ignore[reportArgumentType]
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[means, positive scales]."""
        return MeansAndScales(len(self.groups.numbers), self.groups.count)

    def unpack(self, value: Float[Array, "*batch packed"]) -> tuple[Array, Array]:
        """(means [*batch, d], scales [*batch, G]) of packed values."""
        d = len(self.groups.numbers)
        return value[..., :d], value[..., d:]

    def conditional(self, value: Float[Array, "*batch packed"]) -> dist.Distribution:
        """The normal law of a vector given its packed means and scales, event shape (d,)."""
        mean, scale = self.unpack(value)
        return dist.Normal(mean, self.groups.spread(scale)).to_event(1)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Packed draws, shape [*sample_shape, *batch, d + G]."""
        key_scale, key_mean = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape, self.groups.count)
        # On the log scale, since gamma draws of a small concentration underflow.
        concentration = jnp.broadcast_to(self.concentration, shape)
        log_gamma = jax.random.loggamma(key_scale, concentration, shape)
        scale = jnp.exp(0.5 * (jnp.log(self.rate) - log_gamma))
        noise = jax.random.normal(key_mean, (*shape[:-1], self.loc.shape[-1]), self.loc.dtype)
        spread = self.groups.spread(scale / jnp.sqrt(self.mean_precision))
        return jnp.concatenate([self.loc + spread * noise, scale], -1)

    def log_prob(self, value: Array) -> Array:
        """Log-density of [means, scales], nats, shape [*batch]."""
        mean, scale = self.unpack(value)
        return self.log_prob_moments(mean, scale**2) + jnp.log(2 * scale).sum(-1)

    def log_prob_moments(self, mean: Array, variance: Array) -> Array:
        """Log-density of (means, variances), [*batch, d] and [*batch, G], nats."""
        scale = self.groups.spread(jnp.sqrt(variance / self.mean_precision))
        normal = dist.Normal(self.loc, scale).log_prob(mean).sum(-1)
        return normal + dist.InverseGamma(self.concentration, self.rate).log_prob(variance).sum(-1)

    def expected_conditional(self) -> tuple[dist.Distribution, Array]:
        """(r, gap) with E_phi[log N(x; phi)] = log r(x) - gap / 2 for phi ~ this law.

        r is the normal law of a vector with the expected natural parameters; the gap, nats [*batch], is not negative, and zero
        only where mean_precision and concentration are infinite.
        """
        a = self.concentration
        normal = dist.Normal(self.loc, self.groups.spread(jnp.sqrt(self.rate / a))).to_event(1)
        gap = self.groups.sizes * (1 / self.mean_precision + jnp.log(a) - digamma(a))
        return normal, gap.sum(-1)

    def expected_kl(self, normal: dist.Distribution) -> Array:
        """E_phi[KL(normal || N(phi))] for phi ~ this law, nats [*batch]; `normal` a Normal of vectors, by to_event(1)."""
        expected, gap = self.expected_conditional()
        return kl_divergence(normal, expected) + 0.5 * gap

    @property
    def mode(self) -> tuple[Array, Array]:
        """(means, variances) where their density is largest: (loc, rate / (concentration + 1 + n / 2)), n elements in a group."""
        return self.loc, self.rate / (self.concentration + 1 + 0.5 * self.groups.sizes)

    def entropy(self) -> Array:
        """-E[log_prob], nats [*batch]."""
        a, log_rate = self.concentration, jnp.log(self.rate)
        log_variance = log_rate - digamma(a)
        means = 1 + LOG_2PI - jnp.log(self.mean_precision) + log_variance
        variance = a + log_rate + gammaln(a) - (1 + a) * digamma(a)
        by_group = 0.5 * self.groups.sizes * means + variance - jnp.log(2.0) - 0.5 * log_variance
        return by_group.sum(-1)

    def posterior(
        self,
        x: Float[Array, " rows *batch elements"],
        *,
        variance: Float[Array, " rows *batch elements"] | float = 0.0,
        weight: Float[Array, " rows *batch"] | float = 1.0,
    ) -> GroupedNormalInverseGamma:
        """The law given independent observations of the normal vector.

        Args:
            x: observations, rows first.
            variance: variance of each observation that is itself uncertain, x_i ~ N(x_i, variance_i) (its expected
                sufficient statistics are used, as in variational message passing).
            weight: how often each row counts; zero for padding, N / B for a subsample.
        """
        weight = jnp.broadcast_to(weight, jnp.shape(x)[:-1])[..., None]
        count, mean, scatter = weighted_moments(x, weight, variance)
        total = self.mean_precision + count
        old, new = (self.groups.spread(w) for w in (self.mean_precision / total, count / total))
        shift = self.groups.total((mean - self.loc) ** 2)
        spread = self.groups.total(scatter) + self.mean_precision * count / total * shift
        return GroupedNormalInverseGamma(
            old * self.loc + new * mean,
            total,
            self.concentration + 0.5 * count * self.groups.sizes,
            self.rate + 0.5 * spread,
            group=self.groups.numbers,
        )

    def predictive(self) -> GroupedStudentT:
        """The marginal law of the normal vector: by groups, with 2 concentration degrees of freedom."""
        variance = (
            self.rate * (self.mean_precision + 1) / (self.concentration * self.mean_precision)
        )
        scale = self.groups.spread(jnp.sqrt(variance))
        return GroupedStudentT(2 * self.concentration, self.loc, scale, group=self.groups.numbers)


def _kl_grouped(p: GroupedNormalInverseGamma, q: GroupedNormalInverseGamma) -> Array:
    """KL(p || q), nats."""
    if p.groups != q.groups:
        raise NotImplementedError  # as of laws of which NumPyro knows no divergence: it is sampled
    ratio = q.mean_precision / p.mean_precision
    distance = q.mean_precision * p.concentration / p.rate * p.groups.total((p.loc - q.loc) ** 2)
    means = p.groups.sizes * (ratio - 1 - jnp.log(ratio)) + distance
    # Divergences stay when both laws pass through x -> 1 / x.
    precisions = (dist.Gamma(law.concentration, law.rate) for law in (p, q))
    return (0.5 * means + kl_divergence(*precisions)).sum(-1)


kl_divergence.register(GroupedNormalInverseGamma, GroupedNormalInverseGamma)(_kl_grouped)

"""The list of mends: what is replaced by what, and how the fault is found."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike
from numpyro.distributions import directional, discrete, transforms

from ...._workarounds import Workaround
from ..._compat import Mixture
from . import (
    _censored,
    _continuous,
    _correlations,
    _counts,
    _covariances,
    _discrete,
    _quantiles,
    _truncated,
    _truncated_gamma,
    _wisharts,
)
from ._mend import Mend

SOFTPLUS = (0.5, 0.25)  # the first two derivatives of log(1 + e^x) at 0
_AT_ZERO = "log(1 + e^x) in this log-probability has wrong derivatives at logits of exactly 0."
_RATIO = float(np.exp(0.5))  # of the densities of N(0, 1) and N(1, 1) at 0
REVIVAL = (_RATIO - 1, -((_RATIO - 1) ** 2))  # of log(w N(0; 0, 1) + (1 - w) N(0; 1, 1)) at w = 0


def _two_normals(x: Array, zero: Array, one: Array) -> dist.Distribution:
    weights = dist.CategoricalProbs(jnp.stack([x, one - x]), validate_args=False)
    components = dist.Normal(jnp.stack([zero, one]), one, validate_args=False)
    return dist.MixtureSameFamily(weights, components, validate_args=False)


def _at(
    make: Callable[[Array, Array], dist.Distribution], value: Callable[[Array, Array], ArrayLike]
) -> Callable[..., Array]:
    """What a law's log-probability is: `make` and `value` of x, which is 0, and 1."""
    return lambda f, x, zero, one: f(make(x, one), value(x, one))


MILLION = 1e6
_RAY = "Against the mean direction its density is a difference that underflows."
_BIG = "At large parameters its log-gamma functions of millions are subtracted, each of which is rounded to 1."

_LAWS = (
    (
        "gamma", dist.Gamma, "log_prob", _continuous.gamma,
        _at(lambda x, one: dist.Gamma(MILLION * one, one), lambda x, one: MILLION + 1e3 * (one + x)),
        (-8.32736, -1), _BIG,
    ),
    (
        "beta", dist.Beta, "log_prob", _continuous.beta,
        _at(lambda x, one: dist.Beta(MILLION * one, MILLION * one), lambda x, one: 0.5 * one + 1e-3 * x + 1e-3),
        (3.028533, -8.000024), _BIG,
    ),
    (
        "student-t", dist.StudentT, "log_prob", _continuous.student_t,
        _at(lambda x, one: dist.StudentT(MILLION * one, x, one), lambda x, one: 2 * one), (-2.918937, 1.999994), _BIG,
    ),
    (
        "multivariate-student-t", dist.MultivariateStudentT, "log_prob", _continuous.multivariate_student_t,
        _at(
            lambda x, one: dist.MultivariateStudentT(MILLION * one, jnp.stack([x]), one[None, None]),
            lambda x, one: 2 * one[None],
        ),
        (-2.918937, 1.999994), _BIG,
    ),
    (
        "cauchy", dist.Cauchy, "log_prob", _continuous.cauchy,
        _at(lambda x, one: dist.Cauchy(0 * one, one + x), lambda x, one: 1e20 * one),
        (-93.24813, 1), "The square of a value of 2e19 scales overflows: its density is 0.",
    ),
    (
        "von-mises", dist.VonMises, "log_prob", _continuous.von_mises,
        _at(lambda x, one: dist.VonMises(0 * one, MILLION * (one + x)), lambda x, one: 1e-3 * one),
        (5.488817, 1.666668e-07), "At large concentrations cos(x) - 1 and the derivative of log I_0 cancel.",
    ),
    (
        "kumaraswamy", dist.Kumaraswamy, "log_prob", _continuous.kumaraswamy,
        _at(lambda x, one: dist.Kumaraswamy(0.01 * (one + x), 0.01 * one), lambda x, one: (1 - 2.0**-20) * one),
        (9.073093, 0.009999995), "1 - x^a is cut off near 1, where it has no derivative.",
    ),
    (
        "inverse-gamma", dist.InverseGamma, "log_prob", _continuous.inverse_gamma,
        _at(lambda x, one: dist.InverseGamma(one, one), lambda x, one: 1e25 * (one + x)),
        (-115.1293, -2), "The Jacobian of 1 / x underflows from x = 1e19: its density is 0.",
    ),
    (
        "power-law", dist.DoublyTruncatedPowerLaw, "log_prob", _truncated_gamma.power_between,
        _at(lambda x, one: dist.DoublyTruncatedPowerLaw(x - 1.00001, one, 2 * one), lambda x, one: 1.1 * one),
        (0.2712053, -0.251263), "A difference of powers cancels near exponent -1, and overflows.",
    ),
    (
        "polya-gamma", dist.TruncatedPolyaGamma, "log_prob", _truncated_gamma.polya_gamma,
        _at(lambda x, one: dist.TruncatedPolyaGamma(), lambda x, one: 1e-3 * (one + x)),
        (-115.5573, 123.5), "Its alternating series underflows at small values.",
    ),
    (
        "poisson", dist.Poisson, "log_prob", _counts.poisson,
        _at(lambda x, one: dist.Poisson(MILLION + 1e3 * (one + x)), lambda x, one: MILLION * one), (-8.326361, -0.999001), _BIG,
    ),
    (
        "gamma-poisson", dist.GammaPoisson, "log_prob", _counts.gamma_poisson,
        _at(lambda x, one: dist.NegativeBinomial2(3 * (one + x), MILLION * one), lambda x, one: 2 * one),
        (-1.495923, -0.999997), _BIG,
    ),
    (
        "negative-binomial-logits", dist.NegativeBinomialLogits, "log_prob", _counts.negative_binomial_logits,
        _at(lambda x, one: dist.NegativeBinomialLogits(MILLION * one, x), lambda x, one: MILLION * one),
        (-8.173268, 5.551118e-11), _BIG,
    ),
    (
        "binomial-probs", dist.BinomialProbs, "log_prob", _counts.binomial_probs,
        _at(lambda x, one: dist.BinomialProbs(0.501 * one + 1e-3 * x, MILLION * one), lambda x, one: 5e5 * one),
        (-9.133551, -4.000016), _BIG,
    ),
    (
        "beta-binomial", dist.BetaBinomial, "log_prob", _counts.beta_binomial,
        _at(
            lambda x, one: dist.BetaBinomial(MILLION * (one + x), MILLION * one, 20 * one),
            lambda x, one: 7 * one,
        ),
        (-2.604648, -2.999974), _BIG,
    ),
    (
        "beta-negative-binomial", dist.BetaNegativeBinomial, "log_prob", _counts.beta_negative_binomial,
        _at(
            lambda x, one: dist.BetaNegativeBinomial(MILLION * (one + x), MILLION * one, 5 * one),
            lambda x, one: 7 * one,
        ),
        (-2.518676, 0.9999955), _BIG,
    ),
    (
        "dirichlet-multinomial", dist.DirichletMultinomial, "log_prob", _counts.dirichlet_multinomial,
        _at(
            lambda x, one: dist.DirichletMultinomial(jnp.stack([one, 2 * one]) * MILLION * (one + x), 20 * one),
            lambda x, one: jnp.stack([7 * one, 13 * one]),
        ),
        (-1.703045, 3.333425e-06), _BIG,
    ),
    (
        "projected-normal-2", directional, "_projected_normal_log_prob_2", _continuous.projected_normal_2,
        lambda f, x, zero, one: f(jnp.stack([-20 * one + x, zero]), jnp.stack([one, zero])),
        (-207.836777, 20.0992628), _RAY,
    ),
    (
        "projected-normal-3", directional, "_projected_normal_log_prob_3", _continuous.projected_normal_3,
        lambda f, x, zero, one: f(jnp.stack([-20 * one + x, zero, zero]), jnp.stack([one, zero, zero])),
        (-211.0657, 20.1485328), _RAY,
    ),
    (
        "ordered-logistic", dist.OrderedLogistic, "log_prob", _counts.ordered_logistic,
        _at(
            lambda x, one: dist.OrderedLogistic(-30 * one + x, jnp.stack([-one, 0 * one])),
            lambda x, one: jnp.int32(2 * one),
        ),
        (-30, 1), "Probabilities are differences of sigmoids: 0, without a derivative, where both are near 1.",
    ),
)  # fmt: skip


def _factor(x: tuple[tuple[ArrayLike, ...], ...], zero: Array, one: Array) -> Array:
    """A Cholesky factor of three rows, of the free numbers in each row."""
    (a,), (b, c) = x
    sech = lambda u: one / np.cosh(u)
    rows = (
        [one, zero, zero],
        [np.tanh(a), sech(a), zero],
        [np.tanh(b), np.tanh(c) * sech(b), sech(b) * sech(c)],
    )
    return jnp.stack([jnp.stack([one * x for x in row]) for row in rows])


def _is_made(promote: Callable[..., list[Array]], x: Array, zero: Array, one: Array) -> Array:
    """1 where the parts of two Beta laws go with five rows of both."""
    try:
        promote(jnp.ones((2, 2)), shape=(5, 2))
    except ValueError:
        return 0 * x
    return one + 0 * x


MENDS = (
    Mend(
        "bernoulli-logits",
        discrete, "binary_cross_entropy_with_logits", _discrete.bernoulli_loss,
        lambda loss, x, zero, one: loss(x, zero), SOFTPLUS, _AT_ZERO,
    ),
    Mend(
        "binomial-logits",
        discrete.BinomialLogits, "log_prob", _discrete.binomial_log_prob,
        lambda f, x, zero, one: -f(dist.BinomialLogits(x, one, validate_args=False), zero), SOFTPLUS, _AT_ZERO,
    ),
    Mend(
        "clamped-probabilities",
        discrete, "clamp_probs", _discrete.clamped, lambda clamp, x, zero, one: clamp(x), (1.0, 0.0),
        "Probabilities of exactly 0 and 1 have no derivative in log-probabilities of events.",
    ),
    Mend(
        "mixture-weights",
        Mixture, "log_prob", _discrete.mixture_log_prob,
        lambda f, x, zero, one: f(_two_normals(x, zero, one), zero), REVIVAL,
        "Weights of exactly 0 have no derivative in log-probabilities of mixtures.",
    ),
    Mend(
        "truncated-tails",
        *_truncated.OURS[0],
        lambda f, x, zero, one: f(
            dist.TruncatedNormal(x, one, low=5 * one, high=6 * one, validate_args=False), 5.5 * one
        ),
        (-0.9754924, 0.3168529),
        "Truncated laws subtract probabilities near 1, or that underflow: densities off or infinite, draws outside.",
        order=0, tolerance=1e-3, also=_truncated.OURS[1:],
    ),
    Mend(
        "censored-tails",
        *_censored.OURS[0],
        lambda f, x, zero, one: f(dist.RightCensoredDistribution(dist.Normal(x, one), one), 6 * one), (-20.73677, 6.158483),
        "Logarithms of small probabilities are taken of 1 - F, cut off at 1e-7: off, without a derivative beyond.",
        order=0, tolerance=1e-3, also=_censored.OURS[1:],
    ),
    Mend(
        "censored-beta", _censored.censored, "promote_shapes", _censored.promoted, _is_made, (1, 0),
        "Censored Beta laws with several parameters are not made: the Dirichlet law within has an axis more.",
        order=0,
    ),
    Mend(
        "truncated-gamma",
        *_truncated_gamma.OURS[0],
        lambda f, x, zero, one: f(dist.TruncatedGamma(one, one + x, low=100 * one, validate_args=False), 101 * one),
        (-1, 4.662937e-13), "Where the retained probability underflows the density is 0.",
        order=0, tolerance=1e-3, also=_truncated_gamma.OURS[1:],
    ),
    *(Mend(*law, order=0, tolerance=1e-3) for law in _LAWS),
    Mend(
        "lkj", dist.LKJCholesky, "log_prob", _correlations.lkj_cholesky,
        lambda f, x, zero, one: f(
            dist.LKJCholesky(3, MILLION * (one + x)), _factor(((1e-3,), (1e-3, -1e-3)), zero, one)
        ),
        (16.00617, -1.500003),
        "At large concentrations log-gamma functions of millions are subtracted; at small ones draws pile up at 3e-4.",
        order=0, tolerance=1e-3,
        also=(
            (dist.LKJCholesky, "_onion", _correlations.onion), (dist.LKJCholesky, "_cvine", _correlations.cvine),
            (dist.LKJ, "log_prob", _correlations.lkj),
        ),
    ),
    Mend(
        "correlations", transforms.CorrCholeskyTransform, "__call__", _correlations.factor,
        lambda f, x, zero, one: jnp.log(
            f(transforms.CorrCholeskyTransform(), jnp.stack([0.3 * one, 9 * one + x, 0.5 * one]))[2, 2]
        ),
        (-8.426967, -1),
        "Correlations beyond 1 - 1e-7 are taken for that, and squares from 1: diagonals, log-determinants and inverses are off.",
        order=0, tolerance=1e-3,
        also=(
            (transforms.CorrCholeskyTransform, "log_abs_det_jacobian", _correlations.log_det),
            (transforms.CorrCholeskyTransform, "_inverse", _correlations.free_numbers),
        ),
    ),
    Mend(
        "wishart", dist.WishartCholesky, "log_prob", _wisharts.wishart_cholesky,
        lambda f, x, zero, one: f(
            dist.WishartCholesky(MILLION * (one + x), scale_tril=jnp.stack([jnp.stack([one, zero]), jnp.stack([zero, one])])),
            jnp.stack([jnp.stack([1000 * one, zero]), jnp.stack([one / 2, 1000.5 * one])]),
        ),
        (-2.439628, 501.3750),
        "At large concentrations log-gamma functions of millions are subtracted; nearly singular matrices are off by 7 nats.",
        order=0, tolerance=1e-3,
        also=(
            (dist.InverseWishartCholesky, "log_prob", _wisharts.inverse_wishart_cholesky),
            (dist.Wishart, "log_prob", _wisharts.wishart), (dist.InverseWishart, "log_prob", _wisharts.inverse_wishart),
        ),
    ),
    Mend(
        "multivariate-normal", dist.MultivariateNormal, "log_prob", _covariances.multivariate_normal,
        lambda f, x, zero, one: f(
            dist.MultivariateNormal(
                jnp.stack([zero, zero]),
                jnp.stack([jnp.stack([3 * one, one]), jnp.stack([one, one / 3 + 2.0**-24])]), validate_args=False,
            ),
            jnp.stack([zero, 1e-4 + x]),
        ),
        (5.781605, -1438.047), "Where a matrix is given that is nearly singular its factor is rounding: off by hundreds of nats.",
        order=0,
        also=(
            (dist.MultivariateNormal, "entropy", _covariances.entropy),
            (dist.GaussianStateSpace, "log_prob", _covariances.state_space),
            (dist.CirculantNormal, "log_prob", _covariances.circulant),
        ),
    ),
    Mend(
        "low-rank-normal", dist.LowRankMultivariateNormal, "log_prob", _covariances.low_rank,
        lambda f, x, zero, one: f(
            dist.LowRankMultivariateNormal(jnp.stack([x, x]), jnp.stack([one, one])[:, None], 1e-8 * jnp.stack([one, one])),
            jnp.stack([one, one + 1e-4]),
        ),
        (6.275757, 1.00005), "The quadratic form is a difference of two that are as large as the diagonal is small.",
        order=0, tolerance=1e-3,
    ),
    Mend(
        "autoregression", dist.CAR, "log_prob", _covariances.autoregression,
        lambda f, x, zero, one: f(
            dist.CAR(x * jnp.ones(4), 0.9999 * one, one, 1 - np.eye(4)), 3000.1 * one * jnp.ones(4)
        ),
        (-5406.909, 3.600718), "The quadratic form is a difference, of large numbers where values are far from the mean.",
        order=0, tolerance=1e-5,
    ),
    Mend(
        "incomplete-gamma", *_quantiles.OF_GAMMA[0],
        lambda f, x, zero, one: f(dist.Gamma(MILLION * one, one), MILLION + 1e3 * x), (0.500133, 0.398942),
        "Distribution functions of gamma and Poisson laws have a prefactor that cancels: off by .6 at a million.",
        order=0, tolerance=1e-3, also=_quantiles.OF_GAMMA[1:],
    ),
    Mend(
        "incomplete-beta", *_quantiles.OF_BETA[0],
        lambda f, x, zero, one: f(dist.Beta(MILLION * one, MILLION * one), 0.5 * one + 1e-3 * x), (0.5, 1.128379),
        "Those of beta, negative binomial and Student's t laws alike.",
        order=0, tolerance=1e-3, also=_quantiles.OF_BETA[1:],
    ),
    Mend(
        "small-probabilities", *_quantiles.SMALL[0],
        lambda f, x, zero, one: 1e20 * f(dist.Cauchy(0 * one, one), -1e20 * (one - x)), (0.3183099, 0.3183099),
        "Distribution functions that are a difference from 1 or 1/2 have no digits in their lower tails.",
        order=0, tolerance=1e-3, also=_quantiles.SMALL[1:],
    ),
    Mend(
        "quantiles", *_quantiles.QUANTILES[0],
        lambda f, x, zero, one: f(dist.Laplace(0 * one, one), 1e-20 * (one + x)), (-45.3585543, 1),
        "Inverses subtract from 1/2 or 1: infinite, or 0, in a tail.",
        order=0, tolerance=1e-3, also=_quantiles.QUANTILES[1:],
    ),
    Mend(
        "power-law-quantiles", *_quantiles.POWERS[0],
        lambda f, x, zero, one: f(dist.DoublyTruncatedPowerLaw(-1.00001 * one, one, 2 * one), 1.1 * one + x),
        (0.1375075, 1.311543), "A difference of powers cancels near exponent -1.",
        order=0, tolerance=1e-3, also=_quantiles.POWERS[1:],
    ),
)  # fmt: skip


def records() -> tuple[Workaround, ...]:
    """A record of each mend, after its test."""
    return tuple(mend.record() for mend in MENDS)

"""Laws of NumPyro's, as they are mended, have their log-densities and scores in single precision wherever draws go."""

import _laws
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from _laws import grid
from scipy import integrate

from lapilli import ppl  # noqa: F401, puts the mends in their places

LOC, SCALE = (0.0, 30.0, -1e3), (1e-3, 1.0, 1e3)
SIZES = (1e-3, 0.3, 1.0, 7.0, 1e3, 1e6)
NEAR_1 = np.array([1e-30, 1e-10, 1e-3, 0.1, 0.5, 0.9, 0.99, 0.9999, 1 - 1e-6, 1 - 6e-8])
COUNTS = np.array([0, 1, 7, 20])


def around(mean):
    """Counts below, at and above a mean."""
    return np.unique(np.round(np.array([0, 1, mean / 2, mean, 2 * mean + 5])))


class _Total:
    """Counts k, n - k and 0 of three."""

    def __init__(self, law, concentration, num):
        self.num, self.law = held(num), law(concentration, held(num))

    def log_prob(self, k):
        return self.law.log_prob(held(jnp.stack([k, self.num - k, 0 * k])))


class _Held:
    """A law of counts, which have no derivative."""

    def __init__(self, law):
        self.log_prob = lambda k: law.log_prob(held(k))


class _Angle:
    """The direction at an angle to the first axis."""

    def __init__(self, concentration):
        self.size, self.law = concentration.shape[0], dist.ProjectedNormal(concentration)

    def log_prob(self, x):
        return self.law.log_prob(jnp.stack([jnp.cos(x), jnp.sin(x), 0 * x][: self.size]))


class _Twice:
    """Two equal numbers."""

    def __init__(self, law):
        self.log_prob = lambda x: law.log_prob(jnp.stack([x, x]))


class _Pair:
    """A mean of a tenth of the scale, and the scale."""

    def __init__(self, law):
        self.log_prob = lambda x: law.log_prob(jnp.stack([0.1 * x, x], -1))


# JAX has no second derivatives of the incomplete gamma functions in a, by which an error of the first is judged.
held = jax.lax.stop_gradient

LAWS = {
    "Normal": lambda: grid(dist.Normal, LOC, SCALE, exact=st.norm),
    "Cauchy": lambda: grid(dist.Cauchy, LOC, SCALE, exact=st.cauchy),
    "Laplace": lambda: grid(dist.Laplace, LOC, SCALE, exact=st.laplace),
    "Logistic": lambda: grid(dist.Logistic, LOC, SCALE, exact=st.logistic),
    "Gumbel": lambda: grid(dist.Gumbel, LOC, SCALE, exact=st.gumbel_r),
    "SoftLaplace": lambda: grid(dist.SoftLaplace, LOC, SCALE, exact=st.hypsecant),
    "HalfNormal": lambda: grid(dist.HalfNormal, SCALE, exact=lambda s: st.halfnorm(scale=s)),
    "HalfCauchy": lambda: grid(dist.HalfCauchy, SCALE, exact=lambda s: st.halfcauchy(scale=s)),
    "Exponential": lambda: grid(dist.Exponential, SCALE, exact=lambda r: st.expon(scale=1 / r)),
    "LogNormal": lambda: grid(
        dist.LogNormal, (0.0, 10.0, -10.0), (1e-3, 1.0, 3.0), exact=lambda m, s: st.lognorm(s, scale=np.exp(m))
    ),
    "StudentT": lambda: grid(
        dist.StudentT, (0.3, 1.0, 3.0, 30.0, 1e3, 1e6), (0.0, 30.0), (1.0, 1e-3),
        values=lambda d, m, s: m + s * np.array([-1e25, -1e3, -30, -5, -1, -0.1, 0, 1, 5, 1e3]), exact=st.t,
    ),
    "Gamma": lambda: grid(dist.Gamma, SIZES, SCALE, exact=lambda a, r: st.gamma(a, scale=1 / r)),
    "Chi2": lambda: grid(dist.Chi2, SIZES, exact=st.chi2),
    "InverseGamma": lambda: grid(dist.InverseGamma, SIZES, SCALE, exact=lambda a, r: st.invgamma(a, scale=r)),
    "Beta": lambda: grid(dist.Beta, SIZES, SIZES, exact=st.beta),
    "BetaProportion": lambda: grid(
        dist.BetaProportion, (0.01, 0.5, 0.99), SIZES, exact=lambda m, k: st.beta(m * k, (1 - m) * k)
    ),
    "Kumaraswamy": lambda: grid(
        dist.Kumaraswamy, (0.01, 0.3, 1.0, 7.0, 1e3), (0.01, 0.3, 1.0, 7.0, 1e3), values=lambda a, b: NEAR_1
    ),
    "Weibull": lambda: grid(
        dist.Weibull, SCALE, (0.3, 1.0, 7.0, 1e3), exact=lambda s, c: st.weibull_min(c, scale=s)
    ),
    "Pareto": lambda: grid(dist.Pareto, SCALE, (0.3, 1.0, 7.0, 1e3), exact=lambda s, a: st.pareto(a, scale=s)),
    "Gompertz": lambda: grid(dist.Gompertz, SCALE, SCALE, exact=lambda c, r: st.gompertz(c, scale=1 / r)),
    "Levy": lambda: grid(dist.Levy, LOC, SCALE, exact=st.levy),
    "Dagum": lambda: grid(
        dist.Dagum, (0.1, 1.0, 30.0), SCALE, (0.1, 1.0, 30.0),
        values=lambda p, b, a: b * np.array([1e-6, 1e-2, 0.5, 1.0, 2.0, 100.0, 1e6]),
    ),
    "LogUniform": lambda: grid(
        lambda low, high: dist.LogUniform(low, high, validate_args=False), (1e-3, 1.0), (1.01, 10.0, 1e6),
        exact=st.loguniform,
    ),
    "Uniform": lambda: grid(
        dist.Uniform, (-1e3, 0.0, 3.0), (3.01, 10.0, 1e6), values=lambda a, b: np.array([0.9 * a + 0.1 * b])
    ),
    "AsymmetricLaplace": lambda: grid(
        dist.AsymmetricLaplace, (0.0, 30.0), (1.0, 1e-3), (0.1, 1.0, 10.0),
        exact=lambda m, s, k: st.laplace_asymmetric(k, m, s),
    ),
    "AsymmetricLaplaceQuantile": lambda: grid(
        dist.AsymmetricLaplaceQuantile, (0.0, 30.0), (1.0, 1e-3), (0.01, 0.5, 0.99),
        values=lambda m, s, q: m + s * np.array([-30, -3, -0.1, 0.1, 3, 30]),
    ),
    "VonMises": lambda: grid(
        dist.VonMises, (0.0, 1.0, -3.0, 3.14), (1e-3, 0.3, 1.0, 30.0, 1e3, 1e6, 1e9),
        values=lambda m, k: np.clip(m + np.array([-3, -1, -0.1, 0, 0.1, 1, 3]) * min(k**-0.5, 1), -3.1415, 3.1415),
    ),
    "RelaxedBernoulli": lambda: grid(
        lambda t, logits: dist.RelaxedBernoulli(t, logits=logits), (0.1, 1.0, 3.0), (-5.0, 0.0, 5.0),
        values=lambda t, l: np.array([1e-30, 1e-6, 0.01, 0.5, 0.99, 1 - 1e-6]),
    ),
    "LowerTruncatedPowerLaw": lambda: grid(
        dist.LowerTruncatedPowerLaw, (-30.0, -2.0, -1.001), SCALE,
        values=lambda a, low: low * np.array([1.0001, 2.0, 100.0]),
    ),
    "DoublyTruncatedPowerLaw": lambda: grid(
        lambda a, low, high: dist.DoublyTruncatedPowerLaw(a, low, high, validate_args=False),
        (-30.0, -2.0, -1.001, -1.000001, -1.0, -0.999, 0.0, 3.0, 30.0), (1e-3, 1.0), (1.01, 10.0, 1e4),
        values=lambda a, low, high: low + (high - low) * np.array([0.1, 0.5, 0.9]),
    ),
    "TruncatedPolyaGamma": lambda: grid(
        lambda: dist.TruncatedPolyaGamma(),
        values=lambda: np.array([1e-4, 1e-3, 0.01, 0.03, 0.1, 0.15, 0.17, 0.2, 0.5, 1.0, 1.5, 2.0, 2.4]),
    ),
    "LeftTruncatedGamma": lambda: grid(
        lambda a, r, low: dist.TruncatedGamma(held(a), r, low=low, validate_args=False), (0.3, 1.0, 7.0), (0.5, 1.0),
        (1e-3, 1.0, 50.0, 300.0, 1e4), values=lambda a, r, low: low + np.array([0.01, 1.0, 5.0]),
    ),
    "RightTruncatedGamma": lambda: grid(
        lambda a, r, high: dist.TruncatedGamma(held(a), r, high=high, validate_args=False), (0.3, 1.0, 7.0, 100.0),
        (0.5, 1.0), (1e-6, 1e-3, 1.0, 50.0), values=lambda a, r, high: high * np.array([0.01, 0.5, 0.99]),
    ),
    "TwoSidedTruncatedGamma": lambda: grid(
        lambda a, low, high: dist.TruncatedGamma(held(a), 1.0, low=low, high=high, validate_args=False),
        (0.3, 1.0, 7.0), (1e-3, 1.0, 20.0), (20.01, 30.0, 200.0),
        values=lambda a, low, high: low + (high - low) * np.array([0.1, 0.5, 0.9]),
    ),
    "Poisson": lambda: grid(
        dist.Poisson, (1e-6, 1e-3, 1.0, 30.0, 1e4, 1e6),
        values=lambda r: np.unique(np.round((r + np.array([-r, -3, 0, 1, 3]) * r**0.5).clip(0))), exact=st.poisson,
    ),
    "NegativeBinomial2": lambda: grid(
        dist.NegativeBinomial2, (0.1, 3.0, 1e3), (1e-3, 1.0, 30.0, 1e4, 1e6, 1e9), values=lambda m, c: around(m)
    ),
    "NegativeBinomialLogits": lambda: grid(
        dist.NegativeBinomialLogits, (1e-3, 1.0, 30.0, 1e4, 1e6), (-9.0, 0.0, 9.0),
        values=lambda n, l: around(n * np.exp(l)),
    ),
    "NegativeBinomialProbs": lambda: grid(
        dist.NegativeBinomialProbs, (1e-3, 1.0, 30.0, 1e4, 1e6), (1e-6, 0.5, 0.999),
        values=lambda n, p: around(n * p / (1 - p)), exact=lambda n, p: st.nbinom(n, 1 - p),
    ),
    "GammaPoisson": lambda: grid(
        dist.GammaPoisson, (1e-3, 1.0, 30.0, 1e4, 1e6), (1e-3, 1.0, 1e4), values=lambda a, r: around(a / r)
    ),
    "BetaBinomial": lambda: grid(
        lambda a, b: dist.BetaBinomial(a, b, 20), SIZES, SIZES, values=lambda a, b: COUNTS,
        exact=lambda a, b: st.betabinom(20, a, b),
    ),
    "BetaBinomialOfAMillion": lambda: grid(
        lambda a, b: _Held(dist.BetaBinomial(a, b, 1e6)), SIZES[:4], SIZES[:4],
        values=lambda a, b: np.array([0, 1, 3e5, 1e6]),
    ),
    "BetaNegativeBinomialOfAMillion": lambda: grid(
        lambda a, b, n: _Held(dist.BetaNegativeBinomial(a, b, held(n))), SIZES[:4], SIZES[:4], (1.0, 1e6),
        values=lambda a, b, n: np.array([0, 1, 1e6]),
    ),
    "DirichletMultinomial": lambda: grid(
        lambda a, b, n: _Total(dist.DirichletMultinomial, jnp.stack([a, b, 1.0 + 0 * a]), n),
        SIZES[:-1], SIZES[:-1], (20.0, 1e6), values=lambda a, b, n: np.round(n * np.array([0, 0.1, 0.3])),
    ),
    "ProjectedNormalInThePlane": lambda: grid(
        lambda c, d: _Angle(jnp.stack([c, d])), (-30.0, -3.0, 0.0, 1e-3, 1.0, 300.0), (-1.0, 0.0, 10.0),
        values=lambda c, d: np.array([-3.0, -1.0, 0.1, 2.0, 3.1]),
    ),
    "ProjectedNormalInSpace": lambda: grid(
        lambda c, d: _Angle(jnp.stack([c, d, 0.5 + 0 * c])), (-30.0, -3.0, 0.0, 1e-3, 1.0, 300.0), (-1.0, 0.0, 10.0),
        values=lambda c, d: np.array([-3.0, -1.0, 0.1, 2.0, 3.1]),
    ),
    "GroupedStudentT": lambda: grid(
        lambda d, m, s: _Twice(ppl.distributions.GroupedStudentT(d, m * jnp.ones(2), s, group=[0, 0])),
        (0.3, 3.0, 1e3, 1e6), (0.0, 30.0), (1.0, 1e-3), values=lambda d, m, s: m + s * np.array([-30, -1, 0.1, 5]),
    ),
    "NormalInverseGamma": lambda: grid(
        lambda k, a, b: _Pair(ppl.distributions.NormalInverseGamma(0 * k, k, a, b)), (1e-3, 1.0, 1e3), SIZES, SCALE,
        values=lambda k, a, b: (b / a) ** 0.5 * np.array([0.3, 0.99, 1.0, 1.01, 3.0]),
    ),
    "BetaNegativeBinomial": lambda: grid(
        dist.BetaNegativeBinomial, SIZES, SIZES, (1.0, 5.0), values=lambda a, b, n: COUNTS
    ),
    "GeometricLogits": lambda: grid(dist.GeometricLogits, (-20.0, 0.0, 20.0), values=lambda l: COUNTS),
    "GeometricProbs": lambda: grid(dist.GeometricProbs, (1e-6, 0.5, 0.9999), values=lambda p: COUNTS),
    "BinomialLogits": lambda: grid(
        lambda l: dist.BinomialLogits(l, 20), (-20.0, 0.0, 20.0), values=lambda l: COUNTS
    ),
    "BinomialProbs": lambda: grid(
        lambda p: dist.BinomialProbs(p, 1e6), (1e-20, 1e-6, 0.5, 1 - 1e-6),
        values=lambda p: np.array([0, 1, 499000, 500000, 999990, 1e6]), exact=lambda p: st.binom(1000000, p),
    ),
    "OrderedLogistic": lambda: grid(
        lambda p, c, d: dist.OrderedLogistic(p, jnp.stack([c, c + d])),
        (0.0, 20.0, -20.0, 50.0, -50.0), (-3.0, 0.0), (1e-3, 1.0, 30.0),
        values=lambda p, c, d: np.arange(3), is_integer=True,
    ),
    "ZeroInflatedPoisson": lambda: grid(
        dist.ZeroInflatedPoisson, (1e-6, 0.5, 1 - 1e-6), (1e-6, 1e-3, 1.0, 100.0), values=lambda g, r: COUNTS
    ),
    "ZeroInflatedLogits": lambda: grid(
        lambda g, r: dist.ZeroInflatedDistribution(dist.Poisson(r), gate_logits=g),
        (-30.0, 0.0, 30.0), (1e-3, 1.0, 200.0), values=lambda g, r: COUNTS,
    ),
    "HurdlePoisson": lambda: grid(
        dist.HurdlePoisson, (1e-6, 0.5, 1 - 1e-6), (1e-6, 1e-3, 1.0, 100.0), values=lambda g, r: COUNTS
    ),
    "HurdleLogits": lambda: grid(
        lambda g, r: dist.HurdleLogits(dist.Poisson(r), g), (-30.0, 0.0, 30.0), (1e-3, 1.0, 200.0),
        values=lambda g, r: COUNTS,
    ),
}  # fmt: skip


@pytest.mark.fast("Gamma", "OrderedLogistic")
@pytest.mark.parametrize("name", LAWS)
def test_the_log_density_and_score_of_a_law(name):
    report = _laws.examine(LAWS[name]())
    print(f"{name}: {report.num_points} points, worst {report.worst} roundings")
    assert report.num_points >= 9
    assert not report.faults, report.faults[:5]


def test_the_examination_finds_a_formula_that_cancels():
    def cancels(v):
        return (v[0] + v[1]) - v[0] - 0.5 * v[1] ** 2

    law = _laws.Law(cancels, np.array([[1e6, 0.3], [1.0, 0.3]], np.float32))
    assert [fault[:11] for fault in _laws.examine(law).faults] == ["log-density"]


@pytest.mark.parametrize("dim", [2, 3])
def test_directions_of_a_normal_vector_have_mass_one(dim):
    """Near, across and against the mean direction: an integral over the angle to it, by Simpson's rule."""
    with jax.enable_x64(True):
        angle = np.linspace(0, np.pi, 2001)
        x = np.stack([np.cos(angle), np.sin(angle), 0 * angle][:dim], -1)
        for size in (0.0, 1.0, 3.0, 30.0):
            law = dist.ProjectedNormal(size * np.eye(dim)[0])
            ring = 2.0 if dim == 2 else 2 * np.pi * np.sin(angle)
            mass = integrate.simpson(ring * np.exp(jax.vmap(law.log_prob)(x)), x=angle)
            np.testing.assert_allclose(mass, 1, rtol=1e-5)

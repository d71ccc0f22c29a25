"""Distribution functions and quantiles of NumPyro's laws, as they are mended, in both tails and at any size of parameters."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from _laws import quiet

from lapilli import ppl  # noqa: F401, puts the mends in their places
from lapilli.ppl.distributions.mends import MENDS

SHARES = np.array([1e-30, 1e-10, 1e-5, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-5, 1 - 6e-8])
LOC, SCALE = (0.0, 30.0, -1e3), (1e-3, 1.0, 1e3)
SIZES = (0.05, 0.5, 1.0, 7.0, 30.0, 1e3, 1e6)
# Law, SciPy's, parameters, and by which of these a value is shifted.
LAWS: dict[str, Any] = {
    "Normal": (dist.Normal, st.norm, (LOC, SCALE)),
    "Logistic": (dist.Logistic, st.logistic, (LOC, SCALE)),
    "Laplace": (dist.Laplace, st.laplace, (LOC, SCALE)),
    "Cauchy": (dist.Cauchy, st.cauchy, (LOC, SCALE)),
    "SoftLaplace": (dist.SoftLaplace, st.hypsecant, (LOC, SCALE)),
    "Gumbel": (dist.Gumbel, st.gumbel_r, (LOC, SCALE)),
    "Levy": (dist.Levy, st.levy, (LOC[:2], SCALE)),
    "StudentT": (dist.StudentT, st.t, ((0.5, 1.0, 4.0, 1e3, 1e6), LOC[:2], SCALE)),
    "HalfNormal": (dist.HalfNormal, lambda s: st.halfnorm(scale=s), (SCALE,)),
    "HalfCauchy": (dist.HalfCauchy, lambda s: st.halfcauchy(scale=s), (SCALE,)),
    "Exponential": (dist.Exponential, lambda r: st.expon(scale=1 / r), (SCALE,)),
    "Weibull": (dist.Weibull, lambda s, c: st.weibull_min(c, scale=s), (SCALE, (0.1, 1.0, 100.0))),
    "Gompertz": (dist.Gompertz, lambda c, r: st.gompertz(c, scale=1 / r), ((1e-6, 1.0, 100.0), SCALE)),
    "LogNormal": (dist.LogNormal, lambda m, s: st.lognorm(s, scale=np.exp(m)), ((-10.0, 0.0, 10.0), (1e-3, 1.0, 5.0))),
    "Pareto": (dist.Pareto, lambda s, a: st.pareto(a, scale=s), (SCALE, (0.1, 1.0, 1e4))),
    "Uniform": (dist.Uniform, lambda a, b: st.uniform(a, b - a), ((-1e3, 0.0), (1e-3, 1e3))),
    "AsymmetricLaplace": (
        dist.AsymmetricLaplace, lambda m, s, k: st.laplace_asymmetric(k, m, s), (LOC[:2], SCALE[:2], (0.1, 1.0, 5.0)),
    ),
    "Dagum": (dist.Dagum, lambda c, a, s: st.burr(a, c, scale=s), ((0.1, 1.0, 10.0), (0.5, 1.0, 20.0), SCALE)),
    "Gamma": (dist.Gamma, lambda a, r: st.gamma(a, scale=1 / r), (SIZES, SCALE)),
    "Chi2": (dist.Chi2, st.chi2, ((0.3, 7.0, 100.0, 1e5),)),
    "InverseGamma": (dist.InverseGamma, lambda a, r: st.invgamma(a, scale=r), (SIZES, SCALE)),
    "Beta": (dist.Beta, st.beta, (SIZES, SIZES)),
    "BetaProportion": (
        dist.BetaProportion, lambda m, c: st.beta(m * c, (1 - m) * c), ((0.05, 0.5), (1.0, 300.0, 1e6)),
    ),
    "Poisson": (dist.Poisson, st.poisson, ((1e-3, 0.3, 4.0, 100.0, 1e4, 1e6),)),
    "NegativeBinomial2": (
        dist.NegativeBinomial2, lambda m, c: st.nbinom(c, c / (c + m)), ((0.1, 4.0, 1e3, 1e5), (0.01, 1.0, 30.0, 1e6)),
    ),
    "NegativeBinomialLogits": (
        dist.NegativeBinomialLogits, lambda n, l: st.nbinom(n, 1 / (1 + np.exp(l))), ((0.5, 3.0, 100.0), (-10.0, 0.0, 5.0)),
    ),
    "DoublyTruncatedPowerLaw": (dist.DoublyTruncatedPowerLaw, None, ((-3.0, -1.00001, -0.5, 2.0), (0.1, 1.0), (1.01, 100.0))),
    "LowerTruncatedPowerLaw": (
        dist.LowerTruncatedPowerLaw, lambda a, low: st.pareto(-a - 1, scale=low), ((-1.001, -2.0, -30.0), (0.1, 100.0)),
    ),
}  # fmt: skip
EPS = 1.2e-7
NO_QUANTILE = {"StudentT", "Weibull", "Gamma", "Chi2", "InverseGamma", "Beta", "BetaProportion"}


class _Powers:
    """What SciPy has no law for: x^alpha between two ends, in double precision by logarithms."""

    def __init__(self, alpha, low, high):
        self.s, self.low, self.span = 1 + alpha, low, np.log(high / low)

    def cdf(self, x):
        return np.expm1(self.s * np.log(x / self.low)) / np.expm1(self.s * self.span)

    def ppf(self, q):
        return self.low * np.exp(np.log1p(q * np.expm1(self.s * self.span)) / self.s)

    def isf(self, q):
        return self.ppf(1 - q)

    def pdf(self, x):
        return self.s * (x / self.low) ** (self.s - 1) / self.low / np.expm1(self.s * self.span)


def cases(name):
    """Parameters of single precision, and values at quantiles of theirs."""
    _, law, grid = LAWS[name]
    made = [tuple(map(np.float32, p)) for p in itertools.product(*grid)]
    laws = [(law or _Powers)(*map(float, p)) for p in made]
    with quiet():
        values = [np.concatenate([x.ppf(SHARES), x.isf(SHARES)]) for x in laws]
        values = np.array(values).astype(np.float32)
        # Up to 1e18 scales, where squares are numbers.
        values[~(np.abs(values) < 1e14) | (np.abs(values) < 1e-30)] = np.nan
    return np.array(made, np.float32), laws, values


def slope(law, params, index, x, name):
    """The change of F per relative change of a parameter, by differences."""
    make = LAWS[name][1] or _Powers
    step = 1e-4
    up, down = ([p * (1 + s * step * (i == index)) for i, p in enumerate(params)] for s in (1, -1))
    return np.nan_to_num((make(*up).cdf(x) - make(*down).cdf(x)) / (2 * step))


def faults_of_cdf(name, cdf=None):
    """Values where F is off by more than some roundings of its arguments and its own logarithm."""
    make = LAWS[name][0]
    params, laws, values = cases(name)
    cdf = cdf or (lambda law, x: law.cdf(x))
    found = np.asarray(jax.jit(jax.vmap(lambda p, x: cdf(make(*p), x)))(params, values), float)
    faults = []
    for p, law, xs, now in zip(
        params.astype(float), laws, values.astype(float), found, strict=True
    ):
        with quiet():
            wanted = law.cdf(xs)
            density = getattr(law, "pdf", lambda x: 0 * x)
            density = density(xs) if not hasattr(getattr(law, "dist", None), "pmf") else 0 * xs
            moved = np.nan_to_num(density * np.abs(xs)) + sum(
                np.abs(slope(law, p, i, xs, name)) for i in range(len(p))
            )
            rounding = EPS * (wanted * (1 + np.abs(np.log(wanted))) + moved) + 1e-37
            off = np.abs(now - wanted) / rounding
        faults += [
            (tuple(p), x, n, w)
            for x, n, w, o in zip(xs, now, wanted, off, strict=True)
            if w > 1e-30 and not o < 40
        ]
    return faults


@pytest.mark.fast("Cauchy", "Gamma", "Beta")
@pytest.mark.parametrize("name", LAWS)
def test_distribution_functions(name):
    faults = faults_of_cdf(name)
    assert not faults, (len(faults), faults[:5])


@pytest.mark.slow_for("Gamma", "Cauchy")
@pytest.mark.parametrize("name", ["Gamma", "Beta", "Cauchy"])
def test_the_examination_finds_numpyro_s_own(name):
    owner = LAWS[name][0]
    theirs = next(
        f for m in MENDS for (o, attribute, _), f in zip(m.places, m.theirs, strict=True) if o is owner and attribute == "cdf"
    )  # fmt: skip
    assert len(faults_of_cdf(name, theirs)) > 10


@pytest.mark.fast("Laplace", "Levy")
@pytest.mark.parametrize(
    "name", [n for n in LAWS if n not in NO_QUANTILE and not n.startswith(("Poisson", "Negative"))]
)
def test_quantiles(name):
    """Of both halves: a value is off by no more than some roundings of itself, of its location and of the probability."""
    make = LAWS[name][0]
    params, laws, _ = cases(name)
    shares = SHARES.astype(np.float32)
    found = np.asarray(jax.jit(jax.vmap(lambda p: make(*p).icdf(shares)))(params), float)
    q = shares.astype(float)
    for p, law, now in zip(params.astype(float), laws, found, strict=True):
        with quiet():
            wanted = law.ppf(q)
            terms = q * (1 + np.abs(np.log(q))) + sum(
                np.abs(slope(law, p, i, wanted, name)) for i in range(len(p))
            )
            rounding = EPS * (np.abs(wanted) + terms / law.pdf(wanted))
            counts = (np.abs(wanted) < 1e37) & (np.abs(wanted) > 1e-36) & np.isfinite(rounding)
        assert (np.abs(now[counts] - wanted[counts]) < 40 * rounding[counts]).all(), (
            p,
            now,
            wanted,
        )


def test_no_quantile_of_what_is_no_probability():
    for law in (dist.Laplace(0.0, 1.0), dist.HalfNormal(1.0), dist.Levy(0.0, 1.0)):
        assert jnp.isnan(law.icdf(jnp.array([-0.1, 1.1]))).all()
    assert (dist.Gamma(2.0, 1.0).cdf(jnp.array([-1.0, jnp.inf])) == jnp.array([0.0, 1.0])).all()
    assert jnp.isnan(dist.Beta(2.0, 1.0).cdf(jnp.nan))


def mean_slopes(make, law, params, x):
    """Derivatives of log F and log(1 - F) in the parameters: found, and by differences of fourth order."""
    ones = jnp.ones(1)

    def both(p):
        base = make(*(p[i : i + 1] for i in range(len(params))))
        at = jnp.full(1, x)
        return jnp.stack([
            dist.LeftCensoredDistribution(base, ones).log_prob(at)[0],
            dist.RightCensoredDistribution(base, ones).log_prob(at)[0],
        ])  # fmt: skip

    wanted = []
    for i, p in enumerate(params):
        step = 1e-3 * min(p, p**0.5)
        at = lambda s, i=i: law(*(v + s * (k == i) for k, v in enumerate(params)))
        logs = lambda s, at=at: np.array([at(s).logcdf(x), at(s).logsf(x)])
        wanted.append(
            (8 * (logs(step) - logs(-step)) - (logs(2 * step) - logs(-2 * step))) / (12 * step)
        )
    return jax.jacfwd(both)(jnp.array(params, jnp.float32)), np.array(wanted).T


@pytest.mark.slow_for("Beta", "NegativeBinomial")
@pytest.mark.parametrize("name", ["Gamma", "Beta", "NegativeBinomial"])
def test_censored_laws_have_gradients_in_their_parameters(name):
    """JAX has none of betainc in its parameters, and few digits of gammainc's at a thousand."""
    make, law = {
        "Gamma": (lambda a: dist.Gamma(a, jnp.ones(1)), st.gamma),
        "Beta": (dist.Beta, st.beta),
        "NegativeBinomial": (
            lambda c, m: dist.NegativeBinomial2(m, c), lambda c, m: st.nbinom(c, c / (c + m)),
        ),
    }[name]  # fmt: skip
    for size in (0.5, 4.0, 64.0, 4096.0, 2.0**20):
        params = (size,) if name == "Gamma" else (size, 2 * size)
        for z in (-3.0, 0.5, 4.0):
            mean, spread = law(*params).mean(), law(*params).std()
            x = mean + z * spread if mean + z * spread > 0 else 0.1 * mean
            x = min(x, 0.9) if name == "Beta" else np.floor(x) if name == "NegativeBinomial" else x
            found, wanted = mean_slopes(make, law, params, float(np.float32(x)))
            assert np.isfinite(found).all()
            largest = np.abs(wanted).max()
            np.testing.assert_allclose(
                found, wanted, rtol=2e-3, atol=2e-4 * largest, err_msg=f"{params} {x}"
            )


def test_a_censored_beta_law_broadcasts():
    law = dist.RightCensoredDistribution(dist.Beta(jnp.array([2.0, 3.0]), 4.0), jnp.ones((5, 2)))
    x = jnp.linspace(0.1, 0.9, 5)[:, None] * jnp.ones(2)
    np.testing.assert_allclose(law.log_prob(x), st.beta([2, 3], 4).logsf(x), rtol=1e-5)

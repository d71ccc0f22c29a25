"""Truncated and censored laws are right in any tail and in narrow windows: densities, scores, draws, and their mirror images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from _laws import quiet
from scipy import integrate

from lapilli import ppl

INF = np.inf
BASES: dict[str, Any] = {
    "Normal": (dist.Normal, st.norm),
    "Logistic": (dist.Logistic, st.logistic),
    "Laplace": (dist.Laplace, st.laplace),
    "Cauchy": (dist.Cauchy, st.cauchy),
    "SoftLaplace": (dist.SoftLaplace, st.hypsecant),
    "StudentT": (lambda m, s: dist.StudentT(4.0, m, s), st.t(4)),
    "StudentT of 100": (lambda m, s: dist.StudentT(100.0, m, s), st.t(100)),
}
UPPER = (
    (-1, 1), (-3, 0.5), (-30, 30), (-1e-3, 1e-3), (0, 1e-4), (0.3, 0.3001), (-1, 30), (2, 3), (4.5, 5.5), (5, 6),
    (5.3, 6), (8, 9), (8, 30), (5, 5.001), (20, 21), (12, 14), (20, 100), (3, INF),
)  # fmt: skip
WINDOWS = (*UPPER, *((-high, -low) for low, high in UPPER))
SHARES = (1e-6, 0.01, 0.3, 0.5, 0.9, 0.999)


def log_mass(law, low, high):
    """In double precision: by the tail that is small, or by quadrature where the window is narrow."""
    if low + high > 0:
        low, high = -high, -low
    above, below = law.logcdf(high), law.logcdf(low)
    if above - below < 1 and high - low < 1e3:
        middle = 0.5 * (low + high)
        density = lambda t: np.exp(law.logpdf(t) - law.logpdf(middle))
        return np.log(integrate.quad(density, low, high, epsabs=0, epsrel=1e-12)[0]) + law.logpdf(
            middle
        )
    return above + np.log(-np.expm1(below - above))


def exact(law, loc, scale, low, high, x):
    return (
        law.logpdf((x - loc) / scale)
        - np.log(scale)
        - log_mass(law, (low - loc) / scale, (high - loc) / scale)
    )


def slope(law, args, i):
    """Derivative of `exact` in one argument, by differences of fourth order."""
    scale, width = args[1], args[3] - args[2]
    step = 1e-4 * (min(scale, width) if np.isfinite(width) else scale)

    def at(k):
        moved = list(args)
        moved[i] += k * step
        return exact(law, *moved)

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def cases():
    """Rows (loc, scale, low, high, value) of single precision."""
    rows = []
    for loc, scale in ((0.0, 1.0), (3.0, 0.5)):
        for low, high in WINDOWS:
            low, high = np.float32(loc + scale * low), np.float32(loc + scale * high)
            for q in (0.01, 0.9) if loc == 0 else (0.3,):
                within = low + q * (high - low) if np.isfinite(high - low) else 0
                x = high - 3 * q if np.isinf(low) else low + 3 * q if np.isinf(high) else within
                rows.append((loc, scale, low, high, np.clip(np.float32(x), low, high)))
    return np.array(rows, np.float32)


@pytest.mark.fast("Normal")
@pytest.mark.parametrize("name", BASES)
def test_densities_and_scores_of_truncated_laws(name):
    make, law = BASES[name]
    rows = cases()

    def log_prob(loc, scale, low, high, x):
        return dist.TruncatedDistribution(
            make(loc, scale), low=low, high=high, validate_args=False
        ).log_prob(x)

    run = jax.jit(jax.vmap(jax.value_and_grad(log_prob, argnums=(0, 1, 2, 3, 4))))
    value, score = run(*rows.T)
    with quiet():
        for args, found, slopes in zip(rows.astype(float), value, np.array(score).T, strict=True):
            wanted = [slope(law, args, i) if np.isfinite(args[i]) else 0.0 for i in range(5)]
            rounding = 1.2e-7 * (
                1
                + abs(exact(law, *args))
                + np.nansum(np.abs(wanted * np.nan_to_num(args, posinf=0, neginf=0)))
            )
            assert abs(found - exact(law, *args)) < 20 * rounding, (name, args)
            np.testing.assert_allclose(
                slopes, wanted, rtol=1e-3, atol=1e-3 / args[1], err_msg=str(args)
            )


def test_draws_far_out_are_the_law_s():
    """Means of N(0, 1) on [8, 9], [-14, -12] and [20, inf), by the midpoint rule over quantiles."""
    q = jnp.linspace(0, 1, 2002)[1:-1] - 0.25e-3
    for low, high in ((8.0, 9.0), (-14.0, -12.0), (20.0, INF)):
        drawn = jax.jit(lambda a, b: dist.TruncatedNormal(0.0, 1.0, low=a, high=b).icdf(q))(
            low, high
        )
        assert (drawn >= low).all() and (drawn <= high).all()
        spread = st.truncnorm.std(low, high)
        assert abs(drawn.mean() - st.truncnorm.mean(low, high)) < 0.01 * spread


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BASES if "Student" not in name])
def test_draws_and_distribution_functions_of_truncated_laws(name):
    make, law = BASES[name]
    rows = np.unique(cases()[:, :4], axis=0)

    def both(loc, scale, low, high):
        truncated = dist.TruncatedDistribution(
            make(loc, scale), low=low, high=high, validate_args=False
        )
        drawn = truncated.icdf(jnp.float32(np.array(SHARES)))
        return drawn, truncated.cdf(drawn)

    drawn, below = map(np.asarray, jax.jit(jax.vmap(both))(*rows.T))
    with quiet():
        for (loc, scale, low, high), xs, cdfs in zip(
            rows.astype(float), drawn.astype(float), below, strict=True
        ):
            ends = (low - loc) / scale, (high - loc) / scale
            for q, x, cdf in zip(SHARES, xs, cdfs, strict=True):
                assert low <= x <= high
                share = (
                    np.exp(log_mass(law, ends[0], (x - loc) / scale) - log_mass(law, *ends))
                    if x > low
                    else 0.0
                )
                # What one rounding of the draw changes.
                rounding = 1.2e-7 * abs(x) * np.exp(exact(law, loc, scale, low, high, x))
                assert abs(share - q) < 1e-4 + 8 * rounding, (name, low, high, q)
                assert abs(cdf - share) < 1e-4 + 8 * rounding, (name, low, high, q)


CENSORED: dict[str, Any] = {
    "Normal": (lambda: dist.Normal(0.0, 1.0), st.norm()),
    "Logistic": (lambda: dist.Logistic(1.0, 2.0), st.logistic(1, 2)),
    "StudentT": (lambda: dist.StudentT(4.0, 0.0, 1.0), st.t(4)),
    "Laplace": (lambda: dist.Laplace(0.0, 1.0), st.laplace()),
    "Exponential": (lambda: dist.Exponential(2.0), st.expon(scale=0.5)),
    "Weibull": (lambda: dist.Weibull(2.0, 1.5), st.weibull_min(1.5, scale=2)),
    "Gompertz": (lambda: dist.Gompertz(0.5, 0.7), st.gompertz(0.5, scale=1 / 0.7)),
    "Gumbel": (lambda: dist.Gumbel(0.0, 1.0), st.gumbel_r()),
    "HalfNormal": (lambda: dist.HalfNormal(2.0), st.halfnorm(scale=2)),
    "HalfCauchy": (lambda: dist.HalfCauchy(2.0), st.halfcauchy(scale=2)),
    "Gamma": (lambda: dist.Gamma(2.5, 1.0), st.gamma(2.5)),
    "Gamma of 0.1": (lambda: dist.Gamma(0.1, 1.0), st.gamma(0.1)),
    "InverseGamma": (lambda: dist.InverseGamma(3.0, 2.0), st.invgamma(3, scale=2)),
    "LogNormal": (lambda: dist.LogNormal(0.0, 1.0), st.lognorm(1.0)),
    "Pareto": (lambda: dist.Pareto(1.0, 3.0), st.pareto(3)),
    "Uniform": (lambda: dist.Uniform(0.0, 3.0), st.uniform(0, 3)),
    "Levy": (lambda: dist.Levy(0.0, 1.0), st.levy()),
    "AsymmetricLaplace": (lambda: dist.AsymmetricLaplace(0.0, 1.0, 2.0), st.laplace_asymmetric(2)),
    "Poisson": (lambda: dist.Poisson(4.0), st.poisson(4)),
    "NegativeBinomial2": (lambda: dist.NegativeBinomial2(4.0, 2.0), st.nbinom(2, 1 / 3)),
}


@pytest.mark.fast("Normal", "Weibull")
@pytest.mark.parametrize("name", CENSORED)
def test_censored_laws(name):
    """Logarithms of F, 1 - F and of differences, with the slopes that the density gives."""
    make, law = CENSORED[name]
    is_discrete = hasattr(law.dist, "pmf")
    share = [1e-25, 1e-8, 1e-3, 0.1, 0.5, 0.9, 0.999]
    with quiet():
        x: Any = np.concatenate([law.ppf(share), law.isf(share)])
        x = np.unique(x.astype(np.float32))
        start, stop = law.support()
        x = x[(np.abs(x) > 1e-30) & (np.abs(x) < 1e15) & (x > start) & (x < stop * (1 - 1e-6))]
        wide = x.astype(float)
        below, beyond = law.logcdf(wide), law.logsf(wide)
        density = None if is_discrete else law.logpdf(wide)

    def one_sided(x):
        ones = jnp.ones(len(x))
        return (
            dist.LeftCensoredDistribution(make(), ones).log_prob(x),
            dist.RightCensoredDistribution(make(), ones).log_prob(x),
        )

    if is_discrete:
        found = jax.jit(one_sided)(x)
    else:
        found, slopes = jax.jit(lambda x: jax.jvp(one_sided, (x,), (jnp.ones_like(x),)))(x)
        for sign, slope, log_p in ((1, slopes[0], below), (-1, slopes[1], beyond)):
            np.testing.assert_allclose(slope, sign * np.exp(density - log_p), rtol=1e-4, atol=1e-5)
    for log_p, wanted in zip(found, (below, beyond), strict=True):
        rounding = 0 if density is None else 1.2e-7 * np.abs(wide) * np.exp(density - wanted)
        assert (np.abs(log_p - wanted) < 3e-6 * (1 + np.abs(wanted)) + 2 * rounding).all(), name

    low, high = (
        (x, x + 1)
        if is_discrete
        else (x, (x + np.maximum(0.01 * np.abs(x), 1e-3)).astype(np.float32))
    )
    low, high = low[high < stop], high[high < stop]
    none = np.zeros(len(low))
    within = jax.jit(lambda v: dist.IntervalCensoredDistribution(make(), none, none).log_prob(v))
    with quiet():
        for found, a, b in zip(
            within(np.stack([low, high], -1)), low.astype(float), high.astype(float), strict=True
        ):
            if is_discrete:
                wanted = law.logpmf(b)
            else:
                m, kink = 0.5 * (a + b), [0.0] if a < 0 < b else None
                ratio = lambda t, m=m: np.exp(law.logpdf(t) - law.logpdf(m))
                wanted = np.log(
                    integrate.quad(ratio, a, b, epsabs=0, epsrel=1e-10, points=kink)[0]
                ) + law.logpdf(m)
            width = 1.2e-7 * max(abs(a), abs(b)) / (b - a)
            assert abs(found - wanted) < 1e-5 * (1 + abs(wanted)) + 10 * width, (name, a, b)


def test_all_kinds_of_intervals_have_finite_scores():
    value = jnp.array(
        [[-9.0, 8.0], [8.0, jnp.inf], [7.0, 9.0], [-9.0, 9.0], [1.0, 1.0], [2.0, jnp.inf]]
    )
    left, right = jnp.array([1, 0, 0, 1, 0, 0]), jnp.array([0, 1, 0, 1, 0, 0])
    log_prob = lambda m: dist.IntervalCensoredDistribution(
        dist.Normal(m, 1.0), left, right
    ).log_prob(value)
    n = st.norm
    wanted = [
        n.logcdf(8), n.logsf(8), np.log(n.sf(7) - n.sf(9)), np.log(2 * n.sf(9)), n.logpdf(1), n.logsf(2),
    ]  # fmt: skip
    np.testing.assert_allclose(log_prob(0.0), wanted, rtol=1e-5, atol=1e-12)
    slopes = jax.jit(jax.jacfwd(log_prob))(0.0)
    of_two = np.array([np.exp(n.logpdf(8) - n.logsf(8)), 1.0])
    np.testing.assert_allclose(slopes[jnp.array([1, 4])], of_two, rtol=1e-4)
    assert jnp.isfinite(slopes).all()


def test_no_number_where_a_distribution_function_alone_leaves_no_digits():
    class Mine(dist.Normal):
        """A user's subclass, whose tail is not known."""

    log_prob = lambda x: dist.RightCensoredDistribution(Mine(0.0, 1.0), jnp.ones(1)).log_prob(
        jnp.full(1, x)
    )
    np.testing.assert_allclose(log_prob(jnp.float32(2)), st.norm.logsf(2), rtol=1e-5)
    assert jnp.isnan(log_prob(jnp.float32(6))).all()


@pytest.mark.slow
def test_the_score_of_an_expectation_under_a_truncated_law_in_either_tail(key):
    """d/dm E[z] = 0.0295 for N(m, 1) on [5, 6] at m = 0, by the score function."""
    for sign in (1, -1):
        low, high = (5.0, 6.0) if sign > 0 else (-6.0, -5.0)
        cost = lambda m, low=low, high=high: ppl.sample(
            "z", dist.TruncatedNormal(m, 1.0, low=low, high=high)
        )
        estimate = ppl.expectation(cost, strategies="reinforce")
        grads = jax.jit(jax.vmap(lambda k, e=estimate: e.grad(0.0, k)))(
            jax.random.split(key, 100_000)
        )
        wanted = st.truncnorm(
            5, 6
        ).var()  # the derivative of a mean in an exponential family's location
        assert abs(grads.mean() - wanted) < 4.5 * grads.std() / 100_000**0.5

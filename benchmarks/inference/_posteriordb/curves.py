"""Gaussian processes, differential equations, and series whose errors go on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import ppl

from .posterior import Posterior, counts, numbers

Array = jax.Array
_JITTER = 1e-5  # 1e-10 in the original, which is in double precision


def _covariance(x: Array, alpha: Array, rho: Array) -> Array:
    return alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)


@ppl.model
def gp_regression(x, y):
    rho = ppl.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = ppl.sample("alpha", dist.HalfNormal(2.0))
    sigma = ppl.sample("sigma", dist.HalfNormal(1.0))
    covariance = _covariance(x, alpha, rho) + sigma * jnp.eye(x.shape[0])
    ppl.sample("y", dist.MultivariateNormal(jnp.zeros(x.shape[0]), covariance), obs=y)


def _root(x: Array, alpha: Array, rho: Array) -> Array:
    return jnp.linalg.cholesky(_covariance(x, alpha, rho) + _JITTER * jnp.eye(x.shape[0]))


@ppl.model
def gp_counts(x, k):
    rho = ppl.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = ppl.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = ppl.sample("f_tilde", dist.Normal(0.0, 1.0).expand([x.shape[0]]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("k", dist.Poisson(jnp.exp(_root(x, alpha, rho) @ f_tilde)), obs=k)


def _solved(field: Callable[[Array, Array], Array], z: Array, times: Array, num: int) -> Array:
    """Values at `times[1:]` by Runge and Kutta's fourth-order rule, `num` equal steps between times."""

    def interval(z: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        start, h = ends[0], (ends[1] - ends[0]) / num

        def step(z: Array, n: Array) -> tuple[Array, None]:
            t = start + n * h
            a = field(z, t)
            b = field(z + h / 2 * a, t + h / 2)
            c = field(z + h / 2 * b, t + h / 2)
            d = field(z + h * c, t + h)
            return z + h / 6 * (a + 2 * b + 2 * c + d), None

        z, _ = jax.lax.scan(step, z, jnp.arange(num))
        return z, z

    return jax.lax.scan(interval, z, (times[:-1], times[1:]))[1]


@ppl.model
def lotka_volterra(times, y_init, y):
    centre, spread = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = ppl.sample("theta", dist.TruncatedNormal(centre, spread, low=0.0).to_event(1))
    z_init = ppl.sample("z_init", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = ppl.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    def field(z: Array, t: Array) -> Array:
        prey, predators = z
        return jnp.stack(
            [(theta[0] - theta[1] * predators) * prey, (theta[3] * prey - theta[2]) * predators]
        )

    z = _solved(field, z_init, jnp.concatenate([jnp.zeros(1), times]), num=25)
    ppl.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma).to_event(1), obs=y_init)
    with ppl.plate("years", times.shape[0]):
        ppl.sample("y", dist.LogNormal(jnp.log(z), sigma).to_event(1), obs=y)


@ppl.model
def absorption(times, dose, volume, concentration):
    k_a, K_m, V_m, sigma = (
        ppl.sample(name, dist.HalfCauchy(1.0)) for name in ("k_a", "K_m", "V_m", "sigma")
    )

    def field(y: Array, t: Array) -> Array:
        return jnp.exp(-k_a * t) * dose * k_a / volume - V_m / volume * y / (K_m + y)

    found = _solved(field, jnp.zeros(()), jnp.concatenate([jnp.zeros(1), times]), num=20)
    with ppl.plate("times", times.shape[0]):
        ppl.sample("C_hat", dist.LogNormal(jnp.log(found), sigma), obs=concentration)


@ppl.model
def arma11(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
    phi = ppl.sample("phi", dist.Normal(0.0, 2.0))
    theta = ppl.sample("theta", dist.Normal(0.0, 2.0))
    sigma = ppl.sample("sigma", dist.HalfCauchy(2.5))

    def step(carry, y):
        before, error = carry
        nu = mu + phi * before + theta * error
        ppl.sample("y", dist.Normal(nu, sigma), obs=y)
        return (y, y - nu), None

    ppl.scan(step, (mu, jnp.zeros(())), y)


@ppl.model
def garch11(y, sigma1):
    mu = ppl.sample("mu", dist.Normal(0.0, 100.0))
    alpha0 = ppl.sample("alpha0", dist.HalfNormal(100.0))
    # alpha1 and beta1 are uniform on the triangle alpha1 + beta1 < 1.
    alpha1 = ppl.sample("alpha1", dist.Beta(1.0, 2.0))
    beta1 = ppl.sample("share", dist.Uniform(0.0, 1.0)) * (1 - alpha1)

    def step(carry, y):
        before, variance, is_first = carry
        new = alpha0 + alpha1 * (before - mu) ** 2 + beta1 * variance
        variance = jnp.where(is_first, sigma1**2, new)
        ppl.sample("y", dist.Normal(mu, jnp.sqrt(variance)), obs=y)
        return (y, variance, False), None

    ppl.scan(step, (y[0], jnp.asarray(sigma1) ** 2, True), y)


def _latent_curve(z) -> dict[str, Array]:
    # In double precision: for a long range the matrix is singular to single.
    a, r, t = (np.asarray(z[name], float) for name in ("alpha", "rho", "f_tilde"))
    x = np.arange(-10.0, 11.0, 2.0)
    apart = (x[:, None] - x) / r[:, None, None]
    f = (
        np.linalg.cholesky(
            a[:, None, None] ** 2 * np.exp(-0.5 * apart**2) + _JITTER * np.eye(len(x))
        )
        @ t[..., None]
    )
    f = f[..., 0]
    return {"rho": z["rho"], "alpha": z["alpha"], "f": f}


def _picked(d, names: str) -> dict[str, object]:
    return {name: numbers(d[name]) for name in names.split()}


CURVES = [
    Posterior("gp_pois_regr-gp_regr", gp_regression, functools.partial(_picked, names="x y")),
    Posterior(
        "gp_pois_regr-gp_pois_regr",
        gp_counts,
        lambda d: {"x": numbers(d["x"]), "k": counts(d["k"])},
        _latent_curve,
    ),
    Posterior(
        "hudson_lynx_hare-lotka_volterra",
        lotka_volterra,
        lambda d: {"times": numbers(d["ts"]), **_picked(d, "y_init y")},
    ),
    Posterior(
        "one_comp_mm_elim_abs-one_comp_mm_elim_abs",
        absorption,
        lambda d: {
            "times": numbers(d["times"]),
            "dose": float(d["D"]),
            "volume": float(d["V"]),
            "concentration": numbers(d["C_hat"]),
        },
    ),
    Posterior("arma-arma11", arma11, functools.partial(_picked, names="y")),
    Posterior(
        "garch-garch11",
        garch11,
        lambda d: {"y": numbers(d["y"]), "sigma1": float(d["sigma1"])},
        lambda z: {
            **{name: z[name] for name in ("mu", "alpha0", "alpha1")},
            "beta1": z["share"] * (1 - z["alpha1"]),
        },
    ),
]

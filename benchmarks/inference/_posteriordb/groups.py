"""Groups that share a law."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from lapilli import ppl

from .posterior import Arrays, Posterior, counts, numbers


@ppl.model
def schools_centred(sigma, y):
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    with ppl.plate("schools", y.shape[0]):
        theta = ppl.sample("theta", dist.Normal(mu, tau))
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)


@ppl.model
def schools_standard(sigma, y):
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    with ppl.plate("schools", y.shape[0]):
        theta = mu + tau * ppl.sample("theta_trans", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)


@ppl.model
def radon(county, y, num_counties):
    mu_alpha = ppl.sample("mu_alpha", dist.Normal(0.0, 10.0))
    sigma_alpha = ppl.sample("sigma_alpha", dist.HalfNormal(1.0))
    sigma_y = ppl.sample("sigma_y", dist.HalfNormal(1.0))
    with ppl.plate("counties", num_counties):
        alpha = ppl.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
    with ppl.plate("rows", y.shape[0]):
        ppl.sample("y", dist.Normal(alpha[county], sigma_y), obs=y)


@ppl.model
def seeds(x1, x2, total, germinated):
    wide = dist.Normal(0.0, 1000.0)
    alpha0, alpha1, alpha2, alpha12 = (
        ppl.sample(name, wide) for name in ("alpha0", "alpha1", "alpha2", "alpha12")
    )
    tau = ppl.sample("tau", dist.Gamma(0.001, 0.001))
    with ppl.plate("plates", germinated.shape[0]):
        b = ppl.sample("b", dist.Normal(0.0, tau**-0.5))
        logits = alpha0 + alpha1 * x1 + alpha2 * x2 + alpha12 * x1 * x2 + b
        ppl.sample("n", dist.Binomial(total, logits=logits), obs=germinated)


@ppl.model
def surgical(operations, deaths):
    mu = ppl.sample("mu", dist.Normal(0.0, 1000.0))
    sigmasq = ppl.sample("sigmasq", dist.InverseGamma(0.001, 0.001))
    with ppl.plate("hospitals", deaths.shape[0]):
        b = ppl.sample("b", dist.Normal(mu, sigmasq**0.5))
        ppl.sample("r", dist.Binomial(operations, logits=b), obs=deaths)


def _schools(d: Arrays) -> dict[str, object]:
    return {"sigma": numbers(d["sigma"]), "y": numbers(d["y"])}


GROUPS = [
    Posterior("eight_schools-eight_schools_centered", schools_centred, _schools),
    Posterior(
        "eight_schools-eight_schools_noncentered",
        schools_standard,
        _schools,
        lambda z: {
            "mu": z["mu"],
            "tau": z["tau"],
            "theta": z["mu"][:, None] + z["tau"][:, None] * jnp.asarray(z["theta_trans"]),
        },
    ),
    Posterior(
        "radon_mn-radon_partially_pooled_centered",
        radon,
        lambda d: {
            "county": counts(d["county_idx"]) - 1,
            "y": numbers(d["log_radon"]),
            "num_counties": int(d["J"]),
        },
    ),
    Posterior(
        "seeds_data-seeds_model",
        seeds,
        lambda d: {
            "x1": numbers(d["x1"]),
            "x2": numbers(d["x2"]),
            "total": counts(d["N"]),
            "germinated": counts(d["n"]),
        },
    ),
    Posterior(
        "surgical_data-surgical_model",
        surgical,
        lambda d: {"operations": counts(d["n"]), "deaths": counts(d["r"])},
    ),
]

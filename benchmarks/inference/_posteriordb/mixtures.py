"""Programs with discrete unknowns, which most software must be given summed out."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from lapilli import ppl

from .posterior import Posterior, counts, numbers


@ppl.model
def hmm_normal(y):
    theta1 = ppl.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = ppl.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = ppl.sample("mu", dist.Normal(jnp.array([3.0, 10.0]), 1.0).to_event(1))
    moves = jnp.stack([theta1, theta2])

    def step(state, y):
        state = ppl.sample("state", dist.Categorical(probs=moves[state]))
        ppl.sample("y", dist.Normal(mu[state], 1.0), obs=y)
        return state, None

    first = ppl.sample("first", dist.Categorical(probs=jnp.ones(2) / 2))
    ppl.sample("y0", dist.Normal(mu[first], 1.0), obs=y[0])
    ppl.scan(step, first, y[1:])


@ppl.model
def hmm_drive(u, v, alpha):
    theta1 = ppl.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = ppl.sample("theta2", dist.Dirichlet(alpha[1]))
    # Ordered in the original; here the priors tell the states apart.
    low, high = dist.HalfNormal(1.0), dist.TruncatedNormal(3.0, 1.0, low=0.0)
    phi = jnp.stack([ppl.sample("phi1", low), ppl.sample("phi2", high)])
    rate = jnp.stack([ppl.sample("lambda1", low), ppl.sample("lambda2", high)])
    moves = jnp.stack([theta1, theta2])

    def step(state, data):
        u, v = data
        state = ppl.sample("state", dist.Categorical(probs=moves[state]))
        ppl.sample("u", dist.Exponential(phi[state]), obs=u)
        ppl.sample("v", dist.Exponential(rate[state]), obs=v)
        return state, None

    first = ppl.sample("first", dist.Categorical(probs=jnp.ones(2) / 2))
    ppl.sample("u0", dist.Exponential(phi[first]), obs=u[0])
    ppl.sample("v0", dist.Exponential(rate[first]), obs=v[0])
    ppl.scan(step, first, (u[1:], v[1:]))


@ppl.model
def mixture(y):
    # The means are ordered: the second is the first and a gap, and a factor has its prior.
    low = ppl.sample("low", dist.Normal(0.0, 2.0))
    wide = dist.HalfNormal(10.0)
    gap = ppl.sample("gap", wide)
    ppl.factor("second", dist.Normal(0.0, 2.0).log_prob(low + gap) - wide.log_prob(gap))
    sigma = ppl.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = ppl.sample("theta", dist.Beta(5.0, 5.0))
    mu = jnp.stack([low, low + gap])
    with ppl.plate("rows", y.shape[0]):
        k = ppl.sample("k", dist.Bernoulli(1 - theta))
        ppl.sample("y", dist.Normal(mu[k], sigma[k]), obs=y)


@ppl.model
def mark_recapture(y):
    omega, p, c = (ppl.sample(name, dist.Uniform(0.0, 1.0)) for name in ("omega", "p", "c"))
    before = jnp.concatenate([jnp.zeros((y.shape[0], 1), int), y[:, :-1]], 1)
    seen = jnp.where(before == 1, c, p)
    with ppl.plate("animals", y.shape[0]):
        z = ppl.sample("z", dist.Bernoulli(omega))
        ppl.sample("y", dist.Bernoulli(z[..., None] * seen).to_event(1), obs=y)


def _ordered(z):
    mu = jnp.stack([z["low"], z["low"] + z["gap"]], -1)
    return {"mu": mu, "sigma": z["sigma"], "theta": z["theta"]}


def _states(z):
    pair = lambda name: jnp.stack([z[f"{name}1"], z[f"{name}2"]], -1)
    chances = {name: z[name] for name in ("theta1", "theta2")}
    return chances | {"phi": pair("phi"), "lambda": pair("lambda")}


MIXTURES = [
    Posterior(
        "hmm_example-hmm_example",
        hmm_normal,
        lambda d: {"y": numbers(d["y"])},
        discrete=("first", "state"),
    ),
    Posterior(
        "bball_drive_event_0-hmm_drive_0",
        hmm_drive,
        lambda d: {name: numbers(d[name]) for name in ("u", "v", "alpha")},
        _states,
        discrete=("first", "state"),
    ),
    Posterior(
        "low_dim_gauss_mix-low_dim_gauss_mix",
        mixture,
        lambda d: {"y": numbers(d["y"])},
        _ordered,
        discrete=("k",),
    ),
    Posterior("Mb_data-Mb_model", mark_recapture, lambda d: {"y": counts(d["y"])}, discrete=("z",)),
]

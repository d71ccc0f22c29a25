"""Bounds of the evidence of a change point, whose place a guide draws."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from _boundary_programs import normal_mean, pieces
from jax.scipy.stats import norm

from _stats import assert_unbiased
from lapilli import inference, ppl

SERIES = jnp.asarray([0.1, 0.3, -0.2, 1.2, 0.9, 1.1])
TIMES = jnp.arange(6) * 1.0


@ppl.model
def model(x):
    before, after = ppl.param("a", 0.2), ppl.param("b", 1.0)
    z = ppl.sample("z", dist.Normal(2.5, 2.0))
    with ppl.plate("t", 6):
        ppl.sample("x", dist.Normal(jnp.where(TIMES < z, before, after), 0.7), obs=x)


@ppl.model
def guide(x):
    ppl.sample("z", dist.Normal(ppl.param("m", 2.2), jnp.exp(ppl.param("s", -0.2))))


def log_weight(z, inside, p):
    mean = jnp.where(TIMES < inside, p["a"], p["b"])
    return (
        norm.logpdf(z, 2.5, 2.0)
        + norm.logpdf(SERIES, mean, 0.7).sum()
        - norm.logpdf(z, p["m"], jnp.exp(p["s"]))
    )


def elbo_exact(p):
    cost = lambda z, inside: log_weight(z, inside, p)
    return normal_mean(cost, p["m"], jnp.exp(p["s"]), list(TIMES))


def iwelbo_exact(p):
    z, weights, inside = pieces(p["m"], jnp.exp(p["s"]), list(TIMES), 8.0, num_nodes=20)
    w = jax.vmap(lambda z, inside: log_weight(z, inside, p))(z, inside)
    both = jnp.logaddexp(w[:, None], w) - jnp.log(2.0)
    return (weights[:, None] * weights * both).sum()


@pytest.mark.slow_for("elbo-reparam")
@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("elbo", "reparam"),
        *(pytest.param(n, b, marks=pytest.mark.slow) for n, b in (
            ("elbo", "reinforce"), ("stl", "reparam"), ("iwelbo", "reparam"), ("iwelbo", "reinforce"),
        )),
    ],
)  # fmt: skip
def test_bounds_of_a_change_point(name, base):
    """Slow: a compilation each."""
    strategies = {"z": ppl.Boundary(base)}
    if name == "iwelbo":
        bound, exact = (
            inference.iwelbo(model, guide, num_particles=2, strategies=strategies),
            iwelbo_exact,
        )
    else:
        gradient = "stl" if name == "stl" else "full"
        bound = inference.elbo(model, guide, gradient=gradient, strategies=strategies)
        exact = elbo_exact
    params = bound.init(jax.random.key(0), SERIES)
    keys = jax.random.split(jax.random.key(3), 10_000)
    found = jax.jit(jax.vmap(lambda key: bound.grad(params, key, SERIES)))(keys)
    with jax.enable_x64(True):
        target = jax.grad(exact)({n: jnp.float64(params[n]) for n in "abms"})
    for n in "abms":
        assert_unbiased(found[n], target[n], names=[n])

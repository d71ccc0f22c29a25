"""Operations of a program are named by their sites, and those of its gradient by site and strategy, as profiles show them."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import inference, ppl

X = np.linspace(-1.0, 1.0, 4, dtype=np.float32)
KEY = jax.random.key(0)


@ppl.model
def model(x):
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0))
    z = ppl.sample("flag", dist.Bernoulli(0.3))

    def step(h, x):
        h = ppl.sample("state", dist.Normal(0.5 * h + beta, 1.0))
        ppl.sample("seen", dist.Normal(h + z, 1.0), obs=x)
        return h, None

    ppl.scan(step, 0.0, x)


@ppl.model
def guide(x):
    ppl.sample("beta", dist.Normal(ppl.param("loc", 0.1), 1.0))
    ppl.sample("flag", dist.Bernoulli(ppl.param("p", 0.4)))

    def step(h, x):
        return ppl.sample("state", dist.Normal(h, 1.0)), None

    ppl.scan(step, 0.0, x)


def lowered(names):
    """The lowered text of value and gradient, with what the operations are named or without."""
    bound = inference.elbo(model, guide, strategies={"flag": "reinforce"})
    params = bound.init(KEY, X)
    run = jax.jit(lambda params, key: bound.value_and_grad(params, key, X))
    return run.lower(params, KEY).as_text(debug_info=names)


def is_named(text, name):
    """Whether an operation stands under this name, or under what a transformation of JAX makes of it."""
    return re.search(rf'"[^"]*\b{re.escape(name)}\)*/', text) is not None


def test_operations_have_the_names_of_their_sites():
    text = lowered(names=True)
    for name in ("beta", "flag", "state", "seen", "flag.reinforce"):
        assert is_named(text, name), name


def test_names_change_no_operation(monkeypatch):
    named = lowered(names=False)
    monkeypatch.setattr(jax, "named_scope", lambda name: contextlib.nullcontext())
    assert lowered(names=False) == named
    assert not is_named(lowered(names=True), "beta")


def test_a_particle_run_names_its_sites():
    run = jax.jit(lambda key: inference.smc(model, key, X, num_particles=4).log_evidence)
    text = run.lower(KEY).as_text(debug_info=True)
    assert is_named(text, "state") and is_named(text, "seen")


def test_a_program_of_its_own_names_its_sites():
    score = jax.jit(
        lambda beta: model.log_density({"beta": beta, "flag": jnp.array(1), "state": X}, X)
    )
    assert is_named(score.lower(0.5).as_text(debug_info=True), "seen")

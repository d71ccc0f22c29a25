"""Estimators chosen by trial."""

import dataclasses

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.diagnostics._pilot import without_control
from lapilli.ppl.strategies import TRIED

X = jnp.linspace(-1.0, 3.0, 4)


@ppl.model
def model(x):
    n = ppl.sample("n", dist.Poisson(2.0))
    with ppl.plate("rows", len(x)):
        k = ppl.sample("k", dist.Bernoulli(0.5))
        ppl.sample("x", dist.Normal(2 * k + n / 4, 1.0), obs=x)


@ppl.model
def guide(x):
    ppl.sample("n", dist.Poisson(jnp.exp(ppl.param("r", 0.3))))
    with ppl.plate("rows", len(x)):
        ppl.sample("k", dist.Bernoulli(logits=ppl.param("t", jnp.zeros(len(x)))))


CANDIDATES = ("reparam", "enum", "mvd", "reinforce")


@pytest.fixture(scope="module")
def trained():
    objective = inference.elbo(model, guide, strategies="auto")
    return objective, objective.init(jax.random.key(0), X)


@pytest.mark.slow  # compiles a gradient for every candidate
def test_each_site_gets_the_smallest_product_of_those_that_are_sound(trained):
    objective, params = trained
    options = {"candidates": CANDIDATES, "num_draws": 400}
    pilot = inference.diagnostics.pilot(objective, params, jax.random.key(1), X, **options)
    by_site = {name: [t for t in pilot.trials if t.site == name] for name in ("n", "k")}
    for name, trials in by_site.items():
        assert [t.strategy for t in trials] == list(CANDIDATES)
        best = min((t for t in trials if t.refusal is None), key=lambda t: t.score)
        assert pilot.strategies[name] == best.strategy
    refused = {(t.site, t.strategy) for t in pilot.trials if t.refusal}
    assert refused == {("n", "reparam"), ("n", "enum"), ("k", "reparam")}
    # Rows separate, so that enumeration costs two evaluations and leaves no noise of k.
    assert pilot.strategies == {"n": "mvd", "k": "enum"}
    assert [p.strategy for p in pilot.objective.plan(params, X).sites] == ["mvd", "enum"]
    lines = str(pilot).splitlines()
    assert sum("chosen" in line for line in lines) == 2 and any(
        "finite support" in x for x in lines
    )


@pytest.mark.slow  # samplers of Gamma variates compile for long
def test_rejection_reparam_is_tried_where_it_applies():
    """At Gamma sites, not at Normal ones; the rule of "auto" keeps the sampler's own derivative."""

    def target():
        ppl.sample("rate", dist.Gamma(2.0, 1.0))
        ppl.sample("z", dist.Normal(0.0, 1.0))

    def start():
        ppl.sample("rate", dist.Gamma(ppl.param("a", 1.5), 1.0))
        ppl.sample("z", dist.Normal(ppl.param("m", 0.5), 1.0))

    objective = inference.elbo(target, start, strategies="auto")
    params = objective.init(jax.random.key(0))
    assert {p.strategy for p in objective.plan(params).sites} == {"reparam"}
    candidates = ("reparam", "rejection_reparam")
    assert set(candidates) < set(TRIED)
    options = {"candidates": candidates, "num_draws": 50}
    pilot = inference.diagnostics.pilot(objective, params, jax.random.key(1), **options)
    trials = {(t.site, t.strategy): t for t in pilot.trials}
    both = [trials["rate", strategy] for strategy in candidates]
    assert all(t.refusal is None for t in both)
    best = min(both, key=lambda t: t.score).strategy
    assert pilot.strategies == {"rate": best, "z": "reparam"}
    assert "'Beta'" in trials["z", "rejection_reparam"].refusal


def test_a_site_without_a_candidate_is_refused(trained):
    objective, params = trained
    with pytest.raises(ValueError, match="no candidate serves site 'n'. reparam: .* enum: "):
        inference.diagnostics.pilot(
            objective, params, jax.random.key(1), X, candidates=("reparam", "enum")
        )


@pytest.mark.slow  # two more compilations
def test_own_strategies_are_set_aside(trained):
    objective, params = trained
    own = dataclasses.replace(objective, strategies={"*": "reinforce"})
    options = {"candidates": ("mvd",), "num_draws": 2}
    pilot = inference.diagnostics.pilot(own, params, jax.random.key(1), X, **options)
    assert pilot.strategies == {"n": "mvd", "k": "mvd"}


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_does_not_win():
    def cost(z):
        return jnp.where(z > 0, jnp.sqrt(z), 0.0)  # its derivative below zero is NaN

    def target():
        ppl.factor("cost", cost(ppl.sample("z", dist.Normal(0.0, 1.0))))

    def start():
        ppl.sample("z", dist.Normal(ppl.param("m", 0.1), 1.0))

    objective = inference.elbo(target, start)
    params = objective.init(jax.random.key(0))
    pilot = inference.diagnostics.pilot(
        objective, params, jax.random.key(1), candidates=("reparam", "mvd")
    )
    assert pilot.strategies == {"z": "mvd"} and "not finite" in pilot.trials[0].refusal


P = jnp.array([0.3, 0.6, 0.8])


@inference.objective
def counted(model, guide, gain):
    """E[gain (sum k)^2 + cos(k . weights)], whose control is the count of k."""
    q = ppl.draw(guide, gain)
    k = q.choices["k"]
    total = k.sum()
    value = gain * total**2 + jnp.cos(k @ jnp.arange(1.0, 4.0))
    return ppl.controlled(value, 1.0 * total, jax.nn.sigmoid(q.retval).sum())


@ppl.model
def coins(gain):
    logits = ppl.param("l", jnp.log(P / (1 - P)))
    with ppl.plate("rows", 3):
        ppl.sample("k", dist.Bernoulli(logits=logits))
    return logits


def enumerated(logits, gain):
    """The mean over all eight outcomes."""
    k = jnp.array([[i, j, n] for i in (0, 1) for j in (0, 1) for n in (0, 1)], float)
    p = jax.nn.sigmoid(logits)
    law = jnp.prod(jnp.where(k == 1, p, 1 - p), 1)
    return law @ (gain * k.sum(1) ** 2 + jnp.cos(k @ jnp.arange(1.0, 4.0)))


@pytest.mark.slow  # three gradients compile
@pytest.mark.parametrize("gain", [5.0, 0.0], ids=["a control that helps", "one that does not"])
def test_a_control_variate_is_a_candidate_and_biases_nothing(gain):
    """The gradient of both candidates against the enumerated one: 20,000 estimates, |z| < 4.5 in each coordinate."""
    made = counted(coins, coins, strategies={"k": "reinforce_loo"}, num_replicates=8)
    params = made.init(jax.random.key(0), gain)
    pilot = inference.diagnostics.pilot(
        made, params, jax.random.key(1), gain, candidates=["reinforce_loo"], num_draws=2_000
    )
    rows = {t.strategy: t for t in pilot.trials if t.site == "(control)"}
    assert set(rows) == {"with", "without"}
    assert pilot.control == min(rows.values(), key=lambda t: t.score).strategy
    assert pilot.objective.expectation.ready(params, gain).is_controlled == (
        pilot.control == "with"
    )
    assert sum("chosen" in line for line in str(pilot).splitlines()) == 2
    if (
        gain
    ):  # a score without a baseline of its own, and a value that is nearly quadratic in the control
        assert rows["with"].variance < rows["without"].variance
    exact = jax.grad(enumerated)(params["l"], gain)
    keys = jax.random.split(jax.random.key(2), 20_000)
    for objective in (made, without_control(made)):
        grads = jax.jit(jax.vmap(lambda key, o=objective: o.grad(params, key, gain)))(keys)["l"]
        z = (grads.mean(0) - exact) / (grads.std(0) / len(keys) ** 0.5)
        assert jnp.abs(z).max() < 4.5


def test_an_objective_without_control_stays_as_it_is(trained):
    objective, params = trained
    assert not objective.expectation.ready(params, X).is_controlled
    same = without_control(objective)
    key = jax.random.key(3)
    assert same.value(params, key, X) == objective.value(params, key, X)

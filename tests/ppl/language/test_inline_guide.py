"""Guides written inside of their model: the joint run against model and guide run one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_same_mean
from lapilli import inference, ppl

Y = jnp.array([[0.3, -0.7, 1.1], [0.2, 0.9, -0.4]])  # [rows, steps]


@ppl.model
def model(y):
    """A walk with a nonlinear carry, a plate, a site without a proposal and a factor."""
    w = ppl.param("w", jnp.array([0.5, -0.3, 0.8]))

    def step(h, x):
        y = x
        z = ppl.sample(
            "z", dist.Normal(w[0] * h, 1.0), proposal=dist.Normal(w[1] * h + 0.4 * y, 0.6)
        )
        h = jnp.tanh(h + w[2] * z)
        ppl.deterministic("h", h)
        ppl.sample("y", dist.Normal(h, 0.7), obs=y)
        return h, z

    with ppl.plate("rows", y.shape[0]):
        b = ppl.sample("b", dist.Normal(0.0, 1.0))
        h, zs = ppl.scan(step, b, y.T)
        ppl.factor("f", -0.1 * h**2)
    return zs


GUIDE = ppl.guide_of(model)


def by_hand(y):
    """The same guide as a program of its own."""
    w = ppl.param("w", jnp.array([0.5, -0.3, 0.8]))

    def step(h, y):
        z = ppl.sample("z", dist.Normal(w[1] * h + 0.4 * y, 0.6))
        return jnp.tanh(h + w[2] * z), None

    with ppl.plate("rows", y.shape[0]):
        b = ppl.sample("b", dist.Normal(0.0, 1.0))
        ppl.scan(step, b, y.T)


def test_guide_is_a_program_over_the_latent_sites(key):
    trace = GUIDE.simulate(key, Y)
    assert set(trace.choices) == set(trace.log_probs) == {"b", "z"}
    assert not trace.observed and not trace.deterministic
    expected = ppl.as_program(by_hand).log_density(trace.choices, Y)
    np.testing.assert_allclose(trace.log_density, expected, rtol=1e-6)
    np.testing.assert_allclose(GUIDE.log_density(trace.choices, Y), expected, rtol=1e-6)


def test_model_by_itself_draws_from_the_prior(key):
    trace = model.simulate(key, Y)
    h = jnp.concatenate([trace.choices["b"][None], trace.deterministic["h"][:-1]])
    prior = dist.Normal(0.5 * h, 1.0).log_prob(trace.choices["z"])
    np.testing.assert_allclose(trace.log_probs["z"], prior, rtol=1e-5)


MAKERS = {
    "elbo": inference.elbo,
    "minibatch": lambda m, g: inference.elbo(m, g).with_plate_sizes({"rows": 10}),
    "dreg": lambda m, g: inference.iwelbo(m, g, num_particles=3, gradient="dreg"),
    "stl": lambda m, g: inference.elbo(m, g, gradient="stl"),
    "iwelbo": lambda m, g: inference.iwelbo(m, g, num_particles=3),
    "per plate": lambda m, g: inference.iwelbo(
        m, g, num_particles=2, per="plate", strategies={"z": "reinforce"}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
def test_joint_run_gives_the_numbers_of_two_runs(make, key):
    """The same keys by address, hence the same draws: equal to rounding."""
    joint, apart = MAKERS[make](model, GUIDE), MAKERS[make](model, by_hand)
    params = joint.init(key, Y)
    one, two = (bound.value_and_grad(params, jax.random.key(3), Y) for bound in (joint, apart))
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_joint_run_steps_once():
    """One scan forward and one back, where two programs need two of each."""
    count = lambda bound, params: str(
        jax.make_jaxpr(lambda p: bound.value_and_grad(p, jax.random.key(0), Y))(params)
    ).count(" scan[")
    joint, apart = (inference.elbo(model, g, check_jumps=False) for g in (GUIDE, by_hand))
    params = joint.init(jax.random.key(0), Y)
    assert 2 * count(joint, params) == count(apart, params)


@pytest.mark.slow
def test_analytic_divergence_has_the_mean_of_the_sampled_one(key):
    """Over 20,000 draws; also of the gradient. A KL that is off by 5% of its size is found."""
    sampled, analytic = (inference.elbo(model, GUIDE, kl=kl) for kl in ("sampled", "analytic"))
    params = sampled.init(key, Y)
    estimates = []
    for i, bound in enumerate((sampled, analytic)):
        keys = jax.random.split(jax.random.fold_in(key, i), 20_000)
        run = jax.jit(jax.vmap(lambda k, b=bound: b.value_and_grad(params, k, Y)))
        estimates.append(run(keys))
    (v1, g1), (v2, g2) = estimates
    assert_same_mean(v1, v2)
    assert_same_mean(g1["w"], g2["w"])


def test_analytic_divergence_by_site(key):
    mixed = inference.elbo(model, GUIDE, kl={"z": "analytic"})
    value = mixed.value(mixed.init(key, Y), key, Y)
    assert np.isfinite(value)


@pytest.mark.slow
def test_condition_and_intervention_win_over_the_proposal(key):
    given = ppl.condition(model, {"b": jnp.array([0.1, -0.2])})
    guide = ppl.guide_of(given)
    assert set(guide.simulate(key, Y).choices) == {"z"}
    fixed = ppl.condition(model, {"z": jnp.zeros((3, 2))})
    bound = inference.elbo(fixed, ppl.guide_of(fixed))
    params = bound.init(key, Y)
    trace = fixed.bind(params).simulate(key, Y)
    assert set(trace.choices) == {"b"}
    assert np.isfinite(bound.value(params, key, Y))


def test_a_changed_trace_is_scored_anew(key):
    def fn(params):
        q = ppl.draw(ppl.guide_of(bound := model.bind(params)), Y)
        import dataclasses

        moved = dataclasses.replace(q, choices={**q.choices, "b": q.choices["b"] + 1.0})
        return ppl.score(bound, moved, Y).log_probs["b"].sum() - q.log_probs["b"].sum()

    params = model.init(key, Y)
    value = ppl.expectation(fn).value(params, key)
    b = ppl.expectation(lambda p: ppl.draw(ppl.guide_of(model.bind(p)), Y).choices["b"].sum())
    np.testing.assert_allclose(value, -b.value(params, key) - 1.0, rtol=1e-4)


@pytest.mark.slow  # three filters are compiled; the model family has a cheaper one
def test_particles_take_the_guide_as_proposal(key):
    params = model.init(key, Y)
    bound, guide = model.bind(params), GUIDE.bind(params)
    results = [
        inference.smc(bound, key, Y, num_particles=4000, proposal=p) for p in (None, guide, by_hand)
    ]
    evidence = [float(r.log_evidence) for r in results]
    np.testing.assert_allclose(evidence[1], evidence[2], rtol=1e-5)
    assert abs(evidence[0] - evidence[1]) < 0.3  # far more than the spread of either run


@pytest.mark.slow  # NumPyro's loss and ours are compiled
def test_numpyro_runs_the_guide(key):
    """As a NumPyro guide it shows its latent sites only, in scans too; its loss has the mean of ours."""
    import numpyro
    from numpyro.infer import Trace_ELBO

    @ppl.model
    def walk(y):
        def step(h, y):
            z = ppl.sample("z", dist.Normal(0.5 * h, 1.0), proposal=dist.Normal(0.4 * y, 0.6))
            ppl.sample("y", dist.Normal(z, 0.7), obs=y)
            return z, None

        ppl.scan(step, ppl.sample("b", dist.Normal(0.0, 1.0)), y)

    guide = ppl.guide_of(walk)
    sites = numpyro.handlers.trace(numpyro.handlers.seed(guide, 0)).get_trace(Y[0])
    assert set(sites) == {"b", "z"}
    np.testing.assert_allclose(sites["z"]["fn"].loc, 0.4 * Y[0], rtol=1e-6)
    losses = jax.vmap(lambda k: Trace_ELBO().loss(k, {}, walk, guide, Y[0]))
    bound = inference.elbo(walk, guide, check_jumps=False)
    values = jax.vmap(lambda k: bound.value({}, k, Y[0]))
    keys = jax.random.split(key, 20_000)
    assert_same_mean(-losses(keys[:10_000]), values(keys[10_000:]))


def test_refusals(key):
    def observed(y):
        ppl.sample("y", dist.Normal(0, 1), obs=y, proposal=dist.Normal(0, 1))

    with pytest.raises(ValueError, match="'y' is observed and has a proposal"):
        ppl.as_program(observed).simulate(key, 1.0)

    def shapes():
        ppl.sample("z", dist.Normal(0, 1), proposal=dist.Normal(jnp.zeros(2), 1).to_event(1))

    with pytest.raises(ValueError, match=r"'z': its proposal has event shape \(2,\)"):
        ppl.as_program(shapes).simulate(key)
    with pytest.raises(ValueError, match="kl must be"):
        inference.elbo(model, GUIDE, kl="exact")
    with pytest.raises(ValueError, match="stl"):
        inference.elbo(model, GUIDE, kl="analytic", gradient="stl")
    with pytest.raises(ValueError, match="matches no latent site; they are .'b', 'z'"):
        inference.elbo(model, GUIDE, kl={"w*": "analytic"}).init(key, Y)
    for guide, site in ((GUIDE, "b"), (by_hand, "z")):
        with pytest.raises(ValueError, match=f"Site '{site}': its KL.* is not known here"):
            bound = inference.elbo(model, guide, kl={site: "analytic"})
            bound.plan(bound.init(key, Y), Y)
    with pytest.raises(RuntimeError, match="no randomness"):
        GUIDE.joint(Y)

    @ppl.model
    def no_form():
        ppl.sample("z", dist.Cauchy(0, 1), proposal=dist.Normal(0.0, 1.0))

    guide = ppl.guide_of(no_form)
    with pytest.raises(ValueError, match="'z': its KL.* is not known here"):
        inference.elbo(no_form, guide, kl={"z": "analytic"}).init(key)
    # Not asked for by name: sampled.
    values = [
        inference.elbo(no_form, guide, kl=kl).value({}, key) for kl in ("analytic", "sampled")
    ]
    np.testing.assert_allclose(*values)

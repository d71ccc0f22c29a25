"""Bounds from particle runs, against Kalman's recursion, enumeration and the one-particle bound."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from _stats import assert_same_mean, assert_unbiased
from lapilli import inference, ppl

YS = jnp.array([0.5, -1.0, 0.25, 2.0])


@ppl.model
def walk(ys):
    rho = ppl.param("rho", 0.5)

    def step(x, y):
        x = ppl.sample("x", dist.Normal(rho * x, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, ys)


@ppl.model
def guide(ys):
    a, b = ppl.param("a", 0.3), ppl.param("b", 0.2)
    scale = ppl.param("scale", 0.8, constraint=dist.constraints.positive)
    step = lambda x, y: (ppl.sample("x", dist.Normal(a * x + b * y, scale)), None)
    ppl.scan(step, 0.0, ys)


def kalman(rho, ys=YS):
    """Log evidence."""
    mean, var, total = 0.0, 0.0, 0.0
    for y in np.asarray(ys, float):
        mean, var = rho * mean, rho**2 * var + 1
        total += -0.5 * (np.log(2 * np.pi * (var + 1)) + (y - mean) ** 2 / (var + 1))
        mean, var = mean + var / (var + 1) * (y - mean), var / (var + 1)
    return total


def estimates(bound, key, n, *args, params=None):
    """Independent values and flattened gradients."""
    params = bound.init(key, *args) if params is None else params
    bound.plan(params, *args)
    run = jax.jit(jax.vmap(lambda key: bound.value_and_grad(params, key, *args)))
    value, grads = run(jax.random.split(key, n))
    leaves = [np.asarray(g, float).reshape(n, -1) for g in jax.tree.leaves(grads)]
    return np.asarray(value, float), np.concatenate(leaves, 1)


@pytest.mark.slow
def test_one_particle_is_the_elbo(key):
    one, other = jax.random.split(key)
    bound = inference.fivo(walk, guide, num_particles=1, num_replicates=1)
    filtered = estimates(bound, one, 20_000, YS)
    straight = estimates(inference.elbo(walk, guide), other, 20_000, YS)
    assert_same_mean(filtered[0], straight[0])
    assert_same_mean(filtered[1], straight[1])


@pytest.mark.slow
def test_more_particles_tighten_the_bound_from_below(key):
    """ELBO < bound of 16 particles < log p, each step by 4.5 standard errors or more."""
    sizes = {k: inference.fivo(walk, guide, num_particles=k) for k in (1, 16)}
    params = sizes[1].init(key, YS)
    run = lambda bound: jax.jit(jax.vmap(lambda key: bound.value(params, key, YS)))
    values = [np.asarray(run(b)(jax.random.split(key, 4000)), float) for b in sizes.values()]
    means = np.array([v.mean() for v in values] + [kalman(0.5)])
    errors = np.array([v.std() / 4000**0.5 for v in values] + [0.0])
    assert (np.diff(means) > 4.5 * np.hypot(errors[1:], errors[:-1])).all(), (means, errors)


BITS = jnp.array([1, 0])


@ppl.model
def chain(ys):
    """Two states; its strategy is for other objectives: here the states are scored."""
    move = jax.nn.sigmoid(ppl.param("move", jnp.array([-0.4, 0.8])))
    emit = ppl.param("emit", jnp.array([-0.5, 1.1]))

    def step(k, y):
        k = ppl.sample("k", dist.Bernoulli(probs=move[k]), strategy="enum")
        ppl.sample("y", dist.Bernoulli(logits=emit[k]), obs=y)
        return k, None

    ppl.scan(step, 0, ys)


def chain_bound(params):
    """E[log Z-hat] of two particles over two steps, all draws and ancestors summed."""
    move, emit = jax.nn.sigmoid(params["move"]), jax.nn.log_sigmoid(params["emit"])
    off = jax.nn.log_sigmoid(-params["emit"])
    law = lambda parent, k: move[parent] if k else 1 - move[parent]
    pairs = list(itertools.product([0, 1], repeat=2))
    total = 0.0
    for first in pairs:
        g = jnp.stack([emit[k] for k in first])
        weights, log_z = jax.nn.softmax(g), jax.nn.logsumexp(g) - jnp.log(2)
        for anc, second in itertools.product(pairs, pairs):
            prob = law(0, first[0]) * law(0, first[1]) * weights[anc[0]] * weights[anc[1]]
            prob *= law(first[anc[0]], second[0]) * law(first[anc[1]], second[1])
            h = jnp.stack([off[k] for k in second])
            total += prob * (log_z + jax.nn.logsumexp(h) - jnp.log(2))
    return total


@pytest.mark.slow  # two programs compile
def test_discrete_states_are_scored_and_replicates_serve_as_baseline(key):
    """The exact gradient of the bound with one run and with four, whose baselines lower the variance beyond averaging."""
    params = {"emit": jnp.array([-0.5, 1.1]), "move": jnp.array([-0.4, 0.8])}
    value, grads = jax.value_and_grad(chain_bound)(params)
    exact = np.concatenate([np.asarray(grads[n], float) for n in ("emit", "move")])
    found = [
        estimates(inference.fivo(chain, num_particles=2, num_replicates=r), key, n, BITS)
        for r, n in ((1, 20_000), (4, 10_000))
    ]
    for values, gradients in found:
        assert_unbiased(values, value)
        assert_unbiased(gradients, exact)
    spread = [gradients.var(0).sum() for _, gradients in found]
    assert spread[1] < 0.6 * spread[0] / 4


@pytest.mark.slow  # training
@pytest.mark.parametrize("gradient", ["score", "drop"])
def test_training_closes_the_gap_and_learns_the_model(gradient, key):
    """Towards max over rho of log p: a start more than a nat below it, an end within 0.1."""
    start = {"a": -0.5, "b": -0.3, "scale": 0.5, "rho": 0.9}
    start = {name: jnp.asarray(x) for name, x in start.items()}
    bound = inference.vsmc(walk, guide, num_particles=4, gradient=gradient, num_replicates=8)
    fit = inference.fit(
        bound, optax.adam(0.03), (YS,), num_steps=300, key=key, params=start, average=0.98,
        progress=False,
    )  # fmt: skip
    best = max(kalman(rho) for rho in np.linspace(-1, 1, 201))
    value = jax.jit(jax.vmap(lambda key: bound.value(fit.params, key, YS)))
    end = np.asarray(value(jax.random.split(key, 500))).mean()
    assert fit.history["value"][:10].mean() < best - 1 and best - 0.1 < end < best + 0.01
    assert kalman(float(fit.params["rho"])) > best - 0.03


@pytest.mark.slow
def test_a_guide_for_some_sites_and_a_report(key):
    @ppl.model
    def model(ys):
        b = ppl.sample("b", dist.Bernoulli(0.4))
        ppl.sample("first", dist.Normal(b, 1.0), obs=ys[0])
        walk(ys[1:])

    bound = inference.fivo(model, lambda ys: guide(ys[1:]), num_particles=3)
    params = bound.init(key, YS)
    assert set(params) == {"a", "b", "scale", "rho"}
    plan = bound.plan(params, YS)
    assert plan["b"].strategy == "reinforce" and plan["x"].strategy == "reparam"
    assert plan["ancestors"].strategy == "score" and not plan["ancestors"].is_biased
    report = bound.site_report(params, key, YS)
    assert list(report) == ["guide.x", "model.b", "model.first", "model.x", "model.y"]
    value, grads, state = bound.step(params, bound.init_state(params, key, YS), key, YS)
    assert np.isfinite(value) and state == {} and set(grads) == set(params)


@ppl.model
def jumping(ys):
    rho = ppl.param("rho", 0.5)

    def step(x, y):
        x = ppl.sample("x", dist.Normal(rho, 1.0))
        ppl.sample("y", dist.Normal(jnp.where(x > 0, 1.0, -1.0), 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, ys)


@ppl.model
def rows(ys):
    with ppl.plate("rows", len(ys)):
        ppl.sample("y", dist.Normal(ppl.param("rho", 0.5), 1.0), obs=ys)


def evaluate(*programs, **options):
    bound = inference.fivo(*programs, **{"num_particles": 2} | options)
    if programs[0] is rows:
        bound = bound.with_plate_sizes({"rows": 40})
    return bound.value(bound.init(jax.random.key(0), YS), jax.random.key(0), YS)


REFUSALS = {
    "jump": (lambda: evaluate(jumping), "Site 'x': the result jumps"),
    "guide": (lambda: evaluate(walk, guide, gradient="stop_gradient"), "guide's parameters \\['a', 'b', 'scale'\\]"),
    "pattern": (lambda: evaluate(walk, strategies={"q*": "reinforce"}), "\\['q\\*'\\] match no latent site"),
    "scheme": (lambda: evaluate(walk, resampling="systematic"), "not known for resampling='systematic'"),
    "policy": (lambda: evaluate(walk, policy=inference.particles.resampling.ess_below()), "policy that looks at the weights"),
    "scaled": (lambda: evaluate(rows), "scaled by 10.0"),
    "particles": (lambda: evaluate(walk, num_particles=0), "num_particles must be an integer"),
    "replicates": (lambda: evaluate(walk, num_replicates=0), "num_replicates must be an integer"),
    "sites": (lambda: evaluate(walk, lambda ys: ppl.sample("q", dist.Normal(0.0, 1.0))), "extra \\['q'\\]"),
}  # fmt: skip


@pytest.mark.slow_for("jump")
@pytest.mark.parametrize("name", REFUSALS)
def test_what_would_be_biased_is_refused(name):
    call, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_the_remedy_for_a_jump(key):
    assert np.isfinite(evaluate(jumping, strategies={"x": "reinforce"}))


@pytest.mark.parametrize("strategy", ["enum", "mvd", "gumbel_softmax", "reinforce_loo"])
def test_other_strategies_than_paths_and_scores_are_refused(strategy):
    with pytest.raises(ValueError, match=f"'x': '{strategy}'.*Use 'reparam' or 'reinforce'"):
        inference.fivo(walk, num_particles=2, strategies={"x": strategy})


def test_a_report_of_particle_runs_is_refused(key):
    bound = inference.fivo(walk, num_particles=2)
    params = bound.init(key, YS)
    for call in (inference.diagnostics.gradient_report, inference.diagnostics.pilot):
        with pytest.raises(TypeError, match=r"'fivo' is estimated by particle runs.*jax.vmap"):
            call(bound, params, key, YS)


def test_parameters_of_a_guide_are_refused_at_every_call(key):
    bound = inference.fivo(walk, guide, num_particles=2, gradient="stop_gradient")
    params = bound.init(key, YS)
    own = {
        name: x
        for name, x in params.items()
        if name in inference.fivo(walk, num_particles=2).init(key, YS)
    }
    bound.value(own, key, YS)
    with pytest.raises(ValueError, match="does not depend on the guide's parameters"):
        bound.value_and_grad(params, key, YS)

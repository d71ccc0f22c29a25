"""Particle methods against exact answers: Kalman, forward algorithm, dense Gaussians, enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _state_space import (
    GOLDEN as Y,
    GOLDEN_EVIDENCE as KALMAN,
    golden as walk,
    golden_chain,
    golden_posterior,
    log_normal,
)
from scipy.stats import multivariate_normal

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import resampling

pytestmark = pytest.mark.one_in(2)

WALK = golden_chain()
POLICIES = {
    "ess": resampling.ess_below(0.5),
    "every": resampling.every(),
    "every second": resampling.every(2),
    "window": resampling.window(1, 3),
    "never": resampling.never(),
}


@ppl.model
def optimal(ys):
    """The locally optimal proposal of `walk`."""
    x = ppl.sample("x0", dist.Normal(0.5 * ys[0], jnp.sqrt(0.5)))
    step = lambda x, y: (ppl.sample("x", dist.Normal(0.45 * x + 0.5 * y, jnp.sqrt(0.5))), None)
    ppl.scan(step, x, ys[1:])


def assert_evidence(target, exact, key, *args, n=4000, num_particles=40, **options):
    """E[exp(log_evidence)] = exp(exact) at z < 4.5; a bias of 2% is 7 standard errors where the relative sd is below 0.18."""

    def log_evidence(key):
        options_ = {"history": "none"} | options
        return inference.smc(
            target, key, *args, num_particles=num_particles, **options_
        ).log_evidence

    z = jax.jit(jax.vmap(log_evidence))(jax.random.split(key, n))
    assert_unbiased(np.exp(np.asarray(z, float) - exact), 1.0)


@pytest.mark.fast("every")
@pytest.mark.parametrize("policy", POLICIES)
def test_evidence_of_a_program_is_unbiased_under_every_policy(policy, key):
    assert_evidence(walk, KALMAN, key, Y, policy=POLICIES[policy])


@pytest.mark.fast("every")
@pytest.mark.parametrize("policy", ["ess", "every"])
def test_evidence_of_a_feynman_kac_model_is_unbiased(policy, key):
    assert_evidence(WALK, KALMAN, key, policy=POLICIES[policy])


def test_resampling_makes_weights_equal(key):
    """What is kept of the weights before it would leave the evidence unbiased where ancestors are exchangeable, and noisier."""
    first = lambda before, x, t: jnp.where(t == 0, x, 0.0)
    model = inference.FeynmanKac(jax.random.normal, lambda key, x, t: x, first, 2)
    run = inference.smc(model, key, num_particles=8, policy=resampling.every())
    weights = np.exp(run.step_log_weights)
    assert np.ptp(weights[0]) > 0.1
    np.testing.assert_allclose(weights[1:], 1 / 8, rtol=1e-6)


@pytest.mark.fast("multinomial")
@pytest.mark.parametrize("scheme", ["stratified", "residual", "multinomial"])
def test_evidence_is_unbiased_under_every_scheme(scheme, key):
    assert_evidence(walk, KALMAN, key, Y, resampling=scheme, policy=resampling.every())


@pytest.mark.slow
def test_evidence_with_a_proposal_is_unbiased_and_less_noisy(key):
    assert_evidence(walk, KALMAN, key, Y, proposal=optimal)
    run = lambda proposal: jax.vmap(
        lambda key: (
            inference.smc(
                walk, key, Y, num_particles=40, proposal=proposal, history="none"
            ).log_evidence
        )
    )(jax.random.split(key, 500))
    assert np.std(run(optimal)) < 0.6 * np.std(run(None))


@pytest.mark.slow
def test_a_proposal_for_some_sites_leaves_the_others_to_the_prior(key):
    first = lambda ys: ppl.sample("x0", dist.Normal(0.5 * ys[0], 0.8))
    assert_evidence(walk, KALMAN, key, Y, proposal=first)


@pytest.mark.slow
def test_paths_have_the_smoothing_distribution(key):
    """Self-normalised means of 400 runs of 500 particles: their bias is O(1/K), far below the noise tested."""
    mean, _ = golden_posterior()

    def means(key):
        result = inference.smc(walk, key, Y, num_particles=500)
        return result.mean(lambda c: jnp.concatenate([c["x0"][None], c["x"]]))

    assert_unbiased(jax.jit(jax.vmap(means))(jax.random.split(key, 400)), mean)
    paths = lambda key: (lambda r: jnp.exp(r.log_weights) @ r.paths)(
        inference.smc(WALK, key, num_particles=500)
    )
    assert_unbiased(jax.jit(jax.vmap(paths))(jax.random.split(key, 400)), mean)


@pytest.mark.slow
def test_filtered_moments(key):
    result = inference.smc(walk, key, Y, num_particles=20_000)
    mean, square = result.mean(lambda c: (c["x"][-1], c["x"][-1] ** 2))
    np.testing.assert_allclose([mean, square - mean**2], [1.3249612, 0.5973773], atol=0.04)


# What moves with a particle.


@ppl.model
def drifting(ys, last):
    """A parameter drawn before the scan, used in it and after it; stacked values used after it."""
    drift = ppl.sample("drift", dist.Normal(0.0, 1.0))
    with ppl.plate("inputs", 3):
        u = ppl.sample("u", dist.Normal(0.0, 0.5))

    def step(x, inputs):
        u, y = inputs
        x = ppl.sample("x", dist.Normal(x + drift + u, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, x

    x, xs = ppl.scan(step, 0.0, (u, ys))
    ppl.sample("last", dist.Normal(x + 2 * drift + xs.sum(), 1.0), obs=last)


def drifting_evidence(ys, last):
    """All is linear in (drift, u, noises): a dense Gaussian."""
    # columns: drift, u_1..3, e_1..3, observation noises
    x = np.zeros((4, 11))
    for t in range(3):
        x[t + 1] = x[t]
        x[t + 1, 0] += 1
        x[t + 1, 1 + t] += 1
        x[t + 1, 4 + t] += 1
    rows = [x[t + 1] + np.eye(11)[7 + t] for t in range(3)]
    rows.append(x[3] + 2 * np.eye(11)[0] + x[1:].sum(0) + np.eye(11)[10])
    a = np.array(rows)
    scale = np.array([1, 0.5, 0.5, 0.5, *[1] * 7]) ** 2
    return multivariate_normal(np.zeros(4), a * scale @ a.T).logpdf([*ys, last])


@pytest.mark.slow
@pytest.mark.parametrize("history", ["full", "ancestors"])
def test_values_from_before_a_scan_move_with_their_particle(history, key):
    ys, last = np.array([0.4, 1.1, 0.9], np.float32), 2.0
    if history != "full":  # the paths are needed after the scan, whatever is returned
        assert (
            "x"
            not in inference.smc(
                drifting, key, ys, last, num_particles=5, history=history
            ).particles
        )
    exact = drifting_evidence(ys, last)
    assert_evidence(drifting, exact, key, ys, last, policy=resampling.every(), history=history)


@ppl.model
def twice(ys):
    """Two scans, an observation between them, a plate of observations in the second."""
    step = lambda x, y: (_observed("x", "y", x, y), None)
    x, _ = ppl.scan(step, ppl.sample("a", dist.Normal(0.0, 1.0)), ys[:2])
    ppl.factor("between", log_normal(x, 0.3))

    def second(x, y):
        x = ppl.sample("z", dist.Normal(0.9 * x, 1.0))
        with ppl.plate("rows", 2):
            ppl.sample("w", dist.Normal(x, 1.0), obs=jnp.stack([y, y + 0.5]))
        return x, None

    ppl.scan(second, x, ys[2:])


def _observed(name, data, x, y):
    x = ppl.sample(name, dist.Normal(0.9 * x, 1.0))
    ppl.sample(data, dist.Normal(x, 1.0), obs=y)
    return x


def twice_evidence(ys):
    """Kalman's recursion: each observation updates, each step predicts."""
    mean, var, total = 0.0, 1.0, 0.0

    def update(y):
        nonlocal mean, var, total
        s = var + 1
        total += -0.5 * (np.log(2 * np.pi * s) + (y - mean) ** 2 / s)
        mean, var = mean + var / s * (y - mean), var / s

    for i, y in enumerate(ys):
        mean, var = 0.9 * mean, 0.81 * var + 1
        update(y)
        if i >= 2:
            update(y + 0.5)
        if i == 1:
            update(0.3)
    return total


@pytest.mark.slow
def test_several_scans_and_observations_between_them(key):
    assert_evidence(twice, twice_evidence(Y[:4]), key, Y[:4], policy=resampling.every())


@ppl.model
def gappy(ys, seen):
    def step(x, inputs):
        y, seen = inputs
        x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y, obs_mask=seen)
        return x, None

    ppl.scan(step, ppl.sample("x0", dist.Normal(0.0, 1.0)), (ys, seen))


@pytest.mark.slow
def test_missing_observations_contribute_nothing(key):
    ys, seen = np.array([0.5, np.nan, 0.25], np.float32), np.array([True, False, True])
    mean, var, exact = 0.0, 1.0, 0.0
    for y, is_seen in zip(ys, seen, strict=True):
        mean, var = 0.9 * mean, 0.81 * var + 1
        if is_seen:
            s = var + 1
            exact += -0.5 * (np.log(2 * np.pi * s) + (y - mean) ** 2 / s)
            mean, var = mean + var / s * (y - mean), var / s
    assert_evidence(gappy, exact, key, ys, seen)
    # A guide may draw the missing cells, too, if it knows which they are: its density of seen cells is no part of log q.
    assert_evidence(gappy, exact, key, ys, seen, proposal=filling)
    blind = lambda ys, seen: filling(ys, None)
    with pytest.raises(
        ValueError, match="Site 'y_unobserved': the guide proposes missing cells.*obs_mask=mask"
    ):
        inference.smc(gappy, key, ys, seen, num_particles=2, proposal=blind)


@pytest.mark.slow
def test_a_proposal_of_other_missing_cells_is_refused(key):
    """At once where masks are known; under jit no particle is left, and failed_at says so."""
    ys, seen = np.array([0.5, 0.1, 0.25], np.float32), np.array([True, False, True])
    other = lambda ys, seen: filling(ys, ~seen)
    with pytest.raises(
        ValueError, match="Site 'y_unobserved': the guide's obs_mask is not the model's"
    ):
        inference.smc(gappy, key, ys, seen, num_particles=2, proposal=other)
    run = lambda proposal: (
        lambda seen: (
            inference.smc(gappy, key, ys, seen, num_particles=2, proposal=proposal).log_evidence
        )
    )
    assert np.isnan(jax.jit(run(other))(seen))
    assert np.isfinite(jax.jit(run(filling))(seen))
    drawn = lambda ys, seen: filling(ys, seen, is_sure=False)
    with pytest.raises(ValueError, match="obs_mask of site.*proposal depends on what is drawn"):
        inference.smc(gappy, key, ys, seen, num_particles=2, proposal=drawn)


@pytest.mark.slow
def test_a_constant_factor_counts_where_masks_are_compared_late(key):
    """Under jit a penalty waits for the first weighing, as the log-probs do that are known before any draw."""
    ys, seen = np.array([0.5, 0.1, 0.25], np.float32), np.array([True, False, True])

    def shifted(ys, seen):
        ppl.factor("constant", 3.0)
        gappy(ys, seen)

    run = lambda seen: [
        inference.smc(model, key, ys, seen, num_particles=2, proposal=filling).log_evidence
        for model in (gappy, shifted)
    ]
    for plain, more in (run(seen), jax.jit(run)(seen)):
        np.testing.assert_allclose(more - plain, 3.0, rtol=1e-5)


def filling(ys, seen, is_sure=True):
    """A proposal of states and of missing cells."""

    def step(x, inputs):
        y, seen = inputs
        x = ppl.sample("x", dist.Normal(0.9 * x, 1.2))
        options = {} if seen is None else {"obs_mask": seen if is_sure else seen & (x < 9)}
        ppl.sample("y_unobserved", dist.Normal(0.8 * x, 1.5), **options)
        return x, None

    ppl.scan(step, ppl.sample("x0", dist.Normal(0.0, 1.0)), (ys, seen))


# Discrete states, Poisson counts (a sampler that insists on its own kind of key), branches.

START, MOVE = np.array([0.6, 0.4]), np.array([[0.8, 0.2], [0.3, 0.7]])
RATES = np.array([1.0, 4.0])
COUNTS = np.array([1.0, 3.0, 5.0], np.float32)


@ppl.model
def switching(counts):
    """A hidden Markov chain with Poisson observations and a Poisson latent that nothing sees."""

    def step(k, y):
        k = ppl.sample("k", dist.CategoricalProbs(jnp.asarray(MOVE, jnp.float32)[k]))
        ppl.sample("n", dist.Poisson(jnp.asarray(RATES, jnp.float32)[k]))
        ppl.sample("y", dist.Poisson(jnp.asarray(RATES, jnp.float32)[k]), obs=y)
        return k, None

    k = ppl.sample("k0", dist.CategoricalProbs(jnp.asarray(START, jnp.float32)))
    ppl.scan(step, k, counts)


def joint_of_paths():
    """Probability of every path (k0, k1, k2, k3) jointly with the counts."""
    poisson = lambda y, rate: np.exp(
        y * np.log(rate) - rate - np.log([1, 1, 2, 6, 24, 120][int(y)])
    )
    paths = np.array(list(itertools.product([0, 1], repeat=4)))
    joint = START[paths[:, 0]]
    for t, y in enumerate(COUNTS):
        joint = joint * MOVE[paths[:, t], paths[:, t + 1]] * poisson(y, RATES[paths[:, t + 1]])
    return paths, joint


@pytest.mark.slow
def test_evidence_of_a_hidden_markov_chain(key):
    assert_evidence(switching, np.log(joint_of_paths()[1].sum()), key, COUNTS)


@pytest.mark.slow
def test_branches_inside_the_scan(key):
    """A branch with a site of its own: the exact evidence by summing over the chooser."""

    @ppl.model
    def branching(ys):
        def step(x, y):
            b = ppl.sample("b", dist.Bernoulli(0.4))
            near = lambda: ppl.sample("near", dist.Normal(x, 0.5))
            far = lambda: ppl.sample("far", dist.Normal(0.0, 2.0)) + 1.0
            x = ppl.cond(b == 1, far, near)
            ppl.sample("y", dist.Normal(x, 1.0), obs=y)
            return 0.0 * x, None

        ppl.scan(step, 0.0, ys)

    density = lambda y, m, v: np.exp(-0.5 * (y - m) ** 2 / v) / np.sqrt(2 * np.pi * v)
    ys = Y[:3].astype(float)
    exact = np.log(0.6 * density(ys, 0, 1.25) + 0.4 * density(ys, 1, 5.0)).sum()
    assert_evidence(branching, exact, key, Y[:3])


@pytest.mark.slow  # see test_particle_gibbs.py
@pytest.mark.parametrize(
    "scheme",
    [
        "systematic",
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in ("stratified", "residual", "multinomial")
        ),
    ],
)  # slow: compilation
def test_conditional_smc_leaves_the_posterior_invariant(scheme, key):
    """Start in the exact posterior of the 16 paths, move once with 3 particles: the law of the path is the same."""
    paths, joint = joint_of_paths()
    k1, k2, k3 = jax.random.split(key, 3)
    start = paths[np.asarray(jax.random.categorical(k1, jnp.log(joint), shape=(20_000,)))]
    rates = jnp.asarray(RATES, jnp.float32)[start[:, 1:]]
    state = {"k0": start[:, 0], "k": start[:, 1:], "n": jax.random.poisson(k2, rates)}
    move = lambda key, state: inference.particles.conditional_smc(
        switching, key, state, COUNTS, num_particles=3, resampling=scheme
    )
    new = jax.jit(jax.vmap(move))(jax.random.split(k3, len(start)), state)
    code = lambda k0, k: np.asarray(k0) * 8 + np.asarray(k) @ np.array([4, 2, 1])
    counts = code(new["k0"], new["k"])[:, None] == code(paths[:, 0], paths[:, 1:])
    assert_unbiased(counts, joint / joint.sum())
    # It moves: a kernel that stands still is invariant, too.
    assert np.mean(code(new["k0"], new["k"]) != code(state["k0"], state["k"])) > 0.03


@pytest.mark.slow  # a chain; see test_particle_gibbs.py
def test_particle_gibbs_samples_the_posterior(key):
    mean, cov = golden_posterior()
    run = lambda key: (
        inference.particles.particle_gibbs(
            walk,
            key,
            Y,
            num_samples=200,
            num_warmup=20,
            num_particles=10,
            filter=inference.particles.FilterOptions(optimal),
        ).choices
    )
    states = jax.jit(jax.vmap(run))(jax.random.split(key, 200))
    paths = jnp.concatenate([states["x0"][..., None], states["x"]], -1)
    assert_unbiased(paths.mean(1), mean)
    assert_unbiased(((paths - mean) ** 2).mean(1), np.diag(cov))


@pytest.mark.slow  # seconds of compilation
def test_arviz_gets_equally_weighted_paths_with_named_axes(key):
    result = inference.smc(walk, key, Y, num_particles=4000)
    tree = inference.to_arviz(
        result, key=key, num_samples=4000, model=walk, args=(Y,), groups=["observed_data"]
    )
    assert tree.posterior["x"].dims == ("chain", "draw", "time")
    assert "log_weight" not in tree.get("sample_stats", {})
    assert tree.posterior.attrs["log_evidence"] == pytest.approx(float(result.log_evidence))
    mean = result.mean(lambda c: c["x"])
    np.testing.assert_allclose(tree.posterior["x"].mean(("chain", "draw")), mean, atol=0.02)
    last = inference.smc(WALK, key, num_particles=50)
    assert inference.to_arviz(last, key=key, num_samples=10).posterior["x"].shape == (1, 10)
    with pytest.raises(ValueError, match="'key' is missing: weighted particles"):
        inference.to_arviz(result)


# Failures and bad input.


def test_lost_particles_are_told_and_mean_nothing(key):
    @ppl.model
    def impossible(ys):
        def step(x, y):
            x = ppl.sample("x", dist.Uniform(0.0, 1.0))
            ppl.sample("y", dist.Uniform(x, x + 1.0), obs=y)
            return x, None

        ppl.scan(step, 0.0, ys)

    run = lambda key: inference.smc(impossible, key, jnp.array([0.9, 5.0, 0.9]), num_particles=50)
    with pytest.warns(
        UserWarning, match="smc: after weighing 1 no particle.*mean and draws are NaN"
    ):
        result = run(key)
    assert result.failed_at == 1 and result.log_evidence == -jnp.inf and result.ess[1] == 0
    assert jnp.isnan(result.mean(lambda c: c["x"])).all()
    assert jnp.isnan(result.sample(key, 3)["x"]).all()
    assert jnp.isnan(jax.jit(lambda key: run(key).mean(lambda c: c["x"]))(key)).all()
    assert inference.smc(walk, key, Y, num_particles=50).failed_at == -1


@pytest.mark.slow
def test_weights_that_are_nan_are_refused_and_make_the_evidence_nan_under_jit(key):
    """Left out, as in other filters, they would make the evidence that of half the line."""
    broken = inference.FeynmanKac(
        jax.random.normal,
        lambda k, x, t: x,
        lambda p, x, t: jnp.where((x > 0) & (t == 1), jnp.nan, 0.0),
        2,
    )
    run = lambda key: inference.smc(broken, key, num_particles=100)
    with pytest.raises(ValueError, match="weight is NaN at weighing 1,.*return -inf"):
        run(key)
    result = jax.jit(run)(key)
    assert jnp.isnan(result.log_evidence) and result.failed_at == 1


@pytest.mark.slow
def test_a_particle_of_weight_zero_may_have_any_potential(key):
    """What is impossible once stays so, whatever its later potentials."""
    never = inference.FeynmanKac(
        jax.random.normal,
        lambda k, x, t: x,
        lambda p, x, t: jnp.where(x > 0, jnp.where(t == 0, -jnp.inf, jnp.nan), 0.0),
        2,
    )
    result = inference.smc(never, key, num_particles=1000, policy=lambda t, w: jnp.zeros((), bool))
    assert abs(result.log_evidence - jnp.log(0.5)) < 0.2


def test_a_particle_of_weight_zero_has_no_say_in_a_mean(key):
    """The logarithm is NaN where the weight is zero."""
    half = inference.FeynmanKac(
        jax.random.normal, lambda key, x, t: x, lambda _, x, t: jnp.where(x > 0, 0.0, -jnp.inf), 0
    )
    result = inference.smc(half, key, num_particles=100)
    x = result.particles
    mean, share = result.mean(lambda x: (jnp.log(x), x > 0))
    np.testing.assert_allclose(mean, jnp.log(x[x > 0]).mean(), rtol=1e-5)
    np.testing.assert_allclose(share, 1.0, rtol=1e-6)


@pytest.mark.slow
def test_batches_of_particles_give_a_result_of_the_same_law(key):
    assert_evidence(walk, KALMAN, key, Y, batch_size=20, n=1000)


@pytest.mark.slow
def test_same_key_same_result_under_jit_and_both_kinds_of_key(key):
    run = lambda key: inference.smc(walk, key, Y, num_particles=20).log_evidence
    np.testing.assert_allclose(run(key), jax.jit(run)(key), rtol=1e-5)
    np.testing.assert_allclose(run(key), run(jax.random.key_data(key)), rtol=1e-6)


def some_rows():
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 4, subsample_size=1) as i:
        ppl.sample("y", dist.Normal(a, 1.0), obs=jnp.array([0.0, 1.0, 2.0, 5.0])[i])


ERRORS = {
    "num_particles": (lambda k: inference.smc(walk, k, Y, num_particles=0), "num_particles must be"),
    "history": (lambda k: inference.smc(walk, k, Y, num_particles=2, history="all"), "history must be"),
    "batch_size": (lambda k: inference.smc(walk, k, Y, num_particles=2, batch_size=0), "batch_size must be"),
    "uneven batches": (lambda k: inference.smc(walk, k, Y, num_particles=5, batch_size=2), "does not divide"),
    "scheme": (lambda k: inference.smc(walk, k, Y, num_particles=2, resampling="magic"), "magic"),
    "kernel arguments": (lambda k: inference.smc(WALK, k, Y, num_particles=2), "no program arguments"),
    "potential": (
        lambda k: inference.smc(
            inference.FeynmanKac(jax.random.normal, lambda k, x, t: x, lambda p, x, t: jnp.ones(2), 1), k, num_particles=2
        ),
        "one number per particle",
    ),
    "steps": (lambda k: inference.FeynmanKac(None, None, None, -1), "num_steps"),
    "short proposal": (
        lambda k: inference.smc(
            walk, k, Y, num_particles=2,
            proposal=lambda ys: ppl.scan(
                lambda x, _: (ppl.sample("x", dist.Normal(0.0, 1.0)), None), 0.0, None, length=3
            ),
        ),
        "3 steps|shape",
    ),
    "observed proposal": (lambda k: inference.smc(walk, k, Y, num_particles=2, proposal=walk), "observed sites"),
    "unknown site": (
        lambda k: inference.smc(
            walk, k, Y, num_particles=2, proposal=lambda ys: ppl.sample("q", dist.Normal(0.0, 1.0))
        ),
        "extra \\['q'\\]",
    ),
    "scaled rows": (lambda k: inference.smc(some_rows, k, num_particles=2), "Site 'y': smc averages densities.*Use all rows"),
    "one particle": (lambda k: inference.particles.conditional_smc(walk, k, {}, Y, num_particles=1), "at least 2"),
    "ess": (lambda k: resampling.ess_below(0.0), "fraction"),
    "period": (lambda k: resampling.every(0), "period"),
    "window": (lambda k: resampling.window(3, 3), "start"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    run, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        run(key)


@pytest.mark.slow
def test_a_broken_engine_is_found(key, monkeypatch):
    """Weights that are reset though nobody was resampled: the evidence test fails."""
    from lapilli.inference.particles import population
    from lapilli.inference.particles.resampling import _look_ahead, resample

    def forgetful(key, particles, log_weights, scheme, decision, *_):
        chosen = resample(key, particles, log_weights, scheme, False)
        return chosen._replace(log_weights=population.uniform(len(log_weights)))

    monkeypatch.setattr(_look_ahead, "resample", forgetful)
    with pytest.raises(AssertionError, match="limit 4.5"):
        assert_evidence(walk, KALMAN, key, Y, policy=resampling.every())

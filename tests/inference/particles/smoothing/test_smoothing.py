"""Smoothing against Kalman's smoother, the forward-backward algorithm, and the law of a path given one run's particles.

False alarms: 6.8e-6 per coordinate (see _stats).
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _slow import some_slow
from _state_space import GOLDEN as Y, golden as walk, golden_chain, golden_posterior, log_normal

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference import particles
from lapilli.inference.particles.engine import RunOptions, run
from lapilli.inference.particles.smoothing import _backward_kernels as kernels
from lapilli.inference.particles.smoothing._backward import draw_slots

pytestmark = pytest.mark.one_in(2)

CHAIN = golden_chain()


BOUND = float(log_normal(0.0, 0.0))


def moments(paths, mean):
    """Means, and second moments about the exact mean."""
    about = paths - mean
    lagged = about[:, 1:] * about[:, :-1]
    return jnp.concatenate([paths.mean(0), (about**2).mean(0), lagged.mean(0)])


def assert_kalman(target, key, *args, n=200, num_particles=500, num_samples=200, **options):
    """Averages over n runs; their bias of order 1 / 500 is far below the standard errors near 0.006."""
    mean, cov = golden_posterior()

    def of_run(key):
        result = inference.smooth(
            target, key, *args, num_particles=num_particles, num_samples=num_samples, **options
        )
        paths = result.paths
        if args:
            paths = jnp.concatenate([paths["x0"][:, None], paths["x"]], 1)
        return moments(paths, mean)

    estimates = jax.jit(jax.vmap(of_run))(jax.random.split(key, n))
    assert_unbiased(estimates, np.concatenate([mean, np.diag(cov), np.diag(cov, 1)]))


METHODS = {
    "ffbs": {"method": "ffbs"},
    "mcmc": {"method": particles.BackwardMetropolis(1)},
    "rejection": {"method": particles.BackwardRejection(BOUND, 3)},
    "genealogy": {"method": "genealogy"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_moments_of_a_chain(name, key):
    assert_kalman(CHAIN, key, **METHODS[name])


@pytest.mark.parametrize("name", some_slow(METHODS, "ffbs", "mcmc", "rejection", "genealogy"))
def test_moments_of_a_program(name, key):
    assert_kalman(walk, key, Y, **METHODS[name])


@pytest.mark.slow
def test_fixed_lag_forgets_later_data(key):
    """At each time the mean given the data up to `lag` steps later, which is not the smoothing mean."""

    def of_run(key):
        fixed = inference.smooth(CHAIN, key, num_particles=1000, method=particles.FixedLag(1))
        return fixed.paths.mean(0)

    n = len(Y)
    a = np.eye(n) - 0.9 * np.eye(n, k=-1)
    prior = np.linalg.inv(a.T @ a)
    known = lambda m: prior[:, :m] @ np.linalg.inv(prior[:m, :m] + np.eye(m)) @ Y[:m]
    exact = np.array([known(min(t + 2, n))[t] for t in range(n)])
    assert np.abs(exact - golden_posterior()[0]).max() > 0.1
    assert_unbiased(jax.jit(jax.vmap(of_run))(jax.random.split(key, 300)), exact)


@pytest.mark.slow
def test_a_lag_of_all_steps_is_the_genealogy(key):
    of = lambda **options: inference.smooth(CHAIN, key, num_particles=20, **options).paths
    np.testing.assert_array_equal(of(method="genealogy"), of(method=particles.FixedLag(4)))


# One run's particles: the law of a path by summing over all of them.


def law_of_slots(segments, log_weights):
    """Probability of each tuple of slots (before each step, end) under backward sampling."""
    (record,) = [s.filter for s in segments if s.filter]
    future = record.future()
    num_steps, num = record.log_weights.shape
    weights = jnp.exp(record.log_weights)
    backward = []
    for t in range(num_steps):
        density = []
        for k in range(num):
            window = jax.tree.map(
                lambda x, t=t, k=k: jnp.broadcast_to(x[t, k], (num, 1)), record.made
            )
            density.append(
                future(jax.tree.map(lambda x, t=t: x[t], record.states), window, jnp.asarray(t))
            )
        joint = weights[t] * jnp.exp(jnp.stack(density))
        backward.append(np.asarray(joint / joint.sum(1, keepdims=True), float))  # row: slot after
    tuples = np.array(list(itertools.product(range(num), repeat=num_steps + 1)))
    law = np.exp(np.asarray(log_weights, float))[tuples[:, -1]]
    for t in range(num_steps):
        law = law * backward[t][tuples[:, t + 1], tuples[:, t]]
    return tuples, law


@pytest.mark.slow_for("exact")
@pytest.mark.parametrize(
    "name", some_slow(["exact", "rejection", "rejection that gives up", "metropolis"], "metropolis")
)
def test_law_of_a_path_given_the_particles(name, key):
    """Three particles, three steps, 81 tuples of slots, 40 000 paths; 60 moves of Metropolis leave nothing of their start."""
    draws = {
        "exact": kernels.exact,
        "rejection": kernels.rejection(lambda t: BOUND, 1000),
        "rejection that gives up": kernels.rejection(lambda t: BOUND + 0.5, 1),
        "metropolis": kernels.metropolis(60),
    }
    short = dataclasses.replace(CHAIN, num_steps=3)
    options = RunOptions(3, history="ancestors", path="filter")
    result, segments = run(short, key, (), options)
    tuples, law = law_of_slots(segments, result.log_weights)
    # Ends drawn one by one: the test's errors take paths as independent.
    keys = jax.random.split(key, 40_000)
    one = lambda key: draw_slots(key, segments, result.log_weights, 1, draws[name])[0][:, 0]
    slots = np.asarray(jax.jit(jax.vmap(one))(keys))
    code = 3 ** np.arange(4)
    hits = (slots @ code)[:, None] == tuples @ code
    common = law > 1e-3  # the others together are one event
    hits = np.concatenate([hits[:, common], hits[:, ~common].any(1, keepdims=True)], 1)
    assert_unbiased(hits, [*law[common], law[~common].sum()])


SEEN = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
START, MOVE = np.array([0.6, 0.4]), np.array([[0.8, 0.2], [0.3, 0.7]])
DATA = np.array([0, 2, 2, 1])


@pytest.mark.slow  # compilation
def test_a_hidden_markov_chain(key):
    """Pairs of neighbouring states against the forward-backward algorithm."""
    table = lambda x: jnp.asarray(x, jnp.float32)

    def hmm(data):
        def step(k, y):
            k = ppl.sample("k", dist.CategoricalProbs(table(MOVE)[k]))
            ppl.sample("y", dist.CategoricalProbs(table(SEEN)[k]), obs=y)
            return k, None

        ppl.scan(step, ppl.sample("k0", dist.CategoricalProbs(table(START))), data)

    forward = [START]
    for y in DATA:
        forward.append(forward[-1] @ MOVE * SEEN[:, y])
    backward = [np.ones(2)]
    for y in DATA[::-1]:
        backward.insert(0, MOVE @ (SEEN[:, y] * backward[0]))
    pairs = [
        forward[t][:, None] * MOVE * (SEEN[:, y] * backward[t + 1]) for t, y in enumerate(DATA)
    ]
    exact = np.stack(pairs) / forward[-1].sum()

    def of_run(key):
        c = inference.smooth(hmm, key, DATA, num_particles=500, num_samples=200).paths
        k = jnp.concatenate([c["k0"][:, None], c["k"]], 1)
        hot = jax.nn.one_hot(k, 2)
        return jnp.einsum("nti,ntj->tij", hot[:, :-1], hot[:, 1:]) / len(k)

    assert_unbiased(jax.jit(jax.vmap(of_run))(jax.random.split(key, 200)), exact)


@pytest.mark.slow
def test_the_mean_gradient_along_paths_is_the_score(key):
    """Fisher's identity for the coefficient of the walk, against the derivative of the exact log-evidence."""

    def program(ys, a):
        def step(x, y):
            x = ppl.sample("x", dist.Normal(a * x, 1.0))
            ppl.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        ppl.scan(step, 1.0, ys)

    def log_evidence(a):
        powers = a ** np.arange(1, 6)
        noise = np.array([[a ** (t - s) if s <= t else 0.0 for s in range(5)] for t in range(5)])
        cov = noise @ noise.T + np.eye(5)
        left = Y - powers
        return -0.5 * (left @ np.linalg.solve(cov, left) + np.linalg.slogdet(cov)[1])

    exact = (log_evidence(0.9 + 1e-4) - log_evidence(0.9 - 1e-4)) / 2e-4
    density = lambda a, c: ppl.as_program(program).log_density(c, Y, a)

    def score(key):
        result = inference.smooth(program, key, Y, 0.9, num_particles=500, num_samples=100)
        return result.mean(lambda c: jax.grad(density)(0.9, c))

    assert_unbiased(jax.jit(jax.vmap(score))(jax.random.split(key, 200)), exact)


@pytest.mark.slow
def test_backward_draws_keep_more_particles_than_the_genealogy(key):
    """50 particles have 1 to 3 ancestors 200 steps back; 22 or more are drawn backward (300 runs of each)."""
    long = dataclasses.replace(
        CHAIN, num_steps=200, log_potential=lambda old, x, t: log_normal(x, jnp.sin(t))
    )
    of = lambda method: np.asarray(
        inference.smooth(long, key, num_particles=50, method=method).num_distinct
    )
    assert of("genealogy")[0] <= 5
    assert of("ffbs")[0] > 10 and of("mcmc")[0] > 10
    assert (of("ffbs") <= 50).all()


@pytest.mark.slow  # seconds of compilation
def test_draws_go_to_arviz_as_they_are(key):
    result = inference.smooth(walk, key, Y, num_particles=30)
    tree = inference.to_arviz(result.paths, model=walk, args=(Y,))
    assert tree.posterior["x"].dims == ("chain", "draw", "time")


@pytest.mark.slow  # seconds of compilation
def test_kernels_without_density_keep_their_parents(key):
    """Delta kernels: no other particle can have made the step."""

    @ppl.model
    def fixed(ys):
        def step(x, y):
            x = ppl.sample("x", dist.Delta(x + 1.0))
            ppl.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        ppl.scan(step, ppl.sample("x0", dist.Normal(0.0, 1.0)), ys)

    for method in ("ffbs", "mcmc"):
        paths = inference.smooth(fixed, key, Y, num_particles=20, method=method).paths
        steps = jnp.diff(jnp.concatenate([paths["x0"][:, None], paths["x"]], 1))
        np.testing.assert_allclose(steps, 1.0, rtol=1e-5)


# Failures and bad input.


@pytest.mark.slow
def test_a_bound_that_is_none_is_found(key):
    smooth = lambda key: inference.smooth(
        CHAIN, key, num_particles=20, method=particles.BackwardRejection(BOUND - 1.0)
    )
    with pytest.raises(ValueError, match="exceeds log_bound by"):
        smooth(key)
    result = jax.jit(smooth)(key)
    assert result.excess > 0 and jnp.isnan(result.paths).all()


@pytest.mark.slow
def test_discrete_paths_under_no_bound_are_marked(key):
    def chain(ys):
        def step(k, y):
            k = ppl.sample("k", dist.Bernoulli(0.2 + 0.6 * k))
            return k, ppl.sample("y", dist.Normal(k, 1.0), obs=y)

        ppl.scan(step, 0, ys)

    options = {"num_particles": 5, "method": particles.BackwardRejection(-2.0)}
    run = jax.jit(lambda key: inference.smooth(chain, key, jnp.zeros(2), **options))
    assert (run(key).paths["k"] == jnp.iinfo(jnp.int32).min).all()


@pytest.mark.slow
def test_a_derivative_through_the_draws_is_refused(key):
    def mean(shift):
        chain = dataclasses.replace(
            CHAIN, log_transition=lambda old, x, t: log_normal(0.9 * old + shift, x)
        )
        return inference.smooth(chain, key, num_particles=4).paths.mean()

    with pytest.raises(TypeError, match="Fisher"):
        jax.grad(mean)(0.1)


def smooth(key, target=CHAIN, **options):
    return inference.smooth(target, key, num_particles=4, **options)


ERRORS = {
    "method": (lambda k: smooth(k, method="exact"), "method must be 'ffbs'"),
    "lag": (lambda k: particles.FixedLag(-1), "lag must be an integer >= 0"),
    "moves": (lambda k: particles.BackwardMetropolis(0), "num_moves must be an integer >= 1"),
    "proposals": (lambda k: particles.BackwardRejection(0.0, -1), "num_proposals must be an integer >= 0"),
    "samples": (lambda k: smooth(k, num_samples=0), "num_samples must be"),
    "density": (lambda k: smooth(k, dataclasses.replace(CHAIN, log_transition=None)), "log_transition is missing"),
    "no step": (lambda k: smooth(k, dataclasses.replace(CHAIN, num_steps=0)), "no step of a top-level scan"),
    "straight": (
        lambda k: smooth(k, lambda: ppl.sample("x", dist.Normal(0.0, 1.0))), "no step of a top-level scan"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    run, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        run(key)


@pytest.mark.slow
def test_genealogy_needs_no_density(key):
    chain = dataclasses.replace(CHAIN, log_transition=None)
    assert smooth(key, chain, method="genealogy").paths.shape == (4, 5)
    assert smooth(key, chain, method=particles.FixedLag(1)).paths.shape == (4, 5)


@pytest.mark.slow
def test_lost_particles_are_reported(key):
    lost = dataclasses.replace(CHAIN, log_potential=lambda *_: jnp.asarray(-jnp.inf))
    with pytest.warns(UserWarning, match="smooth: after weighing 0 no particle"):
        found = smooth(key, lost)
    assert found.failed_at == 0 and smooth(key).failed_at == -1
    assert jnp.isnan(found.mean(lambda path: path)).all()


@pytest.mark.slow
def test_broken_backward_weights_are_found(key, monkeypatch):
    """Densities of the steps ahead left out: the moments are the filter's."""
    monkeypatch.setattr(kernels.Future, "__call__", lambda future, states, window, t: jnp.zeros(()))
    with pytest.raises(AssertionError, match="limit 4.5"):
        assert_kalman(CHAIN, key)


@pytest.mark.slow
def test_a_bound_by_step_counts_steps_as_the_densities_do(key):
    """Moves of growing width: a bound that is tight at every move; one move late it would be exceeded."""
    widths = jnp.array([jnp.nan, 1.0, 2.0, 4.0, 8.0])
    log_move = lambda old, x, t: dist.Normal(old, widths[t]).log_prob(x)
    chain = inference.FeynmanKac(
        init=jax.random.normal,
        kernel=lambda key, x, t: x + widths[t] * jax.random.normal(key),
        log_potential=lambda old, x, t: log_normal(x, jnp.asarray(Y)[t]),
        num_steps=4,
        log_transition=log_move,
    )
    bound = lambda t: log_move(0.0, 0.0, t)
    result = inference.smooth(
        chain, key, num_particles=50, method=particles.BackwardRejection(bound)
    )
    assert -1.0 < float(result.excess) <= 1e-5

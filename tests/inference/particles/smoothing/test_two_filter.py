"""Two-filter smoothing against Kalman's smoother. False alarms: 6.8e-6 per coordinate (see _stats)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _state_space import (
    GOLDEN as Y,
    LINE,
    golden as walk,
    golden_chain,
    golden_posterior,
    moving_average,
    random_slope,
    second_order,
)

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles.smoothing import _two_filter

CHAIN = golden_chain()


def information(first, prior, kernel, wrap=lambda x: x, unwrap=lambda x: x):
    """From distributions: of x_T, of gamma_t, of x_t given x_{t+1}."""
    return inference.particles.InformationFilter(
        init=lambda key: wrap(first.sample(key)),
        kernel=lambda key, later, t: wrap(kernel(unwrap(later), t).sample(key)),
        log_prior=lambda x, t: prior(t).log_prob(unwrap(x)),
        log_kernel=lambda later, x, t: kernel(unwrap(later), t).log_prob(unwrap(x)),
    )


SITE = {"wrap": lambda x: {"x": x}, "unwrap": lambda x: x["x"]}
STATIONARY = dist.Normal(0.0, 0.19**-0.5)
REVERSED = (STATIONARY, lambda t: STATIONARY, lambda x, t: dist.Normal(0.9 * x, 1.0))
# Priors that move with time, and a kernel that is no reversal of anything. `t` of the last state is 4.
ODD = (
    dist.Normal(0.8, 2.0),
    lambda t: dist.Normal(0.2 * t, 2.0),
    lambda x, t: dist.Normal(0.6 * x + 0.1 * t, 1.3),
)


def assert_kalman(target, key, *args, backward, n=200, **options):
    """Averages over n runs; their bias of order 1 / 200 is far below the standard errors near 0.006."""
    mean, cov = golden_posterior()

    def of_run(key):
        paths = inference.smooth(
            target, key, *args, num_particles=200, num_samples=200, method=backward,
            **options,
        ).paths  # fmt: skip
        paths = jnp.concatenate([paths["x0"][:, None], paths["x"]], 1) if args else paths
        return jnp.concatenate([paths.mean(0), ((paths - mean) ** 2).mean(0)])

    estimates = jax.jit(jax.vmap(of_run))(jax.random.split(key, n))
    assert_unbiased(estimates, np.concatenate([mean, np.diag(cov)]))


def shifted(parts):
    """The same times for a program, whose steps count from 0."""
    first, prior, kernel = parts
    return information(first, lambda t: prior(t + 1), lambda x, t: kernel(x, t + 1), **SITE)


CASES = {
    "chain, reversed": (CHAIN, (), information(*REVERSED)),
    "chain, odd": (CHAIN, (), information(*ODD)),
    "program, odd": (walk, (Y,), shifted(ODD)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_moments_are_those_of_the_smoother(case, key):
    target, args, backward = CASES[case]
    assert_kalman(target, key, *args, backward=backward)


@pytest.mark.slow  # seconds of compilation
def test_without_the_artificial_prior_in_the_weights_moments_are_wrong(key):
    first, prior, kernel = ODD
    wrong = information(first, lambda t: STATIONARY, kernel)
    with pytest.raises(AssertionError, match="z = "):
        assert_kalman(CHAIN, key, backward=wrong)


@ppl.model
def plane(ys):
    """Two sites in a step, no site before the scan, a potential that sees both ends of a move."""

    def step(x, y):
        x = ppl.sample("x", dist.MultivariateNormal(0.9 * x, jnp.eye(2)))
        b = ppl.sample("b", dist.Normal(x[0], 0.5))
        ppl.sample("y", dist.Normal(x.sum() + b, 1.0), obs=y)
        return x, None

    ppl.scan(step, jnp.zeros(2), ys)


@pytest.mark.slow  # two compilations
def test_it_agrees_with_backward_sampling_on_several_sites(key):
    """Means of 100 runs each; a two-sample z for each of 12 numbers."""
    wide = lambda size: dist.Normal(jnp.zeros(size), 3.0).to_event(1)
    near = lambda later: dist.Normal(0.7 * later["x"], 1.5).to_event(1)
    of_b = lambda x: dist.Normal(x["x"][0], 1.0)

    def draw(key, law):
        k1, k2 = jax.random.split(key)
        x = {"x": law.sample(k1)}
        return x | {"b": of_b(x).sample(k2)}

    backward = inference.particles.InformationFilter(
        init=lambda key: draw(key, wide(2)),
        kernel=lambda key, later, t: draw(key, near(later)),
        log_prior=lambda x, t: wide(2).log_prob(x["x"]) + of_b(x).log_prob(x["b"]),
        log_kernel=lambda later, x, t: near(later).log_prob(x["x"]) + of_b(x).log_prob(x["b"]),
    )

    def means(key, **options):
        result = inference.smooth(plane, key, LINE, num_particles=200, **options)
        return result.mean(lambda c: jnp.concatenate([c["x"].reshape(-1), c["b"]]))

    k1, k2 = jax.random.split(key)
    two = jax.jit(jax.vmap(lambda k: means(k, method=backward)))
    one = jax.jit(jax.vmap(lambda k: means(k, method="mcmc")))
    a, b = np.asarray(two(jax.random.split(k1, 100))), np.asarray(one(jax.random.split(k2, 100)))
    z = (a.mean(0) - b.mean(0)) / np.sqrt(a.var(0) / 100 + b.var(0) / 100)
    assert (np.abs(z) < 4.5).all(), z
    assert a.shape == (100, 12)


BACKWARD = information(*REVERSED, **SITE)
ERRORS = {
    "memory": (lambda run: run(second_order, BACKWARD), "needs a Markov chain.*see more of the past"),
    "endless": (lambda run: run(moving_average, BACKWARD), "needs a Markov chain"),
    "shared site": (lambda run: run(random_slope, BACKWARD), "ppl.condition"),
    "shapes": (lambda run: run(walk, information(*REVERSED)), "InformationFilter.init draws values of shapes"),
}  # fmt: skip


@pytest.mark.fast("endless", "shapes")
@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    call, message = ERRORS[name]
    run = lambda target, method: inference.smooth(
        target, key, Y[:4], num_particles=5, method=method
    )
    with pytest.raises(ValueError, match=message):
        call(run)


@pytest.mark.slow
def test_data_after_the_scan_and_several_scans_are_refused(key):
    def ending(ys):
        step = lambda x, y: (ppl.sample("x", dist.Normal(x, 1.0)), ppl.factor("f", y * x))
        x, _ = ppl.scan(step, 0.0, ys)
        ppl.sample("last", dist.Normal(x, 1.0), obs=1.0)

    def twice(ys):
        step = lambda name: (
            lambda x, y: (ppl.sample(name, dist.Normal(x, 1.0)), ppl.factor(f"f {name}", y * x))
        )
        x, _ = ppl.scan(step("x"), 0.0, ys)
        ppl.scan(step("z"), x, ys)

    for program, message in ((ending, "data after the scan"), (twice, "has 2 with sites")):
        with pytest.raises(ValueError, match=message):
            inference.smooth(program, key, LINE, num_particles=5, method=BACKWARD)


MISSED = {  # the backward run meets all transitions but the first
    "backwards": (lambda x, t: (x > 0) & (x < 1), "the run backwards lost all its particles"),
    "pairs": (lambda x, t: t > 1, "before step 0 no pair of forward and backward particles"),
}


@pytest.mark.slow  # seconds of compilation
@pytest.mark.parametrize(("is_possible", "words"), MISSED.values(), ids=MISSED)
def test_priors_that_miss_the_data_are_refused_and_nan_under_jit(is_possible, words, key):
    far = information(dist.Uniform(50.0, 51.0), *REVERSED[1:])
    narrow = inference.FeynmanKac(
        lambda key: jax.random.uniform(key), lambda key, x, t: jax.random.uniform(key), lambda old, x, t: 0.0, 2,
        log_transition=lambda old, x, t: jnp.where(is_possible(x, t), 0.0, -jnp.inf),
    )  # fmt: skip
    run = lambda key: inference.smooth(narrow, key, num_particles=5, method=far).paths
    with pytest.raises(ValueError, match=words):
        run(key)
    assert jnp.isnan(jax.jit(run)(key)).all()


@pytest.mark.slow  # seconds of compilation
def test_a_run_backwards_that_is_lost_is_refused_and_nan_under_jit(key):
    """It goes to where no last move begins; the even weights after that would pass for weights."""
    near = inference.FeynmanKac(
        jax.random.normal, lambda key, x, t: x + jax.random.normal(key), lambda old, x, t: 0.0, 3,
        log_transition=lambda old, x, t: jnp.where((t == 3) & (abs(x - old) > 9), -jnp.inf, -0.5 * (x - old) ** 2),
    )  # fmt: skip
    away = lambda x, t: dist.Normal(x + 50.0 * (t == 2), 1.0)
    method = information(dist.Normal(0.0, 1.0), lambda t: STATIONARY, away)
    run = lambda key: inference.smooth(near, key, num_particles=50, method=method).paths
    with pytest.raises(ValueError, match="at step 2 the run backwards lost all its particles"):
        run(key)
    assert jnp.isnan(jax.jit(run)(key)).all()


NAN = {
    "of the backward run": (lambda old, x, t: old > x + 1.5, "smc: a particle's weight is NaN"),
    "of pairs alone": (lambda old, x, t: t == 1, "before step 0 a density of a pair.* is NaN or"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("where", "words"), NAN.values(), ids=NAN)
def test_densities_that_are_nan_are_refused_and_void_under_jit(where, words, key):
    broken = inference.FeynmanKac(
        jax.random.normal, lambda key, x, t: x + jax.random.normal(key), lambda old, x, t: 0.0, 2,
        log_transition=lambda *at: jnp.where(where(*at), jnp.nan, -0.5 * (at[1] - at[0]) ** 2),
    )  # fmt: skip
    run = lambda key: (
        inference.smooth(broken, key, num_particles=50, method=information(*REVERSED)).paths
    )
    with pytest.raises(ValueError, match=words):
        run(key)
    assert jnp.isnan(jax.jit(run)(key)).all()


def test_pairs_are_weighted_in_blocks():
    particles = jnp.arange(3000.0)
    np.testing.assert_allclose(_two_filter._blocked(lambda x: 2 * x, particles), 2 * particles)

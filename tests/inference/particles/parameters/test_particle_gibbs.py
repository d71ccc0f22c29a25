"""Particle Gibbs samples the posterior of states and parameters; other ancestors move early states.

False alarms: 6.8e-6 per coordinate (see _stats).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _state_space import (
    LINE,
    gaussian_posterior,
    moving_average,
    random_slope,
    second_order,
    two_scans,
)
from jax.flatten_util import ravel_pytree

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import FilterOptions, GibbsBlock

CHAINS = {
    "two scans, backward": (two_scans, "backward", ("a", "b", "x", "z")),
    "two scans, ancestor": (two_scans, "ancestor", ("a", "b", "x", "z")),
    "random slope, ancestor": (random_slope, "ancestor", ("slope", "x")),
    "random slope, backward": (random_slope, "backward", ("slope", "x")),
    "second order, backward": (second_order, "backward", ("x",)),
    "moving average, ancestor": (moving_average, "ancestor", ("x",)),
}


@pytest.mark.slow  # six compilations of a chain
@pytest.mark.parametrize("name", CHAINS)
def test_particle_gibbs_samples_the_posterior(name, key):
    """200 chains; means and variances of all sites. A bias of 0.1 sd of the posterior is 7 standard errors."""
    program, path, _ = CHAINS[name]
    mean, cov = gaussian_posterior(program, LINE)
    sample = lambda key: (
        inference.particles.particle_gibbs(
            program, key, LINE, num_samples=100, num_warmup=30, num_particles=8, path=path
        ).choices
    )
    states = jax.jit(jax.vmap(sample))(jax.random.split(key, 200))
    flat = jax.vmap(jax.vmap(lambda x: ravel_pytree(x)[0]))(states)
    assert_unbiased(flat.mean(1), mean)
    assert_unbiased(((flat - mean) ** 2).mean(1), np.diag(cov))


def walk_posterior(ys):
    """Posterior mean and mean square of the coefficient of `unknown_walk`, by quadrature over the exact evidence."""
    grid = (np.arange(4000) + 0.5) / 2000 - 1
    steps = np.arange(len(ys))
    gaps = steps[:, None] - steps
    log_z = []
    for a in grid:
        noise = np.where(gaps >= 0, a ** np.maximum(gaps, 0), 0.0)
        cov = noise @ noise.T + np.eye(len(ys))
        left = ys - 2.0 * a ** (steps + 1)
        log_z.append(-0.5 * (left @ np.linalg.solve(cov, left) + np.linalg.slogdet(cov)[1]))
    weights = np.exp(np.array(log_z) - max(log_z))
    return weights @ np.stack([grid, grid**2], 1) / weights.sum()


@ppl.model
def unknown_walk(ys):
    a = ppl.sample("a", dist.Uniform(-1.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, 2.0, ys)


@ppl.model
def walk_guide(ys):
    """Draws the parameter, too; the chain's values take its place."""
    a = ppl.sample("a", dist.Uniform(-1.0, 1.0))
    step = lambda x, y: (ppl.sample("x", dist.Normal(0.5 * (a * x + y), 0.8)), None)
    ppl.scan(step, 2.0, ys)


PARAMETER_CHAINS = {
    "ancestor": {"path": "ancestor"},
    "backward, proposal": {"path": "backward", "filter": FilterOptions(walk_guide)},
    "random walk": {"parameters": GibbsBlock(["a"], inference.particles.moves.RandomWalk(), 3)},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ancestor", *(pytest.param(n, marks=pytest.mark.slow) for n in list(PARAMETER_CHAINS)[1:])]
)  # fmt: skip
def test_parameters_and_states_alternate(name, key):
    """200 chains; the coefficient against quadrature. A bias of 0.15 sd of the posterior is 7 standard errors."""
    ys = np.array([1.5, 1.0, 0.2, 0.8], np.float32)
    sample = lambda key: inference.particles.particle_gibbs(
        unknown_walk, key, ys, num_samples=100, num_warmup=100, num_particles=5,
        **{"parameters": ["a"], **PARAMETER_CHAINS[name]},
    ).choices  # fmt: skip
    draws = jax.jit(jax.vmap(sample))(jax.random.split(key, 200))
    assert draws["x"].shape == (200, 100, 4)
    a = draws["a"]
    assert_unbiased(jnp.stack([a.mean(1), (a**2).mean(1)], 1), walk_posterior(ys))


LONG = inference.FeynmanKac(
    init=jax.random.normal,
    kernel=lambda key, x, t: 0.9 * x + jax.random.normal(key),
    log_potential=lambda old, x, t: -0.5 * (x - jnp.sin(t)) ** 2,
    num_steps=50,
    log_transition=lambda old, x, t: -0.5 * (x - 0.9 * old) ** 2,
)


@pytest.mark.slow
def test_early_states_move_with_few_particles(key):
    """5 particles, 50 steps: the genealogy holds x_0 fast, other ancestors move it in most moves."""

    def rate(path):
        result = inference.particles.particle_gibbs(
            LONG, key, num_samples=300, num_particles=5, path=path
        )
        paths = result.choices
        return float((paths[1:, 0] != paths[:-1, 0]).mean())

    assert rate("genealogy") < 0.02
    assert rate("ancestor") > 0.4 and rate("backward") > 0.4


def gibbs(key, **options):
    options = {"num_samples": 1, "num_particles": 2} | options
    return inference.particles.particle_gibbs(random_slope, key, LINE, **options)


ERRORS = {
    "samples": (lambda k: gibbs(k, num_samples=0), "num_samples must be an integer >= 1"),
    "warmup": (lambda k: gibbs(k, num_warmup=-1), "num_warmup must be an integer >= 0"),
    "moves": (lambda k: GibbsBlock(["slope"], num_moves=0), "GibbsBlock: num_moves must be"),
    "parameter": (lambda k: gibbs(k, parameters=["x"]), "'x' stands in a scan"),
    "chain": (
        lambda k: inference.particles.particle_gibbs(
            LONG, k, parameters=["x"], num_samples=1, num_particles=2
        ),
        "no sites, so no parameters",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    run, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        run(key)


def test_a_start_without_density_is_refused(key):
    def model(y):
        a = ppl.sample("a", dist.Uniform(0.0, 1.0))
        ppl.sample("y", dist.Normal(a, 0.3), obs=y)

    options = {"num_particles": 2, "num_samples": 2}
    with pytest.raises(ValueError, match="init has log-density -inf.*positive density"):
        inference.particles.particle_gibbs(model, key, 2.0, init={"a": 2.0}, **options)


@pytest.mark.slow
def test_draws_are_named_and_go_to_arviz(key):
    result = gibbs(key, num_samples=4)
    assert set(result.choices) == {"slope", "x"}
    tree = inference.to_arviz(result)
    assert tree["posterior"]["slope"].shape[:2] == (1, 4)
    assert len(repr(result).splitlines()) <= 10


def test_a_first_path_that_is_lost_is_refused(key):
    lost = inference.FeynmanKac(
        jax.random.normal, lambda k, x, t: x, lambda p, x, t: jnp.where(t == 1, -jnp.inf, 0.0), 2
    )
    with (
        pytest.warns(UserWarning, match="smc: after weighing 1 no particle"),
        pytest.raises(RuntimeError, match="first path lost all its particles at weighing 1.*init="),
    ):
        inference.particles.particle_gibbs(lost, key, num_samples=2, num_particles=4)

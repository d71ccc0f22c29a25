"""Filters in parallel: the numbers of those that go step by step, dense laws, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.infer.util
import pytest
from _linear_systems import System, dense_log_density, program, system

from lapilli import inference, ppl

KEY = jax.random.key(0)
Y = jnp.array([0.3, -0.2, 0.9, 1.1, 0.4])


def both(*system):
    """Value and gradients in all but what was seen, step by step and in parallel."""
    of = lambda parallel: ppl.eliminate(program, "z", parallel=parallel).log_density
    run = lambda p: jax.value_and_grad(of(p), argnums=(1, 2, 3, 4, 6))({}, *system)
    return [run(p) for p in (False, True)]


def with_left_site(y):
    def step(state, y):
        s, z = state
        s = ppl.sample("s", dist.Bernoulli(0.3 + 0.4 * s))
        z = ppl.sample("z", dist.Normal(0.9 * z + s, 0.5))
        ppl.sample("y", dist.Normal(z, 0.3), obs=y)
        return (s, z), None

    ppl.scan(step, (0, 0.0), y)


def with_inner_scan(y):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        inner = lambda u, y: (ppl.sample("u", dist.Normal(u, 0.2)), None)
        u, _ = ppl.scan(inner, z, None, 2)
        ppl.sample("y", dist.Normal(u, 0.3), obs=y)
        return z, None

    ppl.scan(step, 0.0, y)


def local_level(y):
    noise = ppl.sample("noise", dist.LogNormal(-0.5, 1.0))

    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
        ppl.sample("y", dist.Normal(z, noise), obs=y)
        return z, None

    ppl.scan(step, 0.0, y)


def test_a_level_with_a_missing_value():
    def level(y, seen):
        def step(z, x):
            y, seen = x
            z = ppl.sample("z", dist.Normal(0.9 * z, 0.5))
            ppl.sample("y", dist.Normal(z, 0.3).mask(seen), obs=y)
            return z, None

        ppl.scan(step, 1.0, (y, seen))

    left = ppl.eliminate(level, "z", parallel=True)
    found = jax.jit(left.log_density)({}, Y[:3], jnp.array([True, False, True]))
    mean, variance = np.array([0.9, 0.9**3]), 0.25 * np.array([1.0, 1 + 0.9**2 + 0.9**4])
    covariance = np.array([[variance[0], 0.9**2 * 0.25], [0.9**2 * 0.25, variance[1]]])
    law = dist.MultivariateNormal(mean, covariance + 0.09 * np.eye(2))
    np.testing.assert_allclose(found, law.log_prob(Y[jnp.array([0, 2])]), rtol=1e-5)


@pytest.mark.parametrize(
    ("program", "sites", "choices", "why"),
    [
        (with_left_site, "z", {"s": jnp.array([0, 1, 1, 0, 1])}, "site 's', which is left"),
        (with_left_site, ["s", "z"], {}, "site 's', which is left"),
        (with_inner_scan, ["z", "u"], {}, "a ppl.scan inside of the step"),
    ],
    ids=["left", "summed", "inner"],
)
def test_steps_that_are_no_maps_are_refused(program, sites, choices, why):
    with pytest.raises(
        ValueError,
        match=f"parallel=True filters all steps .*go with {why}.*Leave parallel=True out",
    ):
        ppl.eliminate(program, sites, parallel=True).log_density(choices, Y)


def test_data_that_a_handler_replaces_are_taken_step_by_step():
    """What a filter in parallel takes beforehand would be other data."""

    def traced(parallel):
        left = ppl.eliminate(local_level, "z", parallel=parallel)
        with numpyro.handlers.substitute(data={"y": Y}):
            return str(jax.make_jaxpr(left.log_density)({"noise": 0.4}, Y))

    assert traced(True) == traced(False)


def test_particles_and_approximations_take_one_step_after_the_other():
    left = ppl.eliminate(local_level, "z", parallel=True)
    run = lambda key: inference.smc(left, key, Y, num_particles=4).log_evidence
    with pytest.raises(
        ValueError, match="parallel=True filters all steps .* particles, which are weighed"
    ):
        jax.eval_shape(run, KEY)
    with pytest.raises(
        ValueError, match="approximation='ekf' expands each mean .*Leave one of the two out"
    ):
        ppl.eliminate(local_level, "z", approximation="ekf", parallel=True)


@pytest.mark.slow  # several compilations
def test_numpyro_and_traces_see_the_same_log_probs():
    choices = {"noise": jnp.asarray(0.4)}
    programs = [ppl.eliminate(local_level, "z", parallel=p) for p in (False, True)]
    traces = [jax.jit(lambda y, p=p: p.trace(choices, y).log_probs)(Y) for p in programs]
    assert traces[1]["y"].shape == (5,)
    for name, log_prob in traces[0].items():
        np.testing.assert_allclose(traces[1][name], log_prob, rtol=1e-5)
    potentials = [numpyro.infer.util.log_density(p, (Y,), {}, choices)[0] for p in programs]
    np.testing.assert_allclose(potentials[1], potentials[0], rtol=1e-5)
    np.testing.assert_allclose(potentials[1], sum(x.sum() for x in traces[0].values()), rtol=1e-5)


@pytest.mark.slow  # several compilations
def test_moments_draws_and_forecasts_are_those_of_the_filter_step_by_step():
    choices = {"noise": jnp.full((2,), 0.4)}
    found = []
    for parallel in (False, True):
        left = ppl.eliminate(local_level, "z", parallel=parallel)
        law = left.posterior_marginals({"noise": 0.4}, Y)["z"]
        draw = left.posterior(KEY, {"noise": 0.4}, Y)["z"]
        ahead = inference.predict(left, choices, KEY, jnp.pad(Y, (0, 2)), num_seen=5, num_samples=2)
        found.append((law.loc, law.scale, draw, ahead["y"]))
    for one_by_one, parallel in zip(*found, strict=True):
        np.testing.assert_array_equal(one_by_one, parallel)


@pytest.mark.slow  # eight compilations
@pytest.mark.parametrize("d", [1, 2, 4, 6])
def test_systems_of_any_condition_against_dense_laws(d):
    """60 steps, a fifth of them unseen. Single precision loses half of the digits that the condition number has.

    The density f, and each number x that it is made of, meet d + 1 roundings of a mean square of eps^2 / 12: those of inner
    products of d terms. Independent ones move f by a sum of squares, of its size and of x df/dx; allowed are 4.5 standard
    deviations. Systems that grow in between have data of a thousand scales, which makes tens of |f| of that.
    """
    runs = {}
    for condition in (1.0, 1e3, 1e6):
        for seed in range(4):
            s = [as_single(x) for x in system(d, 60, condition, seed)]
            exact = dense_log_density(System(*s))
            found = {}
            for is_wide in (False, True):
                with jax.enable_x64(is_wide):
                    args = [jnp.asarray(x, bool if x.dtype == bool else float) for x in s]
                    run = runs.setdefault(is_wide, jax.jit(both))
                    found[is_wide] = jax.device_get(run(*args))
            (_, slopes), (parallel, parallel_slopes) = found[True]
            np.testing.assert_allclose(parallel, exact, rtol=1e-9)
            slope, parallel_slope = slopes[0], parallel_slopes[0]
            size = np.abs(slope).max()
            np.testing.assert_allclose(parallel_slope, slope, atol=1e-7 * size)
            (value, (single, *_)), (parallel, (parallel_single, *_)) = found[False]
            numbers = [x for x in s if x.dtype != bool]
            moved = [((x * by) ** 2).sum() for x, by in zip(numbers, slopes, strict=True)]
            each = np.finfo(np.float32).eps * np.sqrt((d + 1) / 12)
            rounding = 4.5 * each * np.sqrt(exact**2 + sum(moved))
            assert abs(value - exact) < rounding
            assert abs(parallel - exact) < rounding * np.sqrt(condition)
            away = [np.abs(x - slope).max() / size for x in (single, parallel_single)]
            assert max(away) < 3e-3, away


def as_single(x):
    """Its values in single precision, which both precisions are given."""
    return x if x.dtype == bool else x.astype(np.float32).astype(float)


@pytest.mark.slow
def test_second_derivatives_are_no_numbers():
    """Roots that are singular, as of what nothing has been told yet, move freely once only."""
    of = lambda parallel: ppl.eliminate(local_level, "z", parallel=parallel).log_density
    curved = lambda p: jax.jit(jax.hessian(lambda noise: of(p)({"noise": noise}, Y)))(0.4)
    assert np.isfinite(curved(False))
    assert np.isnan(curved(True))

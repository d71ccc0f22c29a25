"""Adaptive solvers jump within their tolerance: solutions of smooth fields are taken for continuous, others are searched."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.experimental.ode import odeint

from lapilli import inference, ppl
from lapilli.ppl.jaxprs import is_continuous_call, solver_in, tolerances_of

KEY = jax.random.key(0)
TIMES = jnp.array([0.0, 0.7, 1.5])
Y = jnp.array([0.8, 0.3])


def decay(z, t, rate):
    return -rate * z


def solved(rate, tolerance=1e-5):
    return odeint(decay, jnp.ones(1), TIMES, rate, rtol=tolerance, atol=tolerance)[1:, 0]


def exact(rate):
    return jnp.exp(-rate * TIMES[1:])


def model_of(solution):
    def model():
        rate = ppl.sample("rate", dist.LogNormal(0.0, 0.5))
        ppl.sample("y", dist.Normal(solution(rate), 0.3).to_event(1), obs=Y)

    return model


def guide():
    loc = ppl.param("loc", 0.1)
    ppl.sample("rate", dist.LogNormal(loc, 0.2))


def test_a_smooth_solution_has_the_gradient_of_the_exact_one():
    """Value and pathwise gradient at one key; the solver's tolerance is 1e-5."""
    found, expected = (
        inference.elbo(model_of(s), guide).value_and_grad({"loc": jnp.asarray(0.1)}, KEY)
        for s in (solved, exact)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), found, expected)


@pytest.mark.slow
def test_what_lies_within_the_error_of_the_solver_passes_and_a_jump_behind_it_is_refused():
    """By a coarse solver, whose logarithm jumps by more than 1 where the solution is small; and by a fine one."""

    def model(read, tolerance):
        rate = ppl.sample("rate", dist.LogNormal(0.0, 0.5))
        location = read(solved(rate, tolerance))
        ppl.sample("y", dist.LogNormal(location, 0.3).to_event(1), obs=Y)

    start = {"loc": jnp.asarray(0.1)}
    inference.elbo(lambda: model(jnp.log, 0.1), guide).plan(start)
    jumping = inference.elbo(lambda: model(lambda z: jnp.where(z > 0.5, 0.0, 1.0), 1e-5), guide)
    with pytest.raises(ValueError, match=r"jumps by.*operation: gt.*odeint.*check_jumps=False"):
        jumping.plan(start)


RATES = jnp.array([0.5, 0.03, 0.03, 0.8])


def hunted(z, t, rates):
    """Predators and their prey; stiff where either is many."""
    return jnp.stack([(rates[0] - rates[1] * z[1]) * z[0], (rates[2] * z[0] - rates[3]) * z[1]])


@pytest.mark.slow  # a search of some ten seconds each
@pytest.mark.parametrize("seed", range(6))
def test_jumps_planted_behind_a_stiff_field_are_found_and_nothing_else(seed):
    """In one of two populations at one of ten times, somewhere in the middle of what is drawn; a step of .1 to 10."""
    rng, times = np.random.default_rng(seed), jnp.arange(10.0)
    who, when, size = rng.integers(2), rng.integers(1, 10), 10.0 ** rng.uniform(-1, 1)
    middle = odeint(hunted, jnp.full(2, 10.0), times, RATES)[when, who]
    threshold = middle * np.exp(rng.normal() / 4)

    def jumping(z):
        return jnp.log(z) + size * (z[when, who] > threshold)

    def model(read):
        start = ppl.sample("start", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
        rates = ppl.sample("rates", dist.LogNormal(jnp.log(RATES), 0.3).to_event(1))
        z = odeint(hunted, start, times, rates, rtol=1e-6, atol=1e-5)
        ppl.sample("y", dist.LogNormal(read(z), 0.3).to_event(2), obs=jnp.full((10, 2), 9.0))

    def guide():
        loc = ppl.param("loc", jnp.log(10.0) * jnp.ones(2))
        ppl.sample("start", dist.LogNormal(loc, 0.3).to_event(1))
        rate = ppl.param("rate", jnp.log(RATES))
        ppl.sample("rates", dist.LogNormal(rate, 0.2).to_event(1))

    start = {"loc": jnp.log(10.0) * jnp.ones(2), "rate": jnp.log(RATES)}
    inference.elbo(lambda: model(jnp.log), guide).plan(start)
    with pytest.raises(ValueError, match=r"jumps by.*operation: (gt|log).*odeint"):
        inference.elbo(lambda: model(jumping), guide).plan(start)


@pytest.mark.slow  # two searches
def test_a_solution_of_many_steps_is_searched():
    """Stiff everywhere: some 100 steps to the first time, none of which may be cut off."""
    times = jnp.array([0.0, 6.0])

    def model(read):
        rate = ppl.sample("rate", dist.LogNormal(0.0, 0.1))
        z = odeint(lambda z, t, w: -50 * w * (z - jnp.cos(6 * t)), jnp.ones(1), times, rate)[1:, 0]
        ppl.sample("y", dist.Normal(read(z), 0.3).to_event(1), obs=Y[:1])

    start = {"loc": jnp.asarray(0.1)}
    inference.elbo(lambda: model(lambda z: jnp.log(z + 2.0)), guide).plan(start)
    with pytest.raises(ValueError, match=r"jumps by.*operation: (gt|log).*odeint"):
        jump = lambda z: jnp.log(z + 2.0) + (z > -0.25)
        inference.elbo(lambda: model(jump), guide).plan(start)


FIELDS = {
    "linear": (decay, True),
    "network": (lambda z, t, w: jnp.tanh(w * z) + jax.nn.softplus(z) + jnp.sin(t), True),
    "relu": (lambda z, t, w: jax.nn.relu(w * z), True),
    "jump": (lambda z, t, w: jnp.where(z > 0.5, -w * z, w), False),
    "pole": (lambda z, t, w: w / z, False),
    "negative power": (lambda z, t, w: w * z**-2, False),
    "cast": (lambda z, t, w: 1.0 * (w * z).astype(int), False),
    "complex": (lambda z, t, w: jnp.exp(1j * w * z).real, False),
    "choice": (lambda z, t, w: jnp.where(t > 0.5, w * z, z), False),
    "loop": (lambda z, t, w: jax.lax.fori_loop(0, 2, lambda _, x: jnp.floor(x), w * z), False),
}


@pytest.mark.parametrize("name", FIELDS)
def test_only_smooth_fields_are_solutions(name):
    field, is_smooth = FIELDS[name]
    closed = jax.make_jaxpr(lambda w: odeint(field, jnp.ones(1), TIMES, w))(0.7)
    calls = [eqn for eqn in closed.jaxpr.eqns if is_continuous_call(eqn)]
    assert len(calls) == is_smooth
    # In the first step's length, and in the error of a step.
    assert [len([*tolerances_of(eqn)]) for eqn in calls] == [2] * is_smooth
    assert solver_in(closed.jaxpr) == "jax.experimental.ode.odeint"


def test_other_calls_are_no_solutions():
    def odeint(rate):
        return jax.jit(lambda x: jnp.floor(x), inline=False)(rate)

    closed = jax.make_jaxpr(odeint)(0.7)
    assert not any(map(is_continuous_call, closed.jaxpr.eqns)) and not solver_in(closed.jaxpr)


def test_diffrax_is_told_from_other_jumps():
    diffrax = pytest.importorskip("diffrax")

    def run(rate):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, z, rate: -rate * z),
            diffrax.Tsit5(),
            t0=0.0,
            t1=1.0,
            dt0=0.1,
            y0=jnp.ones(1),
            args=rate,
        ).ys

    assert solver_in(jax.make_jaxpr(run)(0.7).jaxpr) == "diffrax"

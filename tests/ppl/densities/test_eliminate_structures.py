"""Arrangements of chains, plates and branches that elimination has to order rightly, against brute force.

Programs without data sum to one; those with data couple sites on purpose.
"""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _brute_force import check, shapes_of

from lapilli import ppl

Y = jnp.array([0.3, -0.8, 1.1, 0.2])
bernoulli = lambda name, logits: ppl.sample(name, dist.Bernoulli(logits=logits))
observe = lambda name, mean, y: ppl.sample(name, dist.Normal(mean, 0.8), obs=y)


def mixture_emissions(y):
    def step(b, y):
        b = bernoulli("b", 0.9 * b)
        c = ppl.sample("c", dist.CategoricalLogits(jnp.arange(3.0) * (b - 0.4)))
        observe("y", b - 0.7 * c, y)
        return 1.0 * b, None

    ppl.scan(step, 0.0, y[:3])


def mixture_emissions_without_data(y):
    def step(b, _):
        b = bernoulli("b", 0.9 * b)
        bernoulli("b_own", 0.5 * b)
        return 1.0 * b, None

    ppl.scan(step, 0.0, y)


def chain_in_a_chain(y):
    def outer(top, y):
        top = bernoulli("b", 0.8 * top - 0.4)

        def inner(low, y):
            low = bernoulli("b_low", 0.3 + 0.9 * low + 0.5 * top)
            observe("y", low - 0.3 * top * low, y)
            return 1.0 * low, None

        ppl.scan(inner, 0.0, y)
        return top, None

    ppl.scan(outer, 0, y.reshape(2, 2))


def chain_in_a_chain_that_goes_on(y):
    """The inner chain begins where that of the step before ended."""

    def outer(carry, y):
        top = bernoulli("b", 0.8 * carry[0] - 0.4)

        def inner(low, y):
            low = 1.0 * bernoulli("b_low", 0.3 + 0.9 * low + 0.5 * top)
            observe("y", low, y)
            return low, None

        last, _ = ppl.scan(inner, carry[1], y)
        return (top, last), None

    ppl.scan(outer, (0, 0.0), y.reshape(2, 2))


def chains_that_meet_in_a_site(y):
    def step(carry, y):
        a, b = bernoulli("b_one", 0.9 * carry[0]), bernoulli("b_two", 0.5 - carry[1])
        c = ppl.sample("c", dist.CategoricalLogits(jnp.arange(3.0) * (a - 0.4 * b)))
        observe("y", 1.0 * c, y)
        return (a, b), None

    ppl.scan(step, (0, 1), y[:3])


def memories_of_three_and_one(y):
    def step(carry, y):
        b = bernoulli("b_long", 0.7 * carry[0] - 0.4 * carry[1] + 0.9 * carry[2])
        a = bernoulli("b_short", 0.5 - carry[3])
        observe("y", 1.0 * b - 0.6 * a * b, y)
        return (carry[1], carry[2], b, a), None

    ppl.scan(step, (0, 1, 1, 0), jnp.append(y, 0.5))


def children_mixed_and_parents_apart(y):
    """The children's elements meet, so they are enumerated jointly; those of the parents must not be with them."""
    with ppl.plate("rows", 4):
        b = bernoulli("b", jnp.array([0.1, 0.4, -0.3, 0.8]))
        child = bernoulli("b_child", 1.4 * b - 0.5)
    observe("y", jnp.cumsum(child)[1:].sum(), y[0])


def rows_in_a_step(y):
    """Rows of one step that meet in the next: a chain with one state for all rows."""

    def step(b, y):
        with ppl.plate("rows", 2):
            b = bernoulli("b", jnp.array([0.2, -0.4]) + b.sum())
            observe("y", 1.0 * b, jnp.stack([y, -y]))
        return b, None

    ppl.scan(step, jnp.zeros(2, int), y[:3])


def one_site_a_step_and_rows_of_chains(y):
    """One more site in each step that all chains of the plate see."""

    def step(b, y):
        a = bernoulli("b_step", 0.3)
        with ppl.plate("rows", 2):
            b = bernoulli("b_rows", 0.9 * b - a)
            observe("y", 1.0 * b, jnp.stack([y, -y]))
        return b, None

    ppl.scan(step, jnp.zeros(2, int), y[:3])


def a_chain_and_a_plate_that_meet_everywhere(y):
    with ppl.plate("rows", 2):
        b = bernoulli("b_row", jnp.array([0.2, -0.4]))

    def step(state, y):
        state = bernoulli("b", 0.9 * state)
        with ppl.plate("rows", 2):
            observe("y", state + 0.5 * b, jnp.stack([y, -y]))
        return state, None

    ppl.scan(step, 0, y[:3])


def two_scans(y):
    """The second chain sees the first, and where it ended."""

    def first(b, _):
        b = bernoulli("b", 0.9 * b)
        return b, b

    last, states = ppl.scan(first, 0, None, length=3)

    def second(b, inputs):
        state, y = inputs
        b = bernoulli("b_second", 0.5 - b + 0.7 * state)
        observe("y", b + 0.3 * state, y)
        return b, None

    ppl.scan(second, last, (states, y[:3]))


def a_chain_read_backwards(y):
    def step(b, _):
        b = bernoulli("b", 0.9 * b)
        return b, b

    _, states = ppl.scan(step, 0, None, length=4)
    with ppl.plate("time", 4):
        observe("y", states[::-1], y)


def one_step(y):
    def step(carry, y):
        b = bernoulli("b", carry[0])
        c = bernoulli("b_own", 0.5 * b + carry[1])
        observe("y", b - 1.0 * c, y)
        return (1.0 * b, carry[0]), None

    ppl.scan(step, (0.3, 0.2), y[:1])


def chains_in_particle_lanes(y):
    def lane():
        mixture_emissions(y[:2])

    bernoulli("b_top", 0.2)
    ppl.particles(2)(lane)()


def counted(y):
    """A deterministic carry that holds a clock beside the chain."""

    def step(carry, y):
        t, b = carry
        b = bernoulli("b", 0.3 * t - b)
        observe("y", b * t, y)
        return (t + 1.0, b), None

    ppl.scan(step, (0.0, 1), y)


def branches_in_a_chain(y):
    def step(b, y):
        b = bernoulli("b", 0.9 * b - 0.2)
        mean = ppl.cond(b == 1, lambda: 1.5 * bernoulli("b_in", 0.4), lambda: -1.0)
        observe("y", mean, y)
        return b, b

    _, states = ppl.scan(step, 0, y[:3])
    return jnp.log(2.0) * (1 - states).sum()  # values of sites that are not met


PROGRAMS = {
    f.__name__: f
    for f in (
        mixture_emissions, mixture_emissions_without_data, chain_in_a_chain, chain_in_a_chain_that_goes_on,
        chains_that_meet_in_a_site, memories_of_three_and_one, children_mixed_and_parents_apart, rows_in_a_step,
        one_site_a_step_and_rows_of_chains, a_chain_and_a_plate_that_meet_everywhere, two_scans, a_chain_read_backwards,
        one_step, chains_in_particle_lanes, counted, branches_in_a_chain,
    )
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_arrangement_agrees_with_brute_force(name):
    program = PROGRAMS[name]
    check(program, list(shapes_of(program, (Y,))), {}, (Y,), num_draws=20_000)


@pytest.mark.slow
def test_a_program_without_data_sums_to_one():
    program = ppl.eliminate(mixture_emissions_without_data, ["b", "b_own"])
    np.testing.assert_allclose(program.log_density({}, jnp.zeros(10)), 0.0, atol=1e-5)


@pytest.mark.slow
def test_a_memory_longer_than_time_takes_no_lanes():
    """Rows that meet, 27 states, and a memory of three steps in a scan of one: 27 lanes, not 27^4."""

    def step(carry, y):
        with ppl.plate("rows", 3):
            logits = jnp.stack([carry[0] + i * carry[1] - i * i * carry[2] for i in range(3)], -1)
            c = ppl.sample("c", dist.CategoricalLogits(logits))
        observe("y", jnp.cumsum(c)[1:].sum(), y)
        return (carry[1], carry[2], 1.0 * c), None

    def program(y):
        ppl.scan(step, (jnp.zeros(3), jnp.ones(3), jnp.arange(3.0)), y[:1])

    check(program, ["c"], {}, (Y,))


@pytest.mark.slow
def test_an_order_is_found_that_keeps_a_long_chain_a_chain():
    """Rows of chains that see one site a step: 2^2 states of the rows at each of 50 steps, instead of 2^50 paths."""
    y = jnp.zeros(50)

    def step(b, y):
        a = bernoulli("b_step", 0.3)
        with ppl.plate("rows", 2):
            b = bernoulli("b_rows", 0.9 * b - a)
        return b, None

    def program(y):
        ppl.scan(step, jnp.zeros(2, int), y)

    total = ppl.eliminate(program, ["b_step", "b_rows"]).log_density({}, y)
    np.testing.assert_allclose(total, 0.0, atol=1e-4)

"""Bisection of a path: steep is not a jump, wherever it is, and a jump is one, at the ends of the path too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.ppl.checks._bisection import Output, largest_change

TINY = float(np.finfo(np.float64).tiny)
STEEP = {
    "log from the smallest number": lambda t: 0.3 * jnp.log(TINY + t),
    "log down to rounding": lambda t: 0.3 * jnp.log(0.7 + t * (1e-300 - 0.7)),
    "log inside": lambda t: 0.3 * jnp.log(1e-12 + jnp.abs(t - 0.3)),
    "root from 0": lambda t: jnp.sqrt(t),
}
JUMPS = {
    "after the start": lambda t: jnp.where(t > 0, 1.0, 0.0),
    "at the end": lambda t: jnp.where(t >= 1, 1.0, 0.0),
    "near the start": lambda t: jnp.where(t > 1e-200, 1.0, 0.0),
    "inside": lambda t: jnp.where(t > 0.3, 1.0, 0.0) + t**2,
    "beside a log": lambda t: jnp.log(TINY + t) + jnp.where(t > 1e-9, 800.0, 0.0),
    "on top of a log": lambda t: 0.001 * jnp.log(TINY + t) + jnp.where(t > 0, 1.0, 0.0),
}


@pytest.fixture(scope="module")
def change():
    @jax.jit
    def largest(case):
        branches = [*STEEP.values(), *JUMPS.values()]
        at = lambda t: [Output(jax.lax.switch(case, branches, t))] * 2
        counts, none = jnp.array([True]), np.array([False])
        return largest_change(
            at, counts, 1e-11, is_term=none, num_points=16, is_double=True
        )[0]  # fmt: skip

    names = [*STEEP, *JUMPS]

    def found(name):
        with jax.enable_x64(True):
            return float(largest(names.index(name)))

    return found


@pytest.mark.parametrize("name", STEEP)
def test_a_steep_slope_is_no_jump(name, change):
    assert change(name) < 1e-3


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_is_found_wherever_it_is(name, change):
    assert change(name) > 0.05

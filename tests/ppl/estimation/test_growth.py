"""How the size of what is traced grows with the program."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from _long_programs import chain, size_of_gradient

from lapilli import inference, ppl


def size(num, strategy):
    programs = chain(num, has_scales=False)
    return size_of_gradient(
        inference.elbo(*programs, strategies={"z*": strategy}, check_jumps=False)
    )


@pytest.mark.parametrize("strategy", ["reparam", "reinforce"])
def test_equations_grow_with_the_sites_of_straight_code(strategy):
    small, medium, large = (size(num, strategy) for num in (4, 8, 16))
    assert large - medium <= 2.01 * (medium - small)


def runs_of_the_innermost_step(depth):
    runs = []

    def nested(level, z):
        if level == 0:
            runs.append(level)
            return ppl.sample("z", dist.Normal(z + ppl.param("drift", 0.5), 1.0))
        return ppl.scan(lambda z, _: (nested(level - 1, z), z), z, None, 2)[0]

    params = ppl.model(lambda: nested(depth, 0.0)).init(jax.random.key(0))
    assert float(params["drift"]) == 0.5
    return len(runs)


def test_the_runs_of_init_grow_with_the_levels_of_nested_scans():
    assert [runs_of_the_innermost_step(depth) for depth in (1, 2, 3, 4)] == [2, 3, 4, 5]


def test_parameters_are_found_in_all_that_is_nested():
    def inner(z, x):
        branch = lambda name: lambda z: z + ppl.param(name, 0.1)
        z = ppl.cond(z > 0, branch("above"), branch("below"), z)
        return ppl.sample("z", dist.Normal(z + x, 1.0)), ppl.param("seen", jnp.ones(3))

    def outer(z, xs):
        z, seen = ppl.scan(inner, z, xs)
        shift = ppl.particles(4)(lambda: ppl.param("shift", 0.2) * seen.sum())()
        return z + ppl.param("of_shape", jnp.zeros(seen.shape)).sum() + shift.mean(), None

    program = ppl.model(lambda: ppl.scan(outer, 0.0, jnp.zeros((3, 5)))[0])
    params = program.init(jax.random.key(0))
    assert set(params) == {"above", "below", "seen", "shift", "of_shape"}
    assert params["of_shape"].shape == (5, 3)

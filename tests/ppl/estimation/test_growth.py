"""How the size of what is traced grows with the program."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl


def count(jaxpr):
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()))]
    inner = [getattr(x, "jaxpr", x) for x in inner]
    return len(jaxpr.eqns) + sum(count(x) for x in inner if hasattr(x, "eqns"))


def chain(num):
    """Each site is influenced by the one before, so that its cost is the sum of all terms that follow."""

    def model(y):
        z = 0.0
        for i in range(num):
            z = ppl.sample(f"z{i}", dist.Normal(z, 1.0))
            ppl.sample(f"y{i}", dist.Normal(jnp.tanh(z), 1.0), obs=y)

    def guide(y):
        for i in range(num):
            ppl.sample(f"z{i}", dist.Normal(ppl.param(f"m{i}", 0.1), 0.5))

    return model, guide


def size(num, strategy):
    objective = inference.elbo(*chain(num), strategies={"z*": strategy}, check_jumps=False)
    params = objective.init(jax.random.key(0), 0.5)
    return count(jax.make_jaxpr(objective.value_and_grad)(params, jax.random.key(0), 0.5).jaxpr)


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

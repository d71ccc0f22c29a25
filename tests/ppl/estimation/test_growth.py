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

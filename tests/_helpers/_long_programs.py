"""Programs of many sites in straight code, and how many equations they have."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from lapilli import ppl


def num_equations(jaxpr):
    """Those of inner programs included."""
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()))]
    inner = [getattr(x, "jaxpr", x) for x in inner]
    return len(jaxpr.eqns) + sum(num_equations(x) for x in inner if hasattr(x, "eqns"))


def size_of_gradient(objective):
    """Equations of the value and gradient of an objective of the observation 0.5."""
    key = jax.random.key(0)
    params = objective.init(key, 0.5)
    return num_equations(jax.make_jaxpr(objective.value_and_grad)(params, key, 0.5).jaxpr)


def chain(num, *, has_scales=True):
    """Model and guide; each site is influenced by the one before, so that its cost is the sum of all terms that follow."""

    def model(y):
        z = 0.0
        for i in range(num):
            z = ppl.sample(f"z{i}", dist.Normal(z, 1.0))
            ppl.sample(f"y{i}", dist.Normal(jnp.tanh(z), 1.0), obs=y)

    def guide(y):
        for i in range(num):
            scale = 0.5
            if has_scales:
                scale = ppl.param(f"s{i}", scale, constraint=dist.constraints.positive)
            ppl.sample(f"z{i}", dist.Normal(ppl.param(f"m{i}", 0.1), scale))

    return model, guide

"""RealNVP: a density that integrates to one, maps that are inverse, guides that reach what Normals cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.models import flows

KEY = jax.random.key(0)


def stirred(size=2, context_size=0, seed=1):
    """A flow with random weights everywhere."""
    flow = flows.RealNVP(size, key=KEY, context_size=context_size, num_layers=4, width=8, depth=1)
    arrays, treedef = jax.tree.flatten(flow)
    keys = jax.random.split(jax.random.key(seed), len(arrays))
    noisy = [
        x + 0.4 * jax.random.normal(k, x.shape) if hasattr(x, "shape") else x
        for x, k in zip(arrays, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


@pytest.mark.slow
def test_it_begins_as_the_standard_normal():
    law = flows.RealNVP(3, key=KEY).law()
    x = jax.random.normal(KEY, (5, 3))
    np.testing.assert_allclose(law.log_prob(x), dist.Normal().log_prob(x).sum(-1), rtol=1e-5)


@pytest.mark.slow
def test_the_density_integrates_to_one():
    # A grid of 601 points a side over the bulk; the trapezoid rule is exact to 1e-4 for smooth densities that vanish at the ends.
    law = stirred().law()
    axis = jnp.linspace(-15, 15, 601)
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1)
    mass = jnp.exp(law.log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass - 1) < 2e-3
    assert abs(jnp.exp(law.log_prob(jnp.zeros(2))) - 1 / (2 * np.pi)) > 0.01  # it is stirred


@pytest.mark.slow_for("3-None", "5-context2")
@pytest.mark.parametrize(("size", "context"), [(2, None), (3, None), (5, np.ones((4, 2)))])
def test_draws_have_the_density_that_the_map_gives_them(size, context):
    flow = stirred(size, 0 if context is None else 2)
    law = flow.law(None if context is None else jnp.asarray(context))
    map_of = lambda x: jax.tree_util.Partial(law.transforms[0])(x)
    for transform in law.transforms:
        x = jax.random.normal(KEY, (*law.batch_shape, size))
        np.testing.assert_allclose(transform.inv(transform(x)), x, rtol=1e-4, atol=1e-5)
    if context is None:
        x = jax.random.normal(KEY, (size,))
        jacobian = jax.jacfwd(map_of)(x)
        want = jnp.linalg.slogdet(jacobian)[1]
        found = law.transforms[0].log_abs_det_jacobian(x, map_of(x))
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert law.sample(KEY, (3,)).shape == (3, *law.batch_shape, size)
    assert law.log_prob(law.sample(KEY)).shape == law.batch_shape


@pytest.mark.slow
def test_the_context_moves_the_law_row_by_row():
    flow = stirred(2, 1)
    context = jnp.array([[0.0], [2.0]])
    both = flow.law(context).log_prob(jnp.ones(2))
    alone = jnp.stack([flow.law(c).log_prob(jnp.ones(2)) for c in context])
    np.testing.assert_allclose(both, alone, rtol=1e-5)
    assert abs(both[0] - both[1]) > 1e-3


def banana():
    """z_1 ~ N(0, 1), z_2 | z_1 ~ N(z_1^2, 0.3): nothing is observed, so the evidence is 1."""

    def model():
        z = ppl.sample("z", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        target = dist.Normal(0.0, 1.0).log_prob(z[0]) + dist.Normal(z[0] ** 2, 0.3).log_prob(z[1])
        ppl.factor("shape", target - dist.Normal(0.0, 3.0).log_prob(z).sum())

    return model


def flow_guide():
    flow = ppl.module("flow", flows.RealNVP(2, key=ppl.rng_key("init"), width=16))
    ppl.sample("z", flow.law())


def normal_guide():
    scale = ppl.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
    ppl.sample("z", dist.Normal(ppl.param("loc", jnp.zeros(2)), scale).to_event(1))


@pytest.mark.slow  # 2,000 steps of a flow
def test_a_flow_reaches_a_posterior_that_a_normal_cannot():
    rates = {"flow": 0.003, "normal": 0.02}
    bound = {}
    for name, guide in {"flow": flow_guide, "normal": normal_guide}.items():
        schedule = optax.adam(optax.cosine_decay_schedule(rates[name], 2000))
        objective = inference.elbo(banana(), guide, num_replicates=16)
        fit = inference.fit(objective, schedule, (), num_steps=2000, progress=False)
        worth = inference.diagnostics.importance_diagnostics(
            fit.posterior(jax.random.key(1), 2000).log_weights
        )
        bound[name] = worth.elbo
    # The exact evidence is 0. What a product of Normals loses at the least, by its own optimum, is about 1 nat.
    assert bound["flow"] > -0.1 and bound["normal"] < -0.5


@pytest.mark.slow
def test_gradients_of_the_bound_reach_every_array():
    objective = inference.elbo(banana(), flow_guide)
    params = objective.init(KEY)
    grads = jax.tree.leaves(objective.grad(params, jax.random.key(1)))
    assert all(np.isfinite(g).all() for g in grads)
    assert sum(bool(np.any(np.asarray(g) != 0)) for g in grads) >= 6  # last layers, loc and scale


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="size is 1, but a coupling"):
        flows.RealNVP(1, key=KEY)
    with pytest.raises(ValueError, match="context has length 3.*context_size=2"):
        flows.RealNVP(2, key=KEY, context_size=2).law(jnp.zeros(3))

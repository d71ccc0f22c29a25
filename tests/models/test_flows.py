"""Flows: densities that integrate to one, maps that are inverse, guides that reach what Normals cannot."""

import copy

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _products import equations

from lapilli import inference, ppl
from lapilli.inference.flows import _splines
from lapilli.models import flows

KEY = jax.random.key(0)


KINDS = {"affine": flows.RealNVP, "spline": flows.NeuralSplineFlow}
both = pytest.mark.parametrize("kind", KINDS)


def stirred(kind, size=2, context_size=0, seed=1):
    """A flow with random weights everywhere; of splines less so, which a grid has to resolve."""
    flow = KINDS[kind](size, key=KEY, context_size=context_size, num_layers=4, width=8, depth=1)
    arrays, treedef = jax.tree.flatten(flow)
    keys = jax.random.split(jax.random.key(seed), len(arrays))
    noisy = [
        x + {"affine": 0.4, "spline": 0.2}[kind] * jax.random.normal(k, x.shape)
        if hasattr(x, "shape")
        else x
        for x, k in zip(arrays, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


@pytest.mark.slow
@both
def test_it_begins_as_the_standard_normal(kind):
    law = KINDS[kind](3, key=KEY).law()
    x = jax.random.normal(KEY, (5, 3))
    np.testing.assert_allclose(law.log_prob(x), dist.Normal().log_prob(x).sum(-1), rtol=1e-5)


@pytest.mark.slow  # a grid of densities
@both
def test_the_density_integrates_to_one(kind):
    # A grid of 601 points a side over the bulk; the trapezoid rule is exact to 1e-4 for smooth densities that vanish at the ends.
    law = stirred(kind).law()
    axis = jnp.linspace(-15, 15, 601) if kind == "affine" else jnp.linspace(-7, 7, 601)
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1)
    mass = jnp.exp(law.log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass - 1) < 2e-3
    assert abs(jnp.exp(law.log_prob(jnp.zeros(2))) - 1 / (2 * np.pi)) > 0.01  # it is stirred


@pytest.mark.slow  # a grid of densities
def test_the_density_of_a_single_coordinate_integrates_to_one():
    law = stirred("spline", size=1).law()
    axis = jnp.linspace(-12, 12, 20001)
    density = jnp.exp(law.log_prob(axis[:, None]))
    assert abs(density.sum() * (axis[1] - axis[0]) - 1) < 1e-3
    drawn = law.sample(KEY, (4000,))[:, 0]
    for edge in (
        -1.0,
        0.0,
        1.0,
    ):  # the draws have that density: shares below an edge, 4.5 standard errors
        below = density[axis < edge].sum() * (axis[1] - axis[0])
        assert abs((drawn < edge).mean() - below) < 4.5 * (0.25 / 4000) ** 0.5


@pytest.mark.slow_for(
    "affine-2-None", "affine-3-None", "affine-5-context2", "spline-3-None", "spline-5-context5"
)
@pytest.mark.parametrize(
    ("kind", "size", "context"),
    [(k, *c) for k in KINDS for c in ((2, None), (3, None), (5, np.ones((4, 2))))],
)
def test_draws_have_the_density_that_the_map_gives_them(kind, size, context):
    flow = stirred(kind, size, 0 if context is None else 2)
    law = flow.law(None if context is None else jnp.asarray(context))
    x = jax.random.normal(KEY, (*law.batch_shape, size))
    back = jax.jit(lambda x: [transform.inv(transform(x)) for transform in law.transforms])(x)
    np.testing.assert_allclose(jnp.stack(back), jnp.stack([x] * len(back)), rtol=1e-4, atol=1e-5)
    if context is None:

        @jax.jit
        def volumes(x):
            first = law.transforms[0]
            jacobian = jax.jacfwd(lambda x: first(x))(x)
            return first.log_abs_det_jacobian(x, first(x)), jnp.linalg.slogdet(jacobian)[1]

        np.testing.assert_allclose(*volumes(x), rtol=1e-4, atol=1e-5)
    draws, density = jax.jit(lambda: (law.sample(KEY, (3,)), law.log_prob(law.sample(KEY))))()
    assert draws.shape == (3, *law.batch_shape, size)
    assert density.shape == law.batch_shape


@pytest.mark.slow
@both
def test_the_context_moves_the_law_row_by_row(kind):
    flow = stirred(kind, 2, 1)
    context = jnp.array([[0.0], [2.0]])
    both = flow.law(context).log_prob(jnp.ones(2))
    alone = jnp.stack([flow.law(c).log_prob(jnp.ones(2)) for c in context])
    np.testing.assert_allclose(both, alone, rtol=1e-5)
    assert abs(both[0] - both[1]) > 1e-3


def products(function, *args):
    """Matrix products of a function."""
    traced = jax.make_jaxpr(function)(*args).jaxpr
    return sum(eqn.primitive.name == "dot_general" for eqn in equations(traced))


@both
def test_a_density_runs_each_network_once(kind):
    """Also of a draw that hands on what it knows, and there and back in its gradient."""
    flow = stirred(kind)
    each = sum(len(net.layers) for net in flow.nets)
    assert products(flow.law().log_prob, jnp.ones(2)) == each

    def drawn(key):
        law = flow.law()
        return law.log_prob(*law.sample_with_intermediates(key))

    assert products(drawn, KEY) == each
    flat, shape = jax.flatten_util.ravel_pytree(eqx.filter(flow, eqx.is_inexact_array))
    joined = lambda flat: eqx.combine(shape(flat), flow).law().log_prob(jnp.ones(2))
    assert products(jax.grad(joined), flat) <= 3 * each


@both
def test_what_a_layer_keeps_is_for_the_same_value_alone(kind):
    layer = stirred(kind).law().transforms[0]
    at = lambda x, y: type(layer)(layer.net, layer.kept).log_abs_det_jacobian(x, y)
    y = jnp.array([0.3, -0.2])
    x = layer.inv(y)
    other = x + 1.0
    np.testing.assert_allclose(layer.log_abs_det_jacobian(other, y), at(other, y), rtol=1e-6)
    jax.jit(lambda: layer.inv(y))()  # leaves a tracer
    copy.deepcopy(layer)
    np.testing.assert_allclose(layer.log_abs_det_jacobian(x, y), at(x, y), rtol=1e-6)
    kept = []
    jax.jit(lambda: kept.append(layer.inv(y)))()
    layer._latest = (layer._latest[0], x, layer._latest[2])  # as where this x were of that trace
    np.testing.assert_allclose(layer.log_abs_det_jacobian(x, y), at(x, y), rtol=1e-6)
    with jax.checking_leaks():
        jax.jit(lambda y: stirred(kind).law().log_prob(y))(y)


@jax.jit
def splined(numbers, x):
    """Values, what they came from, the logarithm of the derivative, and the derivative by JAX."""
    spline = _splines.Knots.of(numbers)
    y = spline.value(x)
    slope = jax.grad(lambda x, n: _splines.Knots.of(n).value(x))
    slopes = jax.vmap(jax.vmap(slope, (0, None)), (None, 0))(x, numbers[:, 0])
    return y, spline.inverse(y), spline.log_derivative(x), slopes


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_splines_are_increasing_inverse_and_smooth(scale):
    with jax.enable_x64(True):
        numbers = scale * jax.random.normal(jax.random.key(3), (6, 1, 3 * 8 - 1), float)
        # None is at a knot, where autodiff takes half of both sides.
        x = np.linspace(-7.0, 7.0, 1401) + 0.00314
        y, back, log_slope, slopes = map(np.asarray, splined(numbers, x))
    assert (np.diff(y) > 0).all()
    np.testing.assert_allclose(back, x + 0 * y, atol=1e-8)
    np.testing.assert_allclose(log_slope, np.log(slopes), atol=1e-8)
    outside = abs(x) >= 5.0
    np.testing.assert_allclose(y[:, outside], (x + 0 * y)[:, outside], atol=1e-12)
    if scale == 0.0:
        np.testing.assert_allclose(y, x + 0 * y, atol=1e-12)


def test_splines_have_the_values_of_the_paper():
    """Equation 4, bin by bin, where the code sums over bins."""
    with jax.enable_x64(True):
        numbers = jax.random.normal(jax.random.key(3), (3 * 4 - 1,), float)
        s = _splines.Knots.of(numbers)
        for k in range(4):
            xi, slope = 0.3, s.height[k] / s.width[k]
            bend = s.last[k] + s.first[k] - 2 * slope
            share = (slope * xi**2 + s.first[k] * xi * (1 - xi)) / (slope + bend * xi * (1 - xi))
            x = s.left[k] + xi * s.width[k]
            np.testing.assert_allclose(s.value(x), s.lower[k] + s.height[k] * share, rtol=1e-10)


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


def spline_guide():
    flow = ppl.module("flow", flows.NeuralSplineFlow(2, key=ppl.rng_key("init"), width=16))
    ppl.sample("z", flow.law())


def normal_guide():
    scale = ppl.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
    ppl.sample("z", dist.Normal(ppl.param("loc", jnp.zeros(2)), scale).to_event(1))


@pytest.mark.slow  # 4,000 steps of a flow
def test_a_flow_reaches_a_posterior_that_a_normal_cannot():
    rates = {"flow": 0.003, "spline": 0.003, "auto": 0.0, "normal": 0.02}
    guides = {"flow": flow_guide, "spline": spline_guide, "normal": normal_guide}
    bound = {}
    for name, guide in (guides | {"auto": flows.AutoSpline(banana(), width=16)}).items():
        adam = lambda rate: optax.adam(optax.cosine_decay_schedule(rate, 4000))
        schedule = adam(rates[name])
        if name == "auto":
            schedule = {"auto_nets": adam(0.003), "auto_[ls]*": adam(0.02)}
        objective = inference.elbo(banana(), guide, num_replicates=16)
        settings = {"num_steps": 4000, "progress": False, "k_hat": "skip"}
        fit = inference.fit(objective, schedule, (), **settings)
        worth = inference.diagnostics.importance_diagnostics(
            fit.posterior(jax.random.key(1), 2000).log_weights
        )
        bound[name] = worth.elbo
    # The exact evidence is 0. What a product of Normals loses at the least, by its own optimum, is about 1 nat.
    assert min(bound["flow"], bound["spline"], bound["auto"]) > -0.1 and bound["normal"] < -0.5


@pytest.mark.slow
def test_gradients_of_the_bound_reach_every_array():
    objective = inference.elbo(banana(), flow_guide)
    params = objective.init(KEY)
    grads = jax.tree.leaves(objective.grad(params, jax.random.key(1)))
    assert all(np.isfinite(g).all() for g in grads)
    assert sum(bool(np.any(np.asarray(g) != 0)) for g in grads) >= 6  # last layers, loc and scale


def bump():
    """One positive site, so that the guide moves what is unconstrained; the evidence is known by quadrature."""
    z = ppl.sample("z", dist.Gamma(2.0, 1.0))
    ppl.sample("x", dist.Normal(z, 0.5), obs=1.5)


@pytest.mark.slow
def test_the_guide_of_a_model_bounds_its_evidence_and_is_no_jump():
    guide = flows.AutoSpline(bump, num_layers=2, num_bins=4, width=4, depth=1)
    objective = inference.elbo(bump, guide, num_replicates=200)
    params = objective.init(KEY)
    assert set(params) == {"auto_nets", "auto_loc", "auto_scale"}
    assert objective.plan(params).search == "nothing suspected"
    fit = inference.fit(objective, optax.adam(0.02), (), num_steps=300, progress=False)
    draws = fit.posterior(jax.random.key(1), 4000)
    z = draws.choices["z"]
    log_q = guide.get_posterior(ppl.constrain(fit.params)).log_prob(np.log(z)[:, None]) - np.log(z)
    log_p = dist.Gamma(2.0, 1.0).log_prob(z) + dist.Normal(z, 0.5).log_prob(1.5)
    np.testing.assert_allclose(draws.log_weights, log_p - log_q, rtol=1e-3, atol=1e-4)
    z = np.linspace(1e-4, 12, 40001)
    joint = z * np.exp(-z) * np.exp(-0.5 * ((1.5 - z) / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    evidence = np.log(joint.sum() * (z[1] - z[0]))
    # 4,000 draws know the bound to 0.0006: below the evidence, and near.
    assert -0.05 < draws.log_weights.mean() - evidence < 0.0


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="NeuralSplineFlow: size 2 and num_bins 0 are impossible"):
        flows.NeuralSplineFlow(2, key=KEY, num_bins=0)
    with pytest.raises(ValueError, match="size is 1, but a coupling"):
        flows.RealNVP(1, key=KEY)
    with pytest.raises(ValueError, match="context has length 3.*context_size=2"):
        flows.RealNVP(2, key=KEY, context_size=2).law(jnp.zeros(3))
    with pytest.raises(ValueError, match="context has no axis.*context_size=1"):
        flows.RealNVP(2, key=KEY, context_size=1).law(0.5)
    with pytest.raises(ValueError, match="RealNVP: num_layers must be an integer >= 0, got -1"):
        flows.RealNVP(2, key=KEY, num_layers=-1)
    with pytest.raises(ValueError, match="NeuralSplineFlow: size must be an integer >= 1, got 1.5"):
        flows.NeuralSplineFlow(1.5, key=KEY)

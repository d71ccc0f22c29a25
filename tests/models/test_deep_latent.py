"""The deep latent-variable model: its density, and its bound under enumeration, against sums by hand."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import bernoulli, norm

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.models import deep_latent

ROWS, PIXELS, CLASSES, LATENTS = 3, 4, 3, 2
X = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], np.float32)


def make(class_site="categorical", spread=1.0):
    programs = deep_latent.programs(
        PIXELS, num_classes=CLASSES, num_latents=LATENTS, num_hidden=5,
        pixel_logits=np.linspace(-1, 1, PIXELS), spread=spread, class_site=class_site, key=jax.random.key(3),
    )  # fmt: skip
    bound = inference.elbo(*programs, strategies={"k": "reinforce", "z": "reparam"})
    params = bound.init(jax.random.key(0), X)
    # Away from the zeros and ones of the start.
    noise = jax.random.split(jax.random.key(4), len(jax.tree.leaves(params)))
    leaves, tree = jax.tree.flatten(params)
    moved = [
        leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, noise, strict=True)
    ]
    return *programs, jax.tree.unflatten(tree, moved)


def networks(params):
    """The fitted networks as plain functions."""
    mlp = lambda sizes, depth: eqx.nn.MLP(
        *sizes, 5, depth, activation=jax.nn.silu, key=jax.random.key(0)
    )
    blank = {
        "classifier": mlp((PIXELS, CLASSES), 1),
        "decoder": mlp((LATENTS, PIXELS), 2),
        "encoder": deep_latent.CodeEncoder(PIXELS, CLASSES, LATENTS, 5, key=jax.random.key(0)),
    }
    return {
        n: eqx.combine(params[n], eqx.partition(b, eqx.is_inexact_array)[1])
        for n, b in blank.items()
    }


def log_joint(params, x, k, z):
    """Log p(k, z, x) of one row, in NumPy."""
    constrained = ppl.constrain(params)
    pixels = 1 / (1 + np.exp(-np.asarray(networks(params)["decoder"](z), float)))
    return (
        log_softmax(params["class_logits"])[k]
        + norm.logpdf(z, params["class_loc"][k], constrained["class_scale"][k]).sum()
        + bernoulli.logpmf(x, pixels).sum()
    )


def log_guide(params, x, k, z):
    """Log q(k, z | x) of one row, in NumPy, and log q(k | x)."""
    nets = networks(params)
    log_q = log_softmax(np.asarray(nets["classifier"](x), float))[k]
    loc, scale = nets["encoder"](x, jnp.eye(CLASSES)[k])
    return log_q + norm.logpdf(z, params["class_loc"][k] + loc, scale).sum(), log_q


@pytest.mark.slow  # a long compilation
@pytest.mark.parametrize("class_site", ["categorical", "one_hot"])
def test_log_densities_equal_the_formula(class_site):
    model, guide, params = make(class_site)
    k, z = np.array([2, 0, 1]), np.random.default_rng(0).normal(size=(ROWS, LATENTS))
    choices = {"k": k if class_site == "categorical" else np.eye(CLASSES)[k], "z": z}
    by_hand = [log_joint(params, *row) for row in zip(X, k, z, strict=True)]
    np.testing.assert_allclose(model.bind(params).log_density(choices, X), sum(by_hand), rtol=1e-5)
    by_hand = [log_guide(params, *row)[0] for row in zip(X, k, z, strict=True)]
    np.testing.assert_allclose(guide.bind(params).log_density(choices, X), sum(by_hand), rtol=1e-5)


@pytest.mark.slow  # seconds of compilation
def test_the_density_is_that_of_the_observed_pixels_only():
    model, _, params = make()
    z = np.zeros((1, LATENTS))
    images = np.array(list(itertools.product((0, 1), repeat=PIXELS)), np.float32)
    density = lambda x: model.bind(params).log_density({"k": np.array([1]), "z": z}, x[None])
    total = logsumexp([float(density(x)) for x in images])
    scale = ppl.constrain(params)["class_scale"][1]
    prior = (
        log_softmax(params["class_logits"])[1] + norm.logpdf(0, params["class_loc"][1], scale).sum()
    )
    np.testing.assert_allclose(total, prior, rtol=1e-5)


class AtMean(ppl.strategies.Strategy):
    """The mean of the law instead of a draw: what is left of a bound is a formula without noise."""

    name = "at_mean"
    kind = "pathwise"

    def refuse(self, distribution):
        return None

    def draw(self, fn, key):
        return fn.mean


def bound_by_hand(params):
    """sum_n sum_k q(k | x_n) [log p(x_n, z, k) - log q(z, k | x_n)] at z = E q(z | x_n, k), one row and class at a time."""
    nets, scales = networks(params), ppl.constrain(params)["class_scale"]
    log_pi = jax.nn.log_softmax(params["class_logits"])
    normal = jax.scipy.stats.norm.logpdf
    total = 0.0
    for x in jnp.asarray(X):
        log_q = jax.nn.log_softmax(nets["classifier"](x))
        for k in range(CLASSES):
            loc, scale = nets["encoder"](x, jnp.eye(CLASSES)[k])
            z = params["class_loc"][k] + loc
            logits = nets["decoder"](z)
            log_p = log_pi[k] + normal(z, params["class_loc"][k], scales[k]).sum()
            log_p += (x * logits - jax.nn.softplus(logits)).sum()
            total += jnp.exp(log_q[k]) * (log_p - log_q[k] - normal(z, z, scale).sum())
    return total


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["enum", "mvd", "reinforce_loo"])
def test_bound_and_gradient_equal_explicit_enumeration(strategy, key):
    """Exact under enumeration; under sampling, the mean of 4000 estimates.

    |z| < 4.5 per coordinate: 6.8e-6 false alarms each, about
    150 coordinates. A lost or doubled score term moves some coordinates by tens of standard errors.
    """
    model, guide, params = make()
    bound = inference.elbo(model, guide, strategies={"k": strategy, "z": AtMean()})
    expected, expected_grads = jax.value_and_grad(bound_by_hand)(params)
    if strategy == "enum":
        value, grads = bound.value_and_grad(params, key, X)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        for one, two in zip(*map(jax.tree.leaves, (grads, expected_grads)), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
        return
    estimate = jax.jit(jax.vmap(lambda key: bound.value_and_grad(params, key, X)))
    values, grads = estimate(jax.random.split(key, 4000))
    assert_unbiased(values, expected)
    for one, two in zip(*map(jax.tree.leaves, (grads, expected_grads)), strict=True):
        assert_unbiased(one, two)


@pytest.mark.slow
def test_one_hot_site_is_the_same_program():
    (_, _, params), (model, guide, one_hot) = make(), make("one_hot")
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(one_hot)))
    bound = inference.elbo(model, guide, strategies={"k": "enum", "z": AtMean()})
    value = bound.value(params, jax.random.key(0), X)
    np.testing.assert_allclose(value, bound_by_hand(params), rtol=1e-5)


@pytest.mark.slow  # seconds of compilation
def test_relaxed_class_is_opt_in_and_marked():
    model, guide, params = make("one_hot")
    plan = inference.elbo(model, guide, strategies={"k": "gumbel_softmax"}).plan(params, X)
    assert plan["k"].is_biased and not plan["z"].is_biased
    model, guide, params = make()
    with pytest.raises(ValueError, match="'k'.*OneHotCategorical"):
        inference.elbo(model, guide, strategies={"k": "gumbel_softmax"}).plan(params, X)


@pytest.mark.slow  # seconds of compilation
def test_enumerated_rows_share_their_lanes():
    model, guide, params = make()
    plan = inference.elbo(model, guide, strategies={"k": "enum"}).plan(params, X)
    assert plan["k"].evaluations == str(CLASSES)

"""A finite population whose layers share widths: three weights in two layers, linear, so that mean field is in closed form.

y_i = x_i theta_i + N(0, NOISE^2),   theta_i | phi ~ N(mean, s2 by layer),   phi ~ GroupedNormalInverseGamma.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _few_shot import weights_of
from numpyro.distributions.kl import kl_divergence

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.objectives._analytic_kl import Laws
from lapilli.models import niw_meta

NUM_EPISODES, NOISE, GROUP = 6, 0.4, [0, 0, 1]
SIZES, PRIOR_SCALE = np.array([2, 1]), np.array([0.6, 0.9])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


class Layers(eqx.Module):
    """Linear layers side by side, without biases."""

    layers: list

    def __init__(self, sizes):
        keys = jax.random.split(jax.random.key(0), len(sizes))
        self.layers = [
            eqx.nn.Linear(n, 1, use_bias=False, key=key) for n, key in zip(sizes, keys, strict=True)
        ]

    def __call__(self, x):
        parts = jnp.split(x, np.cumsum([layer.in_features for layer in self.layers])[:-1])
        return sum(layer(part) for layer, part in zip(self.layers, parts, strict=True))


def linear_episodes(d=3):
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(NUM_EPISODES, d)) * np.linspace(0.3, 1.5, d)
    x = rng.normal(size=(NUM_EPISODES, 4, d))
    y = np.einsum("end,ed->en", x, theta) + NOISE * rng.normal(size=(NUM_EPISODES, 4))
    points = niw_meta.Points(x, y, np.ones(y.shape, bool))
    return niw_meta.Episodes(points, points._replace(mask=np.zeros(y.shape, bool)))


def finite(sizes, **options):
    return niw_meta.programs(
        Layers(sizes), niw_meta.GaussianNoise(NOISE), population="finite",
        inner=inference.local.Newton(1), **options,
    )  # fmt: skip


def test_phi_holds_all_means_and_a_width_for_each_layer():
    _, guide = finite((2, 1), widths="layer")
    found = jax.eval_shape(guide.simulate, jax.random.key(0), linear_episodes()).choices
    assert (found["phi"].shape, found["theta"].shape) == ((5,), (NUM_EPISODES, 1, 3))


@pytest.mark.slow  # two bounds and their gradients are compiled
@pytest.mark.parametrize("at", ["expected", "mode", "marginal"])
def test_layers_of_one_weight_are_weights(at):
    """Value and gradient of the bound by the same key."""
    episodes, found = linear_episodes(2), []
    for widths in ("weight", "layer"):
        programs = finite((1, 1), widths=widths, prior_scale=PRIOR_SCALE, parent_at=at)
        bound = inference.elbo(*programs, kl="analytic", check_jumps=False)
        params = bound.init(jax.random.key(0), episodes)
        found.append(jax.jit(bound.value_and_grad)(params, jax.random.key(1), episodes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *found)


def start():
    """The law of phi in the guide at its initial parameters: ten episodes of known weights."""
    loc = weights_of(Layers((2, 1)))
    numbers = 10.0, 5.0 * SIZES, 5.0 * SIZES * PRIOR_SCALE**2
    return ppl.distributions.GroupedNormalInverseGamma(loc, *numbers, group=GROUP)


def site(at, episodes):
    options = {"curvature": "gauss_newton", "prior_scale": PRIOR_SCALE, "widths": "layer"}
    laws = Laws()
    laws.watch(finite((2, 1), parent_at=at, **options).guide).simulate(jax.random.key(0), episodes)
    law = laws.found["theta"][0]
    return law.mean[:, 0], law.covariance_matrix[:, 0]


@pytest.mark.slow  # three guides are compiled
def test_sites_have_the_widths_of_the_three_laws():
    """Ridge regression with variances b / a and b / (a + 1 + n / 2); under Student t the derivatives of what it maximises."""
    episodes, phi = linear_episodes(), start()
    x, y, _ = episodes.support
    fit = np.swapaxes(x, 1, 2) @ x / NOISE**2
    slope = np.einsum("end,en->ed", x, y) / NOISE**2
    for at, extra in (("expected", 0.0), ("mode", 1 + SIZES / 2)):
        precision = ((phi.concentration + extra) / phi.rate)[np.array(GROUP)]
        covariance = np.linalg.inv(fit + np.diag(precision))
        mean = np.einsum("eij,ej->ei", covariance, slope + precision * phi.loc)
        for found, wanted in zip(site(at, episodes), (mean, covariance), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-9)

    df = 2 * phi.concentration
    variance = (phi.rate / phi.concentration * (1 + 1 / phi.mean_precision))[np.array(GROUP)]

    def bound(mean, root, x, y):
        spread = ((mean - phi.loc) ** 2 + (root**2).sum(1)) / variance
        distance = jnp.stack([spread[:2].sum(), spread[2]])
        loss = (((y - x @ mean) ** 2).sum() + ((x @ root) ** 2).sum()) / (2 * NOISE**2)
        tails = 0.5 * (df + SIZES) * jnp.log1p(distance / df)
        return jnp.linalg.slogdet(root)[1] - loss - tails.sum()

    mean, covariance = site("marginal", episodes)
    root = jnp.linalg.cholesky(covariance)
    slopes = jax.vmap(jax.grad(bound, (0, 1)))(mean, root, x, y)
    np.testing.assert_allclose(slopes[0], 0, atol=1e-6)
    np.testing.assert_allclose(jnp.tril(slopes[1]), 0, atol=1e-6)


def mean_field(episodes, prior):
    """Coordinate ascent to its fixed point: the law of phi, and means and covariances of the weights."""
    x, y, _ = episodes.support
    fit = np.swapaxes(x, 1, 2) @ x / NOISE**2
    slope = np.einsum("end,en->ed", x, y) / NOISE**2
    phi = prior
    for _ in range(200):
        precision = np.asarray(phi.concentration / phi.rate)[GROUP]
        covariance = np.linalg.inv(fit + np.diag(precision))
        mean = np.einsum("eij,ej->ei", covariance, slope + precision * np.asarray(phi.loc))
        phi = prior.posterior(mean, variance=np.diagonal(covariance, axis1=1, axis2=2))
    return phi, mean, covariance


@pytest.mark.slow  # 4,000 estimates of a bound
def test_the_bound_is_flat_where_coordinate_ascent_ends_and_has_its_value():
    """4,000 draws of phi, |z| < 4.5 for each of ten numbers; away from there the same check sees a slope."""
    episodes = linear_episodes()
    x, y, _ = episodes.support
    prior = ppl.distributions.GroupedNormalInverseGamma(
        weights_of(Layers((2, 1))), 1.0, 1.0, PRIOR_SCALE**2, group=GROUP
    )
    phi, mean, covariance = mean_field(episodes, prior)
    laws = dist.MultivariateNormal(mean, covariance)
    expected, gap = phi.expected_conditional()
    same = dist.MultivariateNormal(expected.mean, jnp.diag(expected.variance))
    loss = ((y - np.einsum("end,ed->en", x, mean)) ** 2).sum() / (2 * NOISE**2)
    loss += np.einsum("end,edf,enf->", x, covariance, x) / (2 * NOISE**2)
    exact = -loss - y.size * np.log(NOISE * np.sqrt(2 * np.pi))
    exact -= (kl_divergence(laws, same) + gap / 2).sum() + kl_divergence(phi, prior)

    programs = finite((2, 1), widths="layer", prior_scale=PRIOR_SCALE)
    bound = inference.elbo(*programs, kl="analytic", check_jumps=False)
    at_start = bound.init(jax.random.key(0), episodes)
    ascended = at_start | {
        "loc": phi.loc,
        "mean_precision": jnp.log(phi.mean_precision),
        "concentration": jnp.log(phi.concentration),
        "rate": jnp.log(phi.rate),
    }
    keys = jax.random.split(jax.random.key(1), 4_000)
    estimates = jax.jit(
        lambda params: jax.vmap(lambda key: bound.value_and_grad(params, key, episodes))(keys)
    )
    values, grads = estimates(ascended)
    assert_unbiased(values, exact)
    assert sum(leaf[0].size for leaf in grads.values()) == 9
    for leaf in grads.values():
        assert_unbiased(leaf, np.zeros(leaf.shape[1:]))
    with pytest.raises(AssertionError):
        assert_unbiased(estimates(at_start)[1]["rate"], np.zeros(2))

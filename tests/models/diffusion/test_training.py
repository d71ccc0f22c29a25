"""Denoising score matching: its value by hand, the score of an exact network, labels; what networks do with them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import diffusion
from lapilli.models.diffusion._samplers import time_of
from lapilli.models.diffusion._training import row_strata

VP = diffusion.VP()
PREDICTIONS = ("noise", "data", "velocity")


class Constant(eqx.Module):
    """Predicts one number everywhere; `shown` times the label is added to it."""

    value: jax.Array
    shown: float = eqx.field(static=True, default=0.0)
    num_classes: int = eqx.field(static=True, default=0)

    def __call__(self, x, level, label):
        return jnp.full(x.shape, self.value) + self.shown * label


class Exact(eqx.Module):
    """The optimal network of a model whose score is known."""

    model: inference.diffusion.Diffusion = eqx.field(static=True)
    predicts: str = eqx.field(static=True)
    num_classes: int = eqx.field(static=True, default=0)

    def __call__(self, x, level, label):
        noising = self.model.noising
        t = time_of(noising, jnp.exp(4 * level))
        power = jnp.sqrt(noising.alpha(t) ** 2 + noising.variance(t))
        x = x * power
        value = diffusion.convert(self.model.score(x, t), x, t, noising, "score", self.predicts)
        return value / power if self.predicts == "velocity" else value


@pytest.mark.slow_for("noise-EDM", "noise-VP")
@pytest.mark.parametrize("noising", [VP, diffusion.EDM()], ids=["VP", "EDM"])
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_optimal_network_has_the_true_score(predicts, noising):
    model = diffusion.gaussian_mixture(noising, [0.3, 0.7], [[-1.0, 0.0], [0.5, 0.8]], 0.2)
    learned = diffusion.from_network(Exact(model, predicts), noising, (2,), predicts=predicts)
    for t in (0.2, 0.7):
        x = jnp.array([0.3, -0.6])
        np.testing.assert_allclose(learned.score(x, t), model.score(x, t), rtol=3e-3, atol=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "predicts",
    [*PREDICTIONS[:1], *(pytest.param(p, marks=pytest.mark.slow) for p in PREDICTIONS[1:])],
)
def test_value_of_a_constant_network(predicts, key):
    """Data with mean 0 and variance 1 make every scaled target one of variance 1: E = -(1 + c^2 + log 2 pi) / 2 per number.

    x_0 takes 1 and -1 equally often, so that this holds for the rows at hand.
    """
    x = jnp.tile(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), (8, 1))
    objective = diffusion.score_matching(Constant(jnp.asarray(0.3)), VP, predicts=predicts)
    params = objective.init(key, x)
    values = jax.jit(jax.vmap(lambda key: objective.value(params, key, x)))(jax.random.split(key, 4000))  # fmt: skip
    assert_unbiased(values, -0.5 * x.size * (1 + 0.3**2 + np.log(2 * np.pi)))


@pytest.mark.slow
def test_labels_are_hidden_at_random(key):
    """A network that returns its label: 3 where it is shown, 4 (unknown) in a fifth of the rows."""
    x = jnp.tile(jnp.array([[1.0], [-1.0]]), (8, 1))
    labels = jnp.full(16, 3)
    network = Constant(jnp.zeros(()), 0.25, 4)
    objective = diffusion.score_matching(network, VP, predicts="noise", drop_context=0.2)
    params = objective.init(key, x, labels)
    values = jax.jit(jax.vmap(lambda key: objective.value(params, key, x, labels)))(jax.random.split(key, 4000))  # fmt: skip
    square = 0.8 * 0.75**2 + 0.2
    assert_unbiased(values, -0.5 * x.size * (1 + square + np.log(2 * np.pi)))


def test_refusals(key):
    with pytest.raises(ValueError, match="predicts must be one of"):
        diffusion.score_matching(Constant(jnp.zeros(())), VP, predicts="score")
    objective = diffusion.score_matching(Constant(jnp.zeros(())), VP)
    with pytest.raises(ValueError, match="num_classes=0"):
        objective.init(key, jnp.ones((4, 1)), jnp.zeros(4, int))


@pytest.mark.parametrize(
    "make",
    [
        lambda key: diffusion.MLP((1, 4, 4), num_classes=3, width=16, depth=1, key=key),
        lambda key: diffusion.ImageNet(1, num_classes=3, widths=(8, 8), key=key),
    ],
    ids=["MLP", "ImageNet"],
)  # fmt: skip
def test_networks_see_place_level_and_label(make, key):
    # Values of its own for every array: nothing to compile, and the U-Net's last layer is not zero.
    rng = np.random.default_rng(0)
    fill = lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype)
    is_array = lambda a: isinstance(a, jax.ShapeDtypeStruct)
    network = jax.tree.map(
        lambda a: fill(a) if is_array(a) else a, eqx.filter_eval_shape(make, key)
    )
    call, shape = eqx.filter_jit(network), (1, 4, 4)
    x = jax.random.normal(key, shape)
    base = call(x, jnp.asarray(0.1), jnp.asarray(0))
    assert base.shape == shape and np.isfinite(base).all()
    for other in ((x + 1, 0.1, 0), (x, 0.4, 0), (x, 0.1, 1), (x, 0.1, 3)):
        assert not np.allclose(call(*(jnp.asarray(a) for a in other)), base)


@pytest.mark.slow  # draws the initial values of a U-Net, each shape compiled
def test_a_fresh_unet_is_zero_and_refuses_odd_sizes(key):
    network = eqx.filter_jit(diffusion.ImageNet(1, num_classes=3, widths=(8, 8), key=key))
    call = lambda size: network(jnp.ones((1, size, size)), jnp.zeros(()), jnp.asarray(0))
    assert np.all(np.asarray(call(4)) == 0)
    with pytest.raises(ValueError, match="5 x 5 pixels cannot be halved"):
        call(5)


def test_guidance_is_a_combination_of_scores():
    one, two = (diffusion.gaussian_mixture(VP, [1.0], [m], 0.3) for m in (0.0, 1.0))
    x, t = jnp.asarray(0.4), jnp.asarray(0.5)
    mixed = diffusion.guided(one, two, 3.0)
    np.testing.assert_allclose(
        mixed.score(x, t), 3 * two.score(x, t) - 2 * one.score(x, t), rtol=1e-5
    )
    classifier = lambda x, t: two.log_density(x, t) - one.log_density(x, t)  # up to a constant
    np.testing.assert_allclose(
        diffusion.classifier_guided(one, classifier).score(x, t), two.score(x, t), rtol=1e-4
    )


@pytest.mark.slow  # compiles a training step twice
def test_training_resumes_from_a_checkpoint(tmp_path, key):
    """Forty steps at once, or twenty, a checkpoint and twenty more: the same parameters and running averages."""
    x = jax.random.normal(key, (64, 2))
    network = diffusion.MLP((2,), width=8, depth=1, key=key)
    train = lambda num_steps, path: inference.fit(
        diffusion.score_matching(network, VP), optax.adam(1e-2), (x,), num_steps=num_steps, key=key,
        subsample={"rows": 16}, average=0.9, progress=False, checkpoint=path,
    )  # fmt: skip
    train(20, tmp_path / "run")
    resumed, whole = train(40, tmp_path / "run"), train(40, tmp_path / "other")
    at_once, later = (
        diffusion.from_network(network, VP, (2,), params=fit.params).score(x[0], 0.3)
        for fit in (whole, resumed)
    )
    np.testing.assert_allclose(at_once, later, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


@pytest.mark.slow  # trains a network
def test_training_learns_the_score_of_a_mixture(key):
    """Two modes on a line: mean squared error of the noise at the end, relative to that of predicting zero."""
    model = diffusion.gaussian_mixture(VP, [0.4, 0.6], [[-1.2], [0.8]], 0.1)
    modes = jax.random.bernoulli(key, 0.6, (2000, 1))
    noise = jax.random.normal(jax.random.fold_in(key, 1), (2000, 1))
    x = jnp.where(modes, 0.8, -1.2) + jnp.sqrt(0.1) * noise
    network = diffusion.MLP((1,), width=64, depth=2, key=key)
    fit = inference.fit(
        diffusion.score_matching(network, VP), optax.adam(2e-3), (x,), num_steps=3000, key=key,
        subsample={"rows": 256}, average=0.995, progress=False,
    )  # fmt: skip
    learned = diffusion.from_network(network, VP, (1,), params=fit.params)
    for t in (0.1, 0.3, 0.6):
        at = jnp.linspace(-2, 2, 41)[:, None] * VP.alpha(t)
        exact, got = (jax.vmap(lambda x, m=m, t=t: m.score(x, t))(at) for m in (model, learned))
        error = VP.variance(t) * jnp.mean((exact - got) ** 2)
        assert error < 0.03, (t, error)


def test_a_rows_time_has_nothing_to_do_with_its_place():
    """Files are sorted: by the rows' order each would be seen at a part of the times alone."""
    strata = jax.vmap(lambda key: row_strata(key, 8))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_array_equal(
        np.sort(np.floor(strata * 8), -1), np.tile(np.arange(8), (4000, 1))
    )
    assert_unbiased(strata, np.full(8, 0.5))
    assert_unbiased(strata**2, np.full(8, 1 / 3))

    class Late(eqx.Module):
        def __call__(self, x, level, label):
            return 5 * level * jnp.ones_like(x)

    objective = diffusion.score_matching(Late(), VP)
    rows = jnp.linspace(-2.0, 2.0, 16)[:, None]
    value = lambda x: lambda key: objective.value({"network": Late()}, key, x)
    keys = jax.random.split(jax.random.key(1), 4000)
    up, down = (jax.jit(jax.vmap(value(x)))(keys) for x in (rows, rows[::-1]))
    assert_unbiased(up - down, 0.0)

"""Contexts of networks: sets in any order, hidden ones, trees, images; training with them; what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapilli import inference
from lapilli.models import diffusion

VP = diffusion.VP()


class Encoder(eqx.Module):
    """Of a tree: a set and a vector."""

    of_set: diffusion.SetEncoder
    of_vector: eqx.nn.Linear

    def __init__(self, key):
        self.of_set = diffusion.SetEncoder(2, key=key)
        self.of_vector = eqx.nn.Linear(3, 32, key=key)

    def __call__(self, context):
        return self.of_set(context["set"]) + self.of_vector(context["vector"])


MEMBERS = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


@pytest.mark.slow
def test_order_and_missing_members_change_nothing(key):
    encoder = eqx.filter_jit(diffusion.SetEncoder(2, key=key))
    mask = np.array([True, True, True, False, False])
    order = np.array([3, 1, 4, 0, 2])
    noisy = np.where(mask[:, None], MEMBERS, np.nan)
    found = encoder((MEMBERS, mask))
    np.testing.assert_allclose(encoder((noisy[order], mask[order])), found, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder(MEMBERS[:3]), found, rtol=1e-5, atol=1e-6)
    assert np.abs(encoder(MEMBERS[:2]) - found).max() > 1e-3
    assert np.isfinite(encoder((noisy, np.zeros(5, bool)))).all()
    slope = jax.grad(lambda x: encoder((x, mask)).sum())(noisy)
    assert np.isfinite(slope).all() and np.abs(slope[:3]).min() > 0 == np.abs(slope[3:]).max()


def context(key, rows=None):
    """A tree for one point, or for rows."""
    lead = () if rows is None else (rows,)
    draw = lambda *shape: jax.random.normal(key, (*lead, *shape))
    return {
        "set": (draw(4, 2), jnp.ones((*lead, 4), bool).at[..., 3].set(False)),
        "vector": draw(3),
    }


def test_a_hidden_context_is_the_unconditional_model(key):
    """Whatever is hidden: the network's answer is that without a context; one that is shown changes it."""
    net = diffusion.MLP((2,), encoder=Encoder(key), width=16, depth=1, key=key)
    x, level = jnp.array([0.3, -0.5]), jnp.array(0.2)
    none = net(x, level, None)
    for k in jax.random.split(key, 3):
        hidden = net(x, level, diffusion.Context(context(k), jnp.array(False)))
        np.testing.assert_array_equal(hidden, none)
    one = jax.tree.map(lambda c: c if c.dtype == bool else 10 * c, context(key))
    score = lambda c: diffusion.from_network(net, VP, (2,), context=c).score(x, 0.4)
    assert np.abs(score(one) - score(None)).max() > 1e-3
    members, mask = one["set"]
    order = jnp.array([2, 0, 3, 1])
    turned = {**one, "set": (members[order], mask[order])}
    np.testing.assert_allclose(score(turned), score(one), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_image_beside_the_image(key):
    net = diffusion.ImageNet(
        1, context_channels=2, encoder=eqx.nn.Linear(3, 32, key=key), widths=(8,), key=key
    )
    net = jax.tree.map(
        lambda a: a + 0.01 if eqx.is_inexact_array(a) else a, net
    )  # the last layer starts at zero
    x, image, vector = (jax.random.normal(key, s) for s in ((1, 4, 4), (2, 4, 4), (3,)))
    call = eqx.filter_jit(lambda c: net(x, jnp.array(0.1), c))
    none = call(None)
    assert none.shape == x.shape
    is_shown = lambda b: diffusion.Context((image, vector), jnp.array(b))
    np.testing.assert_allclose(call(is_shown(False)), none, rtol=1e-6)
    assert np.abs(call(is_shown(True)) - none).max() > 1e-4


@pytest.mark.slow  # a network is trained
def test_a_network_learns_what_its_context_says(key):
    """Data at the context's first number: the denoised point follows it, and has its mean where it is hidden."""
    rows = 256
    vector = jnp.sign(jax.random.normal(key, (rows, 3)))
    x = vector[:, :1] + 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (rows, 1))
    net = diffusion.MLP((1,), encoder=eqx.nn.Linear(3, 32, key=key), width=32, depth=1, key=key)
    fit = inference.fit(
        diffusion.score_matching(net, VP, drop_context=0.2), optax.adam(5e-3), (x, vector),
        num_steps=300, subsample={"rows": 64}, key=key, progress=False,
    )  # fmt: skip
    at = lambda c: diffusion.from_network(net, VP, (1,), params=fit.params, context=c)
    far = lambda c: float(at(c).denoise(jnp.zeros(1), 0.6)[0])
    assert far(jnp.array([1.0, 1.0, 1.0])) > 0.6 and far(jnp.array([-1.0, 1.0, 1.0])) < -0.6
    assert abs(far(None)) < 0.4


def test_one_network_of_labels_has_a_score_of_each_and_of_none(key):
    net = diffusion.MLP((2,), num_classes=3, width=8, depth=1, key=key)
    x = jnp.array([0.3, -0.5])
    score = lambda **c: diffusion.from_network(net, VP, (2,), **c).score(x, 0.4)
    for label in range(3):
        assert np.abs(score(context=label) - score()).max() > 1e-4
    with pytest.raises(ValueError, match="labels from 3 to 3.*would stand for a hidden one"):
        score(context=3)


def test_what_is_no_label_is_not_another_one(key):
    """Labels 1 to 3 of 3 classes: the last one would train as if hidden. Known by the run only, its loss is NaN."""
    network = diffusion.MLP((2,), num_classes=3, width=4, depth=1, key=key)
    objective = diffusion.score_matching(network, VP, drop_context=0.0)
    x, right = jnp.ones((3, 2)), np.arange(3)
    params = objective.init(key, x, right)
    value = jax.jit(lambda labels: objective.value(params, key, x, labels))
    assert np.isfinite(value(right)) and np.isnan(value(right + 1)) and np.isnan(value(right - 1))
    score = jax.jit(
        lambda c: diffusion.from_network(network, VP, (2,), context=c).score_at(x[0], 0.5)
    )
    assert np.isfinite(score(2)).all() and np.isnan(score(3)).all() and np.isnan(score(-1)).all()

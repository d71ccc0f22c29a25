"""Signals learned through masks: the exact denoiser's chain has the normal law of the signal given its other half."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.models import diffusion

SIZE = 16
COVARIANCE = 0.8 ** np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE)))
VP = diffusion.VP()


def forward(signal, context):
    """The coordinates that the target view shows."""
    return context["target"] * signal


class Posterior(eqx.Module):
    """E[S | S where the context sees it, noised target view] of a normal S, times a factor that is 1 in truth."""

    factor: jax.Array

    def __call__(self, x, level, context):
        shown, target = context.value["shown"], context.value["target"]
        ratio = jnp.exp(4 * level)  # std / alpha
        noise = jnp.where(shown > 0, 0.0, jnp.where(target > 0, ratio**2, 1.0))
        looks = (shown + target)[:, None] * jnp.eye(SIZE)
        scale = jnp.sqrt(1 + ratio**2)  # x is scaled to variance 1
        y = jnp.where(shown > 0, context.value["signal"], target * x * scale)
        inner = looks @ jnp.asarray(COVARIANCE, jnp.float32) @ looks + jnp.diag(noise)
        inner = inner + 1e-6 * jnp.eye(SIZE)
        return self.factor * (
            jnp.asarray(COVARIANCE, jnp.float32) @ looks @ jnp.linalg.solve(inner, y)
        )


def conditional(shown):
    """Mean matrix and covariance of S given its shown coordinates."""
    i = np.flatnonzero(shown)
    gain = COVARIANCE[:, i] @ np.linalg.inv(COVARIANCE[np.ix_(i, i)])
    return gain, COVARIANCE - gain @ COVARIANCE[i]


@pytest.fixture(scope="module")
def draws():
    """4,000 signals given one context, by 150 steps; half of the coordinates shown, six more in the target, two in neither."""
    rng = np.random.default_rng(0)
    order = rng.permutation(SIZE)
    shown, target = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    shown[order[:8]], target[order[8:14]] = 1, 1
    signal = np.linalg.cholesky(COVARIANCE) @ rng.normal(size=SIZE)
    context = {"shown": shown, "target": target, "signal": (shown * signal).astype(np.float32)}
    network = diffusion.Through(Posterior(jnp.ones(())), forward)
    model = diffusion.from_network(network, VP, (SIZE,), predicts="data", context=context)
    times = VP.times(150)
    views = jax.jit(lambda key: diffusion.ancestral(model, key, times, num_samples=4000))(
        jax.random.key(0)
    )
    read = jax.vmap(lambda x: network.signal(VP, x, times[-1], context))
    return context, signal, np.asarray(read(views))


def test_what_the_views_show_has_its_conditional_law(draws):
    """Covariance within 10 %, shares inside of 90 % intervals."""
    context, signal, found = draws
    gain, covariance = conditional(context["shown"])
    mean = gain @ signal[context["shown"] > 0]
    i = np.flatnonzero(context["target"])
    want = covariance[np.ix_(i, i)]
    got = np.cov(found[:, i].T)
    assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)
    np.testing.assert_allclose(found[:, i].mean(0), mean[i], atol=0.1)
    inside = np.abs(found[:, i] - mean[i]) < 1.645 * np.sqrt(np.diag(want))
    assert np.all(np.abs(inside.mean(0) - 0.9) < 0.02)


def test_what_no_view_shows_has_no_spread_of_its_own(draws):
    context, _, found = draws
    both = context["shown"] + context["target"]
    hidden = np.flatnonzero(both == 0)
    gain, covariance = conditional(both)
    expected = found[:, both > 0] @ gain[hidden].T
    np.testing.assert_allclose(found[:, hidden], expected, atol=0.05)
    assert np.all(
        found[:, hidden].var(0)
        < conditional(context["shown"])[1][hidden, hidden] - 0.5 * np.diag(covariance)[hidden]
    )


def test_the_loss_is_least_at_the_posterior_mean():
    """Its derivative in the factor vanishes over random masks, target the rest."""
    network = diffusion.Through(Posterior(jnp.ones(())), forward)
    objective = diffusion.score_matching(network, VP, predicts="data", drop_context=0.0)
    root = jnp.asarray(np.linalg.cholesky(COVARIANCE), jnp.float32)

    def slope(key, factor):
        keys = jax.random.split(key, 3)
        signal = jax.random.normal(keys[0], (16, SIZE)) @ root.T
        shown = jax.random.bernoulli(keys[1], 0.5, signal.shape).astype(float)
        context = {"shown": shown, "target": 1 - shown, "signal": shown * signal}
        params = {"network": eqx.tree_at(lambda n: n.network.factor, network, factor)}
        grad = objective.value_and_grad(params, keys[2], (1 - shown) * signal, context)[1]
        return grad["network"].network.factor

    run = jax.jit(jax.vmap(slope, (0, None)))
    found = np.asarray(run(jax.random.split(jax.random.key(1), 400), jnp.float32(1.0)))
    assert abs(found.mean()) < 4.5 * found.std() / 20
    other = np.asarray(run(jax.random.split(jax.random.key(1), 400), jnp.float32(0.9)))
    assert other.mean() > 10 * other.std() / 20


def test_unseen_directions():
    through = lambda forward: diffusion.Through(Posterior(jnp.ones(())), forward)
    masks = [{"target": np.eye(4)[i]} for i in (0, 1, 1)]
    found = through(forward).unseen(masks, jnp.zeros(4))
    np.testing.assert_allclose(np.abs(found).sum(0), [0, 0, 1, 1], atol=1e-6)
    assert len(through(forward).unseen([{"target": np.ones(4)}], jnp.zeros(4))) == 0
    sums = lambda signal, context: signal.sum()[None]
    assert through(sums).unseen([None], jnp.zeros((2, 2))).shape == (3, 2, 2)


def test_views_want_a_context():
    network = diffusion.Through(Posterior(jnp.ones(())), forward)
    with pytest.raises(ValueError, match="a view is taken as its context says"):
        network(jnp.zeros(SIZE), jnp.zeros(()), None)

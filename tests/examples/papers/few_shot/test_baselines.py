"""MAML, Reptile, prototypical networks and neural processes, each by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _examples import load_example
from _few_shot import classification, mlp, regression, unpadded, weights_of
from scipy import stats

from lapilli.models import niw_meta

baselines = load_example("papers/few_shot/_baselines")


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
def test_nearest_centroid_scores_by_hand():
    episodes, network = classification(), mlp(num_outputs=3)
    head = niw_meta.NearestCentroid(3)
    program = baselines.protonet(network, head)
    scores = niw_meta.predict(program, {}, episodes).scores[0]
    embed = lambda x: np.asarray(jax.vmap(network)(x))
    unit = lambda z: z / np.linalg.norm(z, axis=-1, keepdims=True)
    for i in range(2):
        mask, labels = episodes.support.mask[i], episodes.support.y[i]
        z = embed(episodes.support.x[i])
        centroids = np.stack([z[mask & (labels == c)].mean(0) for c in range(3)])
        expected = 10 * unit(embed(episodes.query.x[i])) @ unit(centroids).T
        np.testing.assert_allclose(scores[i], expected, rtol=1e-6)


@pytest.mark.slow  # compiles for long
def test_maml_is_gradient_descent_on_the_support_and_its_orders_differ_in_the_gradient_only():
    episodes, network = regression(((3, 2), (2, 2))), mlp()
    head, start = niw_meta.GaussianNoise(0.5), weights_of(mlp())
    unravel = jax.flatten_util.ravel_pytree(eqx.filter(network, eqx.is_inexact_array))[1]

    def loss(theta, points):
        out = jax.vmap(eqx.combine(unravel(theta), network))(points.x)[:, 0]
        return -dist.Normal(out, 0.5).log_prob(points.y)

    def one_episode(theta, i):
        support, query = (unpadded(points, i) for points in episodes)
        local = theta
        for _ in range(2):
            local = local - 0.1 * jax.grad(lambda t: loss(t, support).mean())(local)
        return -loss(local, query).sum()

    by_hand = lambda theta: 0.5 * (one_episode(theta, 0) + one_episode(theta, 1))
    value, slope = jax.jit(jax.value_and_grad(by_hand))(start)
    options = {"optimizer": optax.sgd(0.1), "num_steps": 2}
    one, two = (
        baselines.likelihood(baselines.maml(network, head, order=order, **options))
        for order in (1, 2)
    )
    params = {"loc": start}
    found, grads = two.value_and_grad(params, jax.random.key(0), episodes)
    np.testing.assert_allclose(found, value, rtol=1e-9)
    np.testing.assert_allclose(grads["loc"], slope, rtol=1e-8, atol=1e-10)
    first, first_grads = one.value_and_grad(params, jax.random.key(0), episodes)
    np.testing.assert_allclose(first, value, rtol=1e-9)
    assert not np.allclose(first_grads["loc"], slope, rtol=1e-2)


@pytest.mark.slow  # two programs of nets that adapt are compiled
def test_reptile_moves_the_start_to_the_adapted_weights():
    """Its gradient is the mean over episodes of theta_i - loc, theta_i trained on all labels; it predicts as MAML does."""
    episodes, network = regression(((3, 2), (2, 2))), mlp()
    head, start = niw_meta.GaussianNoise(0.5), weights_of(mlp())
    unravel = jax.flatten_util.ravel_pytree(eqx.filter(network, eqx.is_inexact_array))[1]
    moves = []
    for i in range(2):
        points = jax.tree.map(
            lambda a, b: np.concatenate([a, b]), *(unpadded(p, i) for p in episodes)
        )

        def loss(theta, points=points):
            out = jax.vmap(eqx.combine(unravel(theta), network))(points.x)[:, 0]
            return -dist.Normal(out, 0.5).log_prob(points.y).mean()

        theta = start
        for _ in range(2):
            theta = theta - 0.1 * jax.grad(loss)(theta)
        moves.append(theta - start)
    options = {"optimizer": optax.sgd(0.1), "num_steps": 2}
    update, model = baselines.reptile(network, head, **options)
    objective = baselines.likelihood(update)
    value, grads = objective.value_and_grad({"loc": start}, jax.random.key(0), episodes)
    np.testing.assert_allclose(grads["loc"], np.mean(moves, 0), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(value, -0.5 * np.mean([m @ m for m in moves]), rtol=1e-9)
    density = lambda program: program.bind({"loc": start}).log_density({}, episodes)
    one = density(baselines.maml(network, head, order=1, **options))
    np.testing.assert_allclose(density(model), one, rtol=1e-12)


@pytest.mark.slow  # seconds of compilation
def test_neural_process_reads_a_set():
    """Its density by hand, whatever the order of the support and whatever stands in the padding."""
    episodes = regression(((3, 2), (2, 2)))
    encoder = eqx.nn.MLP(3, 4, 5, 1, key=jax.random.key(1))
    decoder = eqx.nn.MLP(6, 2, 5, 1, key=jax.random.key(2))
    program = baselines.cnp(encoder, decoder, niw_meta.GaussianWithScale(0.1))
    expected = 0.0
    for i in range(2):
        support, query = (unpadded(points, i) for points in episodes)
        rows = [encoder(np.append(x, y)) for x, y in zip(support.x, support.y, strict=True)]
        r = np.mean(rows, 0)
        for x, y in zip(query.x, query.y, strict=True):
            mean, raw = decoder(np.append(x, r))
            expected += stats.norm.logpdf(y, mean, 0.1 + np.log1p(np.exp(raw)))
    np.testing.assert_allclose(program.log_density({}, episodes), expected, rtol=1e-9)
    turned = jax.tree.map(lambda a: a[:, ::-1], episodes.support)
    np.testing.assert_allclose(
        program.log_density({}, episodes._replace(support=turned)), expected, rtol=1e-9
    )
    classes = baselines.cnp(
        eqx.nn.MLP(5, 4, 5, 1, key=jax.random.key(1)), eqx.nn.MLP(6, 3, 5, 1, key=jax.random.key(2)),
        niw_meta.Softmax(), num_classes=3,
    )  # fmt: skip
    assert np.isfinite(classes.log_density({}, classification()))


@pytest.mark.slow
def test_learned_scale_of_scores_is_a_parameter():
    episodes = classification()
    head = niw_meta.NearestCentroid(3, is_learned=True)
    program = baselines.protonet(mlp(num_outputs=3), head)
    params = baselines.likelihood(program).init(jax.random.key(0), episodes)
    np.testing.assert_allclose(params["head_log_scale"], np.log(10))
    params["head_log_scale"] = jnp.log(4.0)
    scores = lambda p: niw_meta.predict(program.bind(p), {}, episodes).scores
    start = niw_meta.predict(program, {}, episodes).scores
    np.testing.assert_allclose(scores(params), 0.4 * start, rtol=1e-6)

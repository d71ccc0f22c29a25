"""The regression's optimum is the field of the path, under every coupling; what a network has learned is that field."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import paths

SDS = 1.0, 2.0
ROWS = 64


class ExactField(eqx.Module):
    """The field between Normal(0, SDS[0]^2) and Normal(1, SDS[1]^2) along `linear(noise)`, where cov(x_0, x_1) = covariance.

    Its parameters are factors of one; a pair with E[z | x_t] where there is noise.
    """

    factors: jax.Array
    noise: float = eqx.field(static=True)
    covariance: float = eqx.field(static=True)

    def __call__(self, x, t, context):
        s0, s1, c, g = SDS[0] ** 2, SDS[1] ** 2, self.covariance, self.noise**2
        variance = (1 - t) ** 2 * s0 + t**2 * s1 + 2 * t * (1 - t) * c + g * t * (1 - t)
        rate = -(1 - t) * s0 + t * s1 + (1 - 2 * t) * c + 0.5 * g * (1 - 2 * t)
        velocity = 1.0 * self.factors[0] + self.factors[1] * rate / variance * (x - t)
        if not self.noise:
            return velocity
        return velocity, self.factors[2] * self.noise * jnp.sqrt(t * (1 - t)) / variance * (x - t)


def data(key, num):
    return 1 + SDS[1] * jax.random.normal(key, (num, 1))


START = dist.Normal(jnp.zeros(1), SDS[0]).to_event(1)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_gradient_vanishes_at_the_exact_field(noise):
    network = ExactField(jnp.ones(3), noise, 0.0)
    objective = paths.flow_matching(network, paths.linear(noise), START)

    def gradient(key):
        keys = jax.random.split(key)
        params = {"network": network}
        return objective.value_and_grad(params, keys[0], data(keys[1], ROWS))[1]["network"].factors

    found = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(0), 2000))
    assert np.all(np.asarray(found).std(0)[: 2 + bool(noise)] > 0)
    assert_unbiased(found, jnp.zeros(3))


def test_the_field_of_a_coupling_of_batches_is_learned():
    """Pairs of quantiles, as optimal transport has them: covariance sd_0 sd_1, and a network without noise fits them exactly."""
    network = ExactField(jnp.ones(3), 0.0, SDS[0] * SDS[1])
    z = jax.random.normal(jax.random.key(1), (ROWS, 1))
    paired = paths.flow_matching(network, paths.linear())
    sorted_ends = 1 + SDS[1] * z
    value = lambda objective, *args: objective.value_and_grad({"network": network}, jax.random.key(2), *args)  # fmt: skip
    exact = -ROWS * 0.5 * np.log(2 * np.pi)  # nothing is left of u
    got, gradient = value(paired, sorted_ends, None, SDS[0] * z)
    np.testing.assert_allclose(got, exact, rtol=1e-5)
    np.testing.assert_allclose(gradient["network"].factors, 0, atol=1e-2)
    # Of the same rows in any order the transport finds the pairs.
    order = jax.random.permutation(jax.random.key(3), ROWS)
    which = paths.transport(jax.random.key(4), SDS[0] * z[order], sorted_ends)
    np.testing.assert_array_equal(order[which], np.arange(ROWS))


@pytest.mark.slow(reason="a training of its own")
def test_a_coupling_of_batches_is_drawn_within_the_step():
    """Rows of a batch that see each other do not add up to all rows: `subsample` is refused, `batch_size` is not."""
    rows = 1 + SDS[1] * jax.random.normal(jax.random.key(0), (200, 1))
    network = Linear(jnp.zeros(2))
    coupled = {"coupling": paths.transport}
    objective = lambda n: paths.flow_matching(
        network, paths.linear(), START, batch_size=n, **coupled
    )
    options = {"args": (rows,), "num_steps": 400, "key": jax.random.key(1), "progress": False}
    with pytest.raises(ValueError, match="depends on other rows"):
        inference.fit(objective(None), subsample={"rows": 64}, **options)
    fit = inference.fit(objective(64), optax.adam(0.03), **options)
    found = fit.params[
        "network"
    ].factors  # of u = x_1 - x_0 on (1, x_t - t): at pairs of quantiles 1 and the mean slope
    assert abs(found[0] - 1) < 0.15
    assert (
        0.55 < found[1] < 0.85
    )  # E (s1 - s0) / (s0 + t (s1 - s0)), about log 2; of independent ends below 0.4


class Linear(eqx.Module):
    factors: jax.Array

    def __call__(self, x, t, context):
        return self.factors[0] + self.factors[1] * (x - t)


def test_what_was_learned_is_a_field_with_its_score(key):
    network = ExactField(jnp.zeros(3), 1.0, 0.0)
    trained = {"network": eqx.tree_at(lambda n: n.factors, network, jnp.ones(3))}
    field = paths.from_network(network, paths.linear(1.0), params=trained)
    x, t = jnp.array([0.7]), jnp.asarray(0.3)
    variance = 0.7**2 + 0.3**2 * 4 + 0.21
    np.testing.assert_allclose(field.score(t, x), -(x - 0.3) / variance, rtol=1e-5)
    without = paths.from_network(ExactField(jnp.ones(3), 0.0, 0.0), paths.linear())
    assert without.score is None
    score = paths.normal_score(without.velocity, paths.linear())
    np.testing.assert_allclose(score(t, x), -(x - 0.3) / (variance - 0.21), rtol=1e-5)


@pytest.mark.slow  # trains
def test_a_network_learns_to_carry_points(key):
    """A small network between two points of mass 1 and 3: shares and places of what it carries."""
    network = Small(key=key)
    objective = paths.flow_matching(network, paths.linear(), START)
    rows = jnp.repeat(jnp.array([[-2.0], [2.0]]), jnp.array([128, 384]), 0, total_repeat_length=512)
    fit = inference.fit(objective, args=(rows,), subsample={"rows": 128}, num_steps=1500, key=key, progress=False)  # fmt: skip
    field = paths.from_network(network, paths.linear(), params=fit.params)
    start = START.sample(jax.random.key(5), (2000,))
    ends = paths.diffuse(field, key, start, noise=0.0, num_steps=50)
    assert abs(float(jnp.mean(ends > 0)) - 0.75) < 0.08
    assert float(jnp.mean(jnp.abs(jnp.abs(ends) - 2) < 0.5)) > 0.85


class Small(eqx.Module):
    net: eqx.nn.MLP

    def __init__(self, *, key):
        self.net = eqx.nn.MLP(2, 1, 48, 2, jax.nn.silu, key=key)

    def __call__(self, x, t, context):
        return self.net(jnp.append(x, 2 * t - 1))


def test_refusals(key):
    network = ExactField(jnp.ones(3), 0.0, 0.0)
    x = jnp.zeros((8, 1))
    value = lambda objective, *args: objective.value_and_grad({"network": network}, key, *args)
    matching = lambda **options: paths.flow_matching(network, paths.linear(), **options)
    with pytest.raises(ValueError, match="pairs by data, which a coupling would break"):
        matching(coupling=paths.transport)
    with pytest.raises(ValueError, match="batch_size"):
        matching(batch_size=0)
    with pytest.raises(ValueError, match="neither start= nor an argument for x_0"):
        value(matching(), x)
    with pytest.raises(ValueError, match="both start= and an argument for x_0"):
        value(matching(start=START), x, None, x)
    with pytest.raises(ValueError, match="x_0 has shape"):
        value(matching(start=dist.Normal(0.0, 1.0)), x)
    with pytest.raises(ValueError, match="noise of its own"):
        paths.normal_score(network, paths.linear(1.0))


def test_the_order_of_rows_does_not_matter():
    class Late(eqx.Module):
        def __call__(self, x, t, context):
            return 5 * t * jnp.ones_like(x)

    objective = paths.flow_matching(Late(), paths.linear(), START)
    rows = jnp.linspace(-2.0, 2.0, 16)[:, None]
    value = lambda x: lambda key: objective.value({"network": Late()}, key, x)
    keys = jax.random.split(jax.random.key(1), 4000)
    up, down = (jax.jit(jax.vmap(value(x)))(keys) for x in (rows, rows[::-1]))
    assert_unbiased(up - down, 0.0)

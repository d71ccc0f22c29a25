"""Discrete diffusion: the chain's law by enumeration, and masked diffusion as any-order autoregression."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _stats import assert_unbiased
from lapilli.models import diffusion, mam

D, K, N = 2, 3, 3
ROWS = np.array(list(itertools.product(range(K), repeat=D)))
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(D, K + 1, D, K)), jnp.float32)


def network(tokens, t):
    """Conditionals of no one law, which change with tokens and time; none is rare, or 1 / p would have a long tail."""
    level = WEIGHTS[jnp.arange(D), tokens].sum(0)
    return jax.nn.log_softmax(0.5 * level * (1 + t), -1)


def exact(kind):
    """The chain's law over all rows: its kernels, by Bayes' formula, applied one after the other to all states."""
    states = np.array(list(itertools.product(range(K + 1), repeat=D)))
    noise = (
        lambda a: (  # [x, x_t], over tokens
            np.vstack([np.eye(K + 1)[:1], a * np.eye(K + 1)[1:] + (1 - a) * np.eye(K + 1)[:1]])
            if kind == "masked"
            else np.pad(a * np.eye(K) + (1 - a) / K, ((1, 0), (1, 0)))
        )
    )
    first = np.eye(K + 1)[0] if kind == "masked" else np.r_[0, np.full(K, 1 / K)]
    p = np.prod(first[states], 1)
    log_probs = jax.vmap(network, (0, None))
    for n in range(N):
        t, s = 1 - n / N, 1 - (n + 1) / N
        shares = np.exp(np.asarray(log_probs(jnp.asarray(states), t), float))
        start, step = noise(1 - s), noise((1 - t) / (1 - s))
        moved = np.zeros_like(p)
        for row, (tokens, mass) in enumerate(zip(states, p, strict=True)):
            if mass == 0:
                continue
            each = []
            for i, token in enumerate(tokens):
                of_value = start[1:, :] * step[:, token]  # [k, j]
                total = of_value.sum(1, keepdims=True)
                posterior = np.divide(of_value, total, out=np.zeros_like(of_value), where=total > 0)
                share = shares[row, i]
                if kind == "masked" and token:
                    share = np.eye(K)[token - 1]
                each.append(share @ posterior)
            moved += mass * np.prod([each[i][states[:, i]] for i in range(D)], 0)
        p = moved
    found = np.array([p[(states == row + 1).all(1)].sum() for row in ROWS])
    assert abs(found.sum() - 1) < 1e-6
    return found


@pytest.mark.slow_for("masked")
@pytest.mark.parametrize("kind", ["masked", "uniform"])
def test_the_estimate_has_the_chains_law_as_its_mean(kind, key):
    """All nine rows, 20,000 estimates each; and draws have these shares, and the inverse density."""
    law = diffusion.token_law(lambda: network, D, K, N, kind=kind)
    one = lambda k: jax.vmap(lambda x: law.estimate_log_density(k, {"x": x}))(jnp.asarray(ROWS))
    log_weights = jax.jit(jax.vmap(one))(jax.random.split(key, 20_000))
    truth = exact(kind)
    assert_unbiased(np.exp(np.asarray(log_weights, float)), truth)

    def draw(k):
        trace = law.simulate(k)
        return trace.choices["x"], trace.log_density

    x, log_weight = jax.jit(jax.vmap(draw))(jax.random.split(key, 20_000))
    is_row = (np.asarray(x)[:, None] == ROWS).all(-1)
    assert_unbiased(is_row.astype(float), truth)
    assert_unbiased(is_row * np.exp(-np.asarray(log_weight, float))[:, None], np.ones(len(ROWS)))
    outside = law.estimate_log_density(key, {"x": jnp.array([0, K])})
    assert outside == -jnp.inf


class AnyOrder(mam.Networks):
    """A conditional network of no one law, as `mam` sees it."""

    num_variables: int = D
    num_values: int = K

    def log_marginal(self, tokens):
        return jnp.zeros(())

    def log_conditionals(self, tokens):
        return network(tokens, 0.0)


def test_masked_diffusion_is_any_order_autoregression(key):
    """Its bound is the mean over all orders of `mam`'s chain; one law's conditionals give log p, whatever is masked."""
    still = lambda tokens, t: network(tokens, 0.0)
    orders = jnp.array(list(itertools.permutations(range(D))))
    of_order = lambda order: mam.MaM(AnyOrder()).with_order(order).log_prob(jnp.asarray(ROWS))
    expected = np.asarray(jnp.stack([of_order(o) for o in orders]), float).mean(0)
    one = jax.jit(lambda k: diffusion.masked_bound(still, ROWS, k, num_times=20))
    assert_unbiased(jax.vmap(one)(jax.random.split(key, 4000)), expected)

    joint = np.random.default_rng(1).normal(size=(K,) * D)
    tables = mam.Tables(joint)
    log_p = joint - np.logaddexp.reduce(joint.ravel())
    law = diffusion.token_law(lambda: lambda tokens, t: tables.log_conditionals(tokens), D, K, 1000)
    found = law.estimate_log_density(
        key, {"x": jnp.array([2, 1])}
    )  # unmasked one by one, but for one time in 1000
    np.testing.assert_allclose(found, log_p[2, 1], atol=1e-3)


def test_derivatives_are_those_of_the_any_order_bound(key):
    """In the network's parameters: the mean of the estimate's derivatives, against differences of the exact mean over orders."""
    x = jnp.array([2, 0])

    def scaled(scale):
        return lambda tokens, t: jax.nn.log_softmax(scale * network(tokens, 0.0), -1)

    slope = jax.jit(
        jax.vmap(jax.grad(lambda s, k: diffusion.masked_bound(scaled(s), x, k)), (None, 0))
    )
    found = slope(1.3, jax.random.split(key, 4000))

    def mean(scale):
        empty, one = jnp.zeros(D, int), scaled(scale)
        total = 0.0
        for first, second in ((0, 1), (1, 0)):
            total += one(empty, 0.0)[first, x[first]]
            total += one(empty.at[first].set(x[first] + 1), 0.0)[second, x[second]]
        return total / 2

    assert_unbiased(found, jax.grad(mean)(1.3))


def test_what_is_no_value_has_no_probability(key):
    """A fraction is no integer below it, and -1 is not the last value."""
    network = lambda tokens, t: jnp.log(jnp.array([[0.2, 0.8]] * 3))
    law = diffusion.token_law(lambda: network, 3, 2, 2)
    for x in ([0.7, 1, 1], [0, -1, 1], [0, 2, 1]):
        assert law.estimate_log_density(key, {"x": jnp.array(x)}) == -jnp.inf
    rows = jnp.array([[0, -1, 1], [0, 2, 1], [0, 1, 1]])
    found = jax.jit(lambda x: diffusion.masked_bound(network, x, key))(rows)
    assert np.isnan(found).tolist() == [True, True, False]

"""Discrete flow matching: its optimum, its draws by rates, and the same network as a law with a density."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from _stats import assert_unbiased
from lapilli.models import diffusion, mam, paths

D, K = 2, 3
ROWS = np.array(list(itertools.product(range(K), repeat=D)))
JOINT = np.random.default_rng(1).normal(size=(K,) * D)
LOG_P = (JOINT - np.logaddexp.reduce(JOINT.ravel())).ravel()


class Exact(eqx.Module):
    """log p(x_1 | x_t) by Bayes' formula from a table of rows, tilted by parameters that are 0 in truth."""

    tilt: jax.Array
    kind: str = eqx.field(static=True)

    def __call__(self, tokens, t, context):
        rows = jnp.asarray(ROWS)
        is_kept = tokens - 1 == rows
        noise = jnp.where(tokens == 0, 1.0, 0.0) if self.kind == "masked" else 1 / K
        now = LOG_P + jnp.log(t * is_kept + (1 - t) * noise).sum(1)
        probs = jnp.tensordot(jax.nn.softmax(now), jax.nn.one_hot(rows, K), 1)
        return jnp.log(jnp.maximum(probs, 1e-30)) + self.tilt * (1 + t)


def drawn(key, num):
    return jnp.asarray(ROWS)[jax.random.categorical(key, jnp.asarray(LOG_P), shape=(num,))]


@pytest.mark.parametrize("kind", ["masked", "uniform"])
def test_the_gradient_vanishes_at_the_posterior_of_the_end(kind):
    network = Exact(jnp.zeros((D, K)), kind)
    objective = paths.flow_matching(network, paths.tokens(K, kind))

    def gradient(key, rows):
        return objective.value_and_grad({"network": network}, key, rows)[1]["network"].tilt

    keys = jax.random.split(jax.random.key(0), 4000)
    rows = jax.vmap(lambda k: drawn(k, 32))(jax.random.split(jax.random.key(1), 4000))
    run = jax.jit(jax.vmap(gradient))
    found = run(keys, rows)
    assert_unbiased(found, jnp.zeros((D, K)))
    with pytest.raises(AssertionError):  # rows of another law
        assert_unbiased(run(keys, rows[..., ::-1]), jnp.zeros((D, K)))


@pytest.mark.slow_for("masked")
@pytest.mark.parametrize("kind", ["masked", "uniform"])
def test_jumps_have_the_law_of_their_kernels_which_tends_to_that_of_the_end(kind, key):
    network = Exact(jnp.zeros((D, K)), kind)
    field = paths.from_network(network, paths.tokens(K, kind))
    states = np.array(list(itertools.product(range(-1, K), repeat=D)))

    def chain(num_steps):
        """The law of the end by products of kernels over all states."""
        is_start = (states == -1).all(1) if kind == "masked" else (states >= 0).all(1)
        p = is_start / is_start.sum()
        rates = jax.jit(jax.vmap(field.velocity, (None, 0)))
        for n in range(num_steps):
            moves = np.maximum(np.asarray(rates(n / num_steps, states), float) / num_steps, 0)
            own = np.pad(moves, ((0, 0), (0, 0), (1, 0)))
            stays = np.eye(K + 1)[states + 1]
            own = np.where(stays > 0, 0, own)
            own = own + stays * np.maximum(1 - own.sum(-1, keepdims=True), 0)
            kernel = np.prod([own[:, i][:, states[:, i] + 1] for i in range(D)], 0)
            p = p @ kernel
        assert abs(p.sum() - 1) < 1e-4
        return np.array([p[(states == row).all(1)].sum() for row in ROWS])

    truth = np.exp(LOG_P)
    kl = [np.sum(truth * (LOG_P - np.log(chain(n)))) for n in (4, 8, 16)]
    assert 0 < kl[2] < 0.6 * kl[1] < 0.36 * kl[0]
    start = paths.tokens(K, kind).begin(key, (20_000, D))
    ends = jax.jit(lambda x: paths.diffuse(field, key, x, noise=0.0, num_steps=4))(start)
    assert_unbiased((np.asarray(ends)[:, None] == ROWS).all(-1).astype(float), chain(4))


def test_the_field_is_a_law_with_a_density(key):
    """Masked: the chain's density is the table's where one variable appears a step."""
    tables = mam.Tables(JOINT)
    network = lambda tokens, t, context: tables.log_conditionals(tokens)
    field = paths.from_network(network, paths.tokens(K))
    law = diffusion.token_law(lambda: field.log_probs, D, K, 1000)
    found = law.estimate_log_density(key, {"x": jnp.array([2, 1])})
    np.testing.assert_allclose(found, LOG_P[2 * K + 1], atol=1e-3)
    # t of the law is 1 where all is noise, that of the path 0
    seen = []
    told = lambda tokens, t, context: seen.append(float(t)) or jnp.zeros((D, K))
    paths.from_network(told, paths.tokens(K)).log_probs(jnp.zeros(D, int), 0.75)
    assert seen == [0.25]


def test_what_is_shown_stays_whatever_a_network_says_of_it(key):
    """A network is not trained on what is shown: where its words there are noise, the draws are those of the exact one."""

    def noisy(tokens, t, context):
        exact = Exact(jnp.zeros((D, K)), "masked")(tokens, t, context)
        return jnp.where((tokens == 0)[:, None], exact, jnp.arange(K) * 1.0)

    masked = paths.tokens(K)
    start = masked.begin(key, (2000, D))
    draws = [
        paths.diffuse(paths.from_network(n, masked), key, start, noise=0.0, num_steps=8)
        for n in (noisy, Exact(jnp.zeros((D, K)), "masked"))
    ]
    np.testing.assert_array_equal(*draws)
    rates = paths.from_network(noisy, masked).velocity(0.5, jnp.array([1, -1]))
    assert np.all(np.asarray(rates[0]) == 0) and rates[1].sum() > 0


def test_refusals(key):
    network = Exact(jnp.zeros((D, K)), "masked")
    rows = drawn(key, 8)
    value = lambda objective, *args: objective.value({"network": network}, key, *args)
    matching = paths.flow_matching(network, paths.tokens(K))
    with pytest.raises(ValueError, match="kind must be 'masked' or 'uniform'"):
        paths.tokens(K, "noisy")
    with pytest.raises(ValueError, match="rows are of integers"):
        value(matching, rows.astype(float))
    assert value(matching, rows + K) == -np.inf  # values that there are not: `fit` refuses
    with pytest.raises(ValueError, match="log-probabilities of the values of each variable"):
        value(paths.flow_matching(network, paths.tokens(K + 1)), rows)
    field = paths.from_network(network, paths.tokens(K))
    start = jnp.full((4, D), -1)
    with pytest.raises(ValueError, match="paths.diffuse draws them"):
        field.velocity(0.5, start[0].astype(float))
    with pytest.raises(ValueError, match="needs the score of the marginals"):
        paths.diffuse(field, key, start, noise=1.0, num_steps=2)
    with pytest.raises(ValueError, match="not turned round by their sign"):
        field.reversed  # noqa: B018

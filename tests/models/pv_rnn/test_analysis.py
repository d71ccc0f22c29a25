"""Strings, diverging steps and Lyapunov exponents against what is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from _stats import assert_same_mean
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import Gaussian, Layer, Network


def test_exponent_of_the_logistic_map_is_log_two(key):
    """Error of the mean of 20,000 log-slopes, which are correlated over few steps: below 0.02."""
    starts = jax.random.uniform(key, (3,), minval=0.1, maxval=0.9)
    got = pv_rnn.largest_lyapunov(lambda x: 4.0 * x * (1 - x), starts, key, num_steps=20_000)
    np.testing.assert_allclose(got, np.log(2), atol=0.02)


def test_exponent_of_a_linear_map_is_the_log_of_its_spectral_radius(key):
    a = jnp.array([[0.9, 0.5, 0.0], [0.0, 0.7, 0.2], [0.0, 0.0, -0.3]])
    got = pv_rnn.largest_lyapunov(lambda x: a @ x, jnp.ones((2, 3)), key, num_steps=2000)
    np.testing.assert_allclose(got, np.log(0.9), rtol=1e-3)


@pytest.mark.slow  # seconds of compilation
def test_exponent_of_a_network_without_weights_is_that_of_its_leak(key):
    network = Network([Layer(4, 1, 2.0), Layer(3, 1, 8.0)], Gaussian(1), key=key)
    network = jax.tree.map(jnp.zeros_like, network)
    got = pv_rnn.skeleton(network, key, num_starts=2, num_steps=500)
    np.testing.assert_allclose(got.exponents, np.log(1 - 1 / 8), rtol=1e-3)
    np.testing.assert_allclose(got.spread, 0, atol=1e-6)


def test_ngrams_are_counted_by_hand():
    symbols = np.array([[0, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(pv_rnn.ngram_counts(symbols, 2), [0, 1, 1, 4])
    with pytest.raises(ValueError, match="at least n = 5 steps"):
        pv_rnn.ngram_counts(symbols, 5)
    np.testing.assert_array_equal(pv_rnn.ngram_counts(symbols.astype(float), 2), [0, 1, 1, 4])


@pytest.mark.parametrize("symbol", [2, -1, 0.5, np.nan])
def test_what_is_no_symbol_is_counted_as_none(symbol):
    """[0, 2] would be counted as [1, 0]."""
    with pytest.raises(ValueError, match=f"1 of 4 symbols are none of 0 to 1, {symbol}"):
        pv_rnn.ngram_counts(np.array([[0, symbol, 1, 1]]), 2)
    with pytest.raises(ValueError, match="n must be an integer >= 1"):
        pv_rnn.ngram_counts(np.array([[0, 1]]), 0)


def test_strings_have_a_law():
    with pytest.raises(
        ValueError, match="ngram_divergence: probs must be probabilities of outcomes"
    ):
        pv_rnn.ngram_divergence(np.ones(4), np.array([[0, 1, 1]]), 2)
    with pytest.raises(ValueError, match=r"ngram_divergence: .* got shapes {'probs': \(8,\)"):
        pv_rnn.ngram_divergence(np.ones(8) / 8, np.array([[0, 1, 1]]), 2)


def test_divergence_of_strings():
    """P = (1/2, 1/2, 0, 0); generated (3/4, 0, 1/4, 0): the missing string counts with the floor."""
    symbols = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    counts = pv_rnn.ngram_counts(symbols, 2) / 12
    got = pv_rnn.ngram_divergence(np.array([0.5, 0.5, 0, 0]), symbols, 2, floor=0.01)
    want = 0.5 * np.log(0.5 / counts[0]) + 0.5 * np.log(0.5 / max(counts[1], 0.01))
    np.testing.assert_allclose(got.divergence, want)
    np.testing.assert_allclose(got.illegal, counts[2] + counts[3])


def test_diverging_step():
    target = jnp.zeros((3, 4, 1))
    generated = target.at[0, 2].set(1).at[1, 0].set(1)
    np.testing.assert_array_equal(pv_rnn.diverging_step(generated, target), [3, 1, 5])
    np.testing.assert_array_equal(
        pv_rnn.diverging_step(generated, target, threshold=2.0), [5, 5, 5]
    )
    lost = generated.at[2, 1].set(jnp.nan)
    np.testing.assert_array_equal(pv_rnn.diverging_step(lost, target), [3, 1, 2])


@pytest.mark.slow
def test_free_generation_has_the_law_of_the_program(key):
    """`rollout` is the model's own prior run: same mean of x at every step, 20,000 rows each."""
    network = Network([Layer(4, 1, 2.0), Layer(3, 1, 4.0)], Gaussian(1, 0.3), key=key)
    model, _ = pv_rnn.programs(network, guide="prior", num_steps=4)
    x = model.simulate(key, None, jnp.arange(20_000)).choices["x"]
    own = pv_rnn.generate(network, jax.random.key(9), 4, num_rows=20_000)
    assert_same_mean(jnp.swapaxes(x, 0, 1), own)
    assert_same_mean(jnp.swapaxes(x, 0, 1) ** 2, own**2)


def test_noise_free_rollouts_are_deterministic(key):
    network = Network([Layer(4, 1, 2.0)], Gaussian(1, 0.3), key=key)
    paths = [
        pv_rnn.rollout(network, None, network.initial_state(), 5)[1] for _ in itertools.repeat(0, 2)
    ]
    np.testing.assert_array_equal(*paths)


@pytest.mark.slow  # a run of two layers
def test_laws_of_the_latents(key):
    """Vectors of zero at the first step are the unit prior; the divergence is that of the two laws."""
    network = Network([Layer(4, 2, 2.0), Layer(3, 1, 4.0)], Gaussian(1, 0.3), key=key)
    vectors = tuple(
        a.at[:, 0].set(0.0)
        for a in pv_rnn.adaptive_vectors(network, 2, 5, scale=0.5, key=jax.random.key(1))
    )
    found = pv_rnn.latents(network, key, vectors)
    for l, num_latents in enumerate((2, 1)):
        assert found.kl[l].shape == (2, 5, num_latents)
        np.testing.assert_array_equal(found.kl[l][:, 0], 0)
        p, q = (dist.Normal(m[l], s[l]) for m, s in ((found[0], found[1]), (found[2], found[3])))
        np.testing.assert_allclose(found.kl[l], dist.kl_divergence(q, p), rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # 20,000 rows through four compiled runs
def test_regeneration_is_reconstruction_where_all_steps_are_given(key):
    """No step given: the law of free generation; all given: that of the guide. Means over 20,000 rows."""
    network = Network([Layer(4, 1, 2.0)], Gaussian(1, 0.3), key=key)
    row = pv_rnn.adaptive_vectors(network, 1, 3, scale=1.0, key=jax.random.key(1))
    vectors = tuple(jnp.broadcast_to(a, (20_000, *a.shape[1:])) for a in row)
    free = pv_rnn.generate(network, jax.random.key(2), 3, num_rows=20_000)
    assert_same_mean(pv_rnn.regenerate(network, jax.random.key(3), vectors, 0), free)
    model, guide = pv_rnn.programs(network, num_sequences=1, num_steps=3)
    params = model.init(key, None, jnp.arange(1))
    params["adaptive"] = row
    index = jnp.zeros(20_000, int)
    states = guide.bind(params).simulate(key, jnp.zeros((20_000, 3, 1)), index).retval
    own = jnp.swapaxes(network.emit(states), 0, 1)
    again = pv_rnn.regenerate(network, jax.random.key(4), vectors, 3)
    assert_same_mean(again, own)


def test_sequences_that_are_compared_have_one_shape():
    """An axis that was forgotten made one step diverge from all."""
    generated = jnp.ones((1, 3, 1))
    for target in (jnp.ones((1, 3)), jnp.ones((2, 3, 1)), jnp.ones((1, 3, 2))):
        with pytest.raises(ValueError, match=r"generated has shape \(1, 3, 1\) and target"):
            pv_rnn.diverging_step(generated, target)

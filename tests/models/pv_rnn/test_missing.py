"""Missing cells: a linear network beside the exact smoother and Kalman's filter, padded steps, and what is refused.

A network whose states are small is linear, h_t = F h_{t-1} + G z_t, x_t = C h_t + noise, and z_t ~ N(0, I) where the prior's
weights are zero. Its posterior is normal, and the best q that is independent over latents has the exact means, and the variances
1 / L_ii of the posterior's precision L.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _frozen import Frozen

from _stats import assert_unbiased
from lapilli import inference
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import Categorical, ErrorRegression, Gaussian, Network
from lapilli.models.pv_rnn._regression import window_objective
from lapilli.models.pv_rnn._stream import RegressionWindow

T, SIZE, SCALE, SMALL = 6, 2, 0.7, 1e-3
SEEN = np.ones((T, SIZE), bool)
SEEN[1, 0] = SEEN[2] = SEEN[3, 1] = False  # a cell, a step, another cell
XS = 0.5 * np.random.default_rng(3).normal(size=(T, SIZE))  # small, so that means are within tanh


def linear_network():
    """The network, and F, G, C."""
    rng = np.random.default_rng(0)
    r, g, c = rng.normal(size=(2, 2)), rng.normal(size=(2, 2)), rng.normal(size=(2, SIZE))
    network = Network(
        [(2, 2, 2.0)], Gaussian(SIZE, SCALE), posterior_from_state=False, key=jax.random.key(0)
    )
    weights = network.weights[0]
    new = (jnp.asarray(r), jnp.asarray(SMALL * g), jnp.zeros_like(weights.prior))
    weights = eqx.tree_at(lambda w: (w.recurrent, w.from_latent, w.prior), weights, new)
    made = ((weights,), jnp.asarray(c / SMALL))
    network = eqx.tree_at(lambda n: (n.weights, n.readout), network, made)
    return network, 0.5 * (np.eye(2) + r.T), 0.5 * g.T, c.T


def smoother(seen):
    """Mean [T, 2] and precision [2 T, 2 T] of all latents given the seen cells."""
    _, f, g, c = linear_network()
    powers = [np.linalg.matrix_power(f, n) for n in range(T)]
    reach = np.block(
        [[c @ powers[t - s] @ g if s <= t else np.zeros((SIZE, 2)) for s in range(T)] for t in range(T)]
    )  # fmt: skip
    rows = reach[seen.ravel()]
    precision = np.eye(2 * T) + rows.T @ rows / SCALE**2
    mean = np.linalg.solve(precision, rows.T @ XS[seen] / SCALE**2)
    return mean.reshape(T, 2), precision


def kalman(seen):
    """E[x_{t+1} | seen cells up to t] for each t, [T, SIZE]."""
    _, f, g, c = linear_network()
    m, p, means = np.zeros(2), np.zeros((2, 2)), []
    for t in range(T):
        m, p = f @ m, f @ p @ f.T + g @ g.T
        h = c[seen[t]]
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + SCALE**2 * np.eye(len(h)))
        m, p = m + gain @ (XS[t][seen[t]] - h @ m), p - gain @ h @ p
        means.append(c @ f @ m)
    return np.stack(means)


def best_vectors(seen):
    mean, precision = smoother(seen)
    log_scale = -0.5 * np.log(np.diag(precision)).reshape(T, 2)
    assert np.abs(mean).max() < 0.95  # reached by tanh
    return jnp.asarray(np.concatenate([np.arctanh(mean), log_scale], -1))


def window_gradients(seen, vectors, key):
    """Gradients of a window over the whole sequence, [10,000, T, 4]."""
    network, *_ = linear_network()
    er = ErrorRegression(network, window=T, w=2 / SIZE)
    x = jnp.where(seen, XS, 0)
    slots = (jnp.arange(T) == 0, jnp.ones(T, bool))
    args = (network, RegressionWindow(x, jnp.asarray(seen), network.initial_state(), *slots, er.w))
    bound = window_objective(er)
    run = jax.jit(jax.vmap(lambda k: bound.grad({"adaptive": (vectors,)}, k, *args)))
    return run(jax.random.split(key, 10_000))["adaptive"][0]


@pytest.mark.slow  # an objective under vmap is compiled
def test_window_with_missing_cells_is_best_at_the_exact_smoother(key):
    """The gradient's mean is zero there, and is not where missing cells count as zeros: more than 7 standard errors."""
    grads = window_gradients(SEEN, best_vectors(SEEN), key)
    assert_unbiased(grads, np.zeros((T, 4)))
    wrong = window_gradients(np.ones_like(SEEN), best_vectors(SEEN), key)
    assert np.abs(wrong.mean(0) / (wrong.std(0) / 100)).max() > 7


@pytest.mark.slow  # an objective under vmap is compiled
def test_behind_the_last_seen_cell_vectors_have_no_gradient(key):
    """There q is the prior: so the others are best at the exact smoother, whatever the last vectors are."""
    seen = SEEN.copy()
    seen[4:] = False
    vectors = best_vectors(seen).at[4:].set(0.7)
    grads = window_gradients(seen, vectors, key)
    assert np.all(grads[:, 4:] == 0)
    assert_unbiased(grads[:, :4], np.zeros((4, 4)))


@pytest.mark.slow  # a regression of its own is compiled, 400 iterations for each of 200 streams
@pytest.mark.parametrize("ends_in_gap", [False, True], ids=["cells", "gap at the end"])
def test_predictions_are_those_of_kalman(ends_in_gap, key):
    seen = SEEN.copy()
    seen[4:] &= not ends_in_gap
    network, *_ = linear_network()
    er = ErrorRegression(
        network, window=T, num_iterations=400, w=2 / SIZE, num_particles=64,
        optimizer=optax.adam(optax.exponential_decay(0.1, 100, 0.25)),
    )  # fmt: skip
    x = jnp.asarray(np.where(seen, XS, np.nan), jnp.float32)
    run = jax.jit(jax.vmap(lambda k: er.run(er.init(k), x, seen)[1].emitted[:, 0].mean(1)))
    assert_unbiased(run(jax.random.split(key, 200)), kalman(seen))


def trained_bound(num_steps, seen, x, key):
    """Value and gradients of the weighted objective of two sequences at vectors that are not zero."""
    network = Network([(4, 2, 2.0), (3, 1, 4.0)], Gaussian(SIZE, 0.5), key=jax.random.key(1))
    programs = pv_rnn.programs(network, num_sequences=2, num_steps=num_steps)
    weights = pv_rnn.site_weights(network, [[0.5, 0.5], [0.3, 0.1]], num_steps=num_steps)
    bound = inference.elbo(
        *programs, kl="analytic", strategies={"z*": Frozen()}, check_jumps=False, site_weights=weights
    )  # fmt: skip
    args = (x, jnp.arange(2)) if seen is None else (x, jnp.arange(2), seen)
    params = bound.init(key, *args)
    full = pv_rnn.adaptive_vectors(network, 2, T, scale=0.5, key=jax.random.key(5))
    params["adaptive"] = tuple(a[:, :num_steps] for a in full)
    return bound.value_and_grad(params, key, *args)


@pytest.mark.slow  # two objectives are compiled
def test_padded_steps_count_for_nothing(key):
    """Value and gradients of sequences of 4 steps, padded to 6 by steps that are not seen; NaN in them is not read."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, T, SIZE)), jnp.float32)
    padded = x.at[:, 4:].set(jnp.nan)
    seen = jnp.broadcast_to(jnp.arange(T) < 4, (2, T))
    value, grads = trained_bound(T, seen, padded, key)
    short, short_grads = trained_bound(4, None, x[:, :4], key)
    np.testing.assert_allclose(value, short, rtol=1e-5)
    for long, want in zip(grads["adaptive"], short_grads["adaptive"], strict=True):
        assert np.all(long[:, 4:] == 0)
        np.testing.assert_allclose(long[:, :4], want, rtol=1e-4, atol=1e-5)
    nets = [jax.tree.leaves(g["network"]) for g in (grads, short_grads)]
    for a, b in zip(*nets, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # an objective is compiled
def test_a_missing_cell_takes_its_term_from_the_weighted_objective(key):
    """1/O log p of the cells that are seen: the rest of the value is the same, since noise is frozen."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, T, SIZE)), jnp.float32)
    seen = jnp.ones((2, T, SIZE), bool).at[0, 2, 1].set(False)
    one, _ = trained_bound(T, seen, x, key)
    other, _ = trained_bound(T, seen, x.at[0, 2, 1].add(3.0), key)
    whole, _ = trained_bound(T, None, x, key)
    far, _ = trained_bound(T, None, x.at[0, 2, 1].add(3.0), key)
    np.testing.assert_allclose(one, other, rtol=1e-6)
    # log N(x; m, s) = c - (x - m)^2 / 2 s^2: from two values of x its mean, and so its term.
    gap = (far - whole) * SIZE * 2 * 0.5**2
    m = x[0, 2, 1] + (gap + 9.0) / 6.0
    term = -0.5 * ((x[0, 2, 1] - m) / 0.5) ** 2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(one, whole - term / SIZE, rtol=1e-4)


@pytest.fixture(scope="module")
def small():
    network = Network([(3, 1)], Gaussian(SIZE), key=jax.random.key(0))
    return ErrorRegression(network, window=2, num_iterations=1, num_particles=2)


def test_what_is_not_seen_is_not_read(small, key):
    holes = jnp.array([0.3, jnp.nan])
    _, one = small.observe(small.init(key), holes, [True, False])
    stream, other = small.observe(small.init(key), jnp.array([0.3, 1e6]), [True, False])
    np.testing.assert_array_equal(one.emitted, other.emitted)
    assert np.all(np.isfinite(one.emitted))
    np.testing.assert_array_equal(stream.seen, [[False, False], [True, False]])
    _, step = small.observe(small.init(key), holes, False)
    assert np.all(np.isfinite(step.emitted))


def test_refusals(small, key):
    stream = small.init(key)
    with pytest.raises(ValueError, match=r"1 cells that count as seen are not finite, .*\[1\]"):
        small.observe(stream, jnp.array([0.0, jnp.nan]))
    with pytest.raises(ValueError, match=r"first at \[2, 0\]"):
        small.run(stream, jnp.zeros((4, SIZE)).at[2, 0].set(jnp.inf), np.ones(4, bool))
    with pytest.raises(ValueError, match=r"'seen' has shape \(3,\); .*\(4, 2\), .*\(4,\)"):
        small.run(stream, jnp.zeros((4, SIZE)), np.ones(3, bool))


@pytest.mark.slow  # a regression of its own is compiled
def test_missing_symbols(key):
    network = Network([(3, 1)], Categorical(3, 2), key=key)
    er = ErrorRegression(network, window=2, num_iterations=2, num_particles=3)
    xs = jnp.array([[0, 1], [2, 2], [1, 0]])
    seen = np.array([[True, False], [True, True], [False, True]])
    _, one = er.run(er.init(key), xs, seen)
    _, other = er.run(er.init(key), jnp.where(seen, xs, 2), seen)
    np.testing.assert_array_equal(one.emitted, other.emitted)

"""The benchmark's own score, with scikit-learn's classifier compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.model_selection import KFold

_BATCH, _DECAY = 200, 1e-4
_RATE, _FIRST, _SECOND, _EPS = 1e-3, 0.9, 0.999, 1e-8  # of Adam
_GAIN, _PATIENCE, _MOST = 1e-4, 10, 10_000  # epochs without a gain of the training loss


def c2st(reference, draws, seed=1):
    """Held-out accuracy of the benchmark's classifier, 1/2 where nothing tells the two apart: both z-scored by the first.

    In single precision, as there. The classifier is `MLPClassifier(activation="relu", hidden_layer_sizes=(10 d, 10 d),
    max_iter=10_000, solver="adam", random_state=seed)` of scikit-learn 1.9 in five folds, step by step: its start, its order of
    rows, its Adam, its end, from the same random numbers. What differs is rounding.
    """
    mean, sd = reference.mean(0), reference.std(0, ddof=1)
    x = np.concatenate([(reference - mean) / sd, (draws - mean) / sd]).astype(np.float32)
    y = np.repeat(np.float32([0, 1]), [len(reference), len(draws)])
    folds = KFold(n_splits=5, shuffle=True, random_state=seed).split(x)
    right = lambda net, rows: ((_odds(net, x[rows]) > 0) == y[rows]).mean()
    return float(np.mean([right(trained(x[a], y[a], seed), b) for a, b in folds]))


def trained(x, y, seed):
    """The network after as many epochs as the loss on these rows falls."""
    rng = np.random.RandomState(seed)
    sizes = x.shape[1], 10 * x.shape[1], 10 * x.shape[1], 1
    net = [_layer(rng, *pair) for pair in zip(sizes, sizes[1:], strict=False)]
    zeros = jax.tree.map(np.zeros_like, net)
    state, order = (net, zeros, zeros, np.float32(0)), np.arange(len(x))
    # The last batch has fewer rows; those that fill it up do not count.
    filled = -(-len(x) // _BATCH) * _BATCH
    count = (np.arange(filled) < len(x)).astype(np.float32).reshape(-1, _BATCH)
    least, without_gain = np.inf, 0
    for _ in range(_MOST):
        order = order[rng.permutation(len(x))]
        rows = np.resize(order, filled)
        parts = x[rows].reshape(-1, _BATCH, x.shape[1]), y[rows].reshape(-1, _BATCH), count
        state, losses = _epoch(state, parts)
        loss = float(np.asarray(losses, float).sum() / len(x))
        without_gain = without_gain + 1 if loss > least - _GAIN else 0
        least = min(least, loss)
        if without_gain > _PATIENCE:
            break
    return state[0]


def _layer(rng, fan_in, fan_out):
    bound = (6 / (fan_in + fan_out)) ** 0.5
    return tuple(np.float32(rng.uniform(-bound, bound, s)) for s in ((fan_in, fan_out), fan_out))


@jax.jit
def _odds(net, x):
    for weights, bias in net[:-1]:
        x = jax.nn.relu(x @ weights + bias)
    weights, bias = net[-1]
    return (x @ weights + bias)[:, 0]


@functools.partial(jax.jit, donate_argnums=0)
def _epoch(state, parts):
    """State after the batches, and of each its loss times its rows."""

    def loss(net, x, y, count):
        odds = _odds(net, x)
        decay = _DECAY / 2 * sum((weights**2).sum() for weights, _ in net)
        return (((jax.nn.softplus(odds) - y * odds) * count).sum() + decay) / count.sum()

    def step(state, part):
        net, first, second, number = state
        value, slope = jax.value_and_grad(loss)(net, *part)
        number += 1
        rate = _RATE * jnp.sqrt(1 - _SECOND**number) / (1 - _FIRST**number)
        first = jax.tree.map(lambda m, g: _FIRST * m + (1 - _FIRST) * g, first, slope)
        second = jax.tree.map(lambda v, g: _SECOND * v + (1 - _SECOND) * g**2, second, slope)
        move = lambda w, m, v: w - rate * m / (jnp.sqrt(v) + _EPS)
        net = jax.tree.map(move, net, first, second)
        return (net, first, second, number), value * part[-1].sum()

    return jax.lax.scan(step, state, parts)

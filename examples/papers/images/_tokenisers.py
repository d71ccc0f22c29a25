"""Tokens of patches of images: k-means of raw patches, a vector-quantised autoencoder, k-means of invariant features."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _mnist import GRID, SIDE
from _two_stage import fitted, with_params
from sklearn.cluster import KMeans

from lapilli import inference, ppl

PATCH, NUM_TOKENS = 2, 49
NOISE = 0.05 * 4  # of grey values in [0, 1], in points
fit = functools.partial(fitted, average=0.99)  # few steps, of which the first should not count
Tokeniser = Callable[[np.ndarray], np.ndarray]  # points [n, 196] -> tokens [n, 49]


def windows(points: np.ndarray, margin: int) -> np.ndarray:
    """Patches with a margin of pixels around, [n, 49, (2 + 2 margin)^2]; beyond the border it is white."""
    x = np.pad(points.reshape(-1, SIDE, SIDE), ((0, 0), (margin, margin), (margin, margin)), constant_values=GRID[0])  # fmt: skip
    size = PATCH + 2 * margin
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return view[:, ::PATCH, ::PATCH].reshape(len(x), NUM_TOKENS, size * size)


def clustered(features: Callable[[np.ndarray], np.ndarray], points: np.ndarray, num: int, seed: int) -> Tokeniser:  # fmt: skip
    """K-means of features [n, 49, d] of all patches."""
    found = features(points)
    rows = found.reshape(-1, found.shape[-1])
    some = np.random.default_rng(seed).choice(len(rows), min(len(rows), 20_000), replace=False)
    means = KMeans(num, n_init=2, max_iter=50, random_state=seed).fit(rows[some])
    tokens = lambda f: means.predict(np.ascontiguousarray(f.reshape(-1, f.shape[-1]), rows.dtype))
    return lambda points: tokens(features(points)).reshape(-1, NUM_TOKENS)


class Quantised(eqx.Module):
    """Windows to the nearest vector of a book, and back to patches."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP
    book: jax.Array

    def number(self, window: Any) -> Any:
        """Of the nearest vector."""
        return jnp.argmin(jnp.square(self.encoder(window) - self.book).sum(-1))

    def error(self, window: Any) -> Any:
        """Squared error of the patch in the window's middle, and what ties book and encoder to each other."""
        code = self.encoder(window)
        vector = self.book[self.number(window)]
        through = code + jax.lax.stop_gradient(vector - code)
        patch = window.reshape(2 * PATCH, 2 * PATCH)[1:-1, 1:-1].ravel()
        stay = jax.lax.stop_gradient
        ties = jnp.square(stay(code) - vector).sum() + 0.25 * jnp.square(code - stay(vector)).sum()
        return jnp.square(self.decoder(through) - patch).sum() + ties


def autoencoder(points: np.ndarray, num_values: int, num_steps: int, key: jax.Array) -> Tokeniser:
    """Tokens of a vector-quantised autoencoder, whose book begins as codes of random windows."""
    keys, seen = jax.random.split(key, 4), windows(points, 1)
    mlp = lambda a, b, key: eqx.nn.MLP(a, b, 64, 1, jax.nn.silu, key=key)
    encoder = mlp(16, 8, keys[0])
    rows = seen.reshape(-1, 16)
    some = rows[np.random.default_rng(0).choice(len(rows), num_values, replace=False)]
    start = Quantised(encoder, mlp(8, PATCH**2, keys[1]), jax.vmap(encoder)(jnp.asarray(some)))

    @ppl.model
    def model(x: Any) -> None:
        net = ppl.module("net", start)
        with ppl.plate("rows", x.shape[0]):
            ppl.factor("patches", -jax.vmap(jax.vmap(net.error))(x).sum(1))

    objective = inference.elbo(model, ppl.model(lambda x: None))
    params = fit(objective, (jnp.asarray(seen),), num_steps, keys[2], 64)
    net = with_params(start, params["net"])
    number = eqx.filter_jit(lambda net, x: jax.vmap(jax.vmap(net.number))(x))
    return lambda points: np.asarray(number(net, jnp.asarray(windows(points, 1))))


def invariant(
    points: np.ndarray, num_values: int, num_steps: int, seed: int, key: jax.Array
) -> Tokeniser:
    """Tokens of features that two noisy views of a window share (VICReg, arXiv:2105.04906).

    A loss of the batch, not a sum over its rows, so that no program with a plate stands for it.
    """
    keys, seen = jax.random.split(key, 2), windows(points, 2)
    net = eqx.nn.MLP(seen.shape[-1], 16, 64, 2, jax.nn.silu, key=keys[0])
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    rows = jnp.asarray(seen.reshape(-1, seen.shape[-1]))

    def loss(net: Any, x: Any, key: Any) -> Any:
        noise_key, factor_key = jax.random.split(key)
        factor = 1 + 0.2 * jax.random.normal(factor_key, (2, len(x), 1))
        noise = 2 * NOISE * jax.random.normal(noise_key, (2, *x.shape))
        a, b = jax.vmap(jax.vmap(net))(factor * (x - GRID[0]) + GRID[0] + noise)
        apart = lambda z: jnp.maximum(0.0, 1 - jnp.sqrt(z.var(0) + 1e-4)).mean()
        mixed = lambda z: jnp.square(jnp.cov(z.T) * (1 - jnp.eye(z.shape[1]))).sum() / z.shape[1]
        return 25 * jnp.square(a - b).mean() + 25 * (apart(a) + apart(b)) + mixed(a) + mixed(b)

    @eqx.filter_jit
    def trained(net: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            arrays, state = carry
            row_key, view_key = jax.random.split(key)
            x = rows[jax.random.randint(row_key, (1_024,), 0, len(rows))]
            of = lambda arrays: loss(eqx.combine(arrays, static), x, view_key)
            change, state = optimizer.update(jax.grad(of)(arrays), state)
            return (optax.apply_updates(arrays, change), state), None

        arrays, static = eqx.partition(net, eqx.is_inexact_array)
        steps = jax.random.split(keys[1], num_steps)
        (arrays, _), _ = jax.lax.scan(step, (arrays, optimizer.init(arrays)), steps)
        return eqx.combine(arrays, static)

    net = trained(net)
    run = eqx.filter_jit(lambda net, x: jax.vmap(jax.vmap(net))(x))
    features = lambda points: np.asarray(run(net, jnp.asarray(windows(points, 2))))
    return clustered(features, points, num_values, seed)

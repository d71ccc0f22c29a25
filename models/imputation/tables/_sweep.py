"""One sweep of the chain over a table, and the completion of rows under parameters that are known."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int, PyTree

from ....ppl._precision import full_precision
from ....ppl._types import Key
from ._categories import draw_weights, logits
from ._numbers import draw_parameters, gains, given_seen, root

Levels = tuple[int, ...]  # numbers of levels of the columns of categories
LEAST_PATTERNS = 16


class Cells(NamedTuple):
    """What is known of rows.

    Attributes:
        x: numbers in standard units, 0 where they are missing, [rows, d].
        x_seen: which are known.
        c: numbers of levels, 0 where they are missing, [rows, k].
        c_seen: which are known.
        patterns: what is known of the numbers, each combination once (and filled up), [patterns, d].
        pattern: number of the combination of each row, [rows].
    """

    x: PyTree
    x_seen: Any
    c: Any
    c_seen: Any
    patterns: Any
    pattern: Any

    @classmethod
    def of(cls, x: np.ndarray, c: np.ndarray) -> Cells:
        """From numbers with NaN, and levels with -1, where they are missing."""
        x_seen, c_seen = ~np.isnan(x), c >= 0
        patterns, pattern = np.unique(x_seen, axis=0, return_inverse=True)
        # Few shapes, few compilations.
        width = max(LEAST_PATTERNS, 1 << (len(patterns) - 1).bit_length())
        patterns = np.concatenate([patterns, np.ones((width - len(patterns), x.shape[1]), bool)])
        return cls(
            np.where(x_seen, x, 0.0).astype(np.float32), x_seen, np.where(c_seen, c, 0).astype(np.int32), c_seen, patterns,
            pattern.ravel().astype(np.int32),
        )  # fmt: skip


class TableParameters(NamedTuple):
    """Parameters of the law of a row.

    Attributes:
        coefficients: B, [q, d].
        tril: L, [d, d].
        weights: of the levels of each column of categories, [k, most levels, 1 + d + dummies].
    """

    coefficients: Any
    tril: Any
    weights: PyTree


class TableState(NamedTuple):
    """A completed table, and the weights of its categories."""

    x: PyTree
    c: Any
    weights: PyTree


class Completion(NamedTuple):
    """Completed rows under parameters.

    Attributes:
        x: a draw of the numbers, [rows, d].
        c: a draw of the levels, [rows, k].
        mean: expectations of the numbers given what is known of the row.
        probs: probabilities of the levels, [rows, k, most levels].
    """

    x: PyTree
    c: Any
    mean: Any
    probs: Any


def start(rng: np.random.Generator, cells: Cells, levels: Levels) -> TableState:
    """A table completed at random, column by column: further apart than the posterior's."""
    x = np.where(cells.x_seen, cells.x, rng.normal(size=cells.x.shape)).astype(np.float32)
    c = np.array(cells.c)
    for k in range(len(levels)):
        seen = cells.c_seen[:, k]
        c[~seen, k] = rng.choice(cells.c[seen, k], (~seen).sum())
    width = 1 + x.shape[1] + sum(levels) - len(levels)
    return TableState(x, c, np.zeros((len(levels), max(levels, default=1), width), np.float32))


@full_precision
def sweep(
    key: Key, state: TableState, cells: Cells, levels: Levels
) -> tuple[TableState, TableParameters, Float[Array, " summaries"]]:
    """The table and the weights after one sweep, the parameters drawn on the way, and `summaries` of the table before."""
    keys = jax.random.split(key, 3)
    design, x, d = _design(state.c, levels), state.x, cells.x.shape[1]
    R = root(design, x)
    B, L = jnp.zeros((design.shape[1], d)), jnp.zeros((d, d))
    if d:
        B, L = draw_parameters(keys[0], R, *design.shape)
        gain = gains(L, cells.patterns)[cells.pattern]
        draw = design @ B + jax.random.normal(keys[1], x.shape) @ L.T
        x = given_seen(draw, cells.x, cells.x_seen, gain)
    c, weights = state.c, state.weights
    if levels:
        own, exists = _own(d, levels)

        def column(c: Array, inputs: PyTree) -> tuple[Array, Array]:
            k, key, weights, own, exists = inputs
            features = _features(x, c, levels) * own
            weight_key, cell_key = jax.random.split(key)
            weights = draw_weights(
                weight_key, weights, features, cells.c[:, k], cells.c_seen[:, k], exists
            )
            drawn = jax.random.categorical(cell_key, logits(weights, features, exists))
            return c.at[:, k].set(jnp.where(cells.c_seen[:, k], cells.c[:, k], drawn)), weights

        each = (jnp.arange(len(levels)), jax.random.split(keys[2], len(levels)))
        c, weights = jax.lax.scan(column, c, (*each, weights, own, exists))
    return TableState(x, c, weights), TableParameters(B, L, weights), _summaries(R)


@full_precision
def completed(
    params: TableParameters, cells: Cells, keys: Key, levels: Levels, num_sweeps: PyTree
) -> Completion:
    """Rows completed under known parameters, each from its own key.

    Without categories the draws are exact; with some, numbers and categories are drawn in turn `num_sweeps` times, and
    expectations are means over the second half of them.
    """
    x, c, d = cells.x, cells.c, cells.x.shape[1]
    width = max(levels, default=1)
    own, exists = _own(d, levels)
    gain = gains(params.tril, cells.patterns)[cells.pattern] if d else x
    num_sweeps = num_sweeps if levels else 1

    def round_(number: Array, carry: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
        x, c, mean, probs = carry
        row_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(keys)
        counts = number >= num_sweeps // 2
        if d:
            loc = _design(c, levels) @ params.coefficients
            noise = jax.vmap(lambda key: jax.random.normal(key, (d,)))(row_keys[:, 0])
            x = given_seen(loc + noise @ params.tril.T, cells.x, cells.x_seen, gain)
            mean = mean + counts * given_seen(loc, cells.x, cells.x_seen, gain)
        for k in range(len(levels)):
            found = logits(params.weights[k], _features(x, c, levels) * own[k], exists[k])
            draw = lambda key, row, k=k: jax.random.categorical(jax.random.fold_in(key, k), row)
            drawn = jax.vmap(draw)(row_keys[:, 1], found)
            c = c.at[:, k].set(jnp.where(cells.c_seen[:, k], cells.c[:, k], drawn))
            probs = probs.at[:, k].add(counts * jax.nn.softmax(found))
        return x, c, mean, probs

    if levels:  # missing levels begin where these regressions put them at the mean of all numbers
        first = jnp.stack([params.weights[:, :, 0]] * len(c))
        begins = lambda key, row: jax.random.categorical(jax.random.fold_in(key, 2**31), row)
        drawn = jax.vmap(begins)(keys, jnp.where(exists, first, -jnp.inf))
        c = jnp.where(cells.c_seen, c, drawn)
    begin = (x, c, jnp.zeros_like(x), jnp.zeros((*c.shape, width)))
    x, c, mean, probs = jax.lax.fori_loop(0, num_sweeps, round_, begin)
    count = num_sweeps - num_sweeps // 2
    return Completion(x, c, mean / count, probs / count)


@full_precision
def residuals_of(
    params: TableParameters, x: Float[Array, "rows d"], c: Int[Array, "rows k"], levels: Levels
) -> Float[Array, "rows d"]:
    """Each number less its expectation given the rest of its row, in units of its precision: Sigma^-1 (x - mean)."""
    gap = x - _design(c, levels) @ params.coefficients
    return cho_solve((params.tril, True), gap.T).T


def _dummies(c: Int[Array, "rows k"], levels: Levels) -> list[Array]:
    return [jax.nn.one_hot(c[:, k], count)[:, 1:] for k, count in enumerate(levels)]


def _design(c: Int[Array, "rows k"], levels: Levels) -> Float[Array, "rows q"]:
    """One and dummies."""
    return jnp.concatenate([jnp.ones((len(c), 1)), *_dummies(c, levels)], 1)


def _features(x: Float[Array, "rows d"], c: Int[Array, "rows k"], levels: Levels) -> Array:
    """One, numbers and dummies."""
    return jnp.concatenate([jnp.ones((len(c), 1)), x, *_dummies(c, levels)], 1)


def _own(d: int, levels: Levels) -> tuple[np.ndarray, Bool[np.ndarray, "k levels"]]:
    """Which features each category's regression reads, all but its own dummies; which levels it has."""
    width, first = 1 + d + sum(levels) - len(levels), 1 + d
    own = np.ones((len(levels), width), np.float32)
    exists = np.arange(max(levels, default=1)) < np.array(levels, int)[:, None]
    for k, count in enumerate(levels):
        own[k, first : first + count - 1] = 0
        first += count - 1
    return own, exists


@full_precision
def _summaries(R: Float[Array, "q+d q+d"]) -> Float[Array, " summaries"]:
    """Means, log-spreads and correlations of dummies and numbers of a completed table, from its root."""
    centred = R[1:, 1:]
    spread = jnp.sqrt((centred**2).sum(0))
    unit = centred / spread
    return jnp.concatenate([R[0, 1:] / R[0, 0], jnp.log(spread), (unit.T @ unit).ravel()])

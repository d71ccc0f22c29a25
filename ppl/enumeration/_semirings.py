"""What a product and a sum of factors are: probabilities as they stand, or log-weights under one of three reductions.

In logs the reduction is the only operation that knows what is asked: log-sum-exp (with its own derivative, the posterior),
or one whose derivative marks one value, the largest (max-product) or one drawn in proportion. Differentiating a whole
elimination in a bias on the sites' values therefore gives marginals, the most probable assignment, or, by the forward
recursion run backwards, an exact joint draw.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

Array = jax.Array
Kind = Literal["sum", "max", "sample"]


class Probabilities:
    """Numbers that are multiplied and added."""

    is_numbered = False  # whether a sum depends on the number of the step

    def times(self, *arrays: Array) -> Array:
        """The product of broadcasting arrays."""
        return functools.reduce(operator.mul, arrays)

    def sum(self, x: Array, axes: Sequence[int], number: Any = 0) -> Array:
        """The sum over axes, at a step."""
        return x.sum(axes)

    def of(self, weights: np.ndarray) -> np.ndarray:
        """Weights 0 and 1 as its elements."""
        return weights

    def scale(self, x: Array, axes: Sequence[int]) -> None:
        """None is needed: what is multiplied are conditional probabilities."""


class Scale(NamedTuple):
    """The logarithm of a factor, as the sum of two numbers of one precision, the second below the rounding of the first."""

    log: Array
    rest: Array

    def taken(self, x: Array, axes: Sequence[int]) -> tuple[Array, Scale]:
        """Log-weights relative to the largest along axes, which goes to the scale.

        What is taken is a constant for derivatives, since it is given back (`times`).
        """
        largest = jax.lax.stop_gradient(x.max(axes, keepdims=True))
        largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
        return x - largest, self.plus(jnp.squeeze(largest, axes))

    def plus(self, log: Array) -> Scale:
        """The scale with a logarithm added, by Knuth's exact sum of two numbers."""
        total = self.log + log
        other = total - self.log
        rest = self.rest + ((self.log - (total - other)) + (log - other))
        rounded = total + rest
        return Scale(rounded, rest - (rounded - total))

    def times(self, x: Array) -> Array:
        """Log-weights with what was taken from them."""
        return self.log + (self.rest + x)


class LogWeights:
    """Logarithms of weights."""

    def __init__(self, kind: Kind = "sum", key: Array | None = None) -> None:
        self.kind: Kind = kind
        self.key = key
        self.is_numbered = kind == "sample"

    def numbered(self, number: int) -> LogWeights:
        """These operations with noise of their own."""
        key = None if self.key is None else jax.random.fold_in(self.key, number)
        return LogWeights(self.kind, key)

    def times(self, *arrays: Array) -> Array:
        """The product of broadcasting arrays."""
        return functools.reduce(operator.add, arrays)

    def sum(self, x: Array, axes: Sequence[int], number: PyTree = 0) -> Array:
        """The reduction over axes, at a step."""
        if self.kind == "sum":
            return log_sum_exp(x, tuple(axes))
        kept = [a for a in range(x.ndim) if a not in axes]
        sizes = [*(x.shape[a] for a in kept), math.prod(x.shape[a] for a in axes)]
        x = jnp.transpose(x, [*kept, *axes]).reshape(sizes)
        if self.kind == "max":
            return _marked(x, x, True)
        assert self.key is not None
        noise = jax.random.gumbel(jax.random.fold_in(self.key, number), x.shape, x.dtype)
        return _marked(x, x + noise, False)

    def of(self, weights: np.ndarray) -> np.ndarray:
        """Weights 0 and 1 as its elements."""
        return np.where(weights > 0, 0.0, -np.inf)

    def scale(self, x: Array, axes: Sequence[int]) -> Scale:
        """The logarithm 0 of what is taken from an array along axes."""
        nothing = jnp.zeros([n for a, n in enumerate(x.shape) if a not in axes], x.dtype)
        return Scale(nothing, nothing)


Semiring = Probabilities | LogWeights


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_sum_exp(x: Array, axes: tuple[int, ...]) -> Array:
    """`logsumexp` whose derivative is zero, not NaN, where all terms are -inf (a state that is never reached)."""
    largest, _, total = _exponentials(x, axes)
    return jnp.log(total) + largest


@log_sum_exp.defjvp
def _(axes: tuple[int, ...], primals: PyTree, tangents: PyTree) -> PyTree:
    largest, terms, total = _exponentials(primals[0], axes)
    weights = terms / jnp.expand_dims(jnp.where(total > 0, total, 1.0), axes)
    return jnp.log(total) + largest, (weights * tangents[0]).sum(axes)


def _exponentials(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The largest term (0 if all are -inf); all terms relative to it; their sum."""
    largest = jax.lax.stop_gradient(x.max(axes))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    terms = jnp.exp(x - jnp.expand_dims(largest, axes))
    return largest, terms, terms.sum(axes)


def _marked(x: Array, race: Array, is_max: bool) -> Array:
    """Max or log-sum-exp over the last axis, whose derivative is one at the winner of the race and zero elsewhere."""
    value = x.max(-1) if is_max else jax.nn.logsumexp(x, axis=-1)
    hot = jax.nn.one_hot(race.argmax(-1), x.shape[-1], dtype=x.dtype)
    stop = jax.lax.stop_gradient
    chosen = jnp.where(hot > 0, x, 0.0).sum(-1)
    return stop(value) + jnp.where(jnp.isfinite(chosen), chosen - stop(chosen), 0.0)

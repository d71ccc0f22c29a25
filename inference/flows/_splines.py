"""Monotone rational-quadratic splines, and their inverses.

Between knots (x_k, y_k) and (x_{k+1}, y_{k+1}) with derivatives d_k and d_{k+1}, w = x_{k+1} - x_k, h = y_{k+1} - y_k, s = h / w,
at xi = (x - x_k) / w (Durkan et al. 2019, arXiv:1906.04032, equations 4 to 8):

    y  = y_k + h (s xi^2 + d_k xi (1 - xi)) / (s + (d_{k+1} + d_k - 2 s) xi (1 - xi))
    y' = s^2 (d_{k+1} xi^2 + 2 s xi (1 - xi) + d_k (1 - xi)^2) / (s + (d_{k+1} + d_k - 2 s) xi (1 - xi))^2

The value is computed as a sum over bins, each at its xi clipped to [0, 1]: bins below give their height, bins above nothing. No
bin is looked up, so that the code has no comparison at which it could jump; the logarithm of the derivative, which is
continuous, is summed in the same way.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
HALF_WIDTH = 5.0  # of the spline, five standard deviations of what goes in
# Below what is positive: no rounding makes a NaN of it, and the search for jumps sees that there can be none.
_TINY = 1e-30
_LEAST = 1e-3  # share of a bin's width and height, and derivative
MOST_BINS = round(0.5 / _LEAST)  # then half of the interval is theirs by right
_UNIT = float(np.log(np.expm1(1.0 - _LEAST)))  # softplus of it, and the least, make 1


class Knots(NamedTuple):
    """Splines by their bins, arrays [*batch, K]: left and lower ends, sizes, derivatives at both ends."""

    left: Array
    lower: Array
    width: Array
    height: Array
    first: Array
    last: Array

    @classmethod
    def of(cls, numbers: Array) -> Knots:
        """The spline of unconstrained numbers [*batch, 3 K - 1]; of zeros the identity."""
        num_bins = (numbers.shape[-1] + 1) // 3
        sizes = [_sizes(part) for part in jnp.split(numbers[..., : 2 * num_bins], 2, -1)]
        ends = [size.cumsum(-1) - size - HALF_WIDTH for size in sizes]
        inner = _LEAST + jax.nn.softplus(numbers[..., 2 * num_bins :] + _UNIT)
        one = jnp.ones((*inner.shape[:-1], 1))
        first, last = jnp.concatenate([one, inner], -1), jnp.concatenate([inner, one], -1)
        return cls(ends[0], ends[1], sizes[0], sizes[1], first, last)

    def value(self, x: Array) -> Array:
        """s(x), [*batch]."""
        xi = jnp.clip((x[..., None] - self.left) / self.width, 0.0, 1.0)
        rises = self.height * xi * (self._slope * xi + self.first * (1 - xi)) / self._below(xi)
        return rises.sum(-1) - HALF_WIDTH + _outside(x)

    def log_derivative(self, x: Array) -> Array:
        """The logarithm of s'(x), [*batch]."""
        xi = jnp.clip((x[..., None] - self.left) / self.width, 0.0, 1.0)
        slope = self._slope
        above = self.last * xi**2 + 2 * slope * xi * (1 - xi) + self.first * (1 - xi) ** 2
        there = 2 * jnp.log(slope / self._below(xi)) + jnp.log(jnp.maximum(above, _TINY))
        return (there - jnp.log(self.first)).sum(-1)  # from 0 on the left on

    def inverse(self, y: Array) -> Array:
        """The x of s(x) = y, [*batch]."""
        eta = jnp.clip((y[..., None] - self.lower) / self.height, 0.0, 1.0)
        slope, bend = self._slope, self._bend
        a, b, c = slope - self.first + eta * bend, self.first - eta * bend, -slope * eta
        # Both are positive: the root is the slope of eta times `_below`, the sum 2 s eta / xi.
        root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, _TINY))
        xi = -2 * c / jnp.maximum(b + root, _TINY)
        return (self.width * xi).sum(-1) - HALF_WIDTH + _outside(y)

    @property
    def _slope(self) -> Array:
        return self.height / self.width

    @property
    def _bend(self) -> Array:
        return self.first + self.last - 2 * self._slope

    def _below(self, xi: Array) -> Array:
        """The slope s + (d_k + d_{k+1} - 2 s) xi (1 - xi), as a sum of positive terms."""
        ends = self._slope * (xi**2 + (1 - xi) ** 2) + (self.first + self.last) * xi * (1 - xi)
        return jnp.maximum(ends, _TINY)


def _sizes(numbers: Array) -> Array:
    share = jax.nn.softmax(numbers, -1)
    return 2 * HALF_WIDTH * (_LEAST + (1 - _LEAST * numbers.shape[-1]) * share)


def _outside(x: Array) -> Array:
    return x - jnp.clip(x, -HALF_WIDTH, HALF_WIDTH)

"""Equations that are not affine in the sites, by affine ones: approximations that a user has asked for.

*Extended*: at the mean that is believed when the equation runs, f(x) becomes f(m) + f'(m) (x - m). The scale of a law whose mean
depends on the sites becomes what it is there (Sarkka 2013, algorithm 5.5: noise that is not additive).

*Unscented*: values are computed at the points m +- sqrt(k) r_i, r_i the k columns of the root of what is believed, up to the next
statement. There they become what has their means and covariances,

    y = mean(y) + G u + S e,    u the whitened belief, e noise of its own,
    g_i = (y_i+ - y_i-) / (2 sqrt k),    s_i = ((y_i+ + y_i-) / 2 - mean(y)) / sqrt k,

exact for polynomials of degree three (the points of Julier and Uhlmann 1997 with kappa = 0: no weight is negative).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._compat import Equation, aval_of, bind
from .._precision import full_precision
from ._arranged import flat, matrix_of, unflat
from ._forms import Form, PointValues, rows_of
from .beliefs import Belief

Array = jax.Array
APPROXIMATIONS = ("ekf", "ukf")


def mean_of(form: Form, belief: Belief) -> Array:
    """What a value is at the mean of the belief."""
    mean = belief.at(flat(form.const, form.rows), matrix_of(form, belief.size))
    return unflat(mean, form.rows, form.const.shape)


def is_smooth(eqn: Equation) -> bool:
    """Whether an equation makes real numbers, which may have a derivative."""
    return all(jnp.issubdtype(aval_of(v).dtype, jnp.floating) for v in eqn.outvars)


def linearised(
    eqn: Equation, args: Sequence[PyTree], belief: Belief, points: Sequence[Array]
) -> list[Form]:
    """What an equation makes of values, to first order around a point of the uncertain ones.

    Raises:
        RowsMeet: rows of the basis do not stay apart.
    """
    uncertain = [i for i, x in enumerate(args) if isinstance(x, Form)]

    def fn(*values: Array) -> list[PyTree]:
        operands = list(args)
        for i, x in zip(uncertain, values, strict=True):
            operands[i] = x
        return bind(eqn, operands)

    base, push = jax.linearize(fn, *points)
    coefs = [args[i].wide(belief.size) for i in uncertain]
    slopes = jax.vmap(push)(*coefs)
    away = push(*(p - args[i].const for i, p in zip(uncertain, points, strict=True)))
    rows = rows_of(eqn, args)
    return [Form(b - a, s, r) for b, a, s, r in zip(base, away, slopes, rows, strict=True)]


def at_points(eqn: Equation, args: Sequence[PyTree], belief: Belief) -> list[PointValues]:
    """What an equation makes of values at the points of the belief."""
    given = [points_of(x, belief).values if isinstance(x, Form | PointValues) else x for x in args]
    axes = [0 if isinstance(x, Form | PointValues) else None for x in args]
    values = jax.vmap(lambda *xs: bind(eqn, list(xs)), in_axes=axes)(*given)
    return [PointValues(x, r) for x, r in zip(values, rows_of(eqn, args), strict=True)]


@full_precision
def points_of(value: Form | PointValues, belief: Belief) -> PointValues:
    """A value at the points of the belief, which is whole."""
    if isinstance(value, PointValues):
        return value
    num = belief.root.shape[-1]
    scale = jnp.sqrt(jnp.asarray(num, belief.root.dtype))
    steps = jnp.moveaxis(scale * belief.root, -1, 0)  # (k, *rows, n)
    basis = belief.mean[None] + jnp.concatenate([steps, -steps])
    matrix = matrix_of(value, belief.size)
    numbers = flat(value.const, value.rows)[None] + (matrix[None] @ basis[..., None])[..., 0]
    return PointValues(
        unflat(numbers, value.rows, value.const.shape).astype(value.const.dtype), value.rows
    )


@full_precision
def joint_of(values: Sequence[Form | PointValues], belief: Belief) -> Belief:
    """The law of values, one after the other: those that are affine as they are, those at points by their moments."""
    belief = belief.whole()
    means, tops, rests = [], [], []
    for value in values:
        if isinstance(value, PointValues):
            mean, slope, rest = moments_of(value)
        else:
            matrix = matrix_of(value, belief.size)
            mean, slope = belief.at(flat(value.const, value.rows), matrix), matrix @ belief.root
            rest = jnp.zeros_like(slope)
        means.append(mean)
        tops.append(slope)
        rests.append(rest)
    root = jnp.concatenate([jnp.concatenate(tops, -2), jnp.concatenate(rests, -2)], -1)
    return belief.widened(jnp.concatenate(means, -1), root).squared()


def moments_of(points: PointValues) -> tuple[Array, Array, Array]:
    """Mean, G and S of a value at points, shapes (*rows, m), (*rows, m, k), (*rows, m, k)."""
    values = jax.vmap(lambda x: flat(x, points.rows))(points.values)
    num = values.shape[0] // 2
    plus, minus = values[:num], values[num:]
    middle, scale = (plus + minus) / 2, jnp.sqrt(jnp.asarray(num, values.dtype))
    mean = middle.mean(0)
    slope, rest = (plus - minus) / (2 * scale), (middle - mean[None]) / scale
    return mean, jnp.moveaxis(slope, 0, -1), jnp.moveaxis(rest, 0, -1)

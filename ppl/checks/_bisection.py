"""The change that is left of the largest step of a path's grid once it is halved down to neighbouring numbers.

A path is looked at on a grid, and from the step with the largest change on halved toward the larger change until its ends are
neighbouring floating-point numbers. A continuous program then changes by rounding only; a jump stays. Numbers are dense beside 0,
where a path starts: a step that spans orders of magnitude is divided at the geometric mean of its ends (of log z, where z starts
at the smallest number, 64 halves would leave most of the change in the first one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_BISECTIONS = 76  # of float64: 12 down to a factor of 2 between the ends, 53 for the digits, some beside poles
WIDE = 8.0  # of a step: its end over its start
SHARES = np.array([0.5, 0.3, 0.7, 0.4, 0.0])  # where a step is divided, after so many losses


class _State(NamedTuple):
    """On the way along a path: the step [a, b] in which a jump is looked for, and the outputs there."""

    n: Any
    num_lost: Any
    goes_on: Any
    largest: jax.Array
    beside: jax.Array  # the change of the half that was cut off last
    a: jax.Array
    b: jax.Array
    fa: list[jax.Array]
    fb: list[jax.Array]
    start: list[jax.Array]
    last: list[jax.Array]
    is_finite: jax.Array


def largest_change(
    at: Callable[[jax.Array], list[jax.Array]],
    counts: jax.Array,
    enough: Any,
    *,
    is_term: np.ndarray,
    num_points: int,
    is_double: bool,
) -> tuple[jax.Array, jax.Array]:
    """The largest change, relative to 1 + |value|, of the outputs that count; whether one of them was finite anywhere.

    Halving goes toward the larger change of the outputs that count, until it is not above `enough`. Grid and halving are one
    loop, so that the program is compiled once.

    Args:
        at: the outputs at a point of [0, 1]; the last one is the result.
        counts: of the outputs before it, those that count.
        enough: where halving ends.
        is_term: which of them are terms of the result: a jump that the result does not make with them is none.
        num_points: of the grid.
        is_double: whether outputs have the rounding of float64.
    """

    def change(x: list[jax.Array], y: list[jax.Array], scale: list[jax.Array]) -> jax.Array:
        """Largest change of the outputs that count, on a scale that is the same for all that are compared."""
        return jnp.max(jnp.where(counts, jnp.stack(_changes(x, y, scale)[:-1]), 0.0))

    def middle(s: _State) -> jax.Array:
        share = jnp.asarray(SHARES)[s.num_lost]
        low = jnp.maximum(s.a, jnp.finfo(s.a.dtype).tiny)
        is_wide = s.b > WIDE * low
        return jnp.where(is_wide, low * (s.b / low) ** share, s.a + share * (s.b - s.a))

    def goes_on(s: _State) -> jax.Array:
        m = middle(s)
        is_open = (s.n <= num_points + NUM_BISECTIONS) & (s.a < m) & (m < s.b)
        is_open &= (s.num_lost < len(SHARES) - 1) & (change(s.fa, s.fb, s.fa) > enough)
        return (s.n <= num_points) | is_open

    def go(s: _State) -> _State:
        on_grid = s.n <= num_points
        t = jnp.where(on_grid, s.n / num_points, middle(s))
        f = at(t)
        start = _choose(s.n == 0, f, s.start)
        last = _choose(s.n == 0, f, s.last)
        size = change(last, f, start)
        is_largest = on_grid & ((size > s.largest) | (s.n <= 1))
        # At a pole the value is lost; try beside it.
        lost = ~on_grid & (counts & jnp.stack(_are_lost(s.fa, f, s.fb))[:-1]).any()
        halves = change(s.fa, f, start), change(f, s.fb, start)
        left = ~on_grid & ~lost & (halves[0] >= halves[1])
        right = ~on_grid & ~lost & ~left
        s = _State(
            n=s.n + 1,
            num_lost=jnp.where(lost, s.num_lost + 1, 0),
            goes_on=True,
            largest=jnp.where(on_grid, jnp.maximum(size, s.largest), s.largest),
            beside=jnp.where(left, halves[1], jnp.where(right, halves[0], s.beside)),
            a=jnp.where(is_largest, t - 1 / num_points, jnp.where(right, t, s.a)),
            b=jnp.where(is_largest | left, t, s.b),
            fa=_choose(is_largest, last, _choose(right, f, s.fa)),
            fb=_choose(is_largest | left, f, s.fb),
            start=start,
            last=f,
            is_finite=s.is_finite | (counts & jnp.stack(_is_finite(f))[:-1]).any(),
        )
        return s._replace(goes_on=goes_on(s))  # here, as what it calls would be compiled once more

    shapes = jax.eval_shape(at, jnp.zeros(()))
    empty = [jnp.zeros(x.shape, x.dtype) for x in shapes]
    zero = jnp.zeros(())
    no, yes = jnp.zeros((), bool), jnp.ones((), bool)
    state = _State(0, 0, yes, zero, zero, zero, zero, empty, empty, empty, empty, no)
    s = jax.lax.while_loop(lambda s: s.goes_on, go, state)
    changes = jnp.stack(_changes(s.fa, s.fb, s.fa))
    # Terms may jump against each other: compare the result's own jump with theirs.
    in_result = jnp.abs(s.fb[-1] - s.fa[-1])
    absolute = jnp.stack([_largest(jnp.abs(y - x), x, y) for x, y in zip(s.fa, s.fb, strict=True)])
    small, rounding = (1e-6, 1e-12) if is_double else (1e-2, 1e-5)
    cancels = in_result <= small * absolute[:-1] + rounding * jnp.abs(s.fa[-1])
    size = jnp.where(counts & ~(is_term & cancels), changes[:-1], 0.0).max()
    # Finite on both sides of a region without values: no jump that anything crosses unseen.
    is_apart = (s.num_lost == len(SHARES) - 1) & (s.b - s.a > 1e-9)
    # Numbers are no denser at an end of the path: a logarithm changes in its last step as in the one before, a jump does not.
    is_end = (s.b == 1) | (s.a == 0) & (s.b <= 2 * jnp.finfo(s.b.dtype).tiny)
    is_steep = is_end & (change(s.fa, s.fb, s.fa) <= 4 * s.beside)
    return jnp.where(is_apart | is_steep, 0.0, size), s.is_finite


def _choose(first: jax.Array, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda u, v: jnp.where(first, u, v), x, y)


def _is_finite(outputs: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(x).any() for x in outputs]


def _are_lost(a: list[jax.Array], m: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    """Whether a value between two finite ones is not finite."""
    lost = lambda x, y, z: (jnp.isfinite(x) & jnp.isfinite(z) & ~jnp.isfinite(y)).any()
    return [lost(x, y, z) for x, y, z in zip(a, m, b, strict=True)]


def _largest(size: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Largest size among elements that are finite at both ends: a change to infinity is loud."""
    return jnp.max(jnp.where(jnp.isfinite(x) & jnp.isfinite(y), size, 0.0), initial=0.0)


def _changes(x: list[jax.Array], y: list[jax.Array], scale: list[jax.Array]) -> list[jax.Array]:
    """Largest change of each output relative to 1 + |scale|."""
    parts = zip(x, y, scale, strict=True)
    return [
        _largest(jnp.abs(b - a) / (1 + jnp.nan_to_num(jnp.abs(s), posinf=0.0)), a, b)
        for a, b, s in parts
    ]

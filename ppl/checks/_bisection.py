"""The change that is left of the largest step of a path's grid once it is halved down to neighbouring numbers.

A path is looked at on a grid, and from the step with the largest change on halved toward the larger change until its ends are
neighbouring floating-point numbers. A continuous program then changes by rounding only; a jump stays. Numbers are dense beside 0,
where a path starts: a step that spans orders of magnitude is divided at the geometric mean of its ends (of log z, where z starts
at the smallest number, 64 halves would leave most of the change in the first one).

Where the rounding of the outputs is given beside them (`_rounded.py`), a change counts as far as it exceeds that of its ends.
Right beside a jump rounding decides on which side a point lies, and is as large as the jump: halving ends there, with a step
whose ends are sure and whose middle is not. What a continuous program has left then is a few times the rounding of its ends at
most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

NUM_BISECTIONS = 76  # of float64: 12 down to a factor of 2 between the ends, 53 for the digits, some beside poles
WIDE = 8.0  # of a step: its end over its start
MARGIN, MARGIN_OF_JUMP = 1.0, 10.0  # times the rounding of both ends
SHARES = np.array([0.5, 0.3, 0.7, 0.4, 0.0])  # where a step is divided, after so many losses


class Output(NamedTuple):
    """An output of the program: its values, and by how much their rounding moves them, if that is known."""

    values: jax.Array
    rounding: jax.Array | None = None


class _State(NamedTuple):
    """On the way along a path: the step [a, b] in which a jump is looked for, and the outputs there."""

    n: Any
    num_lost: Any
    goes_on: Any
    largest: jax.Array
    beside: jax.Array  # the change of the half that was cut off last
    a: jax.Array
    b: jax.Array
    fa: list[Output]
    fb: list[Output]
    start: list[Output]
    last: list[Output]
    stuck: jax.Array | None  # of each output, a change in whose midst rounding decides
    is_finite: jax.Array


def largest_change(
    at: Callable[[jax.Array], list[Output]],
    counts: jax.Array,
    enough: ArrayLike,
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

    def change(
        x: list[Output], y: list[Output], scale: list[Output], margin: float = MARGIN
    ) -> jax.Array:
        """Largest change of the outputs that count, on a scale that is the same for all that are compared."""
        return jnp.max(jnp.where(counts, jnp.stack(_changes(x, y, scale, margin)[:-1]), 0.0))

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
        sure = ~on_grid & ~lost
        stuck = None
        if s.stuck is not None:
            stuck = jnp.where(sure & counts, jnp.stack(_stuck(s.fa, f, s.fb)[:-1]), 0.0)
            sure &= stuck.max() <= enough
        left = sure & (halves[0] >= halves[1])
        right = sure & ~left
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
            stuck=stuck,
            is_finite=s.is_finite | (counts & jnp.stack(_is_finite(f))[:-1]).any(),
        )
        return s._replace(
            goes_on=(on_grid | lost | sure) & goes_on(s)
        )  # here, as what it calls would be compiled once more

    shapes = jax.eval_shape(at, jnp.zeros(()))
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    zero = jnp.zeros(())
    no, yes = jnp.zeros((), bool), jnp.ones((), bool)
    stuck = None if shapes[-1].rounding is None else jnp.zeros(len(shapes) - 1)
    state = _State(0, 0, yes, zero, zero, zero, zero, empty, empty, empty, empty, stuck, no)
    s = jax.lax.while_loop(lambda s: s.goes_on, go, state)
    changes = jnp.stack(_changes(s.fa, s.fb, s.fa, MARGIN_OF_JUMP)[:-1])
    if s.stuck is not None:
        changes = jnp.where(s.stuck.max() > enough, s.stuck, changes)
    # Terms may jump against each other: compare the result's own jump with theirs.
    in_result = jnp.abs(s.fb[-1].values - s.fa[-1].values)
    scale = jnp.abs(s.fa[-1].values)
    # Where something else makes the result infinite, with the sum of those that may jump.
    parts = [
        pair for pair, flag in zip(zip(s.fa, s.fb, strict=True), is_term, strict=False) if flag
    ]
    if parts:
        has_values = jnp.isfinite(in_result)
        finite = lambda x: jnp.where(jnp.isfinite(x), x, 0.0)
        together = jnp.abs(sum(jnp.sum(finite(y.values - x.values)) for x, y in parts))
        in_result = jnp.where(has_values, in_result, together)
        sizes = sum(jnp.sum(jnp.abs(finite(x.values))) for x, _ in parts)
        scale = jnp.where(has_values, scale, sizes)
    absolute = jnp.stack(
        [_largest(jnp.abs(y.values - x.values), x, y) for x, y in zip(s.fa, s.fb, strict=True)]
    )
    small, rounding = (1e-6, 1e-12) if is_double else (1e-2, 1e-5)
    cancels = in_result <= small * absolute[:-1] + rounding * scale
    size = jnp.where(counts & ~(is_term & cancels), changes, 0.0).max()
    # Finite on both sides of a region without values: no jump that anything crosses unseen.
    is_apart = (s.num_lost == len(SHARES) - 1) & (s.b - s.a > 1e-9)
    # Numbers are no denser at an end of the path: a logarithm changes in its last step as in the one before, a jump does not.
    is_end = (s.b == 1) | (s.a == 0) & (s.b <= 2 * jnp.finfo(s.b.dtype).tiny)
    is_steep = is_end & (change(s.fa, s.fb, s.fa) <= 4 * s.beside)
    return jnp.where(is_apart | is_steep, 0.0, size), s.is_finite


def _choose(first: jax.Array, x: list[Output], y: list[Output]) -> list[Output]:
    return jax.tree.map(lambda u, v: jnp.where(first, u, v), x, y)


def _is_finite(outputs: list[Output]) -> list[jax.Array]:
    return [_is_sure(x).any() for x in outputs]


def _is_sure(x: Output) -> jax.Array:
    """Which values are finite, however they are rounded."""
    finite = jnp.isfinite(x.values)
    return finite if x.rounding is None else finite & jnp.isfinite(x.rounding)


def _are_lost(a: list[Output], m: list[Output], b: list[Output]) -> list[jax.Array]:
    """Whether a value between two finite ones is not finite."""
    finite = lambda x: jnp.isfinite(x.values)
    lost = lambda x, y, z: (finite(x) & finite(z) & ~finite(y)).any()
    return [lost(x, y, z) for x, y, z in zip(a, m, b, strict=True)]


def _largest(size: jax.Array, x: Output, y: Output) -> jax.Array:
    """Largest size among elements that are finite at both ends: a change to infinity is loud."""
    return jnp.max(jnp.where(_is_sure(x) & _is_sure(y), size, 0.0), initial=0.0)


def _changes(
    x: list[Output], y: list[Output], scale: list[Output], margin: float
) -> list[jax.Array]:
    """Largest change of each output relative to 1 + |scale|, beyond so many times its rounding."""
    return [
        _largest(_change(a, b, margin) / (1 + jnp.nan_to_num(jnp.abs(s.values), posinf=0.0)), a, b)
        for a, b, s in zip(x, y, scale, strict=True)
    ]


def _stuck(a: list[Output], m: list[Output], b: list[Output]) -> list[jax.Array]:
    """Largest change of each output from a to b that is sure, while neither from a to m nor from m to b half of it is."""

    def stuck(a: Output, m: Output, b: Output) -> jax.Array:
        larger = lambda margin: jnp.maximum(_change(a, m, margin), _change(m, b, margin))
        is_unsure = ~_is_sure(m) | (larger(MARGIN) <= larger(0.0) / 2)
        size = _change(a, b, MARGIN_OF_JUMP) / (1 + jnp.abs(a.values))
        return _largest(jnp.where(is_unsure, size, 0.0), a, b)

    return [stuck(*points) for points in zip(a, m, b, strict=True)]


def _change(a: Output, b: Output, margin: float) -> jax.Array:
    size = jnp.abs(b.values - a.values)
    if a.rounding is None or b.rounding is None:
        return size
    return jnp.maximum(size - margin * (a.rounding + b.rounding), 0.0)

"""What is believed of the Gaussian sites, given all that was met: a joint normal law of a vector, its *basis*.

Values of the program are affine in the basis (`_forms.py`). The law is kept as a root of the covariance, so that nothing is lost
where some numbers are known much better than others (Bierman 1977). Rows of a plate that are separate have a law each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..._precision import full_precision
from ._meetings import MAX_AWAY, MAX_ERROR, FewNumbers, ManyNumbers, Meeting, OneByOne, OneNumber
from ._noise import Noise
from ._roots import compressed, times, turned_root
from ._smoothing import Read, Smoothed, Substitution

Array = jax.Array
LOG_2_PI = math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class Belief:
    """A normal law of one vector a row, whose last numbers are fresh noise, independent and N(0, 1).

    Attributes:
        mean: of the first n - fresh numbers, shape (*rows, n - fresh).
        root: of these, root @ root' the covariance, shape (*rows, n - fresh, k).
        error: the covariance of what rounding has added to these numbers, shape (*rows, n - fresh, n - fresh).
        rounding: squares of the errors that rounding has made in the root's entries, in units of the precision, of its shape.
            They shrink with their column as data tell of it, where what was added to a number stays.
        later: what stands for the law of the root's coordinates given everything; None: it is not asked for.
        fresh: how many of the last numbers are fresh noise.
    """

    mean: Array
    root: Array
    error: Array
    rounding: Array
    later: Smoothed | None = None
    fresh: int = 0

    @property
    def size(self) -> int:
        """The number n of numbers of a row."""
        return self.old + self.fresh

    @property
    def old(self) -> int:
        """How many of them are no fresh noise."""
        return self.mean.shape[-1]

    @property
    def _unit(self) -> Array:
        return jnp.eye(self.size, dtype=self.mean.dtype)

    def with_noise(self, number: int) -> Belief:
        """The belief with more fresh noise at the end."""
        return dataclasses.replace(self, fresh=self.fresh + number)

    def whole(self) -> Belief:
        """This law without fresh numbers apart."""
        if not self.fresh:
            return self
        size, k = self.root.shape[-2:]
        zeros = [(0, 0)] * (self.mean.ndim - 1)
        mean = jnp.pad(self.mean, [*zeros, (0, self.fresh)])
        error = jnp.pad(self.error, [*zeros, (0, self.fresh), (0, self.fresh)])
        root, rounding = (
            jnp.pad(x, [*zeros, (0, self.fresh), (0, self.fresh)])
            for x in (self.root, self.rounding)
        )
        root = root + jnp.pad(jnp.eye(self.fresh, dtype=root.dtype), [(size, 0), (k, 0)])
        later = self._turned(lambda: jnp.eye(k, k + self.fresh, dtype=root.dtype))
        return Belief(mean, root, error, rounding, later)

    def squared(self) -> Belief:
        """This law without fresh numbers apart, its root with no more columns than rows."""
        belief = self.whole()
        return belief if belief.root.shape[-1] <= belief.size else belief._compressed()

    @full_precision
    def _compressed(self) -> Belief:
        """This law, of numbers that are not fresh, by a triangular root."""
        rounded = (self.root**2).sum(-1) + self.rounding.sum(-1)
        error = self.error + self._apart(rounded)
        if self.later is None:
            root = compressed(self.root)
            return Belief(self.mean, root, error, jnp.zeros_like(root))
        root, unit = turned_root(self.root)
        lost = jnp.eye(unit.shape[-2], dtype=unit.dtype) - unit @ unit.mT
        shift = jnp.zeros((*unit.shape[:-1],), unit.dtype)
        length = (unit**2).sum(-1, keepdims=True)
        rounding = jnp.broadcast_to(jnp.finfo(unit.dtype).eps ** 2 * length, unit.shape)
        later = self.later.turned(Substitution(shift, unit, lost, rounding))
        return Belief(self.mean, root, error, jnp.zeros_like(root), later)

    def _apart(self, squares: Array) -> Array:
        """The covariance of errors of the old numbers that are independent, given their squares in units of the precision."""
        squares = jax.lax.stop_gradient(squares) * jnp.finfo(self.root.dtype).eps ** 2
        return squares[..., None] * jnp.eye(self.old, dtype=self.root.dtype)

    def _turned(self, matrix: Callable[[], Array]) -> Smoothed | None:
        """What is known later of coordinates that are a matrix times the later ones."""
        if self.later is None:
            return None
        shift = self.later.mean
        made = matrix()
        return self.later.turned(
            Substitution(shift, jnp.broadcast_to(made, (*shift.shape[:-1], *made.shape)))
        )

    def widened(self, mean: Array, root: Array) -> Belief:
        """The law of numbers that are made of the coordinates of the root, and of more that follow them."""
        k, size = self.root.shape[-1], root.shape[-1]
        later = self._turned(lambda: jnp.eye(k, size, dtype=root.dtype))
        error = jnp.zeros((*mean.shape, mean.shape[-1]), mean.dtype)
        return Belief(mean, root, error, jnp.zeros_like(root), later)

    def at(self, const: Array, matrix: Array) -> Array:
        """The mean of const + matrix basis."""
        return const + times(matrix[..., : self.old], self.mean)

    @full_precision
    def seen(self, matrix: Array) -> Array:
        """A root of the covariance of matrix basis, shape (*rows, m, k + fresh)."""
        old = matrix[..., : self.old] @ self.root
        return jnp.concatenate([old, matrix[..., self.old :]], -1) if self.fresh else old

    @full_precision
    def error_of(self, matrix: Array) -> Array:
        """The covariance of what rounding has added to matrix basis, shape (*rows, m, m)."""
        matrix = jax.lax.stop_gradient(matrix[..., : self.old])
        return _product(_product(matrix, self.error), matrix.mT)

    @full_precision
    def _rounded(self, matrix: Array) -> Array:
        """Squares of the errors that rounding has made in `seen`, in units of the precision, of its shape."""
        matrix = jax.lax.stop_gradient(matrix)
        old = matrix[..., : self.old] ** 2 @ self.rounding
        return jnp.concatenate([old, jnp.zeros_like(matrix[..., self.old :])], -1)

    def is_known(self, matrix: Array, variance: Array, share: float) -> Array:
        """Whether rounding has added to matrix basis less than a share of the scales that these variances are of."""
        error = jnp.diagonal(self.error_of(matrix), axis1=-2, axis2=-1)
        error = error + self._rounded(matrix).sum(-1) * jnp.finfo(error.dtype).eps ** 2
        return error <= share**2 * variance

    def tells(self, meeting: Meeting, matrix: Array, noise: Noise) -> Array:
        """Whether the means of numbers matrix basis + noise that are about to be met are what they should be, each of them."""
        if isinstance(meeting, OneByOne):
            belief, found = self, []
            for one, row in zip(meeting.numbers, _rows(meeting, matrix), strict=True):
                found.append(belief.is_known(row, one.sums[..., -1:], MAX_AWAY))
                belief = belief.given(one, row, jnp.zeros_like(found[-1], row.dtype))
            return jnp.concatenate(found, -1)
        total = (self.seen(matrix) ** 2).sum(-1) + (noise.root**2).sum(-1)
        return self.is_known(matrix, total, MAX_AWAY)

    def of(self, const: Array, matrix: Array, *, is_square: bool = False) -> Belief:
        """The law of const + matrix basis: const of shape (*rows, m), matrix of shape (*rows, m, n).

        `is_square`: with a root of shape (m, m), whatever it was.
        """
        # N(c + A m, (A root) (A root)'): no covariance is formed.
        belief = self if self.later is None else self.whole()
        error = belief.error_of(matrix)
        belief = Belief(
            belief.at(const, matrix),
            belief.seen(matrix),
            error,
            belief._rounded(matrix),
            belief.later,
        )
        size, columns = belief.root.shape[-2:]
        if columns > (size if is_square else 3 * size):  # the next observation compresses it anyway
            belief, columns = belief._compressed(), min(size, columns)
        if not is_square or columns >= size:
            return belief
        wide, rounding = (
            jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - columns)])
            for x in (belief.root, belief.rounding)
        )
        later = belief._turned(lambda: jnp.eye(columns, size, dtype=wide.dtype))
        return Belief(belief.mean, wide, belief.error, rounding, later)

    @property
    def moved(self) -> Array | None:
        """What of the coordinates has to be known given numbers: the root alone, or all (None)."""
        return self.root if self.later is None else None

    @full_precision
    def given(self, meeting: Meeting, matrix: Array, away: Array) -> Belief:
        """The belief, whole, given numbers matrix basis + noise that are so far away from their mean."""
        if isinstance(meeting, OneByOne):
            belief = self
            for (one, off), row in zip(
                meeting.one_by_one(away), _rows(meeting, matrix), strict=True
            ):
                belief = belief.given(one, row, off)
            return belief
        shift, later = meeting.shift(away), self.later
        if later is not None and not isinstance(meeting, FewNumbers):
            turn = meeting.after(self._coordinates)
            later = later.turned(Substitution(shift, turn, None, turn**2 * meeting.rounding(turn)))
        step = shift if isinstance(meeting, FewNumbers) else times(self.root, shift)
        root = meeting.after(self.root)
        gain = jax.lax.stop_gradient(meeting.gain(self.root, root))
        # Joseph's form for the error: (1 - K A) E (1 - K A)', with the gain K and the numbers' matrix A.
        told = _product(gain, _product(jax.lax.stop_gradient(matrix), self.error))
        error = self.error - told - told.mT + _product(_product(told, matrix.mT), gain.mT)
        added, rounding = self._rounded_by(meeting, root)
        return Belief(self.mean + step, root, error + added, rounding, later)

    @property
    def _coordinates(self) -> Array:
        size = self.root.shape[-1]
        return jnp.broadcast_to(
            jnp.eye(size, dtype=self.root.dtype), (*self.mean.shape[:-1], size, size)
        )

    def _rounded_by(
        self, meeting: OneNumber | FewNumbers | ManyNumbers, root: Array
    ) -> tuple[Array, Array]:
        """What rounding has added to the numbers when they are met, as `error`, and made in the new root, as `rounding`."""
        assert not isinstance(meeting, OneByOne)
        if not isinstance(meeting, ManyNumbers):
            return jnp.zeros_like(self.error), meeting.turned_squares(self.root, self.rounding)
        added = _product(jax.lax.stop_gradient(self.root), meeting.added(self._coordinates))
        return self._apart(self.rounding.sum(-1)) + _product(added, added.mT), jnp.zeros_like(root)

    def read(self, beside: Read, const: Array, matrix: Array) -> Belief:
        """The belief, whole, whose numbers const + matrix basis are told what is known of them later."""
        if self.later is None:
            return self
        belief = self.whole()
        assert belief.later is not None
        seen = belief.seen(matrix)
        is_known = belief.is_known(matrix, (seen**2).sum(-1), MAX_ERROR)
        mean = jnp.where(is_known, belief.at(const, matrix), jnp.nan)
        later = belief.later.read(beside, mean, seen)
        return dataclasses.replace(belief, later=later)


def _rows(meeting: OneByOne, matrix: Array) -> list[Array]:
    """The coefficients of each number by itself."""
    matrix = meeting.apart(matrix)
    return [matrix[..., i : i + 1, :] for i in range(matrix.shape[-2])]


@full_precision
def _product(a: Array, b: Array) -> Array:
    """The product of two matrices; small ones by sums, which take a quarter of the time on a CPU."""
    if max(*a.shape[-2:], *b.shape[-2:]) > 16:
        return a @ b
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def known(value: Array) -> Belief:
    """The belief that the basis has a value, shape (*rows, n), in the precision that JAX is set to."""
    value = jnp.asarray(value, float)
    root = jnp.zeros((*value.shape, value.shape[-1]), value.dtype)
    return Belief(value, root, root, root)


def no_belief(rows: tuple[int, ...]) -> Belief:
    """The belief of an empty basis."""
    return known(jnp.zeros((*rows, 0)))


jax.tree_util.register_dataclass(Belief, ["mean", "root", "error", "rounding", "later"], ["fresh"])

"""Normal numbers x = E[x] + seen u + noise that are about to be seen, in coordinates u ~ N(0, 1) of what is believed.

Given x the coordinates are u = shift + R u', u' ~ N(0, 1). Only R and the Cholesky factor of the covariance are made, both by
orthogonal transformations or without a subtraction, so that rounding grows with the condition number of the numbers in units of
their own and not with its square.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ..._precision import full_precision
from ._noise import Noise
from ._roots import free_log_det, free_solved, orthogonal_triangular, solved, times, turned_root

Array = jax.Array
MAX_ERROR, MAX_AWAY = (
    0.01,
    0.1,
)  # that rounding may make: of a scale, and of a mean in scales or in nats
ONE_BY_ONE = 12  # numbers; more are met together, which takes fewer operations, and rounds more


def meeting_of(seen: Array, noise: Noise, moved: Array | None = None) -> Meeting:
    """What is met, for numbers with these coefficients, shape (*rows, m, k).

    `moved`: a root, shape (*rows, n, k): no more than root u is asked for then, which takes less arithmetic; None: u itself.
    """
    m, k = seen.shape[-2:]
    if 1 < m <= ONE_BY_ONE:
        return OneByOne.of(seen, noise)
    if 1 < m <= k and moved is not None:
        return FewNumbers.of(seen, noise, moved)
    return (OneNumber if m == 1 else ManyNumbers).of(seen, noise)


@dataclasses.dataclass(frozen=True)
class OneNumber:
    """One number: R is triangular, and known without a decomposition (Carlson 1973).

    With c_j = noise^2 + s_1^2 + ... + s_j^2: R_jj = sqrt(c_{j-1} / c_j), R_ij = -s_i s_j / sqrt(c_{j-1} c_j) for i < j.

    Attributes:
        seen: s, shape (*rows, k).
        sums: c_0 to c_k, shape (*rows, k + 1).
    """

    seen: Array
    sums: Array

    @classmethod
    def of(cls, seen: Array, noise: Noise) -> OneNumber:
        """How the basis meets one number of these coefficients."""
        seen, own = seen[..., 0, :], jnp.broadcast_to(noise.root[..., 0], (*seen.shape[:-2], 1))
        return cls(seen, jnp.cumsum(jnp.concatenate([own, seen], -1) ** 2, -1))

    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""
        total = self.sums[..., -1]
        return -0.5 * (away[..., 0] ** 2 / total + jnp.log(total))

    def shift(self, away: Array) -> Array:
        """The mean of u given x - E[x]."""
        return self.seen * (away / self.sums[..., -1:])  # s (s's + noise^2)^-1 (x - E[x])

    def after(self, root: Array) -> Array:
        """Root R, of shape (*rows, n, k)."""
        kept, taken = self._parts(root, self.seen, jnp.sqrt(self.sums))
        return kept - taken

    def _parts(self, root: Array, seen: Array, sums: Array) -> tuple[Array, Array]:
        """What root R is the difference of; or for squares of all three, the sum."""
        old, new = sums[..., None, :-1], sums[..., None, 1:]
        s = seen[..., None, :]
        before = jnp.cumsum(root * s, -1)
        before = jnp.pad(before[..., :-1], [(0, 0)] * (before.ndim - 1) + [(1, 0)])
        return root * (old / new), before * (s / old / new)

    def turned_squares(self, root: Array, squares: Array) -> Array:
        """Squares of errors of a root's entries in root R, with those that R adds, in units of the precision.

        R adds to an entry in units of what it is the difference of; nothing where it changes nothing.
        """
        seen, sums, root = jax.lax.stop_gradient((self.seen, self.sums, root))
        kept, taken = self._parts(root, seen, jnp.sqrt(sums))
        own = jnp.where((kept == root) & (taken == 0), 0, kept**2 + taken**2)
        return own + sum(self._parts(squares, seen**2, sums))

    @full_precision
    def gain(self, root: Array, after: Array) -> Array:
        """What of x - E[x] is added to the mean of root u, shape (*rows, n, 1)."""
        return (root @ self.seen[..., None]) / self.sums[..., -1:, None]

    def rounding(self, turn: Array) -> Array:
        """Squares of the relative errors of R = `turn`."""
        return jnp.full_like(turn, jnp.finfo(turn.dtype).eps ** 2)


@dataclasses.dataclass(frozen=True)
class OneByOne:
    """A few numbers, one after the other: what is wide and what is known stay apart to all digits.

    Attributes:
        noise: of the numbers.
        numbers: each in coordinates given those before it.
        rest: the coefficients of those after it, in the same coordinates.
    """

    noise: Noise
    numbers: tuple[OneNumber, ...]
    rest: tuple[Array, ...]

    @classmethod
    def of(cls, seen: Array, noise: Noise) -> OneByOne:
        """Of numbers with these coefficients."""
        self = cls(noise, (), ())
        seen, numbers, rest = self.apart(seen), [], []
        scales = (
            noise.blocks
            if noise.blocks.shape[-1] == 1
            else jnp.ones((seen.shape[-2], 1, 1), seen.dtype)
        )
        for i in range(seen.shape[-2]):
            numbers.append(OneNumber.of(seen[..., :1, :], Noise(scales[..., i : i + 1, :, :])))
            rest.append(seen[..., 1:, :])
            seen = numbers[-1].after(rest[-1])
        return cls(noise, tuple(numbers), tuple(rest))

    def apart(self, x: Array) -> Array:
        """Numbers, or rows of coefficients, whose noise is independent; x of shape (*rows, m, columns)."""
        return x if self.noise.blocks.shape[-1] == 1 else self.noise.whitened(x)

    def one_by_one(self, away: Array) -> list[tuple[OneNumber, Array]]:
        """Each number and its distance from its mean given those before it."""
        away, found = self.apart(away[..., None])[..., 0], []
        for one, rest in zip(self.numbers, self.rest, strict=True):
            found.append((one, away[..., :1]))
            away = away[..., 1:] - times(rest, one.shift(away[..., :1]))
        return found

    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""
        each = [one.log_prob(off) for one, off in self.one_by_one(away)]
        total = jnp.stack(each).sum(0)
        return total if self.noise.blocks.shape[-1] == 1 else total - self.noise.log_det


@dataclasses.dataclass(frozen=True)
class FewNumbers:
    """No more numbers than coordinates, of which no more than root u is asked for.

    By the root of their covariance with it:

        [seen, noise; root, 0] -> [S^1/2, 0; gain, root R].

    Coordinates stand in the order in which they count for the numbers: rounding of the wide ones then stays their own (Cox and
    Higham 1998).

    Attributes:
        top: S^1/2.
        told: of root u by whitened numbers.
        rest: root R.
        rounded: squares of the errors of the diagonal of S^1/2, in units of the precision.
        parts: the largest share that each coordinate has of the square of a row.
        turn: squares of the orthogonal matrix that makes the new coordinates of these.
    """

    top: Array
    told: Array
    rest: Array
    rounded: Array
    parts: Array
    turn: Array

    @classmethod
    @full_precision
    def of(cls, seen: Array, noise: Noise, root: Array) -> FewNumbers:
        """How the basis meets numbers of these coefficients."""
        m = seen.shape[-2]
        own = jnp.broadcast_to(noise.root, (*seen.shape[:-1], m))
        above = jnp.concatenate([seen, own], -1)
        below = jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, m)])
        joint = jnp.concatenate([above, below], -2)
        parts = _parts(joint).max(-2, keepdims=True)
        order = jnp.argsort(-parts, -1)
        joint, unit = turned_root(jnp.take_along_axis(joint, order, -1), m)
        turn = jax.lax.stop_gradient(unit) ** 2
        turn = jnp.take_along_axis(turn, jnp.argsort(order, -1).mT, -2)
        rounded = (above**2).sum(-1) * (parts @ turn[..., :m])[..., 0, :]
        told, rest = joint[..., m:, :m], joint[..., m:, m:]
        return cls(joint[..., :m, :m], told, rest, rounded, parts, turn[..., m:])

    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""
        whitened = free_solved(self.top, away[..., None])[..., 0]
        found = -0.5 * (whitened**2).sum(-1) - free_log_det(self.top)
        diagonal = jnp.diagonal(self.top, axis1=-2, axis2=-1)
        return jnp.where(_has_digits(diagonal, self.rounded), found, jnp.nan)

    def shift(self, away: Array) -> Array:
        """The mean of root u given x - E[x]."""
        return times(self.told, free_solved(self.top, away[..., None])[..., 0])

    def after(self, root: Array) -> Array:
        """Root R, for the root that was asked for."""
        return self.rest

    def gain(self, root: Array, after: Array) -> Array:
        """What of x - E[x] is added to the mean of root u, shape (*rows, n, m)."""
        return solved(self.top, self.told.mT, is_lower=True, transposed=True).mT

    @full_precision
    def turned_squares(self, root: Array, squares: Array) -> Array:
        """Squares of errors of a root's entries in root R, with those that R adds, in units of the precision.

        R adds to a row in units of its length and, by coordinates, of the largest part that one has in any row.
        """
        root = jax.lax.stop_gradient(root)
        own = (root**2).sum(-1, keepdims=True) * self.parts
        more = jnp.pad(
            squares, [(0, 0)] * (squares.ndim - 1) + [(0, own.shape[-1] - squares.shape[-1])]
        )
        return (own + more) @ self.turn


@dataclasses.dataclass(frozen=True)
class ManyNumbers:
    """Numbers by least squares.

    With W = noise^-1 seen,

        [W; 1] = Q U,    R = U^-1,    shift = U^-1 Q' [noise^-1 (x - E[x]); 0].

    Attributes:
        noise: of the numbers.
        seen: W.
        unit: Q, shape (*rows, m + k, k).
        top: U.
    """

    noise: Noise
    seen: Array
    unit: Array
    top: Array

    @classmethod
    def of(cls, seen: Array, noise: Noise) -> ManyNumbers:
        """How the basis meets numbers of these coefficients."""
        seen = noise.whitened(seen)
        k = seen.shape[-1]
        below = jnp.broadcast_to(jnp.eye(k, dtype=seen.dtype), (*seen.shape[:-2], k, k))
        unit, top = orthogonal_triangular(jnp.concatenate([seen, below], -2))
        return cls(noise, seen, unit, top)

    @full_precision
    def _fitted(self, away: Array) -> tuple[Array, Array]:
        """What is left of the whitened numbers, and the mean of u: least squares with one step of refinement."""
        # min_u |W u - noise^-1 away|^2 + |u|^2 by Q and U; the second round solves for what the first has left.
        whitened = self.noise.whitened(away[..., None])
        shift = jnp.zeros((*whitened.shape[:-2], self.top.shape[-1], 1), whitened.dtype)
        left = whitened
        for _ in range(2):
            told = self.unit.mT @ jnp.concatenate([left, -shift], -2)
            shift = shift + solved(self.top, told, is_lower=False)
            left = whitened - self.seen @ shift
        return left[..., 0], shift[..., 0]

    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""
        # With S = noise (1 + W W') noise': away' S^-1 away = |left|^2 + |shift|^2, det S^1/2 = det noise * |det U|.
        left, shift = self._fitted(away)
        square = (left**2).sum(-1) + (shift**2).sum(-1)
        diagonal = jnp.abs(jnp.diagonal(self.top, axis1=-2, axis2=-1))
        found = -0.5 * square - self.noise.log_det - jnp.log(diagonal).sum(-1)
        return jnp.where(_has_digits(diagonal, 1 + (self.seen**2).sum(-2)), found, jnp.nan)

    def shift(self, away: Array) -> Array:
        """The mean of u given x - E[x]."""
        return self._fitted(away)[1]

    def after(self, root: Array) -> Array:
        """Root R, of shape (*rows, n, k)."""
        return solved(self.top, root.mT, is_lower=False, transposed=True).mT

    @full_precision
    def gain(self, root: Array, after: Array) -> Array:
        """What of x - E[x] is added to the mean of root u, shape (*rows, n, m), by root R."""
        seen = self.seen.shape[-2]
        return self.noise.whitened_by(after @ self.unit[..., :seen, :].mT)

    @full_precision
    def added(self, unit: Array) -> Array:
        """A root of the covariance of what rounding adds to u, by columns of [W; 1] that move in units of their length.

        By a quarter of the precision, since roundings have either sign. With such a move D of [W; 1] = Q U the scale of x'u,
        |R'x|, moves by (Q R'x)' D R R'x over itself.
        """
        turn = jax.lax.stop_gradient(self.after(unit))
        columns = jnp.sqrt(1 + jax.lax.stop_gradient(self.seen**2).sum(-2))
        return turn @ turn.mT * (0.25 * jnp.finfo(turn.dtype).eps * columns)[..., None, :]

    def rounding(self, turn: Array) -> Array:
        """Squares of the relative errors of R = `turn` by rows: the length of one times that of a column of U, its inverse."""
        rows, columns = (turn**2).sum(-1), 1 + (self.seen**2).sum(-2)
        growth = jax.lax.stop_gradient(rows * columns)[..., None]
        return jnp.broadcast_to(growth * jnp.finfo(turn.dtype).eps ** 2, turn.shape)


Meeting = OneNumber | OneByOne | FewNumbers | ManyNumbers


def _has_digits(diagonal: Array, squares: Array) -> Array:
    """Whether a triangle's log-determinant has, given the squares of errors of its diagonal in units of the precision."""
    share = squares / diagonal**2
    error = jnp.finfo(share.dtype).eps ** 2 * jax.lax.stop_gradient(share).sum(-1)
    return error <= (0.5 * MAX_AWAY) ** 2


def _parts(x: Array) -> Array:
    """The squares of entries, as shares of the square of their row."""
    length = (x**2).sum(-1, keepdims=True)
    return jax.lax.stop_gradient(x**2 / jnp.where(length > 0, length, 1))


jax.tree_util.register_dataclass(OneNumber, ["seen", "sums"], [])
jax.tree_util.register_dataclass(OneByOne, ["noise", "numbers", "rest"], [])
jax.tree_util.register_dataclass(
    FewNumbers, ["top", "told", "rest", "rounded", "parts", "turn"], []
)
jax.tree_util.register_dataclass(ManyNumbers, ["noise", "seen", "unit", "top"], [])

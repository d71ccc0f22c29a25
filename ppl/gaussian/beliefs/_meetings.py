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
from ._roots import compressed, free_log_det, free_solved, orthogonal_triangular, solved, times

Array = jax.Array


def meeting_of(seen: Array, noise: Noise, moved: Array | None = None) -> Meeting:
    """What is met, for numbers with these coefficients, shape (*rows, m, k).

    `moved`: a root, shape (*rows, n, k): no more than root u is asked for then, which takes less arithmetic; None: u itself.
    """
    m, k = seen.shape[-2:]
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
        """Of numbers with these coefficients."""
        seen, own = seen[..., 0, :], jnp.broadcast_to(noise.root[..., 0], (*seen.shape[:-2], 1))
        return cls(seen, jnp.cumsum(jnp.concatenate([own, seen], -1) ** 2, -1))

    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""
        total = self.sums[..., -1]
        return -0.5 * (away[..., 0] ** 2 / total + jnp.log(total))

    def shift(self, away: Array) -> Array:
        """The mean of u given x - E[x]."""
        return self.seen * (away / self.sums[..., -1:])

    def after(self, root: Array) -> Array:
        """Root R, of shape (*rows, n, k)."""
        scales = jnp.sqrt(self.sums)
        old, new = scales[..., None, :-1], scales[..., None, 1:]
        s = self.seen[..., None, :]
        before = jnp.cumsum(root * s, -1)
        before = jnp.pad(before[..., :-1], [(0, 0)] * (before.ndim - 1) + [(1, 0)])
        return root * (old / new) - before * (s / old / new)

    @full_precision
    def gain(self, root: Array, after: Array) -> Array:
        """What of x - E[x] is added to the mean of root u, shape (*rows, n, 1)."""
        return (root @ self.seen[..., None]) / self.sums[..., -1:, None]

    def rounding(self, turn: Array) -> Array:
        """Squares of the relative errors of R = `turn`."""
        return jnp.full_like(turn, jnp.finfo(turn.dtype).eps ** 2)


@dataclasses.dataclass(frozen=True)
class FewNumbers:
    """No more numbers than coordinates, of which no more than root u is asked for.

    By the root of their covariance with it:

        [seen, noise; root, 0] -> [S^1/2, 0; gain, root R].

    Attributes:
        top: S^1/2.
        told: of root u by whitened numbers.
        rest: root R.
    """

    top: Array
    told: Array
    rest: Array

    @classmethod
    @full_precision
    def of(cls, seen: Array, noise: Noise, root: Array) -> FewNumbers:
        """Of numbers with these coefficients."""
        m = seen.shape[-2]
        own = jnp.broadcast_to(noise.root, (*seen.shape[:-1], m))
        above = jnp.concatenate([seen, own], -1)  # what is wide first: its rounding stays its own
        below = jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, m)])
        joint = compressed(jnp.concatenate([above, below], -2), m)
        return cls(joint[..., :m, :m], joint[..., m:, :m], joint[..., m:, m:])

    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""
        whitened = free_solved(self.top, away[..., None])[..., 0]
        return -0.5 * (whitened**2).sum(-1) - free_log_det(self.top)

    def shift(self, away: Array) -> Array:
        """The mean of root u given x - E[x]."""
        return times(self.told, free_solved(self.top, away[..., None])[..., 0])

    def after(self, root: Array) -> Array:
        """Root R, for the root that was asked for."""
        return self.rest

    def gain(self, root: Array, after: Array) -> Array:
        """What of x - E[x] is added to the mean of root u, shape (*rows, n, m)."""
        return solved(self.top, self.told.mT, is_lower=True, transposed=True).mT


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
        """Of numbers with these coefficients."""
        seen = noise.whitened(seen)
        k = seen.shape[-1]
        below = jnp.broadcast_to(jnp.eye(k, dtype=seen.dtype), (*seen.shape[:-2], k, k))
        unit, top = orthogonal_triangular(jnp.concatenate([seen, below], -2))
        return cls(noise, seen, unit, top)

    @full_precision
    def _fitted(self, away: Array) -> tuple[Array, Array]:
        """What is left of the whitened numbers, and the mean of u: least squares with one step of refinement."""
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
        left, shift = self._fitted(away)
        square = (left**2).sum(-1) + (shift**2).sum(-1)
        diagonal = jnp.abs(jnp.diagonal(self.top, axis1=-2, axis2=-1))
        return -0.5 * square - self.noise.log_det - jnp.log(diagonal).sum(-1)

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

    def rounding(self, turn: Array) -> Array:
        """Squares of the relative errors of R = `turn`, row by row.

        Where the numbers tell of all coordinates, they grow with their condition: the length of a row of R times that of a column
        of U, which is its inverse.
        """
        rows, columns = (turn**2).sum(-1), 1 + (self.seen**2).sum(-2)
        is_all = self.seen.shape[-2] >= self.seen.shape[-1]
        growth = rows * columns if is_all else jnp.ones_like(rows)
        return jnp.broadcast_to(growth[..., None] * jnp.finfo(turn.dtype).eps ** 2, turn.shape)


Meeting = OneNumber | FewNumbers | ManyNumbers

jax.tree_util.register_dataclass(OneNumber, ["seen", "sums"], [])
jax.tree_util.register_dataclass(FewNumbers, ["top", "told", "rest"], [])
jax.tree_util.register_dataclass(ManyNumbers, ["noise", "seen", "unit", "top"], [])

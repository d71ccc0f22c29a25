"""What is believed of the Gaussian sites, given all that was met: a joint normal law of a vector, its *basis*.

Values of the program are affine in the basis (`_forms.py`). The law is kept as a root of the covariance, so that nothing is lost
where some numbers are known much better than others (Bierman 1977). Rows of a plate that are separate have a law each.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from .._precision import full_precision
from ._noise import Noise
from ._roots import compressed, free_log_det, free_solved, solved, upper

Array = jax.Array
LOG_2_PI = math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class Belief:
    """A normal law of one vector a row, whose last numbers are fresh noise, independent and N(0, 1).

    Attributes:
        mean: of the first n - fresh numbers, shape (*rows, n - fresh).
        root: of these, root @ root' the covariance, shape (*rows, n - fresh, k).
        fresh: how many of the last numbers are fresh noise.
    """

    mean: Array
    root: Array
    fresh: int = 0

    @property
    def size(self) -> int:
        """The number n of numbers of a row."""
        return self.old + self.fresh

    @property
    def old(self) -> int:
        """How many of them are no fresh noise."""
        return self.mean.shape[-1]

    def with_noise(self, number: int) -> Belief:
        """With more fresh noise at the end."""
        return dataclasses.replace(self, fresh=self.fresh + number)

    def whole(self) -> Belief:
        """The same law without fresh numbers apart."""
        if not self.fresh:
            return self
        unit = jnp.eye(self.size, dtype=self.mean.dtype)
        unit = jnp.broadcast_to(unit, (*self.mean.shape[:-1], *unit.shape))
        zeros = [(0, 0)] * (self.mean.ndim - 1)
        return Belief(jnp.pad(self.mean, [*zeros, (0, self.fresh)]), self.seen(unit))

    def squared(self) -> Belief:
        """The same law without fresh numbers apart, its root with no more columns than rows."""
        belief = self.whole()
        if belief.root.shape[-1] <= belief.size:
            return belief
        return Belief(belief.mean, compressed(belief.root))

    @full_precision
    def at(self, const: Array, matrix: Array) -> Array:
        """The mean of const + matrix basis."""
        return const + (matrix[..., : self.old] @ self.mean[..., None])[..., 0]

    @full_precision
    def seen(self, matrix: Array) -> Array:
        """A root of the covariance of matrix basis, shape (*rows, m, k + fresh)."""
        old = matrix[..., : self.old] @ self.root
        return jnp.concatenate([old, matrix[..., self.old :]], -1) if self.fresh else old

    def of(self, const: Array, matrix: Array, *, is_square: bool = False) -> Belief:
        """The law of const + matrix basis: const of shape (*rows, m), matrix of shape (*rows, m, n).

        `is_square`: with a root of shape (m, m), whatever it was.
        """
        root = self.seen(matrix)
        size, columns = root.shape[-2:]
        if columns > (size if is_square else 3 * size):  # the next observation compresses it anyway
            root = compressed(root)
        if is_square and root.shape[-1] < size:
            root = jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, size - root.shape[-1])])
        return Belief(self.at(const, matrix), root)

    @full_precision
    def covariance_of(self, matrix: Array) -> Array:
        """The covariance of matrix basis, shape (*rows, m, m)."""
        seen = self.seen(matrix)
        return seen @ seen.mT

    def met(self, matrix: Array, noise: Noise) -> Meeting:
        """The belief and numbers matrix basis + noise that are about to be seen."""
        belief = self.whole()
        is_many = matrix.shape[-2] > belief.root.shape[-1]
        return (ManyNumbers if is_many else FewNumbers).of(belief, matrix, noise)

    @full_precision
    def tilted(self, matrix: Array, linear: Array, square: Array) -> Belief:
        """The law times exp(linear' x + x' diag(square) x / 2), x = matrix (basis - mean), to first order."""
        belief = self.whole()
        seen = belief.seen(matrix)
        pull = (seen.mT @ linear[..., None])[..., 0]
        turn = belief.root @ (seen.mT @ (square[..., None] * seen))
        mean = belief.mean + (belief.root @ pull[..., None])[..., 0]
        return Belief(mean, belief.root + 0.5 * turn)


def known(value: Array) -> Belief:
    """The belief that the basis has a value, shape (*rows, n), in the precision that JAX is set to."""
    value = jnp.asarray(value, float)
    return Belief(value, jnp.zeros((*value.shape, value.shape[-1]), value.dtype))


def no_belief(rows: tuple[int, ...]) -> Belief:
    """The belief of an empty basis."""
    return known(jnp.zeros((*rows, 0)))


@dataclasses.dataclass(frozen=True)
class FewNumbers:
    """A belief and no more numbers x = H basis + noise than its root has columns.

    By the root of the joint covariance of numbers and basis:

        [noise, H root; 0, root] -> [S^1/2, 0; K S^1/2, root given x].

    Attributes:
        belief: before.
        top: S^1/2.
        gain: K S^1/2.
        rest: the root of the basis given x.
    """

    belief: Belief
    top: Array
    gain: Array
    rest: Array

    @classmethod
    @full_precision
    def of(cls, belief: Belief, matrix: Array, noise: Noise) -> FewNumbers:
        """Of H = matrix, shape (*rows, m, n)."""
        root, seen = belief.root, belief.seen(matrix)
        m, n = matrix.shape[-2:]
        own = jnp.broadcast_to(noise.root, (*seen.shape[:-1], m))
        above = jnp.concatenate([own, seen], -1)
        if m == 1:  # without a decomposition: the root loses a part of rank one (Potter 1963)
            top = compressed(above)
            crossed = root @ seen.mT
            return cls(belief, top, crossed / top, root - crossed @ seen / (top * (top + own)))
        below = jnp.concatenate([jnp.zeros((*root.shape[:-1], m), root.dtype), root], -1)
        joint = compressed(jnp.concatenate([above, below], -2), m)
        return cls(belief, joint[..., :m, :m], joint[..., m:, :m], joint[..., m:, m:])

    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""
        whitened = free_solved(self.top, away[..., None])[..., 0]
        return -0.5 * (whitened**2).sum(-1) - free_log_det(self.top)

    @full_precision
    def given(self, away: Array) -> Belief:
        """The belief given x - E[x]."""
        whitened = free_solved(self.top, away[..., None])
        return Belief(self.belief.mean + (self.gain @ whitened)[..., 0], self.rest)


@dataclasses.dataclass(frozen=True)
class ManyNumbers:
    """A belief and more numbers x = H basis + noise than its root has columns.

    With W = noise^-1 H root and U'U = 1 + W'W the root given x is root U^-1.

    Attributes:
        belief: before.
        noise: of the numbers.
        seen: W.
        top: U.
    """

    belief: Belief
    noise: Noise
    seen: Array
    top: Array

    @classmethod
    def of(cls, belief: Belief, matrix: Array, noise: Noise) -> ManyNumbers:
        """Of H = matrix, shape (*rows, m, n)."""
        seen = noise.whitened(belief.seen(matrix))
        return cls(belief, noise, seen, upper(seen))

    @full_precision
    def _whitened(self, away: Array) -> tuple[Array, Array]:
        """The whitened numbers, and the mean of what the root multiplies."""
        whitened = self.noise.whitened(away[..., None])
        inner = solved(self.top, self.seen.mT @ whitened, is_lower=False, transposed=True)
        return whitened, solved(self.top, inner, is_lower=False)

    @full_precision
    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""
        whitened, shift = self._whitened(away)
        square = ((whitened - self.seen @ shift) ** 2).sum((-2, -1)) + (shift**2).sum((-2, -1))
        diagonal = jnp.diagonal(self.top, axis1=-2, axis2=-1)
        return -0.5 * square - self.noise.log_det - jnp.log(diagonal).sum(-1)

    @full_precision
    def given(self, away: Array) -> Belief:
        """The belief given x - E[x]."""
        _, shift = self._whitened(away)
        root = solved(self.top, self.belief.root.mT, is_lower=False, transposed=True).mT
        return Belief(self.belief.mean + (self.belief.root @ shift)[..., 0], root)


Meeting = FewNumbers | ManyNumbers

jax.tree_util.register_dataclass(Belief, ["mean", "root"], ["fresh"])
jax.tree_util.register_dataclass(FewNumbers, ["belief", "top", "gain", "rest"], [])
jax.tree_util.register_dataclass(ManyNumbers, ["belief", "noise", "seen", "top"], [])

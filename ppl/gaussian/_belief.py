"""What is believed of the Gaussian sites, given all that was met: a joint normal law of a vector, its *basis*.

Values of the program are affine in the basis (`_forms.py`). In single precision the law is kept as a root of the covariance, of
which nothing is lost where numbers are known much better than others; in double precision as the covariance itself, which is
faster. Rows of a plate that are separate have a law each.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp

from ._noise import Noise
from ._roots import compressed, free_log_det, free_solved, solved, upper

Array = jax.Array
LOG_2_PI = math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class Belief(abc.ABC):
    """Abstract: a normal law of one vector a row, whose last numbers are fresh noise, independent and N(0, 1).

    Attributes:
        mean: of the first n - fresh numbers, shape (*rows, n - fresh).
        spread: of these.
        fresh: how many of the last numbers are fresh noise.
    """

    mean: Array
    spread: Array
    fresh: int = 0

    @property
    def size(self) -> int:
        """N."""
        return self.old + self.fresh

    @property
    def old(self) -> int:
        """How many numbers are no fresh noise."""
        return self.mean.shape[-1]

    def with_noise(self, number: int) -> Self:
        """With more fresh noise at the end."""
        return dataclasses.replace(self, fresh=self.fresh + number)

    def at(self, const: Array, matrix: Array) -> Array:
        """The mean of const + matrix basis."""
        return const + (matrix[..., : self.old] @ self.mean[..., None])[..., 0]

    def whole_mean(self) -> Array:
        """The mean of all n numbers."""
        return jnp.pad(self.mean, [(0, 0)] * (self.mean.ndim - 1) + [(0, self.fresh)])

    @abc.abstractmethod
    def of(self, const: Array, matrix: Array, *, is_square: bool = False) -> Self:
        """The law of const + matrix basis: const of shape (*rows, m), matrix of shape (*rows, m, n).

        `is_square`: with a spread of shape (m, m), whatever it was.
        """

    @abc.abstractmethod
    def covariance_of(self, matrix: Array) -> Array:
        """The covariance of matrix basis, shape (*rows, m, m)."""

    @abc.abstractmethod
    def met(self, matrix: Array, noise: Noise) -> Meeting:
        """The belief and numbers matrix basis + noise that are about to be seen."""

    @abc.abstractmethod
    def tilted(self, matrix: Array, linear: Array, square: Array) -> Self:
        """The law times exp(linear' x + x' diag(square) x / 2), x = matrix (basis - mean), to first order."""

    @abc.abstractmethod
    def whole(self) -> Self:
        """The same law without fresh numbers apart."""


@dataclasses.dataclass(frozen=True)
class Meeting(abc.ABC):
    """Abstract: a belief and numbers x = matrix basis + noise that are about to be seen."""

    belief: Any
    matrix: Array
    noise: Noise

    @abc.abstractmethod
    def log_prob(self, away: Array) -> Array:
        """Log-density of x - E[x], shape (*rows, m), but for the constant -m log(2 pi) / 2; shape rows."""

    @abc.abstractmethod
    def given(self, away: Array) -> Any:
        """The belief given x - E[x]."""


class Root(Belief):
    """With spread @ spread' the covariance, shape (*rows, old, k)."""

    def whole(self) -> Root:
        unit = jnp.broadcast_to(
            jnp.eye(self.fresh, dtype=self.mean.dtype), (*self.mean.shape[:-1], *2 * (self.fresh,))
        )
        k = self.spread.shape[-1]
        above = jnp.pad(self.spread, [(0, 0)] * (self.spread.ndim - 1) + [(0, self.fresh)])
        below = jnp.pad(unit, [(0, 0)] * (unit.ndim - 1) + [(k, 0)])
        return Root(self.whole_mean(), jnp.concatenate([above, below], -2))

    def seen(self, matrix: Array) -> Array:
        """Matrix root, shape (*rows, m, k + fresh)."""
        old = matrix[..., : self.old] @ self.spread
        return jnp.concatenate([old, matrix[..., self.old :]], -1) if self.fresh else old

    def of(self, const: Array, matrix: Array, *, is_square: bool = False) -> Root:
        root = self.seen(matrix)
        if root.shape[-1] > root.shape[-2]:
            root = compressed(root)
        if is_square and (missing := root.shape[-2] - root.shape[-1]):
            root = jnp.pad(root, [(0, 0)] * (root.ndim - 1) + [(0, missing)])
        return Root(self.at(const, matrix), root)

    def covariance_of(self, matrix: Array) -> Array:
        seen = self.seen(matrix)
        return seen @ seen.mT

    def met(self, matrix: Array, noise: Noise) -> Meeting:
        belief = self.whole() if self.fresh else self
        m, k = matrix.shape[-2], belief.spread.shape[-1]
        return (_ByInformation if m > k else _ByRoot).of(belief, matrix, noise)

    def tilted(self, matrix: Array, linear: Array, square: Array) -> Root:
        belief = self.whole()
        seen = belief.seen(matrix)
        pull = (seen.mT @ linear[..., None])[..., 0]
        turn = belief.spread @ (seen.mT @ (square[..., None] * seen))
        mean = belief.mean + (belief.spread @ pull[..., None])[..., 0]
        return Root(mean, belief.spread + 0.5 * turn)


@dataclasses.dataclass(frozen=True)
class _ByRoot(Meeting):
    """Few numbers, by the root of the joint covariance of numbers and basis.

        [noise, H root; 0, root] -> [S^1/2, 0; K S^1/2, root given x].

    Attributes:
        root: S^1/2.
        gain: K S^1/2.
        rest: the root of the basis given x.
    """

    root: Array
    gain: Array
    rest: Array

    @classmethod
    def of(cls, belief: Root, matrix: Array, noise: Noise) -> _ByRoot:
        seen, own = belief.seen(matrix), noise.root
        m, n = matrix.shape[-2:]
        zeros = jnp.zeros((*seen.shape[:-2], n, m), seen.dtype)
        above = jnp.concatenate([jnp.broadcast_to(own, (*seen.shape[:-1], m)), seen], -1)
        below = jnp.concatenate([zeros, belief.spread], -1)
        if m == 1:  # one number: without a decomposition
            root = compressed(above)
            gain = (belief.spread @ seen.mT) / root
            # (1 - K H) root of rank-one form, exact for a single number
            factor = 1 / (root * (root + own))
            rest = belief.spread - (belief.spread @ seen.mT) * factor @ seen
            return cls(belief, matrix, noise, root, gain, rest)
        joint = compressed(jnp.concatenate([above, below], -2), m)
        return cls(
            belief, matrix, noise, joint[..., :m, :m], joint[..., m:, :m], joint[..., m:, m:]
        )

    def log_prob(self, away: Array) -> Array:
        whitened = free_solved(self.root, away[..., None])[..., 0]
        return -0.5 * (whitened**2).sum(-1) - free_log_det(self.root)

    def given(self, away: Array) -> Root:
        whitened = free_solved(self.root, away[..., None])
        return Root(self.belief.mean + (self.gain @ whitened)[..., 0], self.rest)


@dataclasses.dataclass(frozen=True)
class _ByInformation(Meeting):
    """Many numbers: with W = noise^-1 H root and U'U = 1 + W'W the root given x is root U^-1.

    Attributes:
        seen: W.
        top: U.
    """

    seen: Array
    top: Array

    @classmethod
    def of(cls, belief: Root, matrix: Array, noise: Noise) -> _ByInformation:
        seen = noise.whitened(belief.seen(matrix))
        return cls(belief, matrix, noise, seen, upper(seen))

    def _whitened(self, away: Array) -> tuple[Array, Array]:
        """The whitened numbers, and the mean of what the root multiplies."""
        whitened = self.noise.whitened(away[..., None])
        inner = solved(self.top, self.seen.mT @ whitened, is_lower=False, transposed=True)
        return whitened, solved(self.top, inner, is_lower=False)

    def log_prob(self, away: Array) -> Array:
        whitened, shift = self._whitened(away)
        square = ((whitened - self.seen @ shift) ** 2).sum((-2, -1)) + (shift**2).sum((-2, -1))
        diagonal = jnp.diagonal(self.top, axis1=-2, axis2=-1)
        return -0.5 * square - self.noise.log_det - jnp.log(diagonal).sum(-1)

    def given(self, away: Array) -> Root:
        _, shift = self._whitened(away)
        root = solved(self.top, self.belief.spread.mT, is_lower=False, transposed=True).mT
        return Root(self.belief.mean + (self.belief.spread @ shift)[..., 0], root)


class Covariance(Belief):
    """With spread the covariance, shape (*rows, old, old)."""

    def whole(self) -> Covariance:
        unit = jnp.eye(self.size, dtype=self.mean.dtype)
        return Covariance(self.whole_mean(), self.covariance_of(unit))

    def of(self, const: Array, matrix: Array, *, is_square: bool = False) -> Covariance:
        return Covariance(self.at(const, matrix), self.covariance_of(matrix))

    def covariance_of(self, matrix: Array) -> Array:
        old, new = matrix[..., : self.old], matrix[..., self.old :]
        found = old @ self.spread @ old.mT
        return found + new @ new.mT if self.fresh else found

    def met(self, matrix: Array, noise: Noise) -> Meeting:
        belief = self.whole() if self.fresh else self
        m, n = matrix.shape[-2:]
        return (_ByPrecision if m > n else _ByCovariance).of(belief, matrix, noise)

    def tilted(self, matrix: Array, linear: Array, square: Array) -> Covariance:
        belief = self.whole()
        crossed = matrix @ belief.spread
        mean = belief.mean + (crossed.mT @ linear[..., None])[..., 0]
        return Covariance(mean, belief.spread + crossed.mT @ (square[..., None] * crossed))


@dataclasses.dataclass(frozen=True)
class _ByCovariance(Meeting):
    """Few numbers: by the Cholesky factor of their covariance S = H P H' + R.

    Attributes:
        tril: L with L L' = S.
        gain: L^-1 H P.
    """

    tril: Array
    gain: Array

    @classmethod
    def of(cls, belief: Covariance, matrix: Array, noise: Noise) -> _ByCovariance:
        crossed = matrix @ belief.spread
        spread = crossed @ matrix.mT + noise.covariance
        tril = jnp.sqrt(spread) if spread.shape[-1] == 1 else jnp.linalg.cholesky(spread)
        return cls(belief, matrix, noise, tril, solved(tril, crossed, is_lower=True))

    def log_prob(self, away: Array) -> Array:
        whitened = solved(self.tril, away[..., None], is_lower=True)[..., 0]
        diagonal = jnp.diagonal(self.tril, axis1=-2, axis2=-1)
        return -0.5 * (whitened**2).sum(-1) - jnp.log(diagonal).sum(-1)

    def given(self, away: Array) -> Covariance:
        whitened = solved(self.tril, away[..., None], is_lower=True)
        mean = self.belief.mean + (self.gain.mT @ whitened)[..., 0]
        return Covariance(mean, self.belief.spread - self.gain.mT @ self.gain)


@dataclasses.dataclass(frozen=True)
class _ByPrecision(Meeting):
    """Many numbers: with W = noise^-1 H the covariance given x is P (1 + W'W P)^-1.

    Attributes:
        seen: W.
        rest: the covariance given x.
    """

    seen: Array
    log_det: Array
    rest: Array

    @classmethod
    def of(cls, belief: Covariance, matrix: Array, noise: Noise) -> _ByPrecision:
        seen, spread = noise.whitened(matrix), belief.spread
        inner = jnp.eye(belief.size, dtype=spread.dtype) + spread @ (seen.mT @ seen)
        _, log_det = jnp.linalg.slogdet(inner)
        rest = jnp.linalg.solve(inner, spread)
        return cls(belief, matrix, noise, seen, log_det, 0.5 * (rest + rest.mT))

    def _shift(self, away: Array) -> tuple[Array, Array]:
        whitened = self.noise.whitened(away[..., None])
        return whitened, self.rest @ (self.seen.mT @ whitened)

    def log_prob(self, away: Array) -> Array:
        whitened, shift = self._shift(away)
        square = (whitened * (whitened - self.seen @ shift)).sum((-2, -1))
        return -0.5 * (square + self.log_det) - self.noise.log_det

    def given(self, away: Array) -> Covariance:
        return Covariance(self.belief.mean + self._shift(away)[1][..., 0], self.rest)


for _kind in (Root, Covariance):
    jax.tree_util.register_dataclass(_kind, ["mean", "spread"], ["fresh"])
for _kind, _more in (
    (_ByRoot, ["root", "gain", "rest"]),
    (_ByInformation, ["seen", "top"]),
    (_ByCovariance, ["tril", "gain"]),
    (_ByPrecision, ["seen", "log_det", "rest"]),
):
    jax.tree_util.register_dataclass(_kind, ["belief", "matrix", "noise", *_more], [])


def kind_for(dtype: Any) -> type[Root] | type[Covariance]:
    """How beliefs are kept in a precision."""
    return Covariance if dtype == jnp.float64 else Root


def no_belief(rows: tuple[int, ...], dtype: Any) -> Belief:
    """The belief of an empty basis."""
    return known(jnp.zeros((*rows, 0), dtype))


def known(value: Array) -> Belief:
    """The belief that the basis has a value, shape (*rows, n)."""
    return kind_for(value.dtype)(value, jnp.zeros((*value.shape, value.shape[-1]), value.dtype))

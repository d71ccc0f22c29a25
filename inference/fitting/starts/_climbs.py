"""Newton's steps from several points at once, and the Normals along their paths.

At u the Hessian -A of log p is split by its eigenvectors, after a scaling by its diagonal, and the step goes up along each of
them by gradient / |eigenvalue|: away from saddles and minima, and alike in any units. Each Hessian is taken in the coordinates in
which the last one was the identity, so that what rounding had hidden of narrow directions is seen by the next. Every point of a
path gives a Normal, as in Pathfinder: mean u + |A|^-1 gradient, covariance |A|^-1; its evidence lower bound, by a few draws, is
what the Normals are compared by. Where the density has no maximum (the neck of a funnel) the best of them lies on the way.

Reference: Zhang, Carpenter, Gelman and Vehtari 2022, arXiv:2108.03782; saddle-free steps, Dauphin et al. 2014, arXiv:1406.2572.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from ._space import Landscape

# Parts of a Newton step that are tried at once, and of one that trusts no eigenvalue below a hundredth of the largest.
_PARTS, _SHORT_PARTS = (1.0, 0.5, 0.2, 0.05, 0.005), (1.0, 0.1, 0.01)
TRIED = len(_PARTS) + len(_SHORT_PARTS)
_FLOOR = 1e-5  # of an eigenvalue, beside the largest: single precision knows no smaller ones
_ARRIVED = 1e-3  # nats that the next step would gain


class UnjudgedNormal(NamedTuple):
    """A Normal that is not judged yet; see `Start`."""

    name: str
    center: np.ndarray
    factor: np.ndarray
    is_mode: bool


class _Climbs:
    """Points u [n, d] that climb together."""

    def __init__(self, landscape: Landscape, points: np.ndarray, rng: np.random.Generator) -> None:
        n, d = points.shape
        self.landscape, self.u = landscape, points
        half = rng.standard_normal((TRIED // 2, d))
        self.noise = np.concatenate([half, -half])
        self.factor = np.broadcast_to(np.eye(d), (n, d, d)).copy()
        self.is_on = np.ones(n, bool)
        self.is_mode = np.zeros(n, bool)
        self.value = np.full(n, -np.inf)
        self.best_bound = np.full(n, -np.inf)
        self.best: list[tuple[np.ndarray, np.ndarray] | None] = [None] * n

    def step(self) -> bool:
        """One step of all paths that are on their way; whether there are any left."""
        n, d = self.u.shape
        self.value, gradient, hessian = self.landscape.derivatives(self.u, self.factor)
        is_known = np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2))
        self.is_on &= is_known & np.isfinite(self.value)
        step, short = np.zeros((n, d)), np.zeros((n, d))
        factor = self.factor.copy()
        for i in np.flatnonzero(self.is_on):
            split = _ScaledEigen.of(-hessian[i])
            step[i] = self.factor[i] @ split.solve(gradient[i], _FLOOR)
            short[i] = self.factor[i] @ split.solve(gradient[i], 1e-2)
            factor[i] = self.factor[i] @ split.root(_FLOOR)
            gain = 0.5 * gradient[i] @ split.solve(gradient[i], _FLOOR)
            # The factor was that of the point before: where it is still right, the Hessian's eigenvalues are near 1.
            is_same = bool((abs(np.log(np.maximum(split.true, 1e-9))) < 0.1).all())
            self.is_mode[i] = gain < _ARRIVED and is_same
        self._compare(self.u + step, factor)
        parts = [self.u + t * step for t in _PARTS] + [self.u + t * short for t in _SHORT_PARTS]
        points = np.stack(parts, 1)  # [n, tried, d]
        values = self.landscape.values(points.reshape(-1, d)).reshape(n, -1)
        chosen = values.argmax(1)
        top = values[np.arange(n), chosen]
        # Near a mode rounding hides a gain, and the step is still right.
        slack = 1e-5 * np.abs(self.value) + 1e-3
        goes = self.is_on & (top >= self.value - slack)
        self.u = np.where(goes[:, None], points[np.arange(n), chosen], self.u)
        self.factor = np.where(self.is_on[:, None, None], factor, self.factor)
        self.is_on = goes & ~self.is_mode
        return bool(self.is_on.any())

    def _compare(self, mean: np.ndarray, factor: np.ndarray) -> None:
        """Keep the Normal of each path with the largest bound so far."""
        n, d = mean.shape
        draws = mean[:, None] + np.einsum("nij,sj->nsi", factor, self.noise)
        values = self.landscape.values(draws.reshape(-1, d)).reshape(n, -1)
        bound = values.mean(1) + _entropy(factor)
        for i in np.flatnonzero(self.is_on & (bound > self.best_bound)):
            self.best_bound[i], self.best[i] = bound[i], (mean[i].copy(), factor[i].copy())


@dataclasses.dataclass(frozen=True)
class _ScaledEigen:
    """A = D V diag(true) V^T D, D a scaling by the diagonal of A."""

    scale: np.ndarray
    vectors: np.ndarray
    true: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray) -> _ScaledEigen:
        a = (a + a.T) / 2
        scale = np.sqrt(np.maximum(np.abs(np.diag(a)), 1e-20))
        values, vectors = np.linalg.eigh(a / scale[:, None] / scale)
        return cls(scale, vectors, values)

    def size(self, floor: float) -> np.ndarray:
        size = np.abs(self.true)
        return np.maximum(size, max(floor * size.max(), 1e-20))  # a Hessian may be zero

    def solve(self, gradient: np.ndarray, floor: float) -> np.ndarray:
        """|A|^-1 gradient."""
        inner = self.vectors.T @ (gradient / self.scale)
        return (self.vectors @ (inner / self.size(floor))) / self.scale

    def root(self, floor: float) -> np.ndarray:
        """F with F F^T = |A|^-1."""
        return self.vectors / np.sqrt(self.size(floor)) / self.scale[:, None]


def climbed(
    landscape: Landscape, names: list[str], points: np.ndarray, rng: np.random.Generator, max_steps: int
) -> list[UnjudgedNormal]:  # fmt: skip
    """The Normals at the ends of paths, and of those that end at no mode the best along them."""
    paths = _Climbs(landscape, points, rng)
    for _ in range(max_steps):
        if not paths.step():
            break
    found = []
    for name, u, factor, is_mode, best in zip(
        names, paths.u, paths.factor, paths.is_mode, paths.best, strict=True
    ):
        if is_mode:
            found.append(UnjudgedNormal(name, u, factor, True))
        elif best is not None:
            found.append(UnjudgedNormal(name, best[0], best[1], False))
    # No derivative is finite anywhere: the points themselves.
    near = 0.1 * np.eye(points.shape[1])
    return found or [UnjudgedNormal(n, u, near, False) for n, u in zip(names, points, strict=True)]


def _entropy(factor: np.ndarray) -> np.ndarray:
    d = factor.shape[-1]
    return 0.5 * d * math.log(2 * math.pi * math.e) + np.linalg.slogdet(factor)[1]

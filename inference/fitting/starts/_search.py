"""Where a posterior is: Newton's paths (`_climbs.py`) from dispersed points and from where these ended, the Normals compared.

The best of them are improved by steps of the natural gradient where their evidence is far from their bound.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from ....ppl._types import Key
from ..._arguments import is_array
from ..data import RowBlocks
from ._climbs import TRIED, UnjudgedNormal, climbed
from ._space import Landscape, Space

_RADIUS = 2.0  # of uniform starts, NumPyro's and Stan's
_PRIOR_DRAWS = 15
_FINAL_DRAWS = 128
_APART = 2.0  # standard deviations between two modes
_NEAR = 0.05  # nats between evidence and bound: of a Normal that need not be improved
_NATURAL_STEPS = 20, 150
_NATURAL_WORK = 2e9  # numbers that the Hessians of all of them may touch
_MOST_BROKEN = 0.05  # of the draws of a Normal
_IMPROVED = 3  # Normals, those with the largest evidence
_RIVAL = 3.0  # nats below the best bound


@dataclasses.dataclass(frozen=True)
class Start:
    """A Normal on the unconstrained coordinates.

    Attributes:
        name: of the point that its path began at.
        center: its mean, [d].
        factor: lower triangular, its covariance is factor factor^T, [d, d].
        log_density: log p(center, data), nats.
        elbo: its evidence lower bound, nats, by draws.
        log_evidence: log mean weight of the same draws, nats.
        is_mode: whether its path ended at a mode; the Normal is that of the Hessian there, or a better one nearby.
        broken: a draw of it at which the log-density is not finite, where more than one in twenty are such; else None.
    """

    name: str
    center: np.ndarray
    factor: np.ndarray
    log_density: float
    elbo: float
    log_evidence: float
    is_mode: bool
    broken: np.ndarray | None = None

    def distance(self, u: np.ndarray) -> float:
        """Distance of a point from the centre, in standard deviations."""
        return float(np.linalg.norm(np.linalg.solve(self.factor, u - self.center)))


@dataclasses.dataclass(frozen=True)
class Starts:
    """What `find_starts` found.

    Attributes:
        space: the coordinates.
        landscape: the compiled log-density.
        all: the Normals that were compared, in the order of their bounds, the best first.
        num_paths: paths that were followed.
    """

    space: Space
    landscape: Landscape
    all: tuple[Start, ...]
    num_paths: int

    @property
    def best(self) -> Start:
        """That with the largest bound."""
        return self.all[0]

    @property
    def modes(self) -> tuple[Start, ...]:
        """Those at a mode, by their bounds."""
        return tuple(start for start in self.all if start.is_mode)

    def __str__(self) -> str:
        kind = "mode" if self.best.is_mode else "best Normal on the way"
        number = len(self.modes)
        more = f", {number} modes seen" if number > 1 else ""
        return f"{kind} from the {self.best.name}, of {self.num_paths} paths{more}"


def find_starts(
    space: Space, args: tuple, key: Key, *, num_paths: int = 16, max_steps: int = 60, blocks: RowBlocks | None = None
) -> Starts:  # fmt: skip
    """Normals near the modes of p(u, data), the best first.

    Args:
        space: the coordinates.
        args: the arguments of its program.
        key: PRNG key.
        num_paths: dispersed points to begin at: the median of prior draws, the likeliest of them, points uniform on (-2, 2).
            Half as many again begin where these ended: at the best mode with its labels permuted, and at points that have each
            coordinate from one or another. Fewer where data and coordinates are many, or the program computes much.
        max_steps: of each path.
        blocks: as of `Landscape`.

    Raises:
        ValueError: the log-density is not finite at any of the points; the message names a site.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        return _found(space, args, key, num_paths, max_steps, blocks)


def start_without_search(
    space: Space, args: tuple, key: Key, blocks: RowBlocks | None = None
) -> tuple[Landscape, np.ndarray]:
    """The compiled log-density, and the first of these that has one: the median of prior draws, the likeliest of them, others.

    Raises:
        ValueError: as `find_starts`.
    """
    landscape = Landscape(space, args, 1, lambda _: 4 * _PRIOR_DRAWS, _size(args, blocks), blocks)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return landscape, _dispersed(landscape, args, key, rng, 1)[1][0]


def _size(args: tuple, blocks: RowBlocks | None) -> int:
    """Numbers in the largest argument."""
    if blocks is not None:
        return blocks.size
    return max([*(int(np.size(x)) for x in jax.tree.leaves(args) if is_array(x)), 100])


def _found(
    space: Space, args: tuple, key: Key, num_paths: int, max_steps: int, blocks: RowBlocks | None
) -> Starts:
    rows = lambda num_paths: max(TRIED * num_paths, 4 * _PRIOR_DRAWS)
    landscape = Landscape(space, args, num_paths, rows, _size(args, blocks), blocks)
    num_paths = landscape.num_paths
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    names, points = _dispersed(landscape, args, key, rng, num_paths)
    normals = climbed(landscape, names, points, rng, max_steps)
    names, points = _recombined(landscape, normals, points, rng, max(num_paths // 2, 1))
    if len(points):
        normals += climbed(landscape, names, points, rng, max_steps)
    found = _compared(landscape, normals, rng)
    least = found[0].elbo - _RIVAL
    rivals = sorted((s for s in found if s.log_evidence > least), key=lambda s: -s.log_evidence)
    better = {
        id(start): _improved(landscape, start, rng) for start in [found[0], *rivals][:_IMPROVED]
    }
    found = sorted((better.get(id(start), start) for start in found), key=lambda s: -s.elbo)
    return Starts(space, landscape, tuple(_apart(found)), num_paths + len(names))


def _dispersed(
    landscape: Landscape, args: tuple, key: Key, rng: np.random.Generator, number: int
) -> tuple[list[str], np.ndarray]:
    """Names and points, at most `number`, of finite density."""
    space = landscape.space
    uniform = rng.uniform(-_RADIUS, _RADIUS, (landscape.rows - 2 * _PRIOR_DRAWS, space.dimension))
    try:
        draws = landscape.draws(key, _PRIOR_DRAWS)
    except NotImplementedError:  # a law without a sampler
        draws = np.zeros((0, space.dimension))
    named = [("uniform start", u) for u in uniform]
    if len(draws):
        named += [("prior median", np.median(draws, 0)), ("prior mean", draws.mean(0))]
        named += [("prior draw", u) for u in draws]
    values = landscape.values(np.stack([u for _, u in named]))
    good = [(name, u, v) for (name, u), v in zip(named, values, strict=True) if np.isfinite(v)]
    if not good:
        reason = space.what_breaks(uniform[0], args) or "look for NaN in the log-density there."
        raise ValueError(
            f"{space.method}: {space.program!r} has no place to start from. Its log-density is not finite at any of {len(named)} "
            f"points, uniform on (-{_RADIUS:g}, {_RADIUS:g}) of the unconstrained values and {len(draws)} draws of the prior. "
            f"Mend the first of these: {reason}"
        )
    of = lambda kind: [(name, u, v) for name, u, v in good if name == kind]
    drawn = sorted(of("prior draw"), key=lambda x: -x[2])
    chosen = [*of("prior median"), *drawn[:1], *of("uniform start"), *drawn[1:], *of("prior mean")]
    chosen = chosen[:number]
    return [name for name, *_ in chosen], np.stack([u for _, u, _ in chosen])


def _recombined(
    landscape: Landscape, normals: list[UnjudgedNormal], points: np.ndarray, rng: np.random.Generator, number: int
) -> tuple[list[str], np.ndarray]:  # fmt: skip
    """Names and points of a second round, of finite density."""
    ends = np.stack([normal.center for normal in normals])
    best = ends[landscape.values(ends).argmax()]
    named = [("permuted labels", u) for u in landscape.space.relabelled(best)[: number // 2]]
    pool = np.concatenate([ends, points])
    for _ in range(number - len(named)):
        one, other = pool[rng.integers(len(pool), size=2)]
        named.append(("recombined modes", np.where(rng.random(len(best)) < 0.5, one, other)))
    values = landscape.values(np.stack([u for _, u in named]))
    kept = [x for x, v in zip(named, values, strict=True) if np.isfinite(v)]
    return [name for name, _ in kept], np.stack([u for _, u in kept]) if kept else points[:0]


def _compared(
    landscape: Landscape, normals: list[UnjudgedNormal], rng: np.random.Generator
) -> list[Start]:
    """The Normals by their bounds; one of those that are near to each other."""
    noise = rng.standard_normal((_FINAL_DRAWS // 2, landscape.space.dimension))
    noise = np.concatenate([noise, -noise])
    # Ends at one mode, before they are judged.
    different: list[UnjudgedNormal] = []
    for normal in sorted(normals, key=lambda n: not n.is_mode):
        twins = (n for n in different if n.is_mode and normal.is_mode)
        if all(
            np.linalg.norm(np.linalg.solve(n.factor, normal.center - n.center)) > 0.5 for n in twins
        ):
            different.append(normal)
    starts = [_judged(landscape, noise, *normal) for normal in different]
    return _apart(sorted(starts, key=lambda s: -s.elbo))


def _apart(starts: list[Start]) -> list[Start]:
    """Those that are not near one before them."""
    kept: list[Start] = []
    for start in starts:
        if all(min(k.distance(start.center), start.distance(k.center)) > _APART for k in kept):
            kept.append(start)
    return kept


def _judged(
    landscape: Landscape, noise: np.ndarray, name: str, center: np.ndarray, factor: np.ndarray, is_mode: bool
) -> Start:  # fmt: skip
    """The Normal with its bound and evidence, by draws center + factor noise."""
    log_q = -0.5 * (noise**2 + math.log(2 * math.pi)).sum(1) - np.linalg.slogdet(factor)[1]
    draws = center + noise @ factor.T
    weights = landscape.values(draws) - log_q
    is_bad = ~np.isfinite(weights)
    broken = draws[is_bad.argmax()] if is_bad.mean() > _MOST_BROKEN else None
    top = weights.max()
    evidence = top + np.log(np.exp(weights - top).mean()) if np.isfinite(top) else -np.inf
    value = landscape.values(center[None])[0]
    elbo = float(weights.mean())
    return Start(name, center, lower(factor), float(value), elbo, float(evidence), is_mode, broken)


def _improved(landscape: Landscape, start: Start, rng: np.random.Generator) -> Start:
    """The Normal after steps of the natural gradient of its bound.

    In coordinates in which it is the standard one, with G = -E Hessian - 1, they are

        mean + rho E gradient,   precision 1 + rho G + rho^2 G^2 / 2,

    which stays positive definite. Expectations are of a few draws, and steps shrink, so that the noise is averaged.

    Reference: Lin, Schmidt and Khan 2020, arXiv:2002.10060, eq. 10 and 11.
    """
    if start.log_evidence - start.elbo < _NEAR:
        return start
    center, factor, d = start.center, start.factor, len(start.center)
    for number in range(int(np.clip(_NATURAL_WORK / landscape.work, *_NATURAL_STEPS))):
        rate = 0.3 / (1 + number / 40)
        half = rng.standard_normal((max(landscape.num_paths // 2, 1), d))
        noise = np.concatenate([half, -half])
        factors = np.broadcast_to(factor, (len(noise), d, d))
        _, gradient, hessian = landscape.derivatives(center + noise @ factor.T, factors)
        good = np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2))
        if not good.any():
            break
        gradient, hessian = gradient[good].mean(0), hessian[good].mean(0)
        inner = (1 - rate) * np.eye(d) - rate * (hessian + hessian.T) / 2
        values, vectors = np.linalg.eigh(inner)
        # No step is longer than a standard deviation, and no width grows or falls by more than a half.
        width = 1 / np.sqrt(np.clip((1 + values**2) / 2, 0.5, 4.0))
        length = rate * np.linalg.norm(gradient)
        center = center + factor @ gradient * rate / max(1.0, length)
        factor = factor @ (vectors * width)
    noise = rng.standard_normal((_FINAL_DRAWS // 2, d))
    noise = np.concatenate([noise, -noise])
    found = _judged(landscape, noise, start.name, center, factor, False)
    return dataclasses.replace(found, is_mode=start.is_mode) if found.elbo > start.elbo else start


def lower(factor: np.ndarray) -> np.ndarray:
    """The lower triangular L with L L^T = F F^T and a positive diagonal, without the product."""
    upper: np.ndarray = np.linalg.qr(factor.T, mode="r")  # pyright: ignore[reportAssignmentType]
    return upper.T * np.sign(np.diag(upper))

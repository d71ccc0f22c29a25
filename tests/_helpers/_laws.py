"""Log-densities in single precision against double precision, over grids of parameters and values.

`examine(log_prob, points)` runs a log-density and its gradient at each point, in both precisions, and returns what is wrong in
single precision: an error that the rounding of the arguments does not explain. An error is counted in units of

    eps (1 + |f| + sum_i |x_i df/dx_i|)     of a log-density f,
    eps (|g| + sum_i |x_i dg/dx_i|)         of a component g of its gradient,

what one rounding of each argument, and of the result, may change. More than `LIMIT` of them is a fault, unless the error is below
1e-4 (of a gradient: per relative change of its argument, or 1e-3 of itself).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EPS = float(np.finfo(np.float32).eps)
LIMIT = 100.0
SIZES = (1e-30, 1e30)  # of values: no draw is outside, and their products overflow


@dataclasses.dataclass(frozen=True)
class Law:
    """A log-density of one vector of arguments, the points of its grid, and SciPy's log-density there if it has it."""

    log_prob: Callable[[Any], Any]
    points: np.ndarray
    exact: Callable[..., Any] | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """SciPy's functions warn of nothing, however far out."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@quiet()
def grid(
    make: Callable[..., Any],
    *parameters: Sequence[float],
    values: Callable[..., Any] | None = None,
    exact: Callable[..., Any] | None = None,
    is_integer: bool = False,
) -> Law:
    """The law `make(*parameters)` at all combinations of parameters, and at `values(*parameters)` or the quantiles of `exact`.

    Args:
        make: a law.
        parameters: of each, the numbers that are tried.
        values: where its log-probability is taken.
        exact: SciPy's frozen law.
        is_integer: whether the law indexes by its value.
    """
    points = []
    for theta in itertools.product(*parameters):
        theta = tuple(float(np.float32(t)) for t in theta)
        if values is None:
            assert exact is not None
            law, share = exact(*theta), [1e-30, 1e-10, 1e-3, 0.1, 0.5, 0.9]
            found = np.concatenate([law.ppf(share), law.isf(share)])
        else:
            found = np.asarray(values(*theta))
        for x in np.unique(np.float32(found)):
            if SIZES[0] <= abs(x) <= SIZES[1] or (x == 0 and values is not None):
                points.append((*theta, x))

    def log_prob(v: Any) -> Any:
        x = v[-1].astype(int) if is_integer else v[-1]
        return make(*(v[i] for i in range(len(v) - 1))).log_prob(x)

    def at(*args: Any) -> Any:
        assert exact is not None
        law = exact(*args[:-1])
        return (law.logpmf if hasattr(law.dist, "pmf") else law.logpdf)(args[-1])

    return Law(log_prob, np.array(points, np.float32), at if exact else None)


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found of a law: the number of points, the worst error of each kind in units, the faults in words."""

    num_points: int
    worst: tuple[float, float]
    faults: list[str]


def _derivatives(log_prob: Callable[[Any], Any], points: np.ndarray, num: int) -> list[np.ndarray]:
    """Values, gradients and Hessians, the first `num` of them."""
    orders = [log_prob, jax.grad(log_prob), jax.jacfwd(jax.grad(log_prob))][:num]
    run = jax.jit(lambda p: [jax.vmap(f)(p) for f in orders])
    return [np.asarray(x, float) for x in run(jnp.asarray(points))]


def _units(error: np.ndarray, rounding: np.ndarray, is_small: np.ndarray) -> np.ndarray:
    units = np.where(np.isnan(error), np.inf, error) / (EPS * rounding + 1e-300)
    return np.where(is_small & np.isfinite(error), np.minimum(units, LIMIT), units)


def examine(law: Law) -> Report:
    """Compare a law's log-density and score in single precision with those in double, and these with SciPy's."""
    points = law.points
    value, score = _derivatives(law.log_prob, points, 2)
    with jax.enable_x64(True):
        exact, slopes, bends = _derivatives(law.log_prob, points.astype(float), 3)
    faults = []
    if law.exact is not None:
        with quiet():
            scipy = np.array([law.exact(*map(float, p)) for p in points])
            # At an end of the support, to which a quantile is rounded, SciPy has the limit.
            off = np.isfinite(exact) & ~(np.abs(exact - scipy) <= 1e-6 * (1 + np.abs(scipy)))
        faults += [
            f"double {p}: {a} for {b}"
            for p, a, b in zip(points[off], exact[off], scipy[off], strict=True)
        ]
    known = np.isfinite(exact) & np.isfinite(slopes).all(-1)
    points, value, score = points[known], value[known], score[known]
    exact, slopes, bends = exact[known], slopes[known], bends[known]
    size = np.abs(points.astype(float))
    error = np.abs(value - exact)
    units = _units(error, 1 + np.abs(exact) + (np.abs(slopes) * size).sum(-1), error < 1e-4)
    error = np.abs(score - slopes)
    bend = np.nan_to_num(np.abs(bends) * size[:, None, :], posinf=0).sum(-1)
    is_small = error * size < 1e-4 + 1e-3 * np.abs(slopes) * size
    of_score = _units(error, np.abs(slopes) + bend, is_small)
    for i in np.flatnonzero(units > LIMIT):
        faults.append(f"log-density at {points[i]}: {value[i]} for {exact[i]}")
    for i, j in np.argwhere(of_score > LIMIT):
        faults.append(f"score {j} at {points[i]}: {score[i, j]} for {slopes[i, j]}")
    return Report(len(points), (float(units.max()), float(of_score.max())), faults)

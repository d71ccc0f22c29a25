"""Precision, recall, density and coverage: where the samples lie, by balls around k nearest neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import ArrayLike
from ._estimate import Estimate
from ._inputs import Features, check_held_out, groups, jackknife_error, rows

_GROUPS = 10
_AT_ONCE = 2**21  # entries of a matrix of distances
_ROUNDING = 1e-12  # of squared distances, in variances: those that differ by less are equal
NAMES = ("precision", "recall", "density", "coverage")


@dataclasses.dataclass(frozen=True)
class FidelityDiversity:
    """See `fidelity_diversity`; printing it is a line for each.

    Attributes:
        precision: share of generated rows in a ball around a real one.
        recall: share of real rows in a ball around a generated one.
        density: mean number of real rows' balls that a generated row lies in, over k; above 1 where real rows are dense.
        coverage: share of real rows whose ball has a generated row.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate

    def estimates(self) -> dict[str, Estimate]:
        """The four, by name."""
        return {name: getattr(self, name) for name in NAMES}

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.estimates().values()))


@checked_call
def expected_coverage(num_real: int, num_generated: int, k: int) -> float:
    """Expected coverage where both samples have one law: 1 - prod_{j<k} (N - 1 - j) / (N + M - 1 - j).

    The ball of a real row has no generated one in it exactly if its k nearest of all the other N + M - 1 rows are real.

    Args:
        num_real: N.
        num_generated: M.
        k: neighbours that make the radius.

    Raises:
        ValueError: counts below 1, or a k that is not less than `num_real`.

    Example:
        >>> round(expected_coverage(1_000, 1_000, 5), 5)
        0.96898
    """
    check_counts("expected_coverage", num_real=num_real, num_generated=num_generated, k=k)
    if k >= num_real:
        raise ValueError(
            f"expected_coverage: k must be less than num_real = {num_real}, got {k}: a row has num_real - 1 neighbours."
        )
    j = np.arange(k)
    return float(1 - np.prod((num_real - 1 - j) / (num_real + num_generated - 1 - j)))


@checked_call
def fidelity_diversity(
    real: Float[ArrayLike, "n d"],
    generated: Float[ArrayLike, "m d"],
    *,
    k: int = 5,
    features: Features | None = None,
    held_out: Float[ArrayLike, "m d"] | None = None,
) -> FidelityDiversity:
    """Precision, recall, density and coverage.

    With B(x_i) the ball around a row up to its k-th nearest neighbour of the same sample:

        precision = mean_j 1(y_j in some B(x_i))       recall = mean_i 1(x_i in some B(y_j))
        density   = mean_j #{i: y_j in B(x_i)} / k     coverage = mean_i 1(some y_j in B(x_i))

    Args:
        real: N rows.
        generated: M rows.
        k: neighbours.
        features: a function of each sample.
        held_out: real rows for the floor, as many as `generated`.

    Returns:
        A `FidelityDiversity`, with jackknife errors over 10 groups of rows of both samples. Distances are taken by blocks, [n, m]
        is never formed.

    Raises:
        ValueError: what `rows` are not, or samples of fewer than 2 k + 20 rows.

    Validity: where both laws are one, whatever it is, E[density] = 1 and E[coverage] is `expected_coverage`:
    these are `exact`. Where distances tie (counts, categories, rows that repeat), the rows at one distance stand in random order,
    and density and coverage are means over these orders: both stay exact for every law. The jackknife is too wide there, by a
    factor of 1 to 2 (counts of neighbours are no smooth functions of the sample). Precision and recall have no such value, they
    depend on law and dimension, their balls are open, and only their floor says what they are worth.

    Reference: Kynkaanniemi et al. 2019, arXiv:1904.06991 (precision, recall); Naeem et al. 2020, arXiv:2002.09797 (density,
    coverage, and the latter's expectation).
    """
    label = "fidelity_diversity"
    check_counts(label, k=k)
    x, y, *other = rows(
        label, features, {"real": real, "generated": generated, "held_out": held_out},
        least=2 * k + 20, why=f"balls of {k} neighbours, with a tenth of the rows left out,",
    )  # fmt: skip
    found = _all_four(x, y, k)
    if other:
        check_held_out(label, x, y, other[0])
        floors = _all_four(x, other[0], k)
        found = {
            name: dataclasses.replace(estimate, floor=floors[name])
            for name, estimate in found.items()
        }
    return FidelityDiversity(**found)


def _all_four(x: np.ndarray, y: np.ndarray, k: int) -> dict[str, Estimate]:
    """Estimates by name; the last axis of all counts is that of the jackknife, its first entry with all rows."""
    centre = x.mean(0)
    x, y = x - centre, y - centre
    x_group, y_group = groups(len(x), _GROUPS), groups(len(y), _GROUPS)
    within = _ROUNDING * x.var(0).sum()
    x_radius, y_radius = squared_radii(x, k, x_group), squared_radii(y, k, y_group)
    kept_x, kept_y = _kept(x_group), _kept(y_group)
    nearer, tied_x = _ties(x, x_radius, kept_x, within)
    # A row at the radius comes before the k-th of the tied ones in this share of all orders of them.
    share = (k - nearer) / (tied_x + 1)
    in_real, balls = np.zeros((2, len(y), _GROUPS + 1))
    in_generated = np.zeros((len(x), _GROUPS + 1), bool)
    has_generated, tied_y = np.zeros((2, len(x), _GROUPS + 1))
    for part, distance in squared_distances(y, x):
        for g in range(_GROUPS + 1):
            limit = np.where(kept_x[:, g], x_radius[:, g], -np.inf)
            inside, touching = distance < limit - within, distance <= limit + within
            touching ^= inside
            balls[part, g] = inside.sum(1)
            in_real[part, g] = inside.any(1)
            rest = kept_y[part, g]
            has_generated[:, g] += (inside & rest[:, None]).any(0)
            if touching.any():
                balls[part, g] += touching @ share[:, g]
                tied_y[:, g] += (touching & rest[:, None]).sum(0)
            radius = np.where(rest, y_radius[part, g], -np.inf)
            in_generated[:, g] |= (distance < radius[:, None] - within).any(0)
    # Of the rows at the radius, the first k - nearer are all real in this share of their orders.
    step = np.arange(k)[:, None, None]
    unseen = np.where(
        step < k - nearer, np.maximum(tied_x - step, 0) / np.maximum(tied_x + tied_y - step, 1), 1.0
    ).prod(0)
    has_generated = np.where(has_generated > 0, 1.0, 1 - unseen)
    means = {
        "precision": _mean(in_real, kept_y),
        "recall": _mean(in_generated, kept_x),
        "density": _mean(balls, kept_y) / k,
        "coverage": _mean(has_generated, kept_x),
    }
    exact = {"density": 1.0, "coverage": expected_coverage(len(x), len(y), k)}
    sizes = (len(x), len(y))
    return {
        name: Estimate(
            float(v[0]),
            float(jackknife_error(v[1:])),
            exact=exact.get(name),
            name=name,
            sizes=sizes,
        )
        for name, v in means.items()
    }


def _kept(group: np.ndarray) -> np.ndarray:
    """Which rows count, [rows, 1 + groups]: all of them, then all but one group."""
    return np.concatenate(
        [np.ones((len(group), 1), bool), group[:, None] != np.arange(_GROUPS)], axis=1
    )


def _mean(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return (values * kept).sum(0) / kept.sum(0)


def squared_distances(
    x: np.ndarray, y: np.ndarray
) -> Iterator[tuple[slice, Float[np.ndarray, "a b"]]]:
    """Blocks of rows of x, and their squared distances from all rows of y."""
    step = max(1, _AT_ONCE // len(y))
    squares = (y**2).sum(1)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        distance = part @ (-2 * y.T)
        distance += (part**2).sum(1)[:, None]
        distance += squares
        yield slice(start, start + len(part)), np.maximum(distance, 0.0, out=distance)


def _ties(
    x: np.ndarray, radius: np.ndarray, kept: np.ndarray, within: float
) -> tuple[np.ndarray, np.ndarray]:
    """How many other rows are nearer than the radius, and how many are at it, [rows, 1 + groups]."""
    nearer, tied = np.zeros(radius.shape), np.zeros(radius.shape)
    for part, distance in squared_distances(x, x):
        distance[np.arange(len(distance)), np.arange(part.start, part.stop)] = np.inf
        for g in range(_GROUPS + 1):
            limit, others = radius[part, g][:, None], kept[:, g]
            nearer[part, g] = ((distance < limit - within) & others).sum(1)
            tied[part, g] = ((distance <= limit + within) & others).sum(1) - nearer[part, g]
    return nearer, tied


def squared_radii(x: np.ndarray, k: int, group: np.ndarray) -> np.ndarray:
    """Squared distance from the k-th nearest other row, [rows, 1 + groups], with all rows and without each group."""
    near = min(len(x) - 1, 3 * k + 15)
    radii = np.empty((len(x), _GROUPS + 1))
    for part, distance in squared_distances(x, x):
        own = np.arange(part.start, part.stop)
        distance[np.arange(len(own)), own] = np.inf
        index = np.argpartition(distance, near - 1, axis=1)[:, :near]
        found = np.take_along_axis(distance, index, 1)
        order = np.argsort(found, 1)
        found, owner = (
            np.take_along_axis(found, order, 1),
            group[np.take_along_axis(index, order, 1)],
        )
        radii[part, 0] = found[:, k - 1]
        for g in range(_GROUPS):
            count = (owner != g).cumsum(1)
            radii[part, g + 1] = found[np.arange(len(own)), (count >= k).argmax(1)]
            few = np.flatnonzero(count[:, -1] < k)  # nearly all neighbours in one group
            if len(few):
                rest = distance[few][:, group != g]
                radii[own[few], g + 1] = np.partition(rest, k - 1, axis=1)[:, k - 1]
    return radii


@checked_call
def nearest_distance(
    generated: Float[ArrayLike, "m d"],
    real: Float[ArrayLike, "n d"],
    *,
    features: Features | None = None,
    held_out: Float[ArrayLike, "m d"] | None = None,
) -> Estimate:
    """Mean distance of generated rows to the nearest training row: far below the floor, they are copies.

        mean_j min_i |y_j - x_i|

    Args:
        generated: m rows.
        real: n rows that the model was trained on.
        features: a function of each sample.
        held_out: real rows that it was not trained on, as many as `generated`, for the floor.

    Returns:
        The mean, with the standard error of m independent rows given the real ones. Details: "copies", the share of rows at
        distance 0.

    Raises:
        ValueError: what `rows` are not.
    """
    label = "nearest_distance"
    x, y, *other = rows(
        label, features, {"real": real, "generated": generated, "held_out": held_out}
    )
    if other:
        check_held_out(label, x, y, other[0])
    centre = x.mean(0)

    def compute(y: np.ndarray) -> Estimate:
        blocks = squared_distances(y - centre, x - centre)
        # Of equal rows the squares leave rounding behind.
        least = np.concatenate([d.min(1) for _, d in blocks])
        scale = 1e-12 * (x - centre).var(0).sum()
        near = np.sqrt(np.where(least < scale, 0.0, least))
        error = float(near.std(ddof=1) / len(near) ** 0.5)
        details = {"copies": float((near == 0).mean())}
        return Estimate(
            float(near.mean()), error, name=label, sizes=(len(x), len(y)), details=details
        )

    estimate = compute(y)
    return dataclasses.replace(estimate, floor=compute(other[0])) if other else estimate

"""Whether the data that were seen could have come from the model: distance from its predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, PyTree

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._data import as_numbers
from ...ppl._show import shown
from ...ppl._table import table
from ...ppl._types import Key
from ._simulations import flat, generator, names_of


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Misspecification:
    """See `misspecification`.

    Attributes:
        labels: names of the summaries.
        mmd: squared maximum mean discrepancy between simulated and observed summaries (biased V-statistic).
        p_value: share of exchanges of observed and simulated data with at least that discrepancy.
        distance: mean Mahalanobis distance of observed summaries from the simulated ones, whose own root mean square is
            sqrt(number of summaries).
        tails: [summaries], share of simulated data below the observed (mean) summary, ties by half.
    """

    labels: tuple[str, ...]
    mmd: float
    p_value: float
    distance: float
    tails: Float[np.ndarray, " summaries"]

    @property
    def smallest_p_value(self) -> float:
        """The p-value: there is one."""
        return self.p_value

    def _facts(self) -> dict[str, PyTree]:
        far = np.argsort(-np.abs(self.tails - 0.5))[:4]
        return {
            "mmd": f"{self.mmd:.3g}",
            "p-value": f"{self.p_value:.3g}",
            "distance": f"{self.distance:.3g}, {len(self.labels) ** 0.5:.3g} is usual",
            "share of predictions below": {self.labels[i]: float(self.tails[i]) for i in far},
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        rows = [("summary", "predictions below")]
        return [
            rows + [(n, f"{t:.3f}") for n, t in zip(self.labels, self.tails.tolist(), strict=True)]
        ]

    def __str__(self) -> str:
        head = f"mmd {self.mmd:.3g}, p {self.p_value:.2g}, distance {self.distance:.3g}"
        return f"{head}\n{table(*self._tables())}"


@checked_call
def misspecification(
    simulated: Mapping[str, object],
    observed: Mapping[str, object],
    key: Key,
    *,
    summary_fn: Callable[[Mapping[str, PyTree]], PyTree] | None = None,
    num_permutations: int = 1_999,
) -> Misspecification:
    """Distance of data from what a model predicts, with a p-value.

        MMD^2 = mean k(x_i, x_j) - 2 mean k(x_i, y_j) + mean k(y_i, y_j),   k(x, y) = exp(-|x - y|^2 / 2 h^2),

    of standardised summaries, h the median distance between all of them.

    Args:
        simulated: observed site -> [S, ...], predictions: `Simulations.observed`, or what `inference.predict` returns.
        observed: the same sites, [...] for one data set, or [N, ...] for several independent ones.
        key: PRNG key of either kind, for permutations.
        summary_fn: one data set, by site -> summaries (an array). Left out: the values themselves.
        num_permutations: of several data sets; one data set is compared with every simulated one in its place.

    Returns:
        A `Misspecification`.

    Raises:
        ValueError: other sites or shapes than the simulated ones, summaries that are not finite, fewer than 20 simulations.

    Validity: the p-value is exact for data from the prior predictive law. Posterior predictions have seen the data: their
    p-value is then too large on average, never to be read as a level. What the summaries leave out is not seen.

    Reference: Gretton et al. 2012, JMLR 13 (MMD and its permutation test); Schmitt et al. 2024, arXiv:2112.08866 (MMD of
    summaries as a score of misspecification); Box 1980 (prior predictive checks).
    """
    check_counts("misspecification", num_permutations=num_permutations)
    known, seen = _sets(simulated, observed)
    summaries = [_summaries(values, summary_fn) for values in (known, seen)]
    if not all(np.isfinite(x).all() for x in summaries):
        raise ValueError(
            "misspecification: summaries are not finite. Mend summary_fn, or leave the sites out where they are not finite."
        )
    of_known, of_seen = summaries
    pooled = np.concatenate([of_seen, of_known])
    spread = pooled.std(0)
    units = (pooled - pooled.mean(0)) / np.where(spread > 0, spread, 1.0)
    lengths = (units**2).sum(1)
    squares = np.maximum(lengths[:, None] + lengths - 2 * units @ units.T, 0.0)
    width = np.median(squares[np.triu_indices(len(units), 1)])
    kernel = np.exp(-squares / (2 * width if width > 0 else 1.0))
    number, total = len(of_seen), len(pooled)
    found = _mmd(kernel, np.arange(total)[None] < number)[0]
    if number == 1:
        law = _mmd(kernel, np.eye(total, dtype=bool))[1:]
    else:
        rng = generator(key)
        law = _mmd(kernel, np.argsort(rng.random((num_permutations, total)), 1) < number)
    labels = (
        tuple(f"summary {i}" for i in range(pooled.shape[1]))
        if summary_fn is not None
        else names_of({name: np.shape(x)[1:] for name, x in known.items()})
    )
    return Misspecification(
        labels,
        float(found),
        float((1 + (law >= found - 1e-12).sum()) / (1 + len(law))),
        _far(of_known, of_seen),
        (of_known < of_seen.mean(0)).mean(0) + 0.5 * (of_known == of_seen.mean(0)).mean(0),
    )


def _sets(
    simulated: Mapping[str, object], observed: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Both with an axis of data sets, or a refusal."""
    told = "misspecification: {} of site '{}'"
    known = {name: as_numbers(told.format("simulations", name), x) for name, x in simulated.items()}
    given = {name: observed[name] for name in known if name in observed}
    seen = {name: as_numbers(told.format("the observation", name), x) for name, x in given.items()}
    single = {name: x.shape == known[name].shape[1:] for name, x in seen.items()}
    several = {name: x.shape[1:] == known[name].shape[1:] and x.ndim for name, x in seen.items()}
    fits = set(observed) == set(known) and known and (all(single.values()) or all(several.values()))
    lengths = {len(x) for x in known.values() if x.ndim}
    if not fits or len(lengths) != 1 or min(lengths) < 20:
        shapes = {name: np.shape(x) for name, x in observed.items()}
        raise ValueError(
            f"misspecification: observed {shapes}, simulated { {n: x.shape for n, x in known.items()} }. Give at least 20 "
            "simulations [S, ...], and the same sites as observed, [...] or [N, ...]."
        )
    if all(single.values()):
        seen = {name: x[None] for name, x in seen.items()}
    if len({len(x) for x in seen.values()}) != 1 or not len(next(iter(seen.values()))):
        raise ValueError(
            f"misspecification: sites have {sorted({len(x) for x in seen.values()})} data sets. Give one number N >= 1 for all."
        )
    return known, seen


def _summaries(
    values: dict[str, np.ndarray], summary_fn: Callable[[Mapping[str, PyTree]], PyTree] | None
) -> np.ndarray:
    if summary_fn is None:
        return flat(values, 1)
    number = len(next(iter(values.values())))
    rows = [summary_fn({name: x[i] for name, x in values.items()}) for i in range(number)]
    return np.stack([np.ravel(np.asarray(row, float)) for row in rows])


def _mmd(kernel: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """MMD^2 of the chosen points [rows, points] against the others."""
    few, rest = chosen.astype(float), (~chosen).astype(float)
    few, rest = few / few.sum(1, keepdims=True), rest / rest.sum(1, keepdims=True)
    signed = few - rest
    return ((signed @ kernel) * signed).sum(1)


def _far(known: np.ndarray, seen: np.ndarray) -> float:
    covariance = np.atleast_2d(np.cov(known.T))
    solved = np.linalg.pinv(covariance, rcond=1e-8, hermitian=True)
    miss = seen - known.mean(0)
    squares = np.einsum("nd,de,ne->n", miss, solved, miss)
    return float(np.sqrt(np.maximum(squares, 0.0)).mean())

"""Local classifier two-sample test: is the posterior right at these very data?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, PyTree

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._show import shown
from ...ppl._types import Key
from ._simulations import Simulations, flat, generator
from ._tarp import scaled

_ODDS = 1e-3  # of a probability from 0 or 1, so that no draw carries a corrected moment alone
_FEW = 200  # columns of a classifier


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class LocalC2ST:
    """See `local_c2st`.

    Attributes:
        labels: latent coordinates.
        statistic: mean of (d - 1/2)^2 over the draws at the data.
        null: the same of classifiers trained under the hypothesis that the posterior is right.
        p_value: share of the null at least as large.
        shifts: [coordinates], by how many posterior deviations the classifier moves the mean.
        scales: [coordinates], its deviation over the posterior's: above 1 where the posterior is too narrow.
        way: [coordinates], direction whose deviation the classifier changes most, in units of the posterior's deviations.
        way_scale: by which factor.
        probs: [draws], d, how probably a draw is one of the true posterior's.
    """

    labels: tuple[str, ...]
    statistic: float
    null: Float[np.ndarray, " null"]
    p_value: float
    shifts: Float[np.ndarray, " coordinates"]
    scales: Float[np.ndarray, " coordinates"]
    way: Float[np.ndarray, " coordinates"]
    way_scale: float
    probs: Float[np.ndarray, " draws"]

    @property
    def smallest_p_value(self) -> float:
        """The p-value: there is one."""
        return self.p_value

    def _facts(self) -> dict[str, PyTree]:
        return {
            "statistic": f"{self.statistic:.3g}, {np.mean(self.null):.3g} under the null",
            "p-value": f"{self.p_value:.3g} of {len(self.null)} null classifiers",
            "shifts": dict(zip(self.labels, np.round(self.shifts, 2).tolist(), strict=True)),
            "scales": dict(zip(self.labels, np.round(self.scales, 2).tolist(), strict=True)),
        }


@checked_call
def local_c2st(
    simulations: Simulations,
    observed: Mapping[str, object],
    draws: Mapping[str, object],
    key: Key,
    *,
    classifier_fn: Callable[[], PyTree] | None = None,
    num_null: int = 400,
) -> LocalC2ST:
    """Train a classifier of true against claimed pairs of parameters and data, and look at it at the data that were seen.

    d(theta, x) is the probability that (theta, x) comes from the model rather than from the data with a posterior draw. Where the
    posterior at x_o is right, d is 1/2 at all its draws:

        t(x_o) = E_{theta ~ q(. | x_o)}[(d(theta, x_o) - 1/2)^2].

    Under the null hypothesis truth and draw of a pair may change places, so that classifiers trained with random exchanges
    have the law of d.

    Args:
        simulations: of `simulate`; one draw of each is used.
        observed: the data x_o, by observed site.
        draws: latent site -> [N, ...], of the posterior at x_o, other draws than those of the simulations.
        key: PRNG key of either kind, for the exchanges.
        classifier_fn: makes a classifier with `fit(inputs, labels)` and `predict_proba` (scikit-learn's). Left out: logistic
            regression on standardised inputs, their squares and products.
        num_null: classifiers trained under the null.

    Returns:
        A `LocalC2ST`.

    Raises:
        ValueError: observed sites or draws that are not those of the simulations.
        ImportError: scikit-learn is missing.

    Validity: the p-value is exact for the hypothesis that the posterior is right at all data; a small one says that the
    classifier tells them apart *here*, as far as its class of functions, and the density of simulations near x_o, allow. Shifts
    and scales are importance weighted by the odds d / (1 - d): a direction, no exact correction.

    Reference: Linhart, Gramfort and Rodrigues 2023, arXiv:2306.03580, algorithms 1 and 2; Zhao et al. 2021, arXiv:2102.10473.
    """
    check_counts("local_c2st", num_null=num_null)
    at, points = _at(simulations, observed, draws)
    rng = generator(key)
    truth, claimed = scaled(simulations)
    number = len(truth)
    seen = simulations.data_matrix
    spread = seen.std(0)
    units = lambda x: (x - seen.mean(0)) / np.where(spread > 0, spread, 1.0)
    pairs = np.concatenate([truth, claimed[:, 0]])
    inputs = np.column_stack([pairs, np.tile(units(seen), (2, 1))])
    there = np.column_stack([points, np.broadcast_to(units(at), (len(points), at.size))])
    fit = _fit(classifier_fn, inputs, there)
    labels = np.repeat([1, 0], number)
    probs = fit(labels)
    statistic = float(((probs - 0.5) ** 2).mean())
    null = np.empty(num_null)
    for i in range(num_null):
        swapped = rng.integers(0, 2, number)
        null[i] = ((fit(np.concatenate([swapped, 1 - swapped])) - 0.5) ** 2).mean()
    odds = probs.clip(_ODDS, 1 - _ODDS)
    weights = odds / (1 - odds)
    weights = weights / weights.sum()
    mean, sd = points.mean(0), points.std(0)
    sd = np.where(sd > 0, sd, 1.0)
    units_here = (points - mean) / sd
    shift = weights @ units_here
    centred = units_here - shift
    scale = np.sqrt(weights @ centred**2)
    way, way_scale = _most_changed((weights * centred.T) @ centred, units_here)
    p_value = float((1 + (null >= statistic).sum()) / (1 + num_null))
    return LocalC2ST(
        simulations.coordinates, statistic, null, p_value, shift, scale, way, way_scale, probs
    )


def _most_changed(corrected: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    """The direction whose deviation differs most between a covariance and that of points, and by which factor."""
    from scipy.linalg import eigh

    held = np.cov(points.T).reshape(corrected.shape) + 1e-6 * np.eye(len(corrected))
    squares, ways = eigh(corrected, held)
    squares = squares.clip(1e-6)
    most = int(np.abs(np.log(squares)).argmax())
    way = ways[:, most] / np.linalg.norm(ways[:, most])
    return way * np.sign(way[np.abs(way).argmax()]), float(squares[most] ** 0.5)


def _at(
    simulations: Simulations, observed: Mapping[str, Any], draws: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Data and draws side by side, the draws in the units of `scaled`."""
    of_data = {name: np.shape(x)[1:] for name, x in simulations.observed.items()}
    of_draws = {name: np.shape(x)[1:] for name, x in simulations.truths.items()}
    given = {name: np.shape(x) for name, x in observed.items()}, {name: np.shape(x)[1:] for name, x in draws.items()}  # fmt: skip
    if given != (of_data, of_draws) or len({np.shape(x)[:1] for x in draws.values()}) != 1:
        raise ValueError(
            f"local_c2st: observed {given[0]} and draws {given[1]}, and the simulations have {of_data} and {of_draws}. Give the "
            "same sites, observed as the model has them, draws [N, ...]."
        )
    at = flat({name: observed[name] for name in of_data}, 0)
    points = flat({name: draws[name] for name in of_draws}, 1)
    if not (np.isfinite(at).all() and np.isfinite(points).all()):
        raise ValueError(
            "local_c2st: observed or draws are not finite. Mend posterior_fn at these data."
        )
    known = np.concatenate([simulations.truth_matrix[:, None], simulations.draw_matrix], 1)
    known = known.reshape(-1, known.shape[-1])
    spread = known.std(0)
    return at, (points - known.mean(0)) / np.where(spread > 0, spread, 1.0)


def _fit(
    classifier_fn: Callable[[], PyTree] | None, inputs: np.ndarray, there: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """A function of labels that returns the probabilities of class 1 at the points `there`."""
    if classifier_fn is None:
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as err:
            raise ImportError(
                "local_c2st needs scikit-learn. Install it with: pip install 'lapilli[data]'."
            ) from err
        inputs, there = _quadratic(inputs, there)
        # A step of Newton's costs the cube of the columns.
        solver, tol = ("newton-cholesky", 1e-3) if inputs.shape[1] <= _FEW else ("lbfgs", 1e-5)
        classifier_fn = lambda: LogisticRegression(solver=solver, tol=tol, max_iter=1000)

    def fit(labels: np.ndarray) -> np.ndarray:
        return np.asarray(classifier_fn().fit(inputs, labels).predict_proba(there))[:, 1]

    return fit


def _quadratic(inputs: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, their squares and products, standardised by the `inputs`; of more of these than inputs, in other coordinates.

    A classifier with a penalty on the length of its weights has them in the span of the rows, so that inner products of rows
    with rows say all of it: K = Q diag(s) Q^T, coordinates Q sqrt(s). Memory grows with the square of the rows and not of the
    columns, of which 442 numbers have 98,000.
    """
    number, columns = inputs.shape
    if columns * (columns + 3) // 2 <= number:
        blocks = list(_blocks(inputs, there))
        return np.concatenate([b for b, _ in blocks], 1), np.concatenate([b for _, b in blocks], 1)
    inner, across = np.zeros((number, number)), np.zeros((len(there), number))
    for ours, others in _blocks(inputs, there):
        inner += ours @ ours.T
        across += others @ ours.T
    sizes, ways = np.linalg.eigh(inner)
    kept = sizes > 1e-10 * sizes[-1]
    roots = np.sqrt(sizes[kept])
    return ways[:, kept] * roots, across @ ways[:, kept] / roots


def _blocks(inputs: np.ndarray, there: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns of both: the inputs, then the products of each with those from it on."""
    for i in range(-1, inputs.shape[1]):
        ours, others = (x if i < 0 else x[:, [i]] * x[:, i:] for x in (inputs, there))
        middle, spread = ours.mean(0), ours.std(0)
        spread = np.where(spread > 0, spread, 1.0)
        yield (ours - middle) / spread, (others - middle) / spread

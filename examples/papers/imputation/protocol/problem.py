"""Protocol: hide cells of complete labelled series, impute and classify, score both.

A *problem* is a data set, a mechanism, a rate and a seed. Cells are hidden on the scale of the complete training set (that is
how the mechanisms are defined); everything that learns sees observed cells only, in units of *their* mean and standard
deviation. Errors of cells are given in standard deviations of the complete training set, so that they compare across methods and
mechanisms. A fifth of the training set, by class, is held out for validation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lapilli.models.imputation import (
    MECHANISMS,
    Imputation,
    Series,
    Standardisation,
    cell_scores,
    standardise,
)

from . import scores
from .data_sets import load


class Problem(NamedTuple):
    """See the module's text.

    Attributes:
        train: series with hidden cells, in units of the observed training cells; labels included.
        valid: held-out training series.
        test: test series.
        truth: complete test values in units of the complete training set, [N, T, D].
        hidden: hidden cells of the test series, boolean.
        units: from the units of the learners to those of `truth`.
        num_classes: number of classes.
    """

    train: Series
    valid: Series
    test: Series
    truth: np.ndarray
    hidden: np.ndarray
    units: Standardisation
    num_classes: int

    def point_scores(self, point: Any) -> dict[str, float]:
        """Errors "mae" and "rmse" of test values in the learners' units."""
        return cell_scores(self.truth, self.hidden, self.units.undo(point))

    def scores(self, found: Imputation) -> dict[str, float]:
        """All scores of an imputation of the test series: of classes, of cells with 90% bands, mean ESS."""
        low, high = (self.units.undo(q) for q in found.quantiles([0.05, 0.95]))
        crps = found.crps(self.test_truth) * self.units.scale
        cells = cell_scores(
            self.truth, self.hidden, self.units.undo(found.mean), crps=crps, low=low, high=high
        )
        classes = {}
        if found.logits is not None:
            classes = scores.classification(found.probs, np.asarray(self.test.labels))
        return {**classes, **cells, "ess": float(found.ess.mean())}

    @property
    def test_truth(self) -> np.ndarray:
        """Complete test values in the learners' units."""
        return (self.truth - self.units.mean) / self.units.scale


def problem(
    name: str,
    mechanism: str,
    rate: float,
    seed: int,
    *,
    test_rate: float | None = None,
    valid_share: float = 0.2,
) -> Problem:
    """The problem (data set, mechanism, rate, seed).

    Args:
        name: data set, see `load`.
        mechanism: "mcar", "mar", "mnar" or "blocks", or "none".
        rate: share of the cells that the mechanism may hide.
        seed: of masks and split; train and test masks have streams of their own.
        test_rate: share of the test cells that it may hide, by default as in training.
        valid_share: share of the training series held out.

    Raises:
        ValueError: unknown data set or mechanism.
    """
    if mechanism not in (*MECHANISMS, "none"):
        raise ValueError(
            f"problem: no mechanism {mechanism!r}; choose from {[*MECHANISMS, 'none']}."
        )
    train, test = load(name)
    whole = standardise(train)
    streams = [np.random.default_rng([seed, stream]) for stream in range(3)]
    complete, parts = [], []
    rates = (rate, rate if test_rate is None else test_rate)
    for data, hidden, rng in zip((train, test), rates, streams, strict=False):
        data = whole.apply(data)
        complete.append(data)
        seen = np.ones(data.observed.shape, bool)
        if mechanism != "none":
            seen = MECHANISMS[mechanism](np.asarray(data.values), hidden, rng)
        parts.append(data.hidden(seen))
    units = standardise(parts[0])
    own = [units.apply(part) for part in parts]
    held = _held_out(np.asarray(train.labels), valid_share, streams[2])
    truth, observed = np.asarray(complete[1].values), np.asarray(own[1].observed)
    return Problem(
        train=own[0].rows(~held),
        valid=own[0].rows(held),
        test=own[1],
        truth=truth,
        hidden=np.asarray(complete[1].observed) & ~observed,
        units=units,
        num_classes=int(np.asarray(train.labels).max()) + 1,
    )


def _held_out(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A mask that chooses round(share n) of each class, and at least one."""
    held = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        held[rng.permutation(members)[: max(1, round(share * len(members)))]] = True
    return held


def joined(a: Series, b: Series) -> Series:
    """Series of both, one after the other."""
    parts: list[Any] = [np.concatenate(pair) for pair in zip(a, b, strict=True)]
    return Series(*parts)

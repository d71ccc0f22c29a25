"""Weighted draws of missing cells and classes, and what they say of them.

Axis order: particles k (draws of z), imputations j (draws of the missing cells at one z), series, time, channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, PyTree


@dataclasses.dataclass(frozen=True)
class Imputation:
    """Weighted draws of the missing cells and of the class; made by `impute`.

    With r_kj = p(s | x_kj) p(x_o | z_k) p(z_k) / q(z_k | x_o), p(s | x) where the model has it, the draws x_kj of the whole
    series have the weights

        "outer":  w_kj = 1/J r_kj / sum_k' r_k'j,      "inner":  w_kj = r_kj / sum_k'j' r_k'j',

    J averages of K draws, or one of K J draws. After resampling over time exp(log_weights) still has the mean p(x_o, s), but
    draws share their early steps.

    Attributes:
        observed: the observed cells, boolean [series, time, channels].
        x: observed and drawn cells, [K, J, series, time, channels].
        x_loc: the decoder's location of every cell, [K, series, time, channels].
        log_weights: log r_kj, nats, [K, J, series].
        logits: class logits at each draw, [K, J, series, classes]; None without a classifier.
        weights: w_kj, [K, J, series]; they sum to 1 over k and j.
        is_collapsed: the weights do not depend on the missing cells, so that their law given z can be averaged exactly.
        origins: [K, series], numbers of the particles of the first step from which draws descend; None without resampling.
        acceptance: share of the moves of each series that were accepted, [series]; None without moves.
        average: which weights; `dataclasses.replace(found, average="outer")` has the other ones.

    Raises:
        ValueError: an unknown `average`; what is asked of weights, where no draw of a series has a finite log-weight.
    """

    observed: np.ndarray
    x: np.ndarray
    x_loc: np.ndarray
    log_weights: np.ndarray
    logits: np.ndarray | None
    is_collapsed: bool
    origins: np.ndarray | None = None
    acceptance: np.ndarray | None = None
    average: Literal["inner", "outer"] = "inner"

    def __post_init__(self) -> None:
        if self.average not in ("inner", "outer"):
            raise ValueError(f"Imputation: average is {self.average!r}. Choose 'inner' or 'outer'.")

    def rows(self, index: PyTree) -> Imputation:
        """The imputation of the series that `index` chooses."""
        every = slice(None)
        cut = lambda a, axis: None if a is None else a[(every,) * axis + (index,)]
        return dataclasses.replace(
            self, observed=cut(self.observed, 0), x=cut(self.x, 2), x_loc=cut(self.x_loc, 1), logits=cut(self.logits, 2),
            log_weights=cut(self.log_weights, 2), origins=cut(self.origins, 1),
            acceptance=cut(self.acceptance, 0),
        )  # fmt: skip

    @functools.cached_property
    def weights(self) -> Float[np.ndarray, "K J series"]:
        """Normalised weights."""
        axes = (0,) if self.average == "outer" else (0, 1)
        log_weights = np.asarray(self.log_weights, float)
        most = log_weights.max(axes, keepdims=True)
        lost = np.flatnonzero(~np.isfinite(most).all((0, 1)))
        if len(lost):
            raise ValueError(
                f"Imputation: the draws of {len(lost)} of {log_weights.shape[-1]} series have no weights, log_weights being "
                f"-inf or NaN, first of series {lost[0]}: 32 bits do not hold the density of its observed cells. Look there for "
                "cells that are far out, e.g. a number that stands for nothing measured, and make them missing."
            )
        raw = np.exp(log_weights - most)
        share = 1 / raw.shape[1] if self.average == "outer" else 1.0
        return share * raw / raw.sum(axes, keepdims=True)

    @property
    def ess(self) -> Float[np.ndarray, " series"]:
        """Effective sample size of the weights: of K draws, averaged over j ("outer"), or of K J draws ("inner").

        After resampling that of the first step, where draws of one origin count as one: later steps have more. After moves the
        number of draws.
        """
        if self.origins is not None:
            shares = (self.origins == np.arange(len(self.origins))[:, None, None]) * self.weights[
                :, 0
            ]
            return 1 / (shares.sum(1) ** 2).sum(0)
        if self.average == "inner":
            return 1 / (self.weights**2).sum((0, 1))
        num_imputations = self.weights.shape[1]
        return (1 / ((num_imputations * self.weights) ** 2).sum(0)).mean(0)

    @functools.cached_property
    def draw_probs(self) -> Float[np.ndarray, "K J series classes"]:
        """Class probabilities at each draw."""
        if self.logits is None:
            raise ValueError(
                "Imputation: the model has no classifier, so that there are no probs. Make the programs with num_classes=."
            )
        raw = np.exp(self.logits - self.logits.max(-1, keepdims=True), dtype=float)
        return raw / raw.sum(-1, keepdims=True)

    @property
    def probs(self) -> Float[np.ndarray, "series classes"]:
        """p(y | x_o, s), the arithmetic mixture sum_kj w_kj p(y | x_kj)."""
        return np.einsum("kjn,kjnc->nc", self.weights, self.draw_probs)

    @property
    def entropy(self) -> Float[np.ndarray, " series"]:
        """Entropy of `probs`, nats."""
        return _entropy(self.probs)

    @property
    def disagreement(self) -> Float[np.ndarray, " series"]:
        """Entropy of `probs` less the mean entropy at each draw, nats: what the missing cells would tell about the class."""
        return self.entropy - np.einsum("kjn,kjn->n", self.weights, _entropy(self.draw_probs))

    @property
    def mean(self) -> Float[np.ndarray, "series time channels"]:
        """E[x | x_o, s]; observed cells keep their value.

        From the draws, since p(s | x_kj) weighs them; where the weights do not depend on the missing cells, from x_loc.
        """
        mean = np.einsum("kjn,kjntd->ntd", self.weights, self.x)
        if not self.is_collapsed:
            return mean
        exact = np.einsum("kn,kntd->ntd", self.weights.sum(1), self.x_loc)
        return np.where(self.observed, mean, exact)

    @property
    def _flat(self) -> np.ndarray:
        return self.x.reshape(-1, *self.x.shape[2:])

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws of each cell in ascending order and their weights, [K J, series, time, channels] each."""
        order = np.argsort(self._flat, axis=0)
        weights = self.weights.reshape(-1, self.weights.shape[-1])[:, :, None, None]
        weights = np.broadcast_to(weights, order.shape)
        return np.take_along_axis(self._flat, order, 0), np.take_along_axis(weights, order, 0)

    def quantiles(
        self, levels: Sequence[float]
    ) -> Float[np.ndarray, "levels series time channels"]:
        """Smallest drawn values whose cumulated weight reaches each level.

        Args:
            levels: in (0, 1).

        Raises:
            ValueError: there is no level, or one is not in (0, 1).
        """
        if not len(levels) or not all(0 < level < 1 for level in levels):
            raise ValueError(
                f"Imputation.quantiles: levels must lie in (0, 1), got {list(levels)}; no cell has a value of such a level. Give "
                "some, e.g. [0.05, 0.95]."
            )
        values, weights = self._sorted
        cumulated = np.cumsum(weights, 0)
        index = [(cumulated >= level * cumulated[-1]).argmax(0) for level in levels]
        return np.stack([np.take_along_axis(values, i[None], 0)[0] for i in index])

    def crps(self, truth: object) -> Float[np.ndarray, "series time channels"]:
        """Continuous ranked probability score of each cell, E|X - x| - E|X - X'| / 2, in the unit of the values.

        Args:
            truth: [series, time, channels].

        Raises:
            ValueError: it has another shape.
        """
        true = np.asarray(truth)
        if true.shape != self.observed.shape:
            raise ValueError(
                f"Imputation.crps: truth has shape {true.shape}, and the cells {self.observed.shape}: values would be "
                "compared with those of other cells. Give one for each cell."
            )
        values, weights = self._sorted
        below = np.cumsum(weights, 0) - weights
        distance = (weights * np.abs(values - true)).sum(0)
        return distance - (weights * values * (2 * below + weights - 1)).sum(0)


def _entropy(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(np.maximum(probs, 1e-300))).sum(-1)

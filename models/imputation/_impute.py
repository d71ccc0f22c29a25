"""Prediction with uncertainty: self-normalised importance sampling from a trained model and guide.

Axis order: particles k (draws of z), imputations j (draws of the missing cells at one z), series, time, channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ... import ppl
from ...inference.objectives._row_weights import log_density_of
from ._series import Series


@dataclasses.dataclass(frozen=True)
class Imputation:
    """Weighted draws of the missing cells and of the class; made by `impute`.

    With r_kj = p(s | x_kj) p(x_o | z_k) p(z_k) / q(z_k | x_o), p(s | x) where the model has it, the draws x_kj of the whole
    series have the weights

        "outer":  w_kj = 1/J r_kj / sum_k' r_k'j,      "inner":  w_kj = r_kj / sum_k'j' r_k'j',

    J averages of K draws, or one of K J draws.

    Attributes:
        observed: the observed cells, boolean [series, time, channels].
        x: observed and drawn cells, [K, J, series, time, channels].
        x_loc: the decoder's location of every cell, [K, series, time, channels].
        log_weights: log r_kj, nats, [K, J, series].
        logits: class logits at each draw, [K, J, series, classes]; None without a classifier.
        weights: w_kj, [K, J, series]; they sum to 1 over k and j.
        average: "outer" or "inner".
        is_collapsed: the weights do not depend on the missing cells, so that their law given z can be averaged exactly.
    """

    observed: np.ndarray
    x: np.ndarray
    x_loc: np.ndarray
    log_weights: np.ndarray
    logits: np.ndarray | None
    average: Literal["outer", "inner"]
    is_collapsed: bool

    @functools.cached_property
    def weights(self) -> Float[np.ndarray, "K J series"]:
        """Normalised weights."""
        axes = (0,) if self.average == "outer" else (0, 1)
        log_weights = np.asarray(self.log_weights, float)
        raw = np.exp(log_weights - log_weights.max(axes, keepdims=True))
        share = 1 / raw.shape[1] if self.average == "outer" else 1.0
        return share * raw / raw.sum(axes, keepdims=True)

    @property
    def ess(self) -> Float[np.ndarray, " series"]:
        """Effective sample size of the weights: of K draws, averaged over j ("outer"), or of K J draws ("inner")."""
        if self.average == "inner":
            return 1 / (self.weights**2).sum((0, 1))
        num_imputations = self.weights.shape[1]
        return (1 / ((num_imputations * self.weights) ** 2).sum(0)).mean(0)

    @functools.cached_property
    def draw_probs(self) -> Float[np.ndarray, "K J series classes"]:
        """Class probabilities at each draw."""
        if self.logits is None:
            raise ValueError("Imputation: the model has no classifier, so that there are no probs.")
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
        """Smallest drawn values whose cumulated weight reaches each level."""
        values, weights = self._sorted
        cumulated = np.cumsum(weights, 0)
        index = [(cumulated >= level * cumulated[-1]).argmax(0) for level in levels]
        return np.stack([np.take_along_axis(values, i[None], 0)[0] for i in index])

    def crps(self, truth: Any) -> Float[np.ndarray, "series time channels"]:
        """Continuous ranked probability score of each cell, E|X - x| - E|X - X'| / 2, in the unit of the values."""
        values, weights = self._sorted
        below = np.cumsum(weights, 0) - weights
        distance = (weights * np.abs(values - np.asarray(truth))).sum(0)
        return distance - (weights * values * (2 * below + weights - 1)).sum(0)


def impute(
    model: ppl.Program,
    guide: ppl.Program,
    data: Series,
    key: Any,
    *,
    num_particles: int = 20,
    num_imputations: int = 5,
    average: Literal["outer", "inner"] = "inner",
    batch_size: int = 64,
) -> Imputation:
    """Draw missing cells and classes given the observed cells, with importance weights.

    Args:
        model: with its parameters bound (`Fit.model`); without `obs_dropout`: `imputer.model.bind(fit.params)`.
        guide: with its parameters bound (`Fit.guide`).
        data: series; labels are not used.
        key: PRNG key.
        num_particles: K, draws from the guide.
        num_imputations: J, draws of the missing cells at each.
        average: which weights, see `Imputation`.
        batch_size: series on the device at once.

    Returns:
        `Imputation`, on the host.

    Raises:
        ValueError: K, J or the batch size is not positive, or `average` is unknown.

    Validity:
        Consistent as K grows, with a bias of order 1 / ESS; a larger J alone leaves the error of K draws of z. Only as good as
        the model is: bands cover if p(x | z) and p(s | x) do.
    """
    sizes = (num_particles, num_imputations, batch_size)
    if min(sizes) < 1 or average not in ("outer", "inner"):
        raise ValueError(
            f"impute: num_particles, num_imputations and batch_size must be positive, got {sizes}, and average 'outer' or "
            f"'inner', got {average!r}."
        )
    data = data._replace(labels=None)
    run = jax.jit(lambda key, data: draws(model, guide, data, key, num_particles, num_imputations))
    size = len(np.asarray(data.valid))
    width = min(batch_size, size)
    parts = []
    for number, start in enumerate(range(0, size, width)):
        first = min(start, size - width)  # the last part overlaps the one before: one shape
        part = run(jax.random.fold_in(key, number), data.rows(slice(first, first + width)))
        fresh = slice(start - first, None)
        parts.append(
            [
                None if array is None else np.asarray(array)[(slice(None),) * axis + (fresh,)]
                for array, axis in zip(part, Draws.series_axis, strict=True)
            ]
        )
    joined = [
        None if arrays[0] is None else np.concatenate(arrays, axis)
        for arrays, axis in zip(zip(*parts, strict=True), Draws.series_axis, strict=True)
    ]
    found = Draws(*joined)
    return Imputation(np.asarray(data.observed), *found, average, _is_collapsed(model, data))


class Draws(NamedTuple):
    """What `draws` returns: the first attributes of `Imputation`."""

    x: Any
    x_loc: Any
    log_weights: Any
    logits: Any

    series_axis = (2, 1, 2, 2)  # of each


def draws(
    model: ppl.Program,
    guide: ppl.Program,
    data: Series,
    key: Any,
    num_particles: int,
    num_imputations: int,
) -> Draws:
    """Draws and log-weights of one batch of series without labels; traceable."""

    def particle(key: Any) -> Draws:
        guide_key, model_key = jax.random.split(key)
        q = guide.simulate(guide_key, data)

        def imputation(key: Any) -> Draws:
            p, _ = model.generate(key, q.choices, data)
            own = {n: lp for n, lp in p.log_probs.items() if not p.sites[n].is_imputed}
            log_p = log_density_of(dataclasses.replace(p, log_probs=own), "rows")
            found = p.deterministic
            return Draws(found["x"], found["x_loc"], log_p, found.get("logits"))

        found = jax.vmap(imputation)(jax.random.split(model_key, num_imputations))
        log_weights = found.log_weights - log_density_of(q, "rows")
        return found._replace(x_loc=found.x_loc[0], log_weights=log_weights)

    return jax.vmap(particle)(jax.random.split(key, num_particles))


def _is_collapsed(model: ppl.Program, data: Series) -> bool:
    """Whether nothing that is observed lies downstream of the missing cells: "x_observed" is all there is."""
    kinds: dict[str, str] = {}

    def run(key: Any) -> Any:
        trace = model.simulate(key, data)
        kinds.update({name: info.kind for name, info in trace.sites.items()})
        return trace.log_density

    jax.eval_shape(run, jax.random.key(0))
    return not any(k in ("observed", "factor") and n != "x_observed" for n, k in kinds.items())


def _entropy(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(np.maximum(probs, 1e-300))).sum(-1)

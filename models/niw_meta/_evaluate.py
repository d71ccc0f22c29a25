"""Predictions on new episodes, and how good they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PyTree

from ... import ppl
from ._episodes import Episodes, Points, check_classes
from ._heads import GaussianNoise, Head, Student, Tempered

Array = jax.Array
# With more degrees of freedom a law is normal but for rounding, which may look like a gain.
LARGEST = {"df": 500.0}
# How far from their start numbers are searched for, on a log scale: labels may be in any unit.
REACH = {"noise": 30.0}


class Prediction(NamedTuple):
    """Draws of the predictions at the queries, S draws.

    Attributes:
        scores: outputs of the head, [S, episodes, n, c].
        log_prob: log-probability of the queries' labels under each draw, nats [S, episodes, n]; 0 where masked. None where the
            labels are not known.
    """

    scores: Array
    log_prob: Array | None

    def log_density(self) -> Array:
        """Log of the mean probability over draws, nats [episodes, n]; a ValueError where the labels are not known."""
        if self.log_prob is None:
            raise ValueError(
                "Prediction.log_density: the queries have no labels (query.y is None). Predict episodes with labels to score "
                "them."
            )
        return jax.nn.logsumexp(self.log_prob, axis=0) - jnp.log(self.log_prob.shape[0])

    def class_probs(self) -> Array:
        """Mean over draws of softmax(scores) (probabilities are averaged, not logits), [episodes, n, classes]."""
        return jax.nn.softmax(self.scores, -1).mean(0)


def adapt(guide: ppl.Program, key: Array, episodes: Episodes, num_draws: int) -> dict[str, Array]:
    """Draws of weights given the supports of new episodes; labels of the queries are not read.

    Args:
        guide: guide with fitted parameters (`Fit.guide`).
        key: PRNG key.
        episodes: new episodes; `query.y` may be None.
        num_draws: S.

    Returns:
        Draws by site, "theta" [S, episodes, 1, d].
    """
    episodes = episodes.stated()
    draw = lambda key: guide.simulate(key, episodes).choices
    return jax.vmap(draw)(jax.random.split(key, num_draws))


def predict(model: ppl.Program, draws: dict[str, Array], episodes: Episodes) -> Prediction:
    """Predictions at the queries under draws of `adapt`; {} for a program without latent sites.

    Args:
        model: model with fitted parameters (`Fit.model`).
        draws: by site, each with a leading axis of draws.
        episodes: the episodes that were adapted to; `query.y` may be None.

    Returns:
        `Prediction`, with one draw for {}.
    """
    is_blind, episodes = episodes.query.y is None, episodes.stated()

    def one(choices: dict[str, Array]) -> Prediction:
        trace = model.trace(choices, episodes)
        log_prob = None if is_blind else trace.log_probs["query"]
        return Prediction(trace.deterministic["query_scores"], log_prob)

    return jax.vmap(one)(draws) if draws else jax.tree.map(lambda leaf: leaf[None], one({}))


def with_fitted_noise[H: GaussianNoise | Student | Tempered](
    head: H, scores: object, points: Points
) -> H:
    """The head with the noise under which the labels are most probable, the predictive being the mixture over draws.

    One number, for `Student` also its degrees of freedom, for `Tempered` also the spread of the draws; to be fitted on episodes
    that are neither trained nor tested on. The noise that a network is trained with decides how far it adapts; what its
    predictions err by is another matter, and found best when it stands still. Where few episodes hold most of the errors, heavy
    tails spare the others a noise that pays for them.

    Args:
        head: head of regression.
        scores: draws of the head's scores, [S, episodes, n, c].
        points: the queries.

    Raises:
        ValueError: the spread of a single draw is asked for, the points have no labels, or no point counts; scores, labels and
            mask are not of the same points; a score or a label that counts is not finite, or so far out under the head's noise
            that it has no density.
    Reference: the counterpart of temperature scaling, Guo et al. 2017, arXiv:1706.04599.
    """
    from scipy.optimize import minimize  # on use: a tenth of a second

    labels, scores = _of_points("with_fitted_noise", points, scores, head.law)
    mask = jnp.asarray(points.mask)
    if isinstance(head, Tempered) and len(scores) < 2:
        raise ValueError(
            f"with_fitted_noise: the spread of {len(scores)} draw of the scores, {scores.shape}, tells nothing. Give several "
            f"draws (adapt(num_draws=)), or the head {head.head} itself."
        )
    names = list(_numbers(head))
    start = np.log(list(_numbers(head).values()))
    at = lambda values: _with_numbers(head, dict(zip(names, values, strict=True)))

    @jax.jit
    def loss(logs: Array) -> Array:
        log_density = jax.nn.logsumexp(at(jnp.exp(logs)).law(scores).log_prob(labels), axis=0)
        return -jnp.where(mask, log_density, 0.0).sum() / mask.sum()

    top = [np.log(LARGEST.get(name, np.inf)) for name in names]
    reach = [REACH.get(name, 7.0) for name in names]
    found = minimize(
        lambda x: float(loss(x)), start, method="Nelder-Mead",
        bounds=[(x - r, min(x + r, end)) for x, r, end in zip(start, reach, top, strict=True)],
        options={"xatol": 1e-4, "fatol": 1e-7, "initial_simplex": start + np.eye(start.size + 1, start.size, -1) / 2},
    )  # fmt: skip
    moved = dict(zip(names, np.abs(found.x - start), strict=True))
    if not np.isfinite(found.fun) or any(moved[name] > 0.99 * REACH[name] for name in REACH):
        raise ValueError(
            f"with_fitted_noise: from {head} on no noise is found: the most probable one is 0, or farther away than the search "
            "goes (13 powers of ten), or no number holds the labels' density so far out. Start with a noise of the size of their "
            "errors."
        )
    return at(np.exp(found.x).tolist())


def fitted_temperature(scores: PyTree, points: Points) -> float:
    """The temperature T for which the labels are most probable under the mean over draws of softmax(scores / T).

    The counterpart of `with_fitted_noise` for classes, again on episodes that are neither trained nor tested on. It is searched
    for between 1/20 and 20.

    Args:
        scores: draws of the head's scores, [S, episodes, n, classes].
        points: the queries.

    Raises:
        ValueError: the points have no labels, or ones outside of the classes; no point counts; scores, labels and mask are not
            of the same points; a score that counts is no number.
    Reference: Guo et al. 2017, arXiv:1706.04599.
    """
    from scipy.optimize import minimize_scalar  # on use: a tenth of a second

    num_ways, mask = np.shape(scores)[-1], jnp.asarray(points.mask)
    y, scores = _of_points("fitted_temperature", points, scores, dist.CategoricalLogits, num_ways)

    @jax.jit
    def loss(log_temperature: Array) -> Array:
        log_prob = dist.CategoricalLogits(scores / jnp.exp(log_temperature)).log_prob(y)
        return -jnp.where(mask, jax.nn.logsumexp(log_prob, axis=0), 0.0).sum() / mask.sum()

    found = minimize_scalar(lambda x: float(loss(x)), bounds=(-3.0, 3.0), method="bounded")
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


def _of_points(
    method: str,
    points: Points,
    scores: object,
    law: Callable[[Array], dist.Distribution],
    num_ways: int | None = None,
) -> tuple[Array, Array]:
    """Labels and scores, zero where masked, if the others can be compared one by one."""
    if points.y is None:
        raise ValueError(
            f"{method}: the points have no labels (y is None). Give points whose labels are known."
        )
    y, mask = np.asarray(points.y), np.asarray(points.mask, bool)
    if not mask.any():
        raise ValueError(
            f"{method}: no point counts, the mask of shape {mask.shape} being false throughout, so that nothing is to be found. "
            "Give points that do."
        )
    values = np.asarray(scores)
    shapes = law(jnp.zeros(values.shape))
    batch, event = shapes.batch_shape[1:], shapes.event_shape
    if values.ndim != 4 or mask.shape != batch or y.shape != batch + event:
        raise ValueError(
            f"{method}: the scores have shape {values.shape}, the labels {y.shape} and the mask {mask.shape}: labels would be "
            f"compared with the scores of other points. Give scores [draws, episodes, n, outputs], a mask {batch} and labels "
            f"{batch + event} for them."
        )
    # A class may be impossible, -inf; no mean may be.
    is_number = np.isfinite(values) | ((num_ways is not None) & np.isneginf(values))
    lost = mask & ~(is_number.all((0, -1)) & np.isfinite(y).reshape(*batch, -1).all(-1))
    if lost.any():
        raise ValueError(
            f"{method}: {int(lost.sum())} of {int(mask.sum())} points that count have scores or labels that are not finite, and "
            "nothing is found by these. Mask them, or look for the draws that failed."
        )
    if num_ways is not None:
        check_classes(method, points, num_ways)
        y = np.where(mask, y, 0).astype(int)
    labels = np.where(mask.reshape(batch + (1,) * len(event)), y, 0)
    return jnp.asarray(labels), jnp.asarray(np.where(mask[..., None], values, 0.0))


def _numbers(head: object) -> dict[str, float]:
    inner = _numbers(head.head) if isinstance(head, Tempered) else {}
    return inner | {n: getattr(head, n) for n in ("noise", "df", "spread") if hasattr(head, n)}


def _with_numbers(head: Any, values: dict[str, PyTree]) -> Any:
    if isinstance(head, Tempered):
        return Tempered(_with_numbers(head.head, values), values["spread"])
    return dataclasses.replace(head, **{name: values[name] for name in _numbers(head)})


def regression_ece(head: Head, scores: object, points: Points) -> float:
    """Calibration error of regression: mean over p = 0.1 ... 0.9 of |p - share of labels whose predictive CDF is at most p|.

    The predictive is the mixture over draws of the head's law; vectors count by coordinate.

    Args:
        head: a head of regression.
        scores: draws of the head's scores, [S, episodes, n, c].
        points: the queries.

    Raises:
        ValueError: the points have no labels, or no point counts; scores, labels and mask are not of the same points; a score
            or a label that counts is not finite.
    Reference: Kuleshov et al. 2018, arXiv:1807.00263.
    """
    labels, scores = _of_points("regression_ece", points, scores, head.law)
    law = head.law(scores)
    by_coordinate = law.base_dist if isinstance(law, dist.Independent) else law
    cdf = np.asarray(by_coordinate.cdf(labels).mean(0))[np.asarray(points.mask)]
    levels = np.linspace(0.1, 0.9, 9)
    return float(np.mean([abs(p - np.mean(cdf <= p)) for p in levels]))

"""Whether draws of a fitted guide can stand for the posterior, and if not, why."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ...ppl._show import shown
from ...ppl._types import Key
from .._abstract_objective import guide_fn
from .._digits import unknown_digits
from .._host_keys import fold_in
from ..diagnostics._weights import ImportanceDiagnostics, importance_diagnostics
from .starts import AutoWhitenedNormal, Start, Starts

_ROUNDS = (1000, 4000, 16_000)  # draws in all
_FEW, _THIN = 0.6, 0.25  # share of draws that count: where more are made; where weights are needed
_DOUBT = 0.2  # of k-hat from its threshold: where more draws are made
_OFF, _RATIO = 0.25, 1.25  # of a mean, posterior standard deviations; of widths
_FAR = 4.0  # standard deviations between a guide and a mode that it has not met
_SHARE = math.log(
    30.0
)  # nats: of a mode with less than a thirtieth of the evidence nothing is said
_BEHIND = 1.0  # nats below the bound of the start

WRONG_FAMILY, NEED_WEIGHTS = "wrong family of guide", "draws need their weights"
SAMPLERS = "inference.infer (which goes on to samplers)"
RICHER = "models.flows.AutoSpline"
SKIP = "k_hat='skip' leaves this check out."


@shown
class GuideWorth(NamedTuple):
    """What weighted draws say about a guide, see `diagnostics.importance_diagnostics`.

    Attributes:
        k_hat: Pareto shape of the largest weights.
        k_threshold: the largest at which so many draws are enough.
        ess: effective number of draws.
        num_draws: draws.
        verdict: what was found wrong, in a word or two; "" if nothing was.
    """

    k_hat: float
    k_threshold: float
    ess: float
    num_draws: int
    verdict: str = ""

    def __str__(self) -> str:
        told = f"k-hat {self.k_hat:.2f} (at most {self.k_threshold:.2f}), {self.ess:.0f} of {self.num_draws} draws count"
        return f"{told}; {self.verdict}" if self.verdict else told

    def _facts(self) -> dict[str, PyTree]:
        return self._asdict()


class WeightedDraws(NamedTuple):
    """Weighted draws of a guide.

    Attributes:
        log_weights: [n], nats, in the precision in which they were computed: it tells their rounding.
        points: coordinates by name, each [n].
        u: unconstrained, [n, d]; [n, 0] where they are not known.
    """

    log_weights: np.ndarray
    points: dict[str, np.ndarray]
    u: np.ndarray = np.zeros((0, 0))


def judged(fit: Any, key: Key, *, is_chosen: bool) -> tuple[GuideWorth, str | None]:
    """What the guide of a fit is worth, and what there is against it.

    Weights tell by k-hat, of as many draws as it takes to tell it from its threshold, whether they can be trusted; where they
    can, weighted means and widths tell how far those of the guide are off; and the modes that were seen before the fit tell of
    mass that no draw has met.
    """
    starts = _starts(fit)
    make = lambda number, key: _draws(fit, key, number)
    total, worth, text = weighed(make, key, is_chosen=is_chosen)
    broken = ~(total.log_weights < np.inf)
    if starts is not None and broken.any():
        reason = starts.space.what_breaks(total.u[int(broken.argmax())], fit.args)
        text = f"{text} At the first of them: {reason}" if reason else text
    if starts is not None and worth.verdict in ("", WRONG_FAMILY):
        found = _behind(total, starts) or _several(fit, total, starts)
        if found is not None:
            worth, text = worth._replace(verdict=found[0]), found[1]
    # Where few draws count, or some speak against the rest, more of them tell means and widths better.
    if not worth.verdict and (worth.ess < _FEW * worth.num_draws or _off(total) is not None):
        least = max(_ROUNDS[1] - len(total.log_weights), 0)
        if least:
            total = _joined(total, make(least, fold_in(key, len(_ROUNDS))))
            worth, text = verdict_on(total.log_weights, is_chosen=is_chosen)
        if not worth.verdict and (found := _off(total) or _thin(worth)) is not None:
            worth, text = worth._replace(verdict=found[0]), found[1]
    return worth, text


def weighed(
    make: Callable[[int, Key], WeightedDraws], key: Key, *, is_chosen: bool = False
) -> tuple[WeightedDraws, GuideWorth, str | None]:
    """Draws of `make(number, key)`, as many as tell k-hat from its threshold, and `verdict_on` them."""
    total = WeightedDraws(np.zeros(0, np.float32), {})
    for number, size in enumerate(_ROUNDS):
        more = make(size - len(total.log_weights), fold_in(key, number))
        total = _joined(total, more)
        worth, text = verdict_on(total.log_weights, is_chosen=is_chosen)
        is_near = abs(worth.k_hat - worth.k_threshold) < _DOUBT
        # A tail that looks heavy where most draws count is that of a few of them.
        is_odd = worth.k_hat > worth.k_threshold and worth.ess > 0.3 * size
        if not (is_near or is_odd) or worth.ess >= 0.9 * size:
            break
    return total, worth, text


def verdict_on(
    log_weights: np.ndarray, *, is_chosen: bool = False
) -> tuple[GuideWorth, str | None]:
    """What the weights alone have against a guide; None if nothing."""
    num = len(log_weights)
    remedy = (
        f"{RICHER} as the guide or {SAMPLERS} may do better; {SKIP}"
        if is_chosen
        else f"Another guide ({RICHER}, an AutoMultivariateNormal), or {SAMPLERS} may do better; {SKIP}"
    )
    bad = GuideWorth(math.nan, math.nan, 0.0, num, "weights that are no numbers")
    if num_broken := int((~(log_weights < np.inf)).sum()):
        text = f"fit: the log-weights of {num_broken} of {num} draws of the guide are no numbers."
        return bad, f"{text} {remedy}"
    if (log_weights == -np.inf).all():
        text = f"fit: none of {num} draws of the guide has any weight under the model."
        return bad._replace(verdict="no draw has any weight"), f"{text} {remedy}"
    if (lost := unknown_digits(log_weights)) is not None:
        return bad._replace(verdict="log-weights lost to rounding"), f"fit: {lost} {SKIP}"
    found: ImportanceDiagnostics = importance_diagnostics(log_weights)
    worth = GuideWorth(found.k_hat, found.k_threshold, found.ess, num)
    # The tail of weights that are all but equal may have any shape; one that cannot be fitted is none to trust.
    if found.k_hat <= found.k_threshold or found.ess >= 0.9 * num:
        return worth, None
    return worth._replace(verdict=WRONG_FAMILY), (
        f"fit: k-hat is {worth.k_hat:.2f}, above {worth.k_threshold:.2f}, and {worth.ess:.0f} of {num} draws count: "
        f"draws of this guide are no stand-in for the posterior, not even when weighted. {remedy}"
    )


def _starts(fit: Any) -> Starts | None:
    guide = guide_fn(fit.objective)
    return guide.starts if isinstance(guide, AutoWhitenedNormal) else None


def _draws(fit: Any, key: Key, number: int) -> WeightedDraws:
    guide = guide_fn(fit.objective)
    landscape = getattr(guide, "landscape", None)
    if guide is None or landscape is None:
        drawn = fit.posterior(key, number, batch_size=100)
        return WeightedDraws(drawn.log_weights, by_coordinate(drawn.choices))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    noise = rng.standard_normal((number, landscape.space.dimension))
    u, log_q = guide.draws(fit.params, noise)
    points = by_coordinate(landscape.choices(u))
    log_weights = landscape.values(u, keep_nan=True) - log_q
    return WeightedDraws(log_weights.astype(landscape.dtype), points, u)


def by_coordinate(choices: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A vector of draws for each coordinate of a site, up to a hundred of each."""
    return {
        f"{name}{list(at) if at else ''}": x[(slice(None), *at)].astype(float)
        for name, x in choices.items()
        if np.issubdtype(x.dtype, np.floating)
        for at in itertools.islice(np.ndindex(x.shape[1:]), 100)
    }


def _normal(fit: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and factor of the guide in unconstrained coordinates."""
    return fit.objective.guide.fn.normal(fit.params)


def _joined(one: WeightedDraws, other: WeightedDraws) -> WeightedDraws:
    points = {
        n: np.concatenate([one.points[n], x]) if n in one.points else x
        for n, x in other.points.items()
    }
    u = np.concatenate([one.u, other.u]) if one.u.size else other.u
    return WeightedDraws(np.concatenate([one.log_weights, other.log_weights]), points, u)


def _behind(draws: WeightedDraws, starts: Starts) -> tuple[str, str] | None:
    """Whether training has lost what the start had."""
    weights = draws.log_weights.astype(float)
    error = weights.std() / math.sqrt(len(weights))
    if not weights.mean() + 4 * error < starts.best.elbo - _BEHIND:
        return None
    return "not converged", (
        f"fit: the guide has not converged: its bound is {weights.mean():.6g} nats, and it began at {starts.best.elbo:.6g}. "
        f"Give it more steps (params=fit.last_params goes on) or a smaller learning rate; {SKIP}"
    )


def _several(fit: Any, draws: WeightedDraws, starts: Starts) -> tuple[str, str] | None:
    """Whether a Normal that was found before holds mass where the guide is not."""
    mean, factor = _normal(fit)
    top = draws.log_weights.max()
    evidence = top + math.log(np.exp(draws.log_weights - top).mean())
    guide = Start("guide", mean, factor, 0.0, 0.0, evidence, True)
    far = max(_FAR, math.sqrt(len(mean)) + 2.0)
    rivals = [
        rival
        for rival in starts.all
        if rival.is_mode and rival.log_evidence > evidence - _SHARE
        and min(guide.distance(rival.center), rival.distance(mean)) > far
    ]  # fmt: skip
    if not rivals:
        return None
    others = ", ".join(f"{r.log_evidence:.4g}" for r in rivals)
    return "several modes", (
        f"fit: the posterior has several modes, and a Normal guide is at one of them: its log evidence is {evidence:.4g} nats, "
        f"and that of others, which lie apart, {others}. inference.infer and inference.tempered_smc go to them all; {SKIP}"
    )


def _thin(worth: GuideWorth) -> tuple[str, str] | None:
    """What the share of draws that count says against unweighted ones, where weights can be trusted."""
    if worth.ess >= _THIN * worth.num_draws:
        return None
    return NEED_WEIGHTS, (
        f"fit: the guide's draws are no stand-in for the posterior without their weights: {worth.ess:.0f} of {worth.num_draws} "
        f"count. Weight them by Posterior.log_weights; {RICHER} as the guide or {SAMPLERS} may do better; {SKIP}"
    )


def _off(draws: WeightedDraws) -> tuple[str, str] | None:
    """What weighted draws say against unweighted ones, of a coordinate of which each half of the draws says it.

    A width is known where k-hat of weight x squared distance is below its threshold, too; of a law that is itself so heavy that
    its squares are not, nothing is said.
    """
    told: list[dict[str, str]] = []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        log_weights = draws.log_weights[half]
        weights = np.exp(importance_diagnostics(log_weights).smoothed_log_weights)
        found = {}
        for name, x in draws.points.items():
            x = x[half]
            mean = weights @ x
            squares = (x - mean) ** 2
            sd, own = max(math.sqrt(weights @ squares), 1e-300), x.std()
            shift = abs(x.mean() - mean) / sd
            if shift > _OFF:
                found[name] = (
                    f"the mean of '{name}' is {shift:.2f} posterior standard deviations off"
                )
            elif not 1 / _RATIO < own / sd < _RATIO:
                found[name] = f"the width of '{name}' is {own / sd:.2f} times the posterior's"
            elif _is_known(0.0, squares) and not _is_known(log_weights, squares):
                found[name] = (
                    f"'{name}' has a heavier tail than the draws, and its width is not known"
                )
        told.append(found)
    both = [name for name in told[0] if name in told[1]]
    if not both:
        return None
    more = f", and {len(both) - 1} more coordinates" if len(both) > 1 else ""
    return NEED_WEIGHTS, (
        f"fit: the guide's draws are no stand-in for the posterior without their weights: {told[0][both[0]]}{more}. Weight them "
        f"by Posterior.log_weights; {RICHER} as the guide or {SAMPLERS} may do better; {SKIP}"
    )


def _is_known(log_weights: np.ndarray | float, values: np.ndarray) -> bool:
    """Whether the weighted mean of non-negative values can be trusted."""
    with np.errstate(divide="ignore"):
        found = importance_diagnostics(log_weights + np.log(values))
    return not found.k_hat > found.k_threshold

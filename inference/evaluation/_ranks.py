"""Whether two judges put models in the same order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._types import Key
from ._compare import METRICS
from ._estimate import Estimate
from ._inputs import generator

# Name of an estimate -> whether more is better; of those by other names it is not known.
_MORE_IS_BETTER = {name: True for name, is_more in METRICS.items() if is_more} | {
    "frechet_distance": False,
    "frechet_distance plain": False,
    "intra_class_frechet": False,
    "kernel_distance": False,
    "sliced_wasserstein": False,
    "classifier accuracy": False,
    "classifier auc": False,
    "classifier js_bound": False,
    "classification_accuracy_score": True,
    "effective_robustness": True,
}


@checked_call
def rank_stability(
    one: Mapping[str, Estimate],
    other: Mapping[str, Estimate],
    key: Key,
    *,
    num_draws: int = 1_000,
) -> Estimate:
    """Kendall's tau between the orders of models by two metrics, or by one metric of two feature maps.

        tau = (pairs in the same order - pairs in the opposite one) / all pairs  (tau-b, if values tie)

    Orders are from the best model to the worst where the names of all estimates are those of metrics of this package, so that a
    distance and a coverage that agree have tau = 1; else both are by value.

    Args:
        one: estimates by model.
        other: estimates of the same models.
        key: PRNG key of the draws.
        num_draws: orders that are drawn with the estimates' errors.

    Returns:
        tau of the values, its error the standard deviation of tau where values move by Normal noise of their standard errors.
        Details: "low" and "high", between which 90% of those lie; "probability", how often the order by `one` is the same again.

    Raises:
        ValueError: other models in `other`, fewer than two, estimates that are not finite, or metrics of both directions in one
            of them.

    Validity: errors are taken as independent between models and metrics. Those of models that were judged against the same
    real rows are not quite, which makes the error too large. Two judges of one order have a mean tau below 1, by what noise
    turns round, so that no `exact` is given.

    Example:
        >>> import jax
        >>> a = {name: Estimate(value, 0.1) for name, value in (("A", 1.0), ("B", 2.0), ("C", 3.0))}
        >>> b = {name: Estimate(value, 0.1) for name, value in (("A", 1.0), ("B", 3.0), ("C", 2.0))}
        >>> round(rank_stability(a, b, jax.random.key(0)).value, 3)  # one of three pairs is turned
        0.333
    """
    label = "rank_stability"
    check_counts(label, 20, num_draws=num_draws)
    values = [np.array([e.value for e in estimates.values()]) for estimates in (one, other)]
    if set(one) != set(other) or len(one) < 2 or not np.isfinite(np.concatenate(values)).all():
        raise ValueError(
            f"{label}: values {values[0].tolist()} of {list(one)}, {values[1].tolist()} of {list(other)}. Give finite estimates "
            "of the same models, two or more."
        )
    pairs = [np.array([(e[name].value, e[name].standard_error) for name in one]) for e in (one, other)]  # fmt: skip
    draws = generator(key)
    moved = [p[:, 0] + p[:, 1] * draws.normal(size=(num_draws, len(p))) for p in pairs]
    sign = _turn(label, one, other)
    taus = sign * _tau(*moved)
    order = np.argsort(pairs[0][:, 0])
    same = (np.argsort(moved[0], 1) == order).all(1)
    low, high = np.quantile(taus, [0.05, 0.95])
    details = {"low": float(low), "high": float(high), "probability": float(same.mean())}
    value = sign * float(_tau(*(p[:, 0] for p in pairs)))
    return Estimate(value, float(taus.std(ddof=1)), name="rank stability", details=details)


def _turn(label: str, one: Mapping[str, Estimate], other: Mapping[str, Estimate]) -> float:
    """-1 where more is better by one judge and worse by the other; 1 where they agree, or nobody knows."""
    found = []
    for role, estimates in (("one", one), ("other", other)):
        ways = {_MORE_IS_BETTER.get(e.name) for e in estimates.values()}
        if {True, False} <= ways:
            raise ValueError(
                f"{label}: {role} has estimates of { {n: e.name for n, e in estimates.items()} }, of which some are better when "
                "larger and others when smaller, so that they have no order. Give one metric of all models."
            )
        found.append(ways.pop() if len(ways) == 1 else None)
    return -1.0 if None not in found and found[0] != found[1] else 1.0


def _tau(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's tau-b along the last axis, of many pairs of orders at once; 0 where all values tie, which have no order."""
    i, j = np.triu_indices(a.shape[-1], 1)
    one, other = (np.sign(x[..., i] - x[..., j]) for x in (a, b))
    scale = np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return (one * other).sum(-1) / np.maximum(scale, 1.0)

"""How good draws are: distances between laws, rank correlation with the reward, the best objects seen."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from ...ppl._checks import check_probabilities
from ...ppl._compat import ArrayLike


def total_variation(p: Float[np.ndarray, " n"], q: Float[np.ndarray, " n"]) -> float:
    """1/2 sum |p - q|.

    Args:
        p: probabilities, [n].
        q: probabilities, [n].

    Raises:
        ValueError: they are none, or not of the same outcomes.
    """
    p, q = np.asarray(p), np.asarray(q)
    check_probabilities("total_variation", p=p, q=q)
    return float(0.5 * np.abs(p - q).sum())


def jensen_shannon(p: Float[np.ndarray, " n"], q: Float[np.ndarray, " n"]) -> float:
    """1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2, nats; at most log 2.

    Args:
        p: probabilities, [n].
        q: probabilities, [n].

    Raises:
        ValueError: they are none, or not of the same outcomes.
    """
    p, q = np.asarray(p), np.asarray(q)
    check_probabilities("jensen_shannon", p=p, q=q)
    mid = (p + q) / 2
    kl = lambda a: float(np.sum(a[a > 0] * np.log(a[a > 0] / mid[a > 0])))
    return 0.5 * (kl(p) + kl(q))


def rank_correlation(
    log_prob: Float[ArrayLike, " batch"], log_reward: Float[ArrayLike, " batch"]
) -> float:
    """Spearman's correlation of log p_T(x) with log R(x) over a test set, for spaces too large for a `Table`.

    Args:
        log_prob: as from `GFlowNet.estimate_log_prob`, whose noise lowers the correlation.
        log_reward: log R of the same objects.

    Raises:
        ValueError: values that are all alike, so that they have no order.

    Reference: Malkin et al. 2022, arXiv:2201.13259, section 5.3.
    """
    pair = {"log_prob": np.asarray(log_prob), "log_reward": np.asarray(log_reward)}
    for name, values in pair.items():
        if len(np.unique(values)) < 2:
            raise ValueError(
                f"rank_correlation: {name} is {values[:1]} for all {len(values)} objects, which then have no order. Give objects "
                "that differ."
            )
    from scipy.stats import spearmanr  # on use: takes a second to load

    found: PyTree = spearmanr(pair["log_prob"], pair["log_reward"])
    return float(found.statistic)


class Best(NamedTuple):
    """The best distinct objects of those seen; made by `best`.

    Attributes:
        states: stacked, [at most k, ...], the best first.
        log_reward: their log R, nats.
    """

    states: PyTree
    log_reward: Float[np.ndarray, " k"]

    @property
    def mean_reward(self) -> float:
        """Mean of R, the published measure of a search ("top-k reward")."""
        return float(np.exp(self.log_reward).mean())


def best(
    states: PyTree,
    log_reward: Float[ArrayLike, " batch"],
    *,
    k: int = 100,
    before: Best | None = None,
) -> Best:
    """The k best distinct objects of a batch and of those kept before.

    Args:
        states: objects, stacked, [batch, ...].
        log_reward: their log R, nats.
        k: how many are kept.
        before: the result of earlier batches.
    """
    found, rewards = jax.tree.map(np.asarray, states), np.asarray(log_reward)
    if before is not None:
        found = jax.tree.map(lambda a, b: np.concatenate([a, b]), before.states, found)
        rewards = np.concatenate([before.log_reward, rewards])
    rows = [np.reshape(x, (len(rewards), -1)) for x in jax.tree.leaves(found)]
    as_bytes = np.concatenate([np.ascontiguousarray(x).view(np.uint8) for x in rows], 1)
    _, first = np.unique(as_bytes, axis=0, return_index=True)
    kept = first[np.argsort(-rewards[first], kind="stable")][:k]
    return Best(jax.tree.map(lambda x: x[kept], found), rewards[kept])

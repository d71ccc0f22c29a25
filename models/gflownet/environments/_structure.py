"""Directed acyclic graphs over a few variables, with the Gaussian marginal likelihood (BGe)."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import gammaln

from ....ppl._compat import ArrayLike
from ._environment import Environment


class Structures(Environment):
    """Graphs over d variables, built edge by edge; log R(G) = sum_j local(j, parents of j).

    Every graph can be the last. The state is the adjacency matrix [d, d] (entry i, j for the edge i -> j), the action i * d + j
    adds an edge that closes no cycle.

    Args:
        local_scores: [d, 2^d], entry (j, m) the log-score of variable j with the parents in the bits of m (bit i for variable
            i); columns whose bit j is set are not read. See `bge_scores`.

    Raises:
        ValueError: another shape.

    Reference: Deleu et al. 2022, arXiv:2202.13903.
    """

    stops = True

    def __init__(self, local_scores: Float[ArrayLike, "variables parents"]) -> None:
        self.local_scores = np.asarray(local_scores, float)
        d = len(self.local_scores)
        if self.local_scores.shape != (d, 2**d):
            raise ValueError(
                f"Structures: local_scores must have shape [d, 2^d], got {list(self.local_scores.shape)}; see bge_scores."
            )
        self.num_variables = d
        self.num_actions, self.num_steps = d * d, d * (d - 1) // 2

    def start(self) -> Array:
        """No edge."""
        return jnp.zeros((self.num_variables, self.num_variables), bool)

    def observe(self, state: Array) -> Array:
        """The edges, [d * d]."""
        return state.reshape(-1).astype(float)

    def legal(self, state: Array) -> Array:
        """Edges i -> j that are absent where no path leads from j to i."""
        reach = state | jnp.eye(self.num_variables, dtype=bool)
        for _ in range(math.ceil(math.log2(max(self.num_variables, 2)))):
            reach = (reach[:, :, None] & reach[None]).any(1)
        return (~state & ~reach.T).reshape(-1)

    def removable(self, state: Array) -> Array:
        """Edges that are there."""
        return state.reshape(-1)

    def step(self, state: Array, action: Array) -> Array:
        """Add an edge."""
        return state.at[jnp.divmod(action, self.num_variables)].set(True)

    def undo(self, state: Array, action: Array) -> Array:
        """Remove it."""
        return state.at[jnp.divmod(action, self.num_variables)].set(False)

    def log_reward(self, state: Array) -> Array:
        """Sum of local scores."""
        parents = jnp.sum(state * 2 ** jnp.arange(self.num_variables)[:, None], 0)
        scores = jnp.asarray(self.local_scores, float)
        return scores[jnp.arange(self.num_variables), parents].sum()


def bge_scores(
    data: Float[ArrayLike, "rows variables"],
    *,
    mean_weight: float = 1.0,
    degrees: float | None = None,
    log_edge_prior: float = 0.0,
) -> Float[np.ndarray, "variables parents"]:
    """Local scores of linear Gaussian networks: log p(x_j, x_Pa) - log p(x_Pa) with means and precisions integrated out.

    Under a normal-Wishart prior (mean 0 of weight alpha_mu, alpha_w degrees of freedom, scale t I with t = alpha_mu
    (alpha_w - d - 1) / (alpha_mu + 1)), so that Markov-equivalent graphs score alike.

    Args:
        data: N rows of d variables; standardise them, the prior is not invariant.
        mean_weight: alpha_mu.
        degrees: alpha_w > d + 1, d + 2 by default.
        log_edge_prior: nats for each edge.

    Returns:
        [d, 2^d], for `Structures`.

    Raises:
        ValueError: alpha_w too small, alpha_mu not positive, or data that are not finite rows.

    Reference: Geiger and Heckerman 2002; Kuipers, Moffa and Heckerman 2014, arXiv:1402.6863 (the corrected constants).
    """
    x = np.asarray(data, float)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"bge_scores: data must be finite rows of variables, got shape {x.shape}.")
    num_rows, d = x.shape
    degrees = d + 2.0 if degrees is None else degrees
    if not degrees > d + 1:
        raise ValueError(f"bge_scores: degrees must exceed d + 1 = {d + 1}, got {degrees}.")
    if not mean_weight > 0:
        raise ValueError(
            f"bge_scores: mean_weight must be positive, got {mean_weight}. Give the number of rows that the prior's mean counts "
            "for, e.g. 1.0."
        )
    t = mean_weight * (degrees - d - 1) / (mean_weight + 1)
    mean = x.mean(0)
    scatter = (x - mean).T @ (x - mean)
    shrink = num_rows * mean_weight / (num_rows + mean_weight)
    posterior = t * np.eye(d) + scatter + shrink * np.outer(mean, mean)

    def log_marginal(chosen: tuple[int, ...]) -> float:
        """Log p of some of the variables."""
        k = len(chosen)
        free, seen = degrees - d + k, num_rows + degrees - d + k
        logdet = np.linalg.slogdet(posterior[np.ix_(chosen, chosen)])[1] if k else 0.0
        gammas = sum(gammaln((seen - i) / 2) - gammaln((free - i) / 2) for i in range(k))
        return (
            k / 2 * (np.log(mean_weight / (num_rows + mean_weight)) - num_rows * np.log(np.pi))
            + gammas + free * k / 2 * np.log(t) - seen / 2 * logdet
        )  # fmt: skip

    subsets = [tuple(i for i in range(d) if m >> i & 1) for m in range(2**d)]
    log_p = [log_marginal(chosen) for chosen in subsets]
    scores = np.full((d, 2**d), -np.inf)
    for j in range(d):
        for m in range(2**d):
            if not m >> j & 1:
                edges = len(subsets[m]) * log_edge_prior
                scores[j, m] = log_p[m | 1 << j] - log_p[m] + edges
    return scores

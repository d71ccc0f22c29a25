"""Variational simulation-based calibration: whether the centre of a posterior is right, whatever its width."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ...ppl._calls import checked_call
from ...ppl._types import Key
from ._ranks import RankCheck, rank_check, ranks_of
from ._simulations import Simulations, generator

_FLIPS = 999


@checked_call
def vsbc(simulations: Simulations, key: Key) -> RankCheck:
    """Whether ranks are symmetric about the middle: a posterior of the wrong width passes, one of the wrong centre does not.

        sup_p |F(p) - (1 - F(1 - p))|,   F the distribution of the ranks over L.

    Args:
        simulations: of `simulate`.
        key: PRNG key of either kind, for ties and reflections.

    Returns:
        A `RankCheck` of the ranks whose p-values are those of symmetry (its `band` is of uniform ranks).

    Validity: exact where ranks are independent and symmetric, by random reflections of each; a bias whose sign changes with the
    data may average out. Width is not looked at: use it beside `coverage`.

    Reference: Yao, Vehtari, Simpson and Gelman 2018, arXiv:1802.02538, algorithm 2; reflections in place of their
    Kolmogorov-Smirnov test, which takes p and 1 - p for independent.
    """
    rng = generator(key)
    draws = simulations.draw_matrix
    ranks = ranks_of(rng, simulations.truth_matrix, draws)
    made = rank_check("VSBC (symmetry)", simulations.coordinates, ranks, draws.shape[1])
    p_values = np.array([_p_value(rng, column, draws.shape[1]) for column in ranks.T])
    return RankCheck(made.name, made.labels, ranks, made.num_draws, p_values)


def _p_value(rng: np.random.Generator, ranks: np.ndarray, num_draws: int) -> float:
    signs = 2 * rng.integers(0, 2, (_FLIPS, len(ranks)), np.int8) - 1
    centred = 2 * ranks - num_draws
    # Both tails at once: #{r >= t} - #{r <= -t}, a walk of signs over |r| from the outside in.
    order = np.argsort(-np.abs(centred), kind="stable")
    size = np.abs(centred)[order]
    ends = np.append(size[1:] != size[:-1], True) & (size > 0)
    found = _largest(np.sign(centred)[order][None], ends)[0]
    null = _largest(signs * (size > 0), ends)
    # Far out: Levy's and Hoeffding's inequalities for walks of random signs, P(max |walk| >= t) <= 4 exp(-t^2 / 2 n).
    bound = 4 * np.exp(-(found**2) / (2 * max(1, (size > 0).sum())))
    return float(min(bound, (1 + (null >= found).sum()) / (1 + _FLIPS)))


def _largest(signs: Float[np.ndarray, "rows simulations"], ends: np.ndarray) -> np.ndarray:
    walks = np.abs(np.cumsum(signs, axis=1, dtype=np.int32))
    return (walks * ends).max(1)

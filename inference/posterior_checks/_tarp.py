"""Tests of accuracy with random points, and along directions that the draws themselves point out."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ...ppl._calls import checked_call
from ...ppl._data import as_numbers
from ...ppl._types import Key
from ._ranks import RankCheck, central, rank_check, ranks_of
from ._simulations import Simulations, generator


@checked_call
def tarp(
    simulations: Simulations,
    key: Key,
    *,
    references: Literal["random", "data"] | np.ndarray = "random",
) -> RankCheck:
    """Expected coverage of balls around random points: TARP.

        f_i = #{l : d(theta_il, r_i) < d(theta*_i, r_i)},   uniform on 0, ..., L,

    with Euclidean distances d of coordinates in units of their pooled standard deviation.

    Args:
        simulations: of `simulate`.
        key: PRNG key of either kind, for reference points and ties.
        references: "random", uniform over the box of all draws; "data", near what a linear regression on the data predicts of
            the truth (fitted to one half of the simulations, used in the other, with noise of one residual deviation), so that a
            posterior that ignores the data is seen; or points [S, coordinates] of one's own, made without the truths.

    Returns:
        A `RankCheck` with one column; its curve is the expected coverage.

    Raises:
        ValueError: unknown references, or points of another shape.

    Validity: exact for any number of draws. A posterior is right if the coverage is, for *all* laws of r that may depend on the
    data; with one law it is necessary only.

    Reference: Lemos et al. 2023, arXiv:2302.03026, algorithm 2 and theorem 3.
    """
    rng = generator(key)
    truth, draws = scaled(simulations)
    if isinstance(references, str):
        if references not in ("random", "data"):
            raise ValueError(
                f"tarp: references must be 'random', 'data' or points [S, coordinates], got {references!r}."
            )
        low, high = draws.min((0, 1)), draws.max((0, 1))
        name = f"TARP ({references} points)"
        points = (
            rng.uniform(low, high, truth.shape)
            if references == "random"
            else _predicted(rng, simulations.data_matrix, truth)
        )
    else:
        given = as_numbers("tarp: argument 'references'", references)
        if given.shape != truth.shape or not np.isfinite(given).all():
            raise ValueError(
                f"tarp: references of shape {given.shape}; give finite points {truth.shape}, one for each simulation."
            )
        points, name = (given - _middle(simulations)) / _spread(simulations), "TARP (own points)"
    far = lambda x: ((x - points.reshape(len(points), *[1] * (x.ndim - 2), -1)) ** 2).sum(-1)
    ranks = ranks_of(rng, far(truth)[:, None], far(draws)[..., None])
    return rank_check(name, ("all coordinates",), ranks, draws.shape[1])


@checked_call
def directions(simulations: Simulations, key: Key) -> tuple[RankCheck, np.ndarray]:
    """Coverage of central intervals along the directions in which a posterior looks most too narrow and most too wide.

    With e = theta* - posterior mean, from one half of the simulations: the directions w with the largest and the smallest ratio
    E[(w'e)^2] / E[w' Cov w]. In the other half the ranks of w'theta* among w'theta_l are counted; both halves take their turn.

    Args:
        simulations: of `simulate`, with at least two coordinates.
        key: PRNG key of either kind, for halves and ties.

    Returns:
        A `RankCheck` with the columns "widest miss" and "narrowest miss", and the directions of all simulations together,
        [2, coordinates], in units of the coordinates' pooled deviations and of length 1, the largest entry positive.

    Raises:
        ValueError: one coordinate only, or a single draw.

    Validity: exact for any number of draws, since a direction is ranked where it was not chosen.

    Reference: ranks of test quantities, Modrak et al. 2023, arXiv:2211.02383; chosen by data splitting.
    """
    rng = generator(key)
    truth, draws = scaled(simulations)
    number, dim = truth.shape
    if dim < 2 or draws.shape[1] < 2:
        raise ValueError(
            f"directions: {dim} coordinates and {draws.shape[1]} draws; give two or more of both, or use coverage."
        )
    halves = np.array_split(rng.permutation(number), 2)
    ranks = np.empty((number, 2), int)
    for ours, others in (halves, halves[::-1]):
        ways = _extremes(truth[others], draws[others])
        ranks[ours] = ranks_of(rng, truth[ours] @ ways.T, draws[ours] @ ways.T)
    num_draws = draws.shape[1]
    labels = ("widest miss", "narrowest miss")
    check = rank_check("directions", labels, central(ranks, num_draws), num_draws)
    return check, _extremes(truth, draws)


def scaled(simulations: Simulations) -> tuple[np.ndarray, np.ndarray]:
    """Truths and draws about a common mean, in common units: of all of them, so that truths have no place of their own."""
    middle, spread = _middle(simulations), _spread(simulations)
    return (simulations.truth_matrix - middle) / spread, (simulations.draw_matrix - middle) / spread


def _middle(simulations: Simulations) -> np.ndarray:
    return _points(simulations).mean(0)


def _spread(simulations: Simulations) -> np.ndarray:
    spread = _points(simulations).std(0)
    return np.where(spread > 0, spread, 1.0)


def _points(simulations: Simulations) -> np.ndarray:
    draws = simulations.draw_matrix
    return np.concatenate([simulations.truth_matrix, draws.reshape(-1, draws.shape[-1])])


def _predicted(rng: np.random.Generator, data: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Ridge regression of truths on data, from the other half, with noise."""
    number = len(truth)
    spread = data.std(0)
    inputs = np.column_stack([np.ones(number), (data - data.mean(0)) / np.where(spread > 0, spread, 1.0)])  # fmt: skip
    halves = np.array_split(rng.permutation(number), 2)
    out = np.empty_like(truth)
    for ours, others in (halves, halves[::-1]):
        square = inputs[others].T @ inputs[others] + np.eye(inputs.shape[1])
        weights = np.linalg.solve(square, inputs[others].T @ truth[others])
        noise = (truth[others] - inputs[others] @ weights).std(0)
        out[ours] = inputs[ours] @ weights + noise * rng.standard_normal(truth[ours].shape)
    return out


def _extremes(truth: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Directions [2, coordinates] with the largest and smallest ratio of squared misses to posterior variance."""
    from scipy.linalg import eigh

    miss = truth - draws.mean(1)
    centred = draws - draws.mean(1, keepdims=True)
    held = np.einsum("sld,sle->de", centred, centred) / (len(draws) * (draws.shape[1] - 1))
    held += 1e-9 * max(np.trace(held), 1e-30) * np.eye(len(held))
    _, vectors = eigh(miss.T @ miss / len(miss), held)
    ways = vectors[:, [-1, 0]].T
    ways = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    largest = np.abs(ways).argmax(1)
    return ways * np.sign(ways[np.arange(2), largest])[:, None]

"""Several chains over a table, run until they agree; parameters kept from their second half."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ....ppl._types import Key
from ._sweep import Cells, Levels, TableParameters, TableState, start, sweep

BLOCK = 8  # sweeps between parameters that may be kept
R_HAT = 1.05
ESS = 400  # Vehtari et al. 2021, arXiv:1903.08008


class TableChains(NamedTuple):
    """What the chains found.

    Attributes:
        params: drawn parameters, [draws, ...].
        num_sweeps: of each chain, the first half thrown away.
        r_hat: the largest split R-hat over means, spreads and correlations that rest on missing cells; NaN where none does.
        ess: the smallest effective number of draws of these.
        time: sweeps of all chains for each effective draw.
        last: the completed tables at the end, [chains, ...].
    """

    params: TableParameters
    num_sweeps: int
    r_hat: float
    ess: float
    time: float
    last: TableState


def run_chains(
    seed: int,
    cells: Cells,
    levels: Levels,
    names: Sequence[str],
    *,
    num_draws: int,
    num_chains: int,
    max_sweeps: int,
) -> TableChains:
    """Draws of the parameters given a table with holes, with a warning where the chains do not agree.

    The second half of the sweeps counts. Sweeps are doubled until all summaries of the completed table that rest on missing
    cells have a split R-hat of at most 1.05 and 400 effective draws, four for each draw that is kept.

    Args:
        seed: of everything random.
        cells: the table.
        levels: numbers of levels of its categories.
        names: of the dummies, then of the numbers.
        num_draws: parameters to keep, evenly spaced over the chains.
        num_chains: chains, each from a table completed at random.
        max_sweeps: of each chain, at most (at least two blocks for each draw of a chain).
    """
    per_chain = -(-num_draws // num_chains)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    starts = [start(rng, cells, levels) for _ in range(num_chains)]
    state = jax.tree.map(lambda *a: np.stack(a), *starts)
    watched = _watched(cells, levels)
    needed = max(ESS, 4 * num_draws) if watched.size else 0
    kept: list[TableParameters] = []
    seen: list[np.ndarray] = []
    length = 2 * max(per_chain, -(-100 // BLOCK))
    while True:
        while len(kept) < length:
            keys = jax.random.split(jax.random.fold_in(key, len(kept)), num_chains)
            state, params, summaries = _block(keys, state, cells, levels)
            kept.append(jax.tree.map(np.asarray, params))
            seen.append(np.asarray(summaries)[..., watched])
        traces = np.concatenate(seen[length // 2 :], 1)
        r_hat, ess, worst = _agreement(traces)
        if not watched.size or (r_hat <= R_HAT and ess >= needed):
            break
        if 2 * length * BLOCK > max_sweeps:
            at = " and ".join(f"'{names[i]}'" for i in _columns_of(watched[worst], len(names)))
            warnings.warn(
                f"TableImputer: after {length * BLOCK} sweeps the chains have not settled: R-hat {r_hat:.2f} and {ess:.0f} "
                f"effective draws, worst at {at} (at most {R_HAT} and at least {needed} are wanted), so that completed tables "
                f"depend on where the chains began. Raise max_sweeps (now {max_sweeps}); where that does not help, the rows "
                "hardly tell how these depend on the others: leave out columns that nearly repeat another, or that have few "
                "observed cells.",
                stacklevel=4,
            )
            break
        length *= 2
    index = np.unique(np.linspace(length // 2, length - 1, per_chain).round().astype(int))
    stacked = jax.tree.map(lambda *a: np.concatenate(a), *[kept[i] for i in index])
    draws = traces.shape[0] * traces.shape[1]
    time = draws / ess if watched.size else 1.0
    params = jax.tree.map(lambda a: a[:num_draws], stacked)
    return TableChains(params, length * BLOCK, r_hat, ess, time, jax.tree.map(np.asarray, state))


@functools.partial(jax.jit, static_argnames="levels")
def _block(
    keys: Key, state: TableState, cells: Cells, levels: Levels
) -> tuple[TableState, TableParameters, Array]:
    """TableState and parameters after `BLOCK` sweeps of each chain, and summaries [chains, sweeps, summaries]."""

    def chain(key: Key, state: TableState) -> tuple[TableState, TableParameters, Array]:
        def step(carry: tuple[PyTree, ...], key: Key) -> PyTree:
            state, params, summaries = sweep(key, carry[0], cells, levels)
            return (state, params), summaries

        shapes = jax.eval_shape(lambda: sweep(key, state, cells, levels)[1])
        blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        (state, params), found = jax.lax.scan(step, (state, blank), jax.random.split(key, BLOCK))
        return state, params, found

    return jax.vmap(chain)(keys, state)


def _watched(cells: Cells, levels: Levels) -> np.ndarray:
    """Numbers of the summaries that rest on missing cells."""
    holes = [np.full(n - 1, not s.all()) for n, s in zip(levels, cells.c_seen.T, strict=True)]
    has = np.concatenate([*holes, ~np.asarray(cells.x_seen).all(0)]).astype(bool)
    pairs = np.triu(has[:, None] | has, 1)
    return np.flatnonzero(np.concatenate([has, has, pairs.ravel()]))


def _columns_of(summary: int, width: int) -> list[int]:
    """The columns of a summary: one, or two of a correlation."""
    if summary < 2 * width:
        return [int(summary % width)]
    return [int(i) for i in divmod(summary - 2 * width, width)]


def _agreement(traces: np.ndarray) -> tuple[float, float, int]:
    """Largest split R-hat, smallest effective number of draws, and which summary is worst; traces [chains, draws, summaries]."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    if not traces.shape[-1]:
        return np.nan, np.nan, 0
    with np.errstate(all="ignore"):
        r_hat, ess = split_gelman_rubin(traces), effective_sample_size(traces)
    # A summary that never moved tells nothing: it says neither yes nor no where it is exact, and no where it is not a number.
    fixed = np.ptp(traces, (0, 1)) == 0
    r_hat, ess = np.where(fixed, 1.0, r_hat), np.where(fixed, np.inf, ess)
    r_hat, ess = np.nan_to_num(r_hat, nan=np.inf), np.nan_to_num(ess, nan=0.0, posinf=np.inf)
    worst = int(np.argmax(r_hat)) if r_hat.max() > R_HAT else int(np.argmin(ess))
    return float(r_hat.max()), float(ess.min()), worst

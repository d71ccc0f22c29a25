"""The thermodynamic variational objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._types import ModelFn
from ...ppl.traces import Inclusion
from ._objective import Objective, objective
from ._recreated import recreated
from ._row_weights import particle_weights

Array = jax.Array


@recreated
def tvo(
    model: ModelFn,
    guide: ModelFn,
    *,
    num_particles: int,
    per: str = "joint",
    betas: Sequence[float] = (0.0, 0.1, 0.3, 1.0),
    side: Literal["lower", "upper"] = "lower",
    strategies: Mapping[str, object] | str | None = None,
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Thermodynamic variational objective (nats, maximised): a Riemann sum of log p(x) = integral over beta of E_beta[log w].

    L = E[sum_i (beta_{i+1} - beta_i) sum_k v_k(b_i) log w_k], v_k(b) = w_k^b / sum_j w_j^b, z_1..z_K ~ q, with b_i = beta_i
    ("lower") or beta_{i+1} ("upper"): E_beta, the expectation under q^(1 - beta) p^beta, by self-normalised weights.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q.
        num_particles: K.
        per: "joint", "plate" or a plate's name, the sum of the rows' bounds; see `iwelbo`.
        betas: the grid, increasing from 0 to 1. (0, 1) with side "lower" is the `elbo`.
        side: left or right end of each interval.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: the grid does not increase from 0 to 1; the refusals of `iwelbo`.

    Validity: value and gradient are unbiased for the K-sample expectation L. "lower": L <= E[log 1/K sum_k w_k] <= log p(x)
    at every K, since the integrand rises in beta for the K weights too and its integral is the log of their mean. "upper":
    above the same quantity at every K, above log p(x) only as K grows.
    Reference: Masrani et al. 2019, arXiv:1907.00031 (equations 9 and 10).
    """
    check_counts("tvo", num_particles=num_particles)
    grid = np.asarray(betas, float)
    if (
        grid.ndim != 1
        or len(grid) < 2
        or grid[0] != 0
        or grid[-1] != 1
        or (np.diff(grid) <= 0).any()
    ):
        raise ValueError(f"tvo: betas must increase from 0 to 1, got {list(betas)}.")
    if side not in ("lower", "upper"):
        raise ValueError(f"tvo: side must be 'lower' or 'upper', got {side!r}.")

    supports: tuple[Inclusion, ...] = ("inside",) if side == "lower" else ("inside", "covers")

    @objective(weighing="refused")
    def tvo(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        log_weights, scale = particle_weights(
            model, guide, args, num_particles, per, supports=supports
        )
        total = jnp.zeros(())
        for end, width in zip(
            grid[:-1] if side == "lower" else grid[1:], np.diff(grid), strict=True
        ):
            shares = jax.nn.softmax(float(end) * log_weights, axis=0)
            total = total + float(width) * (shares * log_weights).sum(0)
        return jnp.sum(scale * total)

    return tvo(
        model, guide, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )

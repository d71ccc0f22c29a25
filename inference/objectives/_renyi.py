"""Objectives on powers of importance weights: Renyi bounds, CUBO and the chi divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._types import ModelFn
from ...ppl.densities import log_mean_exp
from ...ppl.traces import Inclusion
from ._factory import objective, recreated
from ._objective import Objective
from ._row_weights import particle_weights

Array = jax.Array
_NEAR_ZERO = 1e-3  # powers of weights


@recreated
def renyi(
    model: ModelFn,
    guide: ModelFn,
    *,
    alpha: float,
    num_particles: int,
    per: str = "joint",
    strategies: Mapping[str, object] | str | None = None,
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """K-sample variational Renyi bound: E[1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha)] (nats, maximised).

    Weights w_k = p(x, z_k) / q(z_k), z_k iid from q.
    alpha = 0 is `iwelbo`, alpha = 1 the `elbo`. For alpha >= 0 it is at most log p(x) at every K (the power mean of order
    1 - alpha is at most the mean). For alpha < 0 it is a bound of log p(x) on neither side at finite K.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q; `ppl.marginal` and `ppl.normalize` too.
        alpha: order, any real number.
        num_particles: K.
        per: "joint", "plate" or a plate's name; see `iwelbo`.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: alpha is not finite; the refusals of `iwelbo`.

    Validity: value and gradient are unbiased for the K-sample expectation above, under every strategy; not for its limit in
    K, 1/(1 - alpha) log E[w^(1 - alpha)].
    Reference: Li and Turner 2016, arXiv:1602.02311.
    """
    check_counts("renyi", num_particles=num_particles)
    if not math.isfinite(alpha):
        raise ValueError(
            f"renyi: alpha must be a finite number, got {alpha}. Large negative values approach the largest weight."
        )

    # Below 0 an upper bound, of the mass that the guide can reach.
    supports: tuple[Inclusion, ...] = ("inside",) if alpha >= 0 else ("inside", "covers")

    @objective
    def renyi(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        log_weights, scale = particle_weights(
            model, guide, args, num_particles, per, supports=supports
        )
        return jnp.sum(scale * _power_mean(log_weights, 1 - alpha))

    return renyi(
        model, guide, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )


@recreated
def cubo(
    model: ModelFn,
    guide: ModelFn,
    *,
    order: float = 2.0,
    num_particles: int,
    per: str = "joint",
    strategies: Mapping[str, object] | str | None = None,
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """K-sample chi upper bound: E[1/n log 1/K sum_k w_k^n] (nats, minimised), n = `order` > 1.

    Its limit in K, CUBO_n = 1/n log E[w^n], is at least log p(x). At finite K the estimate lies below CUBO_n and may lie below
    log p(x): as a certified upper bound use the logarithm of many values of `chi`.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q.
        order: n.
        num_particles: K.
        per: "joint", "plate" or a plate's name, the sum of the rows' bounds; see `iwelbo`.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: order <= 1; the refusals of `iwelbo`.

    Validity: value and gradient are unbiased for the K-sample expectation; biased for CUBO_n, by O(1/K) where E[w^2n] is
    finite. Without tails of q as heavy as p's the variance is infinite.
    Reference: Dieng et al. 2017, arXiv:1611.00328.
    """
    check_counts("cubo", num_particles=num_particles)
    _check_order("cubo", order)

    @objective(direction="min")
    def cubo(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        log_weights, scale = particle_weights(
            model, guide, args, num_particles, per, supports=("inside", "covers")
        )
        return jnp.sum(scale * _power_mean(log_weights, order))

    return cubo(
        model, guide, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )


@recreated
def chi(
    model: ModelFn,
    guide: ModelFn,
    *,
    order: float = 2.0,
    log_scale: float = 0.0,
    num_replicates: int = 1,
    strategies: Mapping[str, object] | str | None = None,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """E_q[(w / c)^n] (no unit, minimised), n = `order` > 1, c = exp(`log_scale`): exp(n CUBO_n) up to the constant c^n.

    log_scale + 1/n log E[value] is at least log p(x), and its minimiser in q is that of the chi divergence from the posterior.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q.
        order: n.
        log_scale: log c (nats); a guess of log p(x) keeps the value near 1.
        num_replicates: independent draws averaged.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: order <= 1; a log-prob is scaled by subsampling.

    Validity: value and gradient are unbiased; without tails of q as heavy as p's their variance is infinite.
    Reference: Dieng et al. 2017, arXiv:1611.00328.
    """
    _check_order("chi", order)

    @objective(direction="min")
    def chi(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        log_weights, _ = particle_weights(model, guide, args, 1, "joint", supports=("covers",))
        return jnp.exp(order * (log_weights[0] - log_scale))

    return chi(
        model, guide, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )


def _power_mean(log_weights: Array, power: float) -> Array:
    """Logarithm of the power mean of the weights over the leading axis."""
    if power == 0:
        return log_weights.mean(0)
    if abs(power) >= _NEAR_ZERO:
        return log_mean_exp(power * log_weights) / power
    # All powers are near 1, which would take their digits: 6e-8 / power nats in single precision. None is above 1.
    most = log_weights.max(0) if power > 0 else log_weights.min(0)
    most = jax.lax.stop_gradient(jnp.maximum(most, jnp.finfo(most.dtype).min))
    return most + jnp.log1p(jnp.expm1(power * (log_weights - most)).mean(0)) / power


def _check_order(name: str, order: float) -> None:
    if not (order > 1 and math.isfinite(order)):
        raise ValueError(f"{name}: order must be a finite number above 1, got {order}.")

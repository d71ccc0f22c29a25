"""VIMCO: the importance-weighted bound for score-function sites, with one baseline per particle."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._types import ModelFn
from ...ppl.traces import strategies_met
from ._detached import refuse_estimated
from ._factory import objective, recreated
from ._objective import Objective
from ._row_weights import row_weights, weight_of

Array = jax.Array
stop = jax.lax.stop_gradient


@recreated
def vimco(
    model: ModelFn,
    guide: ModelFn,
    *,
    num_particles: int,
    per: str = "joint",
    strategies: Mapping[str, object] | str | None = "reinforce",
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """`iwelbo` with a baseline per particle for sites under Reinforce: the bound without that particle.

    L = log 1/K sum_k w_k. Particle k's score meets L - L_k instead of L, where L_k replaces w_k by the geometric mean of the
    others: L_k = log 1/K (sum_{j != k} w_j + exp(1/(K-1) sum_{j != k} log w_j)).

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q.
        num_particles: K >= 2.
        per: "joint", "plate" or a plate's name; see `iwelbo`. By plate each row has its own baselines.
        strategies: pattern -> gradient strategy. Sites under other strategies than Reinforce keep their own estimators.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: K < 2; no site is under Reinforce; the refusals of `iwelbo`.
        TypeError: the guide's density is estimated (`ppl.marginal`).

    Validity: value and gradient are those of `iwelbo` in the mean (nats, maximised): L_k does not depend on particle k, and
    the score of its sites has mean zero given the other particles.
    Reference: Mnih and Rezende 2016, arXiv:1602.06725 (equations 5 to 8).
    """
    check_counts("vimco", 2, num_particles=num_particles)

    @objective
    def vimco(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        refuse_estimated("vimco", guide, "so the scores of its sites are not known here")

        def particle() -> tuple[Array, Array, Array]:
            q = ppl.draw(guide, *args)
            log_weight, scale = weight_of(ppl.score(model, q, *args), q, per)
            return log_weight, _score(q, per), scale

        log_weights, scores, scale = ppl.particles(num_particles)(particle)()
        others = stop(leave_one_out(log_weights))
        # Where all others have no weight there is nothing to take for a baseline.
        others = jnp.where(jnp.isfinite(others), others, 0.0)
        control = -jnp.sum(others * (scores - stop(scores)), axis=0)
        # log K inside, so that no constant is taken out of the signal that the baselines are made for.
        bound = jax.nn.logsumexp(log_weights - jnp.log(num_particles), axis=0)
        return jnp.sum(scale[0] * (bound + control))

    return vimco(
        model, guide, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )


def leave_one_out(log_weights: Array) -> Array:
    """L_k for each k over the leading axis, shape of `log_weights`."""
    size = log_weights.shape[0]
    own = jnp.eye(size, dtype=bool).reshape(size, size, *[1] * (log_weights.ndim - 1))
    # Not the sum less its own: of a weight of zero that is -inf less -inf.
    means = jnp.where(own, 0.0, log_weights[None]).sum(1) / (size - 1)
    replaced = jnp.where(own, means[:, None], log_weights[None])  # (left out, particle, ...)
    return jax.nn.logsumexp(replaced, axis=1) - jnp.log(size)


def _score(q: ppl.Trace, per: str) -> Array:
    """Log-probs of the sites under Reinforce, summed or by rows."""
    met = strategies_met()
    names = [n for n in q.choices if isinstance(met.get(n), ppl.Reinforce)]
    if not names and met:
        raise ValueError(
            f"vimco: no site is under Reinforce (strategies { ({a: s.name for a, s in met.items()}) }), so there is no "
            "score to give a baseline to. Use iwelbo, or strategies={'<site>': 'reinforce'}."
        )
    if per == "joint":
        return sum((jnp.sum(q.log_probs[n]) for n in names), jnp.zeros(()))
    part = ppl.Trace(
        {n: q.choices[n] for n in names},
        {n: q.log_probs[n] for n in names},
        None,
        {},
        {},
        type(q.sites)({n: q.sites[n] for n in names}),
    )
    empty = ppl.Trace({}, {}, None, {}, {}, type(q.sites)())
    return row_weights(part, empty, per)[0]

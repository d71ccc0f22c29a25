"""The log-variance divergence and its gradient, VarGrad."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._types import ModelFn
from ...ppl.traces import check_match
from ._detached import CONSTANT, refuse_new_draws, sites_met
from ._factory import objective, recreated
from ._objective import Objective
from ._row_weights import joint_weight

Array = jax.Array


@recreated
def log_variance(
    model: ModelFn,
    guide: ModelFn,
    *,
    num_particles: int,
    proposal: ModelFn | None = None,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Half the variance of the log-weight: 1/2 Var_{z ~ r}[log p(x, z) - log q_phi(z)] (nats squared, minimised).

    Zero exactly where q is the posterior (on r's support), whatever log p(x) is. value is half the unbiased sample variance over
    K draws from r, which is held fixed.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q_phi.
        num_particles: K >= 2.
        proposal: r, a fixed program over the same sites (bind its parameters); None: the guide at its present parameters.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: K < 2; a latent site of the model is not proposed; a log-prob is scaled by subsampling.
        TypeError: the guide's density is estimated: the noise of the estimate would count as variance.

    Validity: value and gradient unbiased for the divergence at fixed r, at every K. With r = q the gradient in phi is an
    unbiased estimate of that of KL(q || p(z | x)), and so of the negative `elbo`'s: a score-function gradient whose leave-one-out
    baseline costs nothing. The gradient in theta is that of the variance, not of any bound. No strategies are needed.
    Reference: Richter et al. 2020, arXiv:2010.10436 (VarGrad); Nuesken and Richter 2021, arXiv:2005.05409.
    """
    check_counts("log_variance", 2, num_particles=num_particles)

    @objective(direction="min", weighing="refused")
    def log_variance(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        if isinstance(guide, ppl.densities.StochasticProgram) or isinstance(
            model, ppl.densities.StochasticProgram
        ):
            raise TypeError(
                "log_variance: the density of model or guide is estimated, and the noise of the estimate would count "
                "as variance. Use hvi, iwhvi, wake_phi, or a guide with an exact density."
            )
        source = ppl.detached(guide) if proposal is None else ppl.as_program(proposal)

        def particle() -> Array:
            r = ppl.draw(source, *args)
            before = sites_met()
            p, q = ppl.score(model, r, *args), ppl.score(guide, r.choices, *args)
            refuse_new_draws("log_variance", before)
            penalties = check_match(p, q)
            return joint_weight(p, q)[0] + sum(jnp.sum(x) for x in penalties.values())

        return 0.5 * jnp.var(ppl.particles(num_particles)(particle)(), ddof=1)

    return log_variance(model, guide, strategies=CONSTANT, check_jumps=check_jumps)

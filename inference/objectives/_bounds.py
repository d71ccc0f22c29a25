"""Lower bounds of the log evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._types import ModelFn
from ...ppl.densities import log_mean_exp
from ._analytic_kl import analytic_elbo
from ._factory import objective, recreated
from ._objective import Objective
from ._path_gradients import (
    doubly_reparameterized,
    generalized_doubly_reparameterized,
    sticking_the_landing,
)
from ._row_weights import particle_weights

Array = jax.Array
Kl = Literal["sampled", "analytic"]


@recreated
def elbo(
    model: ModelFn,
    guide: ModelFn,
    *,
    strategies: Mapping[str, PyTree] | str | None = None,
    num_replicates: int = 1,
    gradient: Literal["full", "stl"] = "full",
    kl: Kl | Mapping[str, Kl] = "sampled",
    site_weights: Mapping[str, PyTree] | Callable[..., Mapping[str, PyTree]] | None = None,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Evidence lower bound: E_{z ~ q}[log p(x, z) - log q(z)] <= log p(x), in nats, to be maximised.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q (auxiliary sites allowed); NumPyro's autoguides too.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        num_replicates: independent draws averaged in one estimate.
        gradient: "full", or "stl": sticking the landing, which leaves out the derivative of log q at a fixed draw. Its
            mean is zero; without it the gradient's variance vanishes as q becomes the posterior.
        kl: "sampled", the log-ratio log p - log q of each latent site at its draw; or "analytic", minus its expectation
            KL(q || p) given the sites drawn before it, wherever it has an exact formula (Normal, Gamma, Beta, ...) and the two
            laws are seen together: where the guide is `ppl.guide_of(model)`, at every site with a proposal; for two programs, at
            sites outside of control flow and masks, if the sites before it in the model come before it in the guide too. Sites
            left over are sampled. Or a mapping from patterns to these two, "sampled" elsewhere; a site asked for by name must
            have a formula. It takes the noise of the site's own draw out of the divergence; the bound as a whole may still vary
            more.
        site_weights: see `Objective.with_site_weights`; unless all are equal the value is no bound.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: the guide misses or adds a latent site, observes, has a factor, scales a site in another way than the model
            (subsampled plates, masks), or certainly draws outside of its support; any refusal of `ppl.expectation`; "stl" with a
            guide whose support may move; "stl" together with kl="analytic"; a named divergence without a formula.
        TypeError: "stl" or "analytic" with a guide whose density is estimated (`ppl.marginal`); site weights and an estimated
            density.

    Validity: value and gradient are unbiased for the bound, for model and guide parameters, under every
    strategy that is not marked biased, and under subsampled plates; "stl" and "analytic" too.
    Reference: Jordan et al. 1999; Ranganath et al. 2014, arXiv:1401.0118; Roeder et al. 2017, arXiv:1703.09194 (STL).
    """
    patterns = _analytic(kl, gradient)

    @objective(weighing="scaled")
    def elbo(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        if patterns:
            return analytic_elbo(model, guide, patterns, *args)
        if gradient == "stl":
            return sticking_the_landing(model, guide, *args)
        q = ppl.draw(guide, *args)
        return ppl.score(model, q, *args).log_density - q.log_density

    made = elbo(
        model,
        guide,
        strategies=strategies,
        num_replicates=num_replicates,
        check_jumps=check_jumps,
        site_weights=site_weights,
    )
    return dataclasses.replace(made, gradient=gradient)


def _analytic(kl: object, gradient: str) -> list[str]:
    """The patterns of sites whose divergence is to be taken in closed form."""
    choice = dict(kl) if isinstance(kl, Mapping) else {"*": kl}
    if not set(choice.values()) <= {"sampled", "analytic"}:
        raise ValueError(
            f"elbo: kl must be 'sampled' or 'analytic', got {kl!r}; or a mapping from patterns to these."
        )
    analytic = [pattern for pattern, how in choice.items() if how == "analytic"]
    if analytic and gradient == "stl":
        raise ValueError(
            "elbo: gradient='stl' leaves a score out of sampled log-ratios, and kl='analytic' has none. Use one of them."
        )
    return analytic


@recreated
def iwelbo(
    model: ModelFn,
    guide: ModelFn,
    *,
    num_particles: int,
    per: str = "joint",
    strategies: Mapping[str, object] | str | None = None,
    gradient: Literal["full", "stl", "dreg", "gdreg"] = "full",
    num_imputations: int = 1,
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Importance-weighted bound: E[log 1/K sum_k w_k] <= log p(x), w_k = p(x, z_k) / q(z_k), z_k iid from q (nats, maximised).

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q.
        num_particles: K.
        per: "joint" takes the mean of whole-program weights. "plate" (or a plate's name) takes it row by row,
            E[sum_n log 1/K sum_k w_kn], a tighter bound when every site lies in that plate.
        strategies: pattern -> gradient strategy; see `ppl.expectation`.
        gradient: "full", or "dreg": the doubly reparameterised gradient of the guide's parameters, whose signal does not
            drown in noise as K grows. For guides whose sites are all pathwise; costs a second run of the model. "gdreg": the same
            for the parameters of the model's priors too, wherever in the hierarchy: a path in place of their score.
        num_imputations: J, draws of the missing cells (`obs_mask`) that the model makes at each z_k. They are averaged inside the
            logarithm, w_k = 1/J sum_j p(x, m_kj, z_k) / q(z_k) p(m_kj | z_k), a tighter bound for J more runs of what lies
            downstream of the cells.
        num_replicates: independent estimates averaged, outside the logarithm.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: `per="plate"` with a site outside the plate, or rows that see each other's latent values; `per="joint"` with
            scaled (subsampled) log-probs, whose log-mean-exp would be biased; "dreg" with a site that is not pathwise, or whose
            support may move; "gdreg" with a point mass in the guide (an autoguide), or with no prior that it can serve;
            gradient="stl", which is biased for K > 1; num_imputations > 1 with a model that draws nothing, or with "gdreg".
        TypeError: "dreg" with a guide whose density is estimated (`ppl.marginal`), "gdreg" with such a guide or model.

    Validity: unbiased for the bound at every K. With `per` a plate, a row's weight sees its own latent values, parameters and
    data only: proved from the traced program, or tried where it cannot be. "gdreg" serves the priors Normal, Laplace, Logistic,
    Cauchy, Gumbel, HalfNormal, HalfCauchy, Exponential, Gamma, MultivariateNormal and transforms of them (LogNormal, ...),
    unmasked, where the guide's site has the same support; other sites, and the observations, keep their score as under "dreg".
    Its path goes through the observations: less variance where they are less sharp than the prior, more where they are sharper
    (`gradient_report` measures it).
    Reference: Burda et al. 2016, arXiv:1509.00519; Tucker et al. 2019, arXiv:1810.04152 (DReG); Bauer and Mnih 2021,
    arXiv:2101.11046 (GDReG), here for all priors of the hierarchy jointly.
    """
    check_counts("iwelbo", num_particles=num_particles, num_imputations=num_imputations)
    if gradient == "stl":
        raise ValueError(
            "iwelbo: gradient='stl' is biased for more than one particle (the score left out does not have mean zero "
            "under the weights). Use gradient='dreg'."
        )
    if num_imputations > 1 and gradient == "gdreg":
        raise ValueError(
            "iwelbo: gradient='gdreg' takes no draws of missing cells. Use gradient='dreg'."
        )

    @objective(weighing="functional" if gradient == "full" else "refused")
    def iwelbo(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        if gradient == "dreg":
            return doubly_reparameterized(model, guide, args, num_particles, per, num_imputations)
        if gradient == "gdreg":
            return generalized_doubly_reparameterized(model, guide, args, num_particles, per)
        log_weights, scale = particle_weights(
            model, guide, args, num_particles, per, num_imputations
        )
        return jnp.sum(scale * log_mean_exp(log_weights))

    made = iwelbo(
        model, guide, strategies=strategies, num_replicates=num_replicates, check_jumps=check_jumps
    )
    return dataclasses.replace(made, gradient=gradient)

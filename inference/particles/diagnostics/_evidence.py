"""How exact an evidence estimate is: from the genealogy of one run, and from several runs."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ....ppl._calls import checked_call
from ..engine import SMCResult
from ..parameters import SMC2Result
from ..population import FORMS, family_variance, law_of, log_apart
from ..resampling import lineages
from ..samplers import TemperedResult


@checked_call
def evidence_variance(
    result: SMCResult | TemperedResult | SMC2Result,
    *,
    form: Literal["unbiased", "upper"] = "unbiased",
    lag: int | None = None,
) -> Float[Array, ""]:
    """Variance of log_evidence (nats squared), from the genealogy of one run.

    Particles that descend from one particle of the first generation (their Eve) form a family e of weight
    W_e = sum_{k in e} W_k. With K particles and R resamplings before the last weighing

        v = -log(1 - sum_e W_e^2) - (R + 1) log(K / (K - 1)),

    minus the log-share of the pairs of particles that are not related; form "upper" puts R = 0. It is a sum over steps of minus
    the log-share of pairs that meet in no resampling further back, among those that meet in none from there on. With a lag L the
    share of step s is taken among the particles after weighing s + L: less noise, and a bias that vanishes as L passes the memory
    of the model. Where all particles are related, v is infinite: use a (shorter) lag.

    Args:
        result: of `smc`, `tempered_smc` (`keep="last"`; with `keep="all"` K is the number of chains, and families are theirs) or
            `smc2`, whose particles are those of parameters. Each result has the root as `log_evidence_std_error`, where there is
            one, and prints it.
        form: "unbiased" needs multinomial offspring counts, "upper" non-positively correlated ones.
        lag: L, number of weighings; None for the whole genealogy. Only of `smc` with `history` "full" or "ancestors", and with
            form "unbiased".

    Returns:
        v, scalar; its root is a standard error in nats. It may be negative, and is NaN for a run whose particles were lost.

    Raises:
        ValueError: no genealogy for a lag; persistent particles; a scheme for which the form says nothing; a run with
            `retained` choices; one particle.

    Validity: E[exp(2 log_evidence - v)] = Z^2, so that 1 - exp(-v) times the squared estimate is unbiased for the variance of
    exp(log_evidence), under "multinomial" and "rejection", for every policy that looks at weights only. With "upper" that
    expectation is at most Z^2, under these two and "stratified", "residual", "ssp", "killing" and "birth_death", since the
    families of such a scheme are not positively correlated. "systematic" is refused: one run does not show its variance; use
    `replicate`. Where nothing was resampled every scheme will do. v is the variance of log_evidence itself to first order in
    1/K, with a lag up to the model's memory.
    With `keep="all"` a chain of states is one particle of such a system, so that all of this holds with M = K / (num_moves + 1)
    chains in the place of K.
    Runs that adapt (temperatures, kernels, moves of parameters) have the variance of those that do not, to first order in 1/K.

    Example:
        >>> from lapilli import inference
        >>> import jax
        >>> walk = inference.FeynmanKac(jax.random.normal, lambda key, x, t: x + jax.random.normal(key), lambda _, x, t: -x**2, 9)
        >>> result = inference.smc(walk, jax.random.key(0), num_particles=500, resampling="multinomial")
        >>> bool(0 < inference.particles.evidence_variance(result, lag=5) < 0.1)
        True

    Reference: Chan and Lai 2013, arXiv:1312.5114; Lee and Whiteley 2018, arXiv:1509.00394, section 3; Olsson and
    Douc 2019, arXiv:1701.01001 (lag), here applied to each step's term of the evidence; Dau and Chopin 2022, arXiv:2011.02328,
    section 2 (chains as particles); Beskos, Jasra, Kantas and Thiery 2016,
    arXiv:1306.6462 (adaptation).
    """
    _check(result, form, lag)
    if lag is not None and isinstance(result, SMCResult):
        num_draws = 1 + result.is_resampled.sum()
        apart = _lagged(_genealogy(result), result, lag)
        value = num_draws * math.log1p(-1 / len(result.log_weights)) - apart
    else:
        value = family_variance(result, form)
    return jnp.where(result.failed_at >= 0, jnp.nan, value)


@checked_call
def unique_ancestors(result: SMCResult) -> Int[Array, " weighings"]:
    """How many particles of each weighing have descendants among the last ones: the degeneracy of the paths.

    Args:
        result: of `smc` with `history` "full" or "ancestors".

    Returns:
        Counts between 1 and K, non-decreasing in time, [weighings].

    Raises:
        ValueError: the run kept no genealogy.
    """
    ancestors = _genealogy(result)
    count = lambda row: jnp.zeros(len(row), jnp.int32).at[row].set(1).sum()
    return jax.vmap(count)(lineages(ancestors))


def _lagged(ancestors: Array, result: SMCResult, lag: int) -> Array:
    """The sum over steps s of the log-share, at step s + lag, of pairs apart after step s that are so before it, too."""
    steps, size = ancestors.shape
    assert result.step_log_weights is not None
    # After the last step nothing changes: identity parents and the last weights.
    identity = jnp.broadcast_to(jnp.arange(size, dtype=ancestors.dtype), (lag, size))
    parents = jnp.concatenate([ancestors, identity])
    last = jnp.broadcast_to(result.log_weights, (lag, size))
    log_weights = jnp.concatenate([result.step_log_weights, last])

    def term(t: Array) -> Array:
        """Step s = t - 1: what the resampling before weighing t joins."""
        window = jax.lax.dynamic_slice_in_dim(parents, t, lag)  # parents at t, ..., s + lag
        child = lineages(window)[0]
        weights = log_weights[t - 1 + lag]
        after = log_apart(child, weights)
        change = log_apart(window[0][child], weights) - after
        return jnp.where(after > -jnp.inf, change, -jnp.inf)

    return jax.lax.map(term, jnp.arange(steps)).sum() + log_apart(identity[0], result.log_weights)


def _genealogy(result: SMCResult) -> Array:
    if result.ancestors is None:
        raise ValueError(
            "The run kept no genealogy (history='none'). Run smc with history='ancestors' or 'full'."
        )
    return result.ancestors


SCHEMES = {
    "unbiased": "'multinomial' or 'rejection'",
    "upper": "'multinomial', 'rejection', 'stratified', 'residual', 'ssp', 'killing' or 'birth_death'",
}


def _check(result: PyTree, form: str, lag: int | None) -> None:
    """Refuse a form that is not sound for the run."""
    if lag is not None and (not isinstance(lag, int) or lag < 1):
        raise ValueError(f"evidence_variance: lag must be None or an integer >= 1, got {lag!r}.")
    if lag is not None and form == "upper":
        raise ValueError(
            "evidence_variance: a lag shortens families, so form='upper' would be no bound. Use form='unbiased' or no lag."
        )
    if lag is not None and not isinstance(result, SMCResult):
        raise ValueError(
            f"evidence_variance: a {type(result).__name__} keeps no genealogy to shorten. Leave out lag=."
        )
    if result.log_apart is None:
        raise ValueError(
            "evidence_variance: of particles that persist (keep='persistent') families say nothing, since the evidence of all "
            "temperatures before is part of each weight. Use keep='last' or 'all', or estimate the variance by replicate."
        )
    if result._num_first < 2:
        raise ValueError(
            "evidence_variance: one particle, or chain, shows no variance; use at least two."
        )
    if result.offspring == "conditional":
        raise ValueError(
            "evidence_variance: the evidence of a run with retained choices is not unbiased. Run smc without `retained`."
        )
    if law_of(result) not in FORMS[form]:
        raise ValueError(
            f"evidence_variance: form={form!r} says nothing about this run, whose scheme has {result.offspring} offspring "
            f"counts. Run it with resampling={SCHEMES[form]}, or estimate the variance by replicate."
        )

"""Sequential Monte Carlo from prior to posterior through tempered likelihoods."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts, check_seconds
from ....ppl._compat import is_concrete, typed_key
from ....ppl._types import Key
from ....ppl.language import told_of_not_finite, why_not_finite
from ..._made_for import made_for
from ...inputs import checked, whole as whole_program
from ..moves import HMC, Gibbs, Kernel
from ..population import voided
from ..resampling import Scheme, as_scheme
from ._discrete import as_discrete
from ._persistent import run_persistent
from ._run import SamplerSettings
from ._start import Fitted, base_of
from ._static import as_static
from ._tempered import TemperedResult, trimmed

Array = jax.Array
CHAIN_MOVES = 5  # of chains that are kept whole
NUM_ISLANDS, MIN_ISLAND = 4, 100  # islands, and chains that each has at least
REMEDY = "Take more particles or a higher target_ess, begin nearer (start=, draws of a fit), or use another method."


@checked_call
def tempered_smc(
    model: ppl.Program | Callable[..., PyTree],
    key: Key,
    *args: PyTree,
    start: Fitted | Mapping[str, Any] | None = None,
    num_particles: int = 1000,
    kernel: Kernel | None = None,
    num_moves: int | None = None,
    target_ess: float = 0.5,
    temperatures: Sequence[float] | None = None,
    frozen: TemperedResult | None = None,
    data_axis: str | None = None,
    resampling: str | Scheme = "systematic",
    keep: Literal["last", "all", "persistent"] = "last",
    max_steps: int = 100,
    max_seconds: float | None = None,
    batch_size: int | None = None,
    **kwargs: PyTree,
) -> TemperedResult:
    """Move particles from prior to posterior through p(z) p(data | z)^beta, beta rising from 0 to 1.

    At each temperature: reweigh by exp((beta' - beta) log p(data | z)), resample, move every particle by a kernel that leaves
    the tempered posterior invariant. Unless given, beta' is the largest step whose effective sample size is `target_ess` K
    (bisection), the kernel's scale and spread are tuned from the particles, and moves are made until the particles have left
    their places: 1, 2, 4, ..., 128, until in the last half of them no coordinate has a correlation above 0.3 with itself (or
    more moves change none, as between far modes) and no mean or spread shifts.

    The run watches itself. From 400 chains on, particles are four islands that resample by themselves, independent runs of one
    tuning; a warning is given where their means, spreads or evidences disagree (`r_hat` and `island_log_evidence` of the
    result), where moves carried particles one way up to the end (`drift`, `lag`: the law they should have is not the one they
    had), and where all particles were lost. Under `jax.jit` nothing is said: read `problems` of the result.

    Args:
        model: a program of continuous latent sites, or, with `kernel=Gibbs()`, of discrete ones of finite supports;
            observations and factors are its likelihood.
        key: PRNG key of either kind.
        args: the model's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        start: where particles begin, in place of the prior: a `Fit` of the model, or draws of all its latent sites,
            {site: [draws, ...]}. The path is then q^(1 - beta) (p(z) p(data | z))^beta, q a Student law with the draws' mean and
            covariance in unconstrained coordinates, half as wide again. For vague priors, and improper ones, which cannot be
            drawn from.
        num_particles: K. At 1,000 errors of averages are about 3 % of the posterior's widths.
        kernel: `HMC()` by default; `RandomWalk()`, `MALA()`, or one of BlackJAX's, NUTS among them (`BlackJAX`); `Gibbs()`
            where all latent sites are discrete.
        num_moves: moves at each temperature; None: as many as it takes, see above (5 with `keep="all"`).
        target_ess: fraction of K, in (0, 1). With "persistent" all particles count, which makes steps longer.
        temperatures: increasing exponents that end with 1, instead of adapting them.
        frozen: an earlier result whose temperatures and tuning are used as they are.
        data_axis: a plate, or "time" for a scan, whose N rows of observations then enter one after another instead of
            all being tempered alike: at temperature beta row i has the exponent min(max(N beta - i, 0), 1), and what is observed
            outside of it beta. With `temperatures=[n / N, ...]` whole rows enter, and increments are log predictive
            densities of the new rows given the old (if nothing is observed outside).
        resampling: scheme by name, or a `Scheme`.
        keep: "last" moves K particles and keeps the end of each chain. "all" (waste-free) draws K / (`num_moves` + 1) ancestors
            only and keeps every state of their chains, which pays off with many moves. "persistent" keeps the particles of all
            temperatures, weighted as draws from the mixture of their targets: K (steps + 1) weighted particles, more for the
            same moves; memory in proportion, of `max_steps` under jit.
        max_steps: temperatures at most.
        max_seconds: of wall time; no temperature begins that would end later, if it took as long as the last one; None: as long
            as it takes.
        batch_size: particles moved at once; None for all.

    Returns:
        A `TemperedResult`.

    Raises:
        ValueError: a discrete latent site, or with `Gibbs()` one whose values are not finitely many, known and the same at
            every draw; `start` without draws of a site, or together with another path; temperatures that do not increase to 1;
            wrong sizes; with `keep="all"` a K that `num_moves` + 1 does not divide, or a scheme that cannot draw fewer
            ancestors ("killing").
        RuntimeError: `max_steps` or `max_seconds` were not enough (under jit particles, weights and evidence are NaN then).

    Validity: E[exp(log_evidence)] = p(data) with `frozen`, whose numbers must come from an independent key, whatever `start`
    is. Adapted runs are consistent in K, with a bias of order 1 / K; so is "persistent" even with `frozen`, since the evidence
    estimates of earlier temperatures enter its weights. `result.evidence` says which holds ("consistent" also for a biased
    scheme).

    Reference: Del Moral, Doucet and Jasra 2006; Jasra et al. 2011 and Zhou, Johansen and Aston 2016 (adaptation); Dau and Chopin
    2022, arXiv:2011.02328 (waste-free); Chopin 2002, A sequential particle filter method for static models (data);
    Karamanis and Seljak 2024, arXiv:2407.20722 (persistent).
    """
    origin = made_for(model, args, kwargs)
    args = checked(tempered_smc, model, args, kwargs)
    key, kernel = typed_key(key), kernel or HMC()
    chain_length = 1 if keep != "all" else 1 + (CHAIN_MOVES if num_moves is None else num_moves)
    num_moves = num_moves if keep != "all" else chain_length - 1
    _check(num_particles, target_ess, temperatures, max_steps, num_moves, keep, batch_size)
    check_seconds("tempered_smc", max_seconds)
    if frozen is not None and temperatures is not None:
        raise ValueError("tempered_smc: give temperatures or a frozen result, not both.")
    if start is not None and (isinstance(kernel, Gibbs) or data_axis is not None):
        which = "kernel=Gibbs()" if isinstance(kernel, Gibbs) else f"data_axis='{data_axis}'"
        raise ValueError(
            f"tempered_smc: start is a law of continuous coordinates that goes over to the posterior as a whole, and {which} "
            "asks for another path. Leave one of them out."
        )
    if isinstance(kernel, Gibbs):
        target, num_values = as_discrete(ppl.as_program(model), args, data_axis)
        kernel = dataclasses.replace(kernel, num_values=num_values)
    else:
        base_key = jax.random.fold_in(key, 1)
        of_start = None if start is None else functools.partial(base_of, start, base_key)
        target = as_static(ppl.as_program(model), args, data_axis, of_start)
    if temperatures is not None:
        max_steps = len(temperatures)
    schedule = None if temperatures is None else jnp.asarray(temperatures, float)
    if frozen is not None:
        max_steps, schedule = len(frozen.temperatures), frozen.temperatures
    num_chains = num_particles // chain_length
    is_split = (
        keep != "persistent"
        and num_chains % NUM_ISLANDS == 0
        and num_chains >= NUM_ISLANDS * MIN_ISLAND
    )
    run = SamplerSettings(
        target, kernel, num_particles, num_moves, target_ess, schedule, frozen,
        as_scheme(resampling).ancestors, keep, max_steps, batch_size,
        NUM_ISLANDS if is_split else 1, chain_length, max_seconds,
    )  # fmt: skip
    if keep == "persistent":
        whole = TemperedResult(**run_persistent(run, key), improper=target.improper)
        result = trimmed(whole, num_particles)
    else:
        result = run(key)
        scheme = as_scheme(resampling)
        is_unbiased = frozen is not None and scheme.is_unbiased
        result = dataclasses.replace(
            result,
            evidence="unbiased" if is_unbiased else "consistent",
            improper=target.improper,
            offspring=scheme.offspring,
            chain_length=chain_length,
        )
    result = dataclasses.replace(result, made_for=origin)
    is_short = result.temperatures[-1] < 1
    if max_seconds is not None and bool(is_short) and int(result.num_steps) < max_steps:
        raise RuntimeError(
            f"tempered_smc: max_seconds={max_seconds:g} were spent after {int(result.num_steps)} temperatures, at "
            f"{float(result.temperatures[-1]):.3g} of 1. Raise max_seconds, use fewer particles, or begin nearer (start=, draws "
            "of a fit)."
        )
    if is_concrete(is_short) and bool(is_short):
        inside = whole_program(model)
        reason = None if inside is None else why_not_finite(inside, args)
        more = f" At a draw of the prior {reason}" if reason else told_of_not_finite(args)
        raise RuntimeError(
            f"tempered_smc: {max_steps} temperatures ended at {float(result.temperatures[-1]):.3g} of 1. Raise max_steps, lower "
            f"target_ess, or use more particles.{more}"
        )
    if is_concrete(is_short):
        if told := result.problems:
            warnings.warn(f"tempered_smc: {'; '.join(told)}. {REMEDY}", stacklevel=3)
        return result
    told = (result.particles, result.log_weights, result.log_evidence)
    particles, log_weights, log_evidence = voided(told, is_short)
    return dataclasses.replace(
        result, particles=particles, log_weights=log_weights, log_evidence=log_evidence
    )


def _check(
    num_particles: Any,
    target_ess: float,
    temperatures: Any,
    max_steps: int,
    num_moves: int | None,
    keep: str,
    batch_size: int | None,
) -> None:
    moves = 1 if num_moves is None else num_moves
    check_counts("tempered_smc", num_particles=num_particles, max_steps=max_steps, num_moves=moves)
    if keep == "all" and num_particles % (moves + 1):
        raise ValueError(
            f"tempered_smc: keep='all' keeps num_moves + 1 = {moves + 1} states of each chain, which does not divide "
            f"num_particles {num_particles}. Change one of them."
        )
    num_chains = num_particles // (moves + 1) if keep == "all" else num_particles
    if batch_size is not None and (batch_size < 1 or num_chains % batch_size):
        raise ValueError(
            f"tempered_smc: batch_size {batch_size} does not divide the {num_chains} chains; all batches have one size. "
            "Give a divisor of their number."
        )
    if not 0 < target_ess < 1:
        raise ValueError(f"tempered_smc: target_ess must lie in (0, 1), got {target_ess}.")
    if temperatures is not None:
        if not is_concrete(temperatures):
            raise ValueError(
                "tempered_smc: temperatures must be concrete numbers, and are traced by jax.jit, jax.grad or jax.vmap here: "
                "whether they increase to 1 could not be checked. Make them outside, or with NumPy; those of a run go by frozen=."
            )
        rising = np.asarray(temperatures, float).tolist()
        if (
            not rising
            or rising[-1] != 1
            or any(b <= a for a, b in zip([0.0, *rising], rising, strict=False))
        ):
            raise ValueError(
                f"tempered_smc: temperatures must increase from above 0 to 1, got {rising}."
            )

"""Smoothing: paths, or states one by one, given all data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import Tracer, typed_key
from ....ppl._show import shown
from ....ppl._types import Key
from ...inputs import checked
from ..engine import NO_PATH_GRADIENT, FeynmanKac, Filter, RunOptions, run, warn_of_lost
from ..population import underived, voided
from ..resampling import Policy, Resampling, systematic
from . import _backward_kernels as kernels
from ._backward import draw_slots, taken
from ._methods import BackwardMetropolis, BackwardRejection, FixedLag
from ._two_filter import InformationFilter, marginals

Array = jax.Array
Method = (
    Literal["ffbs", "mcmc", "genealogy"]
    | BackwardMetropolis
    | BackwardRejection
    | FixedLag
    | InformationFilter
)
ROUNDING = 1e-4  # nats by which a density may exceed its bound in float32


@shown
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Smoothing:
    """Equally weighted draws from the smoothing distribution; a pytree.

    Attributes:
        paths: for a program site -> values [samples, ...] (in scans [samples, time, ...]), which `to_arviz` takes as they are;
            for a `FeynmanKac` x_0, ..., x_T [samples, steps + 1, ...]. With `FixedLag` and `InformationFilter` a row is
            no path: only averages of one time mean something.
        log_evidence: of the forward run, nats.
        ess: of the forward run, after each weighing.
        num_distinct: number of different particles among the draws, before each step and at the end, [steps + 1]. Small numbers
            at early times are the genealogy's poverty.
        acceptance: share of proposals accepted in each step, [steps]; NaN for methods without proposals.
        failed_at: number of the first weighing of the forward run after which no particle had positive weight, -1 if there is
            none.
        excess: largest log-density above `BackwardRejection.log_bound`, nats; -inf without a bound. Above zero the bound was
            none, and NaN says that a density was: then paths are NaN (integers their dtype's lowest value), and outside jit
            `smooth` raises. So they are where log_evidence is.
    """

    paths: Any
    log_evidence: Array
    ess: Array
    num_distinct: Array
    acceptance: Array
    excess: Array
    failed_at: Array

    def mean(self, fn: Callable[[PyTree], PyTree]) -> Any:
        """Average of fn(path)."""
        return jax.tree.map(lambda x: x.mean(0), jax.vmap(fn)(self.paths))


@checked_call
def smooth(
    model: FeynmanKac | ppl.Program | Callable[..., PyTree],
    key: Key,
    *args: PyTree,
    num_particles: int,
    num_samples: int | None = None,
    method: Method = "ffbs",
    proposal: ppl.Program | Callable[..., PyTree] | None = None,
    resampling: Resampling = "systematic",
    policy: Policy | None = None,
    batch_size: int | None = None,
    **kwargs: PyTree,
) -> Smoothing:
    """Draw N paths given all data: a run of K particles forward, then each path from its end.

    The last particle of a path is drawn by its weight; the one before step t in proportion to its weight times the density of
    what the path does from t on,

        B_t(k) proportional to W_{t-1}^k p(x_t, ..., y_t, ... | x_{t-1}^k),

    of which `L` steps matter (see `conditional_smc`; 1 for Markov states). Methods, with the cost of a step in densities:

    - "ffbs": exact draws from B_t, N K.
    - `BackwardMetropolis(num_moves)`, or "mcmc": independent Metropolis moves that keep B_t, from the path's own parent,
      N num_moves.
    - `BackwardRejection(log_bound)`: exact draws from B_t by rejection, N / acceptance on average.
    - "genealogy": the particles' own ancestors, none.
    - `FixedLag(lag)`: at each time the ancestors of the particles `lag` steps later, none; later data are not used.
    - `InformationFilter(...)`: at each time particles of a second run, backwards from the end, weighted by the first, K^2.
      They are where the later data are, when the forward particles are not.

    Args:
        model: a `FeynmanKac` or a program. All methods but "genealogy" and `FixedLag` need the `FeynmanKac`'s
            `log_transition`.
        key: PRNG key of either kind.
        args: the program's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_particles: K.
        num_samples: N; K by default.
        method: see above.
        proposal: as for `smc`; it must draw every latent site.
        resampling: as for `smc`.
        policy: as for `smc`.
        batch_size: as for `smc`, in the run forward.

    Returns:
        A `Smoothing`.

    Raises:
        ValueError: an unknown method; densities that are not known, as for `conditional_smc`; a bound that is exceeded; for two
            filters a scan whose steps see more of the past than the last one's choices, data after the scan, or an artificial
            prior that leaves no particle any weight.

    Validity: averages over paths are consistent in K and N, with a bias of order 1 / K; all but `FixedLag`, whose bias does
    not vanish with K: it goes down with the lag, by forgetting. "ffbs" and rejection have the same law. "mcmc" is consistent for
    any number of moves, since a parent has law B_t already; moves make the paths differ more.
    (benchmarks/particles/smoothing.py: for a linear-Gaussian model of 200 steps and K = N = 1000 one move has the error of
    "ffbs" in a ninetieth of its time.)
    "genealogy" is consistent, but its variance grows in proportion to the number of steps; where kernels have no density it
    is the only one. Two filters are consistent for averages of one time, with priors and kernels that are positive where
    the smoothing density is; `log_kernel` has to be the density that `kernel` draws from (not checked).

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> @ppl.model
        ... def walk(ys):
        ...     def step(x, y):
        ...         x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ...         return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        ...     ppl.scan(step, 0.0, ys)
        >>> ys = jnp.array([0.5, -1.0, 0.25])
        >>> inference.smooth(walk, jax.random.key(0), ys, num_particles=100).mean(lambda c: c["x"]).shape
        (3,)

    Reference: Godsill, Doucet and West 2004, Monte Carlo smoothing for nonlinear time series; Douc, Garivier, Moulines and
    Olsson 2011 (rejection); Bunch and Godsill 2013, Dau and Chopin 2023, arXiv:2207.00976 (Metropolis); Kitagawa and Sato 2001
    (fixed lag); Briers, Doucet and Maskell 2010, Smoothing algorithms for state-space models (two filters).
    """
    args = checked(smooth, model, args, kwargs)
    num_samples = num_particles if num_samples is None else num_samples
    check_counts("smooth", num_samples=num_samples)
    run_key, path_key = jax.random.split(typed_key(key))
    options = RunOptions(
        num_particles, proposal, resampling, policy, "ancestors", batch_size, path="filter"
    )
    result, segments = run(model, run_key, args, options)
    warn_of_lost("smooth", result.failed_at)
    loops = [s.filter for s in segments if s.filter is not None]
    num_steps = sum(len(f.log_weights) for f in loops)
    if not num_steps:
        raise ValueError(
            "smooth: there is no step of a top-level scan with sites, so no path to smooth. Use smc, whose particles "
            "already see all data."
        )
    if isinstance(method, InformationFilter):
        second = dataclasses.replace(options, proposal=None)
        paths, num_distinct = marginals(
            path_key, segments, method, num_samples, isinstance(model, FeynmanKac), second
        )
        nothing = jnp.full(len(num_distinct) - 1, jnp.nan)
        return Smoothing(
            voided(paths, result.failed_at >= 0),
            result.log_evidence,
            result.ess,
            num_distinct,
            nothing,
            jnp.asarray(-jnp.inf),
            result.failed_at,
        )
    acceptance, excess = jnp.full(num_steps, jnp.nan), jnp.asarray(-jnp.inf)
    draw = _draw(method)
    if draw is None:
        lag = method.lag if isinstance(method, FixedLag) else num_steps
        slots = _ancestors(path_key, loops, result.log_weights, num_samples, lag)
    else:
        slots, reports = draw_slots(path_key, segments, result.log_weights, num_samples, draw)
        acceptance = jnp.concatenate([r.acceptance for r in reports])
        excess = jnp.concatenate([r.excess for r in reports]).max(initial=-jnp.inf)
    paths = taken(segments, slots, isinstance(model, FeynmanKac))
    count = lambda index: jnp.zeros(num_particles, int).at[index].set(1).sum()
    return Smoothing(
        paths=_checked(paths, excess, result.failed_at),
        log_evidence=result.log_evidence,
        ess=result.ess,
        num_distinct=jax.vmap(count)(slots),
        acceptance=acceptance,
        excess=excess,
        failed_at=result.failed_at,
    )


def _draw(method: Method) -> kernels.Draw | None:
    """How particles before a step are drawn, None for ancestors."""
    if isinstance(method, BackwardRejection):
        bound = method.log_bound
        return kernels.rejection(
            bound if callable(bound) else lambda t: bound, method.num_proposals
        )
    if method == "mcmc":
        method = BackwardMetropolis()
    if isinstance(method, BackwardMetropolis):
        return kernels.metropolis(method.num_moves)
    return kernels.exact if method == "ffbs" else None


def _ancestors(
    key: Array, loops: list[Filter], log_weights: Array, num_samples: int, lag: int
) -> Array:
    """For each place (before a step, or the end) ancestors of particles `lag` places later, drawn there by weight.

    A lag of all steps gives paths.
    """
    ancestors = jnp.concatenate([f.ancestors for f in loops])
    weights = jnp.concatenate([*(f.log_weights for f in loops), log_weights[None]])
    num_steps = len(ancestors)

    def at(place: Array) -> Array:
        end = jnp.minimum(place + lag, num_steps)
        known = underived(NO_PATH_GRADIENT, weights[end])
        back = lambda i, index: ancestors[end - 1 - i][index]
        return jax.lax.fori_loop(0, end - place, back, systematic(key, known, num_samples))

    def parents(index: Array, ancestors: Array) -> tuple[Array, Array]:
        return ancestors[index], ancestors[index]

    if lag >= num_steps:
        ends = at(jnp.asarray(num_steps))
        before = jax.lax.scan(parents, ends, ancestors, reverse=True)[1]
        return jnp.concatenate([before, ends[None]])
    return jax.lax.map(at, jnp.arange(num_steps + 1))


def _checked(paths: object, excess: Array, failed_at: Array) -> PyTree:
    """The paths, if no density exceeded its bound or was NaN and particles were left, in the forward run and in the draws."""
    is_lost, is_wrong = failed_at >= 0, ~(excess <= ROUNDING)
    if isinstance(is_wrong, Tracer):
        return voided(paths, is_wrong | is_lost)
    if is_lost:
        return voided(paths, is_lost)
    if jnp.isnan(excess):
        raise ValueError(
            "smooth: the log-density of a step ahead is NaN or +inf at a particle of positive weight, and without that particle "
            "the paths would have the wrong law. Return -inf for what is impossible, and finite numbers for the rest."
        )
    if is_wrong:
        raise ValueError(
            f"smooth: a log-density exceeds log_bound by {float(excess):.3g} nats, so accepted particles would have the "
            "wrong law. Give a bound of the largest value, or use method='mcmc' or 'ffbs'."
        )
    return paths

"""What a gradient estimate is worth: its mean, spread and cost, and which site's noise it owes them to."""

from __future__ import annotations

import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._show import shown
from ...ppl._table import table
from ...ppl._types import Key
from ...ppl.language import joined
from ...ppl.traces import Salted
from ..objectives._objective import Objective
from ._operations import num_operations

Array = jax.Array


class ParameterGradient(NamedTuple):
    """Gradient with respect to one parameter.

    Attributes:
        size: number of its coordinates.
        mean: Euclidean norm of the mean gradient, corrected for its own error (0 if that is larger), nats per unit.
        sd: root of the variances' sum.
        snr: mean / sd of one estimate; inf without noise.
    """

    size: int
    mean: float
    sd: float
    snr: float


class SiteGradient(NamedTuple):
    """What one site's noise does to the gradient.

    Attributes:
        strategy: its estimator.
        variance: expected variance of the gradient, summed over coordinates, when only this site's noise is redrawn.
        error: standard error of `variance`.
        share: of the whole variance; shares of sites that interact sum to more than 1.
    """

    strategy: str
    variance: float
    error: float
    share: float


@shown
@dataclasses.dataclass(frozen=True)
class GradientReport:
    """See `gradient_report`; printing it shows two tables.

    Attributes:
        value: mean of the objective's estimates, nats.
        value_sd: standard deviation of one estimate.
        variance: of one gradient estimate, summed over all coordinates.
        parameters: name -> `ParameterGradient`.
        sites: name -> `SiteGradient`.
        num_draws: estimates behind these numbers.
        seconds: time of one estimate, compiled.
        num_operations: arithmetic of one estimate, loops by their number of turns; the same in every run.
    """

    value: float
    value_sd: float
    variance: float
    parameters: dict[str, ParameterGradient]
    sites: dict[str, SiteGradient]
    num_draws: int
    seconds: float
    num_operations: float

    def _facts(self) -> dict[str, PyTree]:
        return {
            "value": f"{self.value:.4g} nats, sd {self.value_sd:.3g}",
            "variance": f"{self.variance:.3g} of one gradient, all coordinates together",
            "mean / sd": {name: f"{p.snr:.3g}" for name, p in self.parameters.items()},
            "shares": {name: f"{s.share:.0%} ({s.strategy})" for name, s in self.sites.items()},
            "cost": f"{1e3 * self.seconds:.3g} ms and {self.num_operations:.3g} operations, one estimate",
            "num_draws": f"{self.num_draws} estimates; print(report) shows each parameter and site",
        }

    def _tables(self) -> list[list[tuple[str, ...]]]:
        rows = [("parameter", "size", "|mean|", "sd", "mean / sd")]
        rows += [
            (name, str(p.size), f"{p.mean:.3g}", f"{p.sd:.3g}", f"{p.snr:.3g}")
            for name, p in self.parameters.items()
        ]
        of_sites = [("site", "strategy", "variance", "+-", "share")]
        of_sites += [
            (name, s.strategy, f"{s.variance:.3g}", f"{s.error:.1g}", f"{s.share:.0%}")
            for name, s in self.sites.items()
        ]
        return [rows, of_sites]

    def __str__(self) -> str:
        head = (
            f"value {self.value:.4g} nats, sd {self.value_sd:.3g}; {self.num_draws} estimates of "
            f"{1e3 * self.seconds:.3g} ms and {self.num_operations:.3g} operations"
        )
        return "\n\n".join([head, *map(table, self._tables())])


@checked_call
def gradient_report(
    objective: Objective,
    params: PyTree,
    key: Key,
    *args: PyTree,
    num_draws: int = 200,
    **kwargs: PyTree,
) -> GradientReport:
    """Mean, spread and cost of an objective's gradient at fixed parameters, by parameter and by site.

    The variance that a site s is answerable for is measured by drawing every estimate g twice, the second time with fresh
    noise at s alone (the total effect in the law of total variance):

        E[Var(g | noise of all sites but s)] = E |g - g_s|^2 / 2.

    Args:
        objective: what is estimated; baselines are fresh (their initial state).
        params: where, as from `objective.init` or a fit.
        key: PRNG key of either kind.
        args: data.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_draws: independent estimates; each is made once for every latent site and once more.

    Returns:
        A `GradientReport`.

    Raises:
        ValueError: fewer than 2 draws, no parameters, and all refusals of the objective.
        TypeError: an objective estimated by particle runs (`fivo`, `vsmc`).

    Validity: the variances are unbiased for any number of draws (where they are finite); norms of means and ratios are not.
    All draws of one name are one site. Noise of `ppl.rng_key` belongs to no site.

    Reference: Sobol 2001; Jansen 1999 (total effects); Rainforth et al. 2018, arXiv:1802.04537 (signal to noise).
    """
    args = joined(args, kwargs)
    check_counts("gradient_report", 2, num_draws=num_draws)
    refuse_particle_runs("gradient_report", objective)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"gradient_report: '{objective.name}' has no parameters, so there is no gradient. Declare some with ppl.param or "
            "ppl.module, or pass those that objective.init returns."
        )
    plan = objective.plan(params, *args)
    names = list(dict.fromkeys(_name(p.site) for p in plan.sites))

    def salted(params: PyTree, salts: dict[str, Array], *args: PyTree) -> Array:
        with Salted(salts):
            return objective._run(params, *args)

    expectation = ppl.expectation(
        salted,
        strategies=objective.strategies,
        num_replicates=objective.num_replicates,
        check_jumps=False,  # done by the plan
    )
    # Row 0 changes no site, row i site i - 1 alone.
    salts = {
        name: jnp.zeros(len(names) + 1, jnp.uint32).at[i + 1].set(1) for i, name in enumerate(names)
    }

    def draw(key: Array) -> PyTree:
        one = lambda salts: expectation.value_and_grad(params, key, salts, *args)
        values, grads = jax.vmap(one)(salts)
        return values[0], jax.tree.map(lambda g: g[0], grads), _half_squares(grads)

    keys = jax.random.split(typed_key(key), num_draws)
    values, grads, squares = jax.jit(lambda keys: jax.lax.map(draw, keys))(keys)
    variances = jax.tree.map(lambda g: np.asarray(g, float).var(0, ddof=1).sum(), grads)
    total = float(sum(jax.tree.leaves(variances)))
    seconds, operations = _cost(objective, params, keys[0], args)
    squares = np.asarray(squares, float)
    strategies = {_name(p.site): p.strategy for p in plan.sites}
    return GradientReport(
        value=float(np.mean(values)),
        value_sd=float(np.std(values, ddof=1)),
        variance=total,
        parameters={name: _of_parameter(jax.tree.leaves(grads[name])) for name in grads},
        sites={
            name: SiteGradient(
                strategies[name],
                float(squares[:, i].mean()),
                float(squares[:, i].std(ddof=1) / num_draws**0.5),
                float(squares[:, i].mean() / total) if total > 0 else 0.0,
            )
            for i, name in enumerate(names)
        },
        num_draws=num_draws,
        seconds=seconds,
        num_operations=operations,
    )


def refuse_particle_runs(label: str, objective: Objective) -> None:
    """Refuse objectives whose estimate is no traced expectation: sites share noise there."""
    if not isinstance(objective.expectation, ppl.Expectation):
        raise TypeError(
            f"{label}: '{objective.name}' is estimated by particle runs, and the report would be that of a single particle. "
            "Take moments of jax.vmap(objective.grad, (None, 0)) over keys instead."
        )


def _half_squares(grads: ppl.Params) -> Array:
    """|g_0 - g_i|^2 / 2 for every further row i, summed over all coordinates."""
    leaves = jax.tree.leaves(grads)
    return sum(
        (((g[1:] - g[:1]).reshape(len(g) - 1, -1) ** 2).sum(1) / 2 for g in leaves),
        jnp.zeros(len(leaves[0]) - 1),
    )


def _of_parameter(leaves: list[Array]) -> ParameterGradient:
    flat = np.concatenate([np.asarray(g, float).reshape(len(g), -1) for g in leaves], axis=1)
    variance = flat.var(0, ddof=1).sum()
    square = max(0.0, float((flat.mean(0) ** 2).sum() - variance / len(flat)))
    mean, sd = square**0.5, float(variance**0.5)
    return ParameterGradient(flat.shape[1], mean, sd, mean / sd if sd > 0 else float("inf"))


def _cost(
    objective: Objective, params: ppl.Params, key: Array, args: PyTree
) -> tuple[float, float]:
    """Seconds (median of 20 calls) and operations of one estimate."""
    import equinox as eqx

    arrays, static = eqx.partition(args, eqx.is_array)

    def estimate(params: ppl.Params, key: Array, arrays: PyTree) -> PyTree:
        return objective.value_and_grad(params, key, *eqx.combine(arrays, static))

    traced = jax.jit(estimate).trace(params, key, arrays)
    compiled = traced.lower().compile()
    times = []
    for _ in range(22):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, key, arrays))
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:])), num_operations(traced.jaxpr)


def _name(address: str) -> str:
    """Name of a site whose program may be drawn several times."""
    return address.split("#")[0]

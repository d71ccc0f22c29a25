"""Look-ahead: resampling by weights times an approximation psi to what is still to come.

Input: weights W of particles that target the data so far, and psi > 0, a function of where a particle stands. Ancestors are
drawn by W psi, and an offspring of particle A has the weight (1/K) sum_j W_j psi_j / psi_A: importance weights, so that every
sum over particles keeps its expectation. Without resampling W stays as it is.

Invariant: log-weights are those of the plain target before and after, whatever psi; only variances depend on it.

A program is watched while it is traced: its log psi becomes an output of the step of its scan, and is computed with the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..ppl._recorder import SiteInfo
from ..ppl._runner import Runner
from ._population import Resampled, resample, reweight
from ._traced import TracedProgram

Array = jax.Array
Twist = Callable[..., Any]
# Names that no user gives, numbered by scan.
STEP, START = "(twist, steps) {}", "(twist, start) {}"


def resample_ahead(
    key: Array,
    particles: Any,
    log_weights: Array,
    log_psi: Array | None,
    scheme: Callable[[Array, Array], Array],
    decide: Callable[[Array], Any],
    offspring: Callable[[Array, Any, Array], Resampled] | None = None,
) -> Resampled:
    """`resample` by W psi, or by W for `log_psi` None; `decide` sees the weights by which it would resample.

    A particle with log psi = -inf is lost. Where log psi of a particle of positive weight is NaN or +inf all weights are NaN.
    """
    if log_psi is None:
        return resample(key, particles, log_weights, scheme, decide(log_weights), offspring)
    twisted = reweight(log_weights, log_psi)
    chosen = resample(
        key,
        (particles, log_psi),
        twisted.log_weights,
        scheme,
        decide(twisted.log_weights),
        offspring,
    )
    moved, psi = chosen.particles
    # Not normalised: their sum has expectation 1, and its error belongs to the evidence.
    weights = jnp.where(psi > -jnp.inf, chosen.log_weights + twisted.increment - psi, -jnp.inf)
    is_bad = jnp.any((jnp.isnan(log_psi) | (log_psi == jnp.inf)) & (log_weights > -jnp.inf))
    return chosen._replace(particles=moved, log_weights=jnp.where(is_bad, jnp.nan, weights))


def poisoned(increment: Array, log_weights: Array) -> Array:
    """The increment, NaN where `resample_ahead` says so (`reweight` takes NaN for zero weight)."""
    return jnp.where(jnp.isnan(log_weights).all(), jnp.nan, increment)


def log_psi_of(twist: Twist, *args: Any) -> Array:
    """One number in nats."""
    value = jnp.asarray(twist(*args), float)
    if value.shape != ():
        raise ValueError(
            f"smc: twist must return one number for one particle, the log of psi in nats, got shape {value.shape}. Sum over "
            "the coordinates of the state."
        )
    return value


class Watcher(Runner):
    """A runner that keeps log psi at the start and after each step of every top-level scan, as deterministic sites."""

    def __init__(self, *args: Any, twist: Callable[[Any, Array], Array], **options: Any) -> None:
        super().__init__(*args, **options)
        self.twist, self.number = twist, 0

    def begin_steps(self, init: Any) -> None:
        if len(self.frames) == 1:
            self.number += 1
            self._keep(START, init, jnp.zeros((), jnp.int32))

    def end_step(self, state: Any, t: Array) -> None:
        if len(self.frames) == 2:  # not in a scan inside the scan
            self._keep(STEP, state, t + 1)

    def _keep(self, name: str, state: Any, t: Array) -> None:
        name, sites = name.format(self.number), len(self.frame.infos)
        value = self.twist(state, t)
        if len(self.frame.infos) != sites:
            raise ValueError(
                f"smc: twist has the sites {list(self.frame.infos)[sites:]}, and it is a function of the state, not a part of "
                "the model. Return the log of psi as a number."
            )
        self.frame.infos[name] = SiteInfo(name, "deterministic", (), (), (), "")
        # A new variable: JAX takes values that only pass through out of a scan.
        self.frame.numbers[name] = {"value": value + 0.0}


def watching(twist: Twist | None, args: tuple[Any, ...]) -> Callable[..., Runner]:
    """The runner of a program with a twist of the same arguments."""
    if twist is None:
        return Runner
    # `t` is traced, and NumPy arrays take no traced index.
    args = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, args)
    return functools.partial(Watcher, twist=lambda state, t: log_psi_of(twist, state, t, *args))


class Ahead(NamedTuple):
    """Where a traced program has log psi: the variables for the start and for the steps of its scan."""

    start: Any
    steps: Any


def find_ahead(model: TracedProgram) -> Ahead:
    """The variables of the scan with sites.

    Raises:
        ValueError: there is none, or more than one.
    """
    sites, loops = model.trace.deterministic, model.loops()
    if len(loops) != 1:
        raise ValueError(
            f"smc: twist looks ahead from the state of a scan to its later steps, and the program has {len(loops)} top-level "
            "scans with observations or proposed sites. Write it with one ppl.scan, or leave out twist=."
        )
    outvars = {id(v) for v in model.closed.jaxpr.eqns[loops[0]].outvars}
    steps = {name: v for name, v in sites.items() if name.startswith(STEP.format(""))}
    (name,) = [name for name, v in steps.items() if id(v) in outvars]
    return Ahead(sites[name.replace(STEP.format(""), START.format(""))], steps[name])

"""What resampling sees of a particle's state besides its weight: psi, a look ahead, and the place by which particles are sorted.

Look-ahead. Input: weights W of particles that target the data so far, and psi > 0, a function of where a particle stands.
Ancestors are drawn by W psi, and an offspring of particle A has the weight (1/K) sum_j W_j psi_j / psi_A: importance weights, so
that every sum over particles keeps its expectation. Without resampling W stays as it is.

Order. A scheme takes the particles in the order of their places: those that it picks are then spread over the places, too.

Invariant: log-weights are those of the plain target before and after, whatever psi and order; only variances depend on them.

A program is watched while it is traced: what is seen becomes an output of the step of its scan, and is computed with the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...ppl.traces import Runner, SiteInfo
from ._hilbert import nearby_order
from ._population import Drawing, Offspring, Resampled, drawn_by, resample, reweight
from ._traced import TracedProgram

Array = jax.Array
Twist = Callable[..., Any]
Order = Callable[..., Any]
# Names that no user gives, numbered by scan.
STEP, START = "(seen, steps) {}", "(seen, start) {}"


class Look(NamedTuple):
    """What resampling looks at, functions of (state, t, *args); at least one of them.

    A particle is seen as an array: log psi (0 without a twist), then its place.
    """

    twist: Twist | None
    order: Order | None

    def __call__(self, state: Any, t: Array, *args: Any) -> Array:
        """[1 + coordinates of the place]."""
        log_psi = jnp.zeros(())
        if self.twist is not None:
            log_psi = jnp.asarray(self.twist(state, t, *args), float)
            if log_psi.shape != ():
                raise ValueError(
                    f"smc: twist must return one number for one particle, the log of psi in nats, got shape {log_psi.shape}. Sum "
                    "over the coordinates of the state."
                )
        if self.order is None:
            return log_psi[None]
        place = jnp.asarray(self.order(state, t, *args), float)
        if place.ndim > 1:
            raise ValueError(
                f"smc: order must return a number or a vector for one particle, got shape {place.shape}. Ravel it."
            )
        return jnp.append(log_psi, place)

    def log_psi(self, seen: Array | None) -> Array | None:
        """Log psi of all particles, None without a twist."""
        return None if self.twist is None or seen is None else seen[:, 0]

    def sorting(self, scheme: Drawing, seen: Array | None) -> Drawing:
        """The scheme with particles taken in the order of their places."""
        if self.order is None or seen is None:
            return scheme
        order = nearby_order(seen[:, 1:])

        def sorted_scheme(key: Array, log_weights: Array) -> Offspring:
            drawn = drawn_by(scheme, key, log_weights[order])
            return drawn._replace(ancestors=order[drawn.ancestors])

        return sorted_scheme


def resample_ahead(
    key: Array,
    particles: Any,
    log_weights: Array,
    seen: Array | None,
    look: Look,
    scheme: Drawing,
    decide: Callable[[Array], Any],
    offspring: Callable[[Array, Any, Array], Resampled] | None = None,
) -> Resampled:
    """`resample` by W psi, or by W without a twist; `decide` sees the weights by which it would resample.

    A particle with log psi = -inf is lost. Where log psi of a particle of positive weight is NaN or +inf all weights are NaN.
    """
    log_psi, scheme = look.log_psi(seen), look.sorting(scheme, seen)
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


class Watcher(Runner):
    """A runner that keeps what is seen at the start and after each step of every top-level scan, as deterministic sites."""

    def __init__(self, *args: Any, look: Callable[[Any, Array], Array], **options: Any) -> None:
        super().__init__(*args, **options)
        self.look, self.number = look, 0

    def begin_steps(self, init: Any) -> None:
        if len(self.frames) == 1:
            self.number += 1
            self._keep(START, init, jnp.zeros((), jnp.int32))

    def end_step(self, state: Any, t: Array) -> None:
        if len(self.frames) == 2:  # not in a scan inside the scan
            self._keep(STEP, state, t + 1)

    def _keep(self, name: str, state: Any, t: Array) -> None:
        name, sites = name.format(self.number), len(self.frame.infos)
        value = self.look(state, t)
        if len(self.frame.infos) != sites:
            raise ValueError(
                f"smc: twist or order has the sites {list(self.frame.infos)[sites:]}, and it is a function of the state, not a "
                "part of the model. Return numbers."
            )
        self.frame.infos[name] = SiteInfo(name, "deterministic", (), (), (), "")
        # A new variable: JAX takes values that only pass through out of a scan.
        self.frame.numbers[name] = {"value": value + 0.0}


def watching(look: Look | None, args: tuple[Any, ...]) -> Callable[..., Runner]:
    """The runner of a program, at whose states of the same arguments resampling looks."""
    if look is None:
        return Runner
    # `t` is traced, and NumPy arrays take no traced index.
    args = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, args)
    return functools.partial(Watcher, look=lambda state, t: look(state, t, *args))


class Watched(NamedTuple):
    """Where a traced program has what is seen: the variables for the start and for the steps of its scan."""

    start: Any
    steps: Any


def find_watched(model: TracedProgram) -> Watched:
    """The variables of the scan with sites.

    Raises:
        ValueError: there is none, or more than one.
    """
    sites, loops = model.trace.deterministic, model.loops()
    if len(loops) != 1:
        raise ValueError(
            f"smc: twist and order look at the state of a scan between its steps, and the program has {len(loops)} top-level "
            "scans with observations or proposed sites. Write it with one ppl.scan, or leave out twist= and order=."
        )
    outvars = {id(v) for v in model.closed.jaxpr.eqns[loops[0]].outvars}
    steps = {name: v for name, v in sites.items() if name.startswith(STEP.format(""))}
    (name,) = [name for name, v in steps.items() if id(v) in outvars]
    return Watched(sites[name.replace(STEP.format(""), START.format(""))], steps[name])

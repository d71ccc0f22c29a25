"""Conditional SMC as a Markov kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._compat import typed_key
from ....ppl._types import Key
from ...inputs import checked
from ..engine import FeynmanKac, RunOptions, SMCResult, run
from ..population import voided
from ..resampling import Policy, Resampling, every
from ._backward import draw_slots, taken
from ._backward_kernels import exact

Array = jax.Array
Path = Literal["genealogy", "ancestor", "backward"]
Model = FeynmanKac | ppl.Program | Callable[..., Any]


@checked_call
def conditional_smc(
    model: Model,
    key: Key,
    choices: PyTree,
    *args: PyTree,
    num_particles: int,
    path: Path = "genealogy",
    proposal: ppl.Program | Callable[..., PyTree] | None = None,
    resampling: Resampling = "systematic",
    policy: Policy | None = None,
    batch_size: int | None = None,
    **kwargs: PyTree,
) -> Any:
    """One move of a Markov chain on all latent sites, or on the path of a `FeynmanKac`, that leaves its law invariant.

    Particle 0 keeps `choices`; one of the K weighted paths, drawn by its weight, is the next state. How a path is made:

    - "genealogy": a particle and its ancestors. All particles soon descend from the retained one, so that early choices
      hardly ever change when K is small beside the number of steps.
    - "ancestor": before each step of a scan the retained path draws a new ancestor k, in proportion to W_k times the
      density of its own next choices and data given particle k (PGAS).
    - "backward": a path is drawn from its end, each particle in proportion to W_k times the density of the choices after it
      (particle Gibbs with backward simulation). The particles' states at all steps are stored.

    The last two cost, in each step, K densities of the following L steps. L is proved from the program: 1 where a step sees
    only the last step's choices, up to the whole length where the particle carries more (a site drawn before the scan, a
    running sum that densities use). They evaluate the program a second time where no `proposal` is given.

    Args:
        model: a `FeynmanKac` or a program; a `FeynmanKac` needs `log_transition` unless path is "genealogy".
        key: PRNG key of either kind.
        choices: the current state, latent site -> value (sites in `ppl.scan` stacked along time); for a `FeynmanKac` its path
            x_0, ..., x_T, leaves [steps + 1, ...].
        args: the program's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_particles: K, at least 2.
        path: see above.
        proposal: as for `smc`; it must draw every latent site.
        resampling: as for `smc`, with a conditional version.
        policy: when to resample; every step by default. It must treat all particles alike.
        batch_size: as for `smc`.

    Returns:
        The next state; NaN (integers their dtype's lowest value) where a log-density or log-potential is. Outside jit a weight
        that is NaN is refused.

    Raises:
        ValueError: a path other than "genealogy" where densities are not known (a proposal for some sites only,
            `ppl.rng_key`, no `log_transition`), or statements after a scan that depend on more than its last step's choices.

    Validity: the posterior is invariant for every K >= 2 and each path; the chain mixes over a path of T steps when K grows
    in proportion to T with "genealogy", and with K fixed otherwise, given enough mixing of the model.

    Reference: Andrieu, Doucet and Holenstein 2010, Particle Markov chain Monte Carlo methods, section 2.4.3; Lindsten, Jordan
    and Schön 2014, arXiv:1401.0604 (ancestor sampling); Whiteley 2010 and Lindsten and Schön 2012 (backward sampling).
    """
    args = checked(conditional_smc, model, args, kwargs)
    if num_particles < 2:
        raise ValueError(
            f"conditional_smc: num_particles must be at least 2, got {num_particles}: one particle keeps its path for ever."
        )
    run_key, choice_key = jax.random.split(typed_key(key))
    is_backward = path == "backward"
    options = RunOptions(
        num_particles, proposal, resampling, policy or every(), "ancestors" if is_backward else "full", batch_size,
        path="filter" if is_backward else path,
    )  # fmt: skip
    result, segments = run(model, run_key, args, options, choices)
    is_wrong = jnp.isnan(result.log_evidence)
    if not is_backward:
        return voided(pick(choice_key, model, result), is_wrong)
    slots, reports = draw_slots(choice_key, segments, result.log_weights, 1, exact)
    is_wrong |= jnp.asarray([jnp.isnan(r.excess).any() for r in reports]).any()
    paths = taken(segments, slots, isinstance(model, FeynmanKac))
    return voided(jax.tree.map(lambda x: x[0], paths), is_wrong)


def pick(key: Array, model: Model, result: SMCResult) -> Any:
    """The path of one particle, drawn by its weight."""
    index = jax.random.categorical(key, result.log_weights)
    paths = result.paths if isinstance(model, FeynmanKac) else result.particles
    return jax.tree.map(lambda x: x[index], paths)

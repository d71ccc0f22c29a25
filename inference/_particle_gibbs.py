"""Conditional SMC as a Markov kernel, and the chain that it drives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import ppl
from ..ppl._compat import typed_key
from ._policies import Policy, every
from ._resampling import Scheme
from ._smc import smc

Array = jax.Array


def conditional_smc(
    program: ppl.Program | Callable[..., Any],
    key: Any,
    choices: Mapping[str, Any],
    *args: Any,
    num_particles: int,
    proposal: ppl.Program | Callable[..., Any] | None = None,
    resampling: str | Scheme = "systematic",
    policy: Policy | None = None,
    batch_size: int | None = None,
) -> dict[str, Array]:
    """One move of a Markov chain on all latent sites that leaves the posterior invariant.

    Particle 0 keeps `choices`; one of the K weighted paths, drawn by its weight, is the next state.

    Args:
        program: the model.
        key: PRNG key of either kind.
        choices: the current state, latent site -> value (sites in `ppl.scan` stacked along time).
        args: the program's arguments.
        num_particles: K, at least 2.
        proposal: as for `smc`; it must draw every latent site.
        resampling: as for `smc`, with a conditional version.
        policy: when to resample; every step by default.
        batch_size: as for `smc`.

    Returns:
        The next state.

    Validity: the posterior is invariant for every K >= 2; the chain mixes over a path of T steps when K grows in
    proportion to T.

    Reference: Andrieu, Doucet and Holenstein 2010, Particle Markov chain Monte Carlo methods, section 2.4.3.
    """
    if num_particles < 2:
        raise ValueError(
            f"conditional_smc: num_particles must be at least 2, got {num_particles}: one particle keeps its path for ever."
        )
    run_key, choice_key = jax.random.split(typed_key(key))
    result = smc(
        program, run_key, *args, num_particles=num_particles, proposal=proposal, resampling=resampling,
        policy=policy or every(), batch_size=batch_size, retained=choices,
    )  # fmt: skip
    index = jax.random.categorical(choice_key, result.log_weights)
    return {name: x[index] for name, x in result.particles.items()}


def particle_gibbs(
    program: ppl.Program | Callable[..., Any],
    key: Any,
    *args: Any,
    num_samples: int,
    num_particles: int,
    num_warmup: int = 0,
    init: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Array]:
    """A chain of `conditional_smc` moves.

    Args:
        program: the model.
        key: PRNG key of either kind.
        args: the program's arguments.
        num_samples: states to return.
        num_particles: K of each move.
        num_warmup: moves before the first returned state.
        init: the first state; by default a path drawn by an unconditional run.
        options: further options of `conditional_smc`.

    Returns:
        Latent site -> values, [samples, ...].
    """
    init_key, chain_key = jax.random.split(typed_key(key))
    if init is None:
        start_key, choice_key = jax.random.split(init_key)
        keep = {name: x for name, x in options.items() if name != "policy"}
        start = smc(program, start_key, *args, num_particles=num_particles, **keep)
        index = jax.random.categorical(choice_key, start.log_weights)
        init = {name: x[index] for name, x in start.particles.items()}

    def move(state: dict[str, Array], key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        new = conditional_smc(program, key, state, *args, num_particles=num_particles, **options)
        return new, new

    state = {name: jnp.asarray(x) for name, x in init.items()}
    keys = jax.random.split(chain_key, num_warmup + num_samples)
    _, states = jax.lax.scan(move, state, keys)
    return {name: x[num_warmup:] for name, x in states.items()}

"""A program without time as prior and likelihood on R^d: what tempering and Markov kernels work on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.flatten_util
import jax.numpy as jnp
import numpyro.handlers
from numpyro.distributions.transforms import biject_to

from .. import ppl

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Static:
    """Log-densities in unconstrained coordinates u of all latent sites.

    Attributes:
        dimension: length of u.
        draw: `key -> u`, u drawn from the prior.
        log_densities: u -> (log prior density of u, with the Jacobian; log-probs of observations and factors), nats.
        choices: u -> latent site -> value.
    """

    dimension: int
    draw: Callable[[Array], Array]
    log_densities: Callable[[Array], tuple[Array, Array]]
    choices: Callable[[Array], dict[str, Array]]


def as_static(program: ppl.Program, args: tuple[Any, ...]) -> Static:
    """Prior and likelihood of `program(*args)`.

    Raises:
        ValueError: there is a discrete latent site, or no latent site.
    """
    trace = jax.eval_shape(lambda key: program.simulate(key, *args), jax.random.key(0))

    def meet_sites() -> Array:
        program(*args)
        return jnp.zeros(())

    with (
        numpyro.handlers.block(),
        numpyro.handlers.trace() as sites,
        numpyro.handlers.seed(rng_seed=0),
    ):
        jax.eval_shape(meet_sites)
    latent = list(trace.choices)
    transforms = {}
    for name in latent:
        support = sites[name]["fn"].support if name in sites else None
        if support is None or support.is_discrete:
            raise ValueError(
                f"Site '{name}': tempering moves particles in continuous coordinates, and this site is discrete or stands in "
                "a scan. Sum a discrete site out, or use smc on the program."
            )
        transforms[name] = biject_to(support)
    if not latent:
        raise ValueError("tempered_smc: the program has no latent site.")
    base = {n: jax.eval_shape(transforms[n]._inverse, trace.choices[n]) for n in latent}
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), base)
    flat, unflatten = jax.flatten_util.ravel_pytree(zeros)

    def choices(u: Array) -> dict[str, Array]:
        parts = unflatten(u)
        return {name: transforms[name](parts[name]) for name in latent}

    def parts(u: Array) -> tuple[Array, Array]:
        x, v = choices(u), unflatten(u)
        log_probs = program.trace(x, *args).log_probs
        total = lambda names: sum((jnp.sum(log_probs[n]) for n in names), jnp.zeros(()))
        jacobian = sum(jnp.sum(transforms[n].log_abs_det_jacobian(v[n], x[n])) for n in latent)
        return total(latent) + jacobian, total(n for n in log_probs if n not in latent)

    def draw(key: Array) -> Array:
        values = program.simulate(key, *args).choices
        return jax.flatten_util.ravel_pytree(
            {n: transforms[n]._inverse(values[n]) for n in latent}
        )[0]

    # Traced once: moves evaluate it in many places.
    closed = jax.make_jaxpr(parts)(flat)
    log_densities = jax.extend.core.jaxpr_as_fun(closed)
    return Static(flat.size, draw, lambda u: tuple(log_densities(u)), choices)  # type: ignore[arg-type]

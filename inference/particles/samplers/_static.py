"""A program without time as prior and likelihood on R^d: what tempering and Markov kernels work on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from .... import ppl
from ....ppl._compat import jaxpr_as_fun
from ..moves import transforms_of
from ..programs import OBSERVES_NOTHING

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Static:
    """Log-densities in unconstrained coordinates u of all latent sites.

    Attributes:
        dimension: length of u.
        draw: `key -> u`, u drawn from the prior.
        log_densities: u -> (log prior density of u, with the Jacobian; terms of the log-likelihood, [terms]), nats. One term
            holds all observations and factors; with a data axis there is one for each of its rows, and one for what is outside.
        exponents: temperature in [0, 1] -> exponents of the terms, [terms]; each rises from 0 to 1.
        choices: u -> latent site -> value.
    """

    dimension: int
    draw: Callable[[Array], Array]
    log_densities: Callable[[Array], tuple[Array, Array]]
    exponents: Callable[[Array], Array]
    choices: Callable[[Array], dict[str, Array]]

    def log_likelihood(self, terms: Array, temperature: Array, since: Array | float = 0.0) -> Array:
        """Terms [..., terms] times what their exponents rise by from temperature `since` on; a term of exponent 0 may be -inf."""
        rise = self.exponents(temperature) - self.exponents(jnp.asarray(since, float))
        return jnp.where(rise > 0, rise * terms, 0.0).sum(-1)


def as_static(program: ppl.Program, args: tuple[Any, ...], data_axis: str | None = None) -> Static:
    """Prior and likelihood of `program(*args)`.

    Args:
        program: the program.
        args: its arguments.
        data_axis: a plate, or "time" for a scan, whose observations enter row by row; None: all are tempered alike.

    Raises:
        ValueError: there is a discrete latent site, no latent site, or nothing observed; no observation has the data axis.
    """
    trace = jax.eval_shape(lambda key: program.simulate(key, *args), jax.random.key(0))

    latent = list(trace.choices)
    if not latent:
        raise ValueError(
            "tempered_smc: the program has no latent site, so that there is nothing to draw. "
            "Leave at least one site without a value."
        )
    for name in latent:
        if trace.sites[name].regions or not jnp.issubdtype(trace.choices[name].dtype, jnp.floating):
            raise ValueError(
                f"Site '{name}': tempering moves particles in continuous coordinates, and this site is discrete or stands in "
                "a scan. Sum a discrete site out, or use smc on the program."
            )
    template = {n: jnp.zeros(trace.choices[n].shape, trace.choices[n].dtype) for n in latent}
    transforms = transforms_of("tempered_smc", program, args, template)
    base = {n: jax.eval_shape(transforms[n].inv, template[n]) for n in latent}
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), base)
    flat, unflatten = jax.flatten_util.ravel_pytree(zeros)

    def choices(u: Array) -> dict[str, Array]:
        parts = unflatten(u)
        return {name: transforms[name](parts[name]) for name in latent}

    likelihood = [name for name in trace.log_probs if name not in latent]
    if not likelihood:
        raise ValueError(f"tempered_smc: {program!r} {OBSERVES_NOTHING}")
    rows, num_rows = _rows(trace, likelihood, data_axis)

    def parts(u: Array) -> tuple[Array, Array]:
        x, v = choices(u), unflatten(u)
        log_probs = program.trace(x, *args).log_probs
        total = lambda names: sum((jnp.sum(log_probs[n]) for n in names), jnp.zeros(()))
        jacobian = sum(jnp.sum(transforms[n].log_abs_det_jacobian(v[n], x[n])) for n in latent)
        terms = total(n for n in likelihood if n not in rows)[None]
        if rows:
            by_row = lambda n: jnp.moveaxis(log_probs[n], rows[n], 0).reshape(num_rows, -1).sum(1)
            terms = jnp.concatenate([sum(map(by_row, rows), jnp.zeros(num_rows)), terms])
        return total(latent) + jacobian, terms

    def exponents(temperature: Array) -> Array:
        place = num_rows * temperature
        # Rows are whole where rounding of the temperature would leave a trace of the next one.
        place = jnp.where(jnp.abs(place - jnp.round(place)) < 1e-3, jnp.round(place), place)
        return jnp.append(jnp.clip(place - jnp.arange(num_rows), 0.0, 1.0), temperature)

    def draw(key: Array) -> Array:
        values = program.simulate(key, *args).choices
        return jax.flatten_util.ravel_pytree({n: transforms[n].inv(values[n]) for n in latent})[0]

    # Traced once: moves evaluate it in many places.
    closed = jax.make_jaxpr(parts)(flat)
    log_densities = jaxpr_as_fun(closed)
    return Static(flat.size, draw, lambda u: tuple(log_densities(u)), exponents, choices)  # type: ignore[arg-type]


def _rows(trace: ppl.Trace, names: list[str], axis: str | None) -> tuple[dict[str, int], int]:
    """Sites with the data axis and where they have it, and its size."""
    if axis is None:
        return {}, 0
    at = {n: trace.sites[n].dims.index(axis) for n in names if axis in trace.sites[n].dims}
    sizes = {trace.log_probs[n].shape[i] for n, i in at.items()}
    if len(sizes) != 1:
        known = sorted({str(dim) for n in names for dim in trace.sites[n].dims if dim})
        what = f"it has the sizes {sorted(sizes)}" if at else "no observation has it"
        raise ValueError(
            f"tempered_smc: data_axis='{axis}' is to order the data, and {what}. Name one of the observations' axes: {known}."
        )
    return at, sizes.pop()

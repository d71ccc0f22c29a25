"""A program without time as prior and likelihood of a point: what tempering and Markov kernels work on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._compat import jaxpr_as_fun
from ....ppl._types import Args
from ....ppl.traces import stand_ins
from ..._supports import transforms_of
from ...inputs import check_noise, check_observed, check_proper, improper_sites
from ._start import Base

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Static:
    """Log-densities in coordinates u of all latent sites: unconstrained ones, or the numbers of discrete values.

    Attributes:
        dimension: length of u.
        draw: `key -> u`, u drawn from the prior.
        log_densities: u -> (log prior density of u, with the Jacobian; terms of the log-likelihood, [terms]), nats. One term
            holds all observations and factors; with a data axis there is one for each of its rows, and one for what is outside.
        exponents: temperature in [0, 1] -> exponents of the terms, [terms]; each rises from 0 to 1.
        choices: u -> latent site -> value.
        improper: latent sites whose law has no total.
        owners: the latent site of each continuous coordinate.
    """

    dimension: int
    draw: Callable[[Array], Array]
    log_densities: Callable[[Array], tuple[Array, Array]]
    exponents: Callable[[Array], Array]
    choices: Callable[[Array], dict[str, Array]]
    improper: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()

    def log_likelihood(self, terms: Array, temperature: Array, since: Array | float = 0.0) -> Array:
        """Terms [..., terms] times what their exponents rise by from temperature `since` on; a term of exponent 0 may be -inf."""
        rise = self.exponents(temperature) - self.exponents(jnp.asarray(since, float))
        rise = jnp.broadcast_to(rise, terms.shape)
        return jnp.where(rise > 0, rise * terms, 0.0).sum(-1)


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """How points are coded.

    Attributes:
        flat: a point of zeros, [d].
        choices: u -> latent site -> value.
        log_jacobian: (u, values) -> log-volume of the map to values, nats.
        point: latent site -> value, to u.
    """

    flat: Array
    choices: Callable[[Array], dict[str, Array]]
    log_jacobian: Callable[[Array, dict[str, Array]], Array]
    point: Callable[[Mapping[str, Array]], Array]


def as_static(
    program: ppl.Program,
    args: tuple[PyTree, ...],
    data_axis: str | None = None,
    start: Callable[[Mapping[str, Callable[..., Array]], Mapping[str, Array]], Base] | None = None,
) -> Static:
    """Prior and likelihood of `program(*args)` in unconstrained coordinates.

    Args:
        program: the program.
        args: its arguments.
        start: latent sites with the maps from their values to parts of u, and one value of each -> the law that takes the
            prior's place, the likelihood being that of program and data divided by it; None: the prior.
        data_axis: a plate, or "time" for a scan, whose observations enter row by row; None: all are tempered alike.

    Raises:
        ValueError: there is a discrete latent site, no latent site, or nothing observed; no observation has the data axis.
    """
    trace, latent = latent_sites(program, args)
    improper = improper_sites(trace.sites)
    if improper and start is None:
        raise ValueError(
            f"tempered_smc: sites {improper} have an improper law, from which no particle can be drawn. Give start=, a fit of "
            "the model or draws to begin around, or proper priors."
        )
    check_proper("tempered_smc", program, args, trace)
    for name in latent:
        if trace.sites[name].regions or not jnp.issubdtype(trace.choices[name].dtype, jnp.floating):
            raise ValueError(
                f"Site '{name}': tempering moves particles in continuous coordinates, and this site is discrete or stands in "
                "a scan. Sum a discrete site out, give kernel=inference.particles.moves.Gibbs() if all are discrete, or use smc "
                "on the program."
            )
    template = {n: jnp.zeros(trace.choices[n].shape, trace.choices[n].dtype) for n in latent}
    transforms = transforms_of("tempered_smc", program, args, template)
    base = {n: jax.eval_shape(transforms[n].inv, template[n]) for n in latent}
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), base)
    flat, unflatten = jax.flatten_util.ravel_pytree(zeros)

    def choices(u: Array) -> dict[str, Array]:
        parts = unflatten(u)
        return {name: transforms[name](parts[name]) for name in latent}

    def log_jacobian(u: Array, x: dict[str, Array]) -> Array:
        v = unflatten(u)
        return sum(jnp.sum(transforms[n].log_abs_det_jacobian(v[n], x[n])) for n in latent)  # type: ignore[return-value]

    def point(values: Mapping[str, Array]) -> Array:
        return jax.flatten_util.ravel_pytree({n: transforms[n].inv(values[n]) for n in latent})[0]

    at = Coordinates(flat, choices, log_jacobian, point)
    law = start and start({n: transforms[n].inv for n in latent}, template)
    owners = tuple(n for n in sorted(base) for _ in range(base[n].size))
    static = static_of(program, args, trace, at, data_axis, law)
    return dataclasses.replace(static, owners=owners)


def latent_sites(program: ppl.Program, args: Args) -> tuple[ppl.Trace, list[str]]:
    """The program's abstract trace and its latent sites, of which there is at least one."""
    with stand_ins():
        trace = jax.eval_shape(lambda key: program.simulate(key, *args), jax.random.key(0))
    if not trace.choices:
        raise ValueError(
            "tempered_smc: the program has no latent site, so that there is nothing to draw. "
            "Leave at least one site without a value."
        )
    return trace, list(trace.choices)


def static_of(
    program: ppl.Program,
    args: Args,
    trace: ppl.Trace,
    at: Coordinates,
    data_axis: str | None,
    base: Base | None = None,
) -> Static:
    """The program's densities in these coordinates, with another law than the prior if `base` is one."""
    latent = list(trace.choices)
    likelihood = [name for name in trace.log_probs if name not in latent]
    check_observed("tempered_smc", program, is_told=bool(likelihood))
    rows, num_rows = _rows(trace, likelihood, data_axis)

    def parts(u: Array) -> tuple[Array, Array]:
        x = at.choices(u)
        log_probs = program.trace(x, *args).log_probs
        total = lambda names: sum((jnp.sum(log_probs[n]) for n in names), jnp.zeros(()))
        terms = total(n for n in likelihood if n not in rows)[None]
        if rows:
            by_row = lambda n: jnp.moveaxis(log_probs[n], rows[n], 0).reshape(num_rows, -1).sum(1)
            terms = jnp.concatenate([sum(map(by_row, rows), jnp.zeros(num_rows)), terms])
        log_prior = total(latent) + at.log_jacobian(u, x)
        if base is None:
            return log_prior, terms
        log_base = base.log_prob(u)
        return log_base, log_prior + terms - log_base

    def exponents(temperature: Array) -> Array:
        place = num_rows * temperature
        # Rows are whole where rounding of the temperature would leave a trace of the next one.
        place = jnp.where(jnp.abs(place - jnp.round(place)) < 1e-3, jnp.round(place), place)
        return jnp.append(jnp.clip(place - jnp.arange(num_rows), 0.0, 1.0), temperature)

    def draw(key: Array) -> Array:
        return at.point(program.simulate(key, *args).choices)

    # Traced once: moves evaluate it in many places.
    closed = jax.make_jaxpr(parts)(at.flat)
    check_noise("tempered_smc", program, args, closed, [False])
    log_densities = jaxpr_as_fun(closed)
    draw = draw if base is None else base.draw
    return Static(
        at.flat.size, draw, lambda u: tuple(log_densities(u)), exponents, at.choices,  # type: ignore[arg-type]
        tuple(improper_sites(trace.sites)),
    )  # fmt: skip


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

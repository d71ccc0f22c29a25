"""The log-density of a program's latent values on R^d: what chains move on.

Seen cells of a statement with `obs_mask`, whose missing cells others read, have a place in the value of the missing ones but no
density there: their coordinates get a standard normal law of their own, which touches nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .... import ppl
from ....ppl._compat import jaxpr_as_fun
from ....ppl._shared_jit import shared_jit
from ....ppl.densities import Eliminated
from ..._arguments import Arguments, simulated
from ...inputs import check_branches
from ._maps import maps_of

Array = jax.Array
_AT_ONCE = 500


@dataclasses.dataclass(frozen=True)
class Target:
    """A program's latent sites as coordinates.

    Attributes:
        program: the program, perhaps an eliminated one.
        args: its arguments.
        arrays: the arrays among them.
        sites: latent sites that have coordinates, in program order.
        dimension: number of coordinates d.
        log_density: (u [d], arrays) -> log-density with the Jacobian, nats.
        choices: u [d] -> latent site -> value.
        point: its inverse.
        names: a name for each coordinate.
    """

    program: ppl.Program
    args: tuple
    arrays: list[PyTree]
    sites: tuple[str, ...]
    dimension: int
    log_density: Callable[[Array, list[PyTree]], Array]
    choices: Callable[[Array], dict[str, Array]]
    point: Callable[[Mapping[str, Array]], Array]
    names: tuple[str, ...]

    def log_densities(self, u: np.ndarray) -> np.ndarray:
        """`log_density` at points [n, d], nats."""
        run = shared_jit(
            lambda u, arrays: jax.lax.map(
                lambda v: self.log_density(v, arrays), u, batch_size=_AT_ONCE
            )
        )
        return np.asarray(run(jnp.asarray(u, jnp.result_type(float)), self.arrays), float)


def make_target(method: str, program: ppl.Program, args: tuple) -> Target:
    """The target of a program without discrete latent sites.

    Raises:
        ValueError: a site in a branch, a support that depends on another draw; `method` is who asks.
    """
    trace = simulated(program, args)
    check_branches(method, trace)
    imputed = [n for n in trace.choices if trace.sites[n].is_imputed]
    sites = list(trace.choices)
    split = Arguments(args)
    arrays = split.arrays(args)
    zeros = {n: jnp.zeros(x.shape, x.dtype) for n, x in trace.choices.items()}
    zero = jnp.zeros(0)
    if not sites:
        return Target(program, args, arrays, (), 0, _nothing, lambda u: {}, lambda x: zero, ())
    whole = program.program if isinstance(program, Eliminated) else program
    shapes, maps, inverse = maps_of(
        method, whole, args, {n: zeros[n] for n in sites},
        has_steps=any(trace.sites[n].regions for n in sites),
    )  # fmt: skip
    sizes = [math.prod(shapes[n]) for n in sites]
    ends = np.cumsum(sizes)

    def parts(u: Array) -> dict[str, Array]:
        cut = {n: u[end - size : end] for n, size, end in zip(sites, sizes, ends, strict=True)}
        return {n: x.reshape(shapes[n]) for n, x in cut.items()}

    def choices(u: Array) -> dict[str, Array]:
        return maps(parts(u))[1]

    def point(values: Mapping[str, Array]) -> Array:
        free = inverse(values)
        return jnp.concatenate([zero, *(jnp.ravel(free[n]) for n in sites)])

    def log_density(u: Array, arrays: list[Array]) -> Array:
        free = parts(u)
        transforms, x = maps(free)
        run = program.trace(x, *split.join(arrays))
        total = sum(map(jnp.sum, run.log_probs.values()), jnp.zeros(()))
        for name in sites:
            volume = transforms[name].log_abs_det_jacobian(free[name], x[name])
            if name in imputed:
                volume = _own_law(name, free[name], volume, run.cells[name])
            total += jnp.sum(volume)
        return total

    places = [(n, place) for n in sites for place in np.ndindex(shapes[n])]
    names = [f"{n}{list(place) if place else ''}" for n, place in places]
    dimension = int(ends[-1])
    closed = jax.make_jaxpr(log_density)(jnp.zeros(dimension), arrays)  # traced once
    run = jaxpr_as_fun(closed)
    return Target(
        program, args, arrays, tuple(sites), dimension,
        lambda u, arrays: run(u, *jax.tree.leaves(arrays))[0], choices, point, tuple(names),
    )  # fmt: skip


def _nothing(u: Array, arrays: list[PyTree]) -> Array:
    return jnp.zeros(())


def _own_law(name: str, free: Array, volume: Array, cells: Array) -> Array:
    """Log-volumes of missing cells; at the cells that were seen a standard normal law of the coordinate."""
    cells = jnp.reshape(cells, (*cells.shape, *[1] * (free.ndim - cells.ndim)))
    if free.ndim != volume.ndim or free.shape != jnp.broadcast_shapes(free.shape, cells.shape):
        raise ValueError(
            f"Site '{name}': its missing cells are read by other statements, and its support joins several numbers of an event, "
            "so that a cell has no coordinate to itself. Draw the cells one by one, each on a support of its own."
        )
    return jnp.where(cells, volume, -0.5 * free**2)

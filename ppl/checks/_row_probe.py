"""Trying whether rows meet: new values in some rows, and a look at the others.

For random draws z, z' of a site and a random half S of its plate's rows, the program is evaluated at z and at z with the values
of z' outside of S. A row of S sees no difference if it sees its own values only. Eight pairs of draws are tried, at parameters
on both sides of those given. A dependence that needs rarer values than these is not found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._compat import ClosedJaxpr
from .._quiet import quiet
from ..analysis import Analysed, rows_meet
from ..evaluation import Forced, evaluate
from ._inputs import as_wide
from ._moves import nudged
from ._probe_inputs import COMPILER_OPTIONS, Inputs, inputs_of, marker_layout
from ._quick_draws import with_quick_draws

NUM_TRIALS = 8


def try_rows(
    program: Analysed,
    copy: Callable[[], Analysed],
    params: list[ArrayLike],
    data: list[Array | np.ndarray],
) -> None:
    """Raise if the rows of a suspect move with another row's latent values.

    Args:
        program: the analysed program.
        copy: analyses it with data as inputs, in the precision that is in force.
        params: leaves of the parameters.
        data: leaves of the data.
    """
    with jax.ensure_compile_time_eval(), quiet():
        try:
            with jax.enable_x64(True):
                sizes, threshold = _moves(copy(), as_wide(params), as_wide(data)), 1e-8
        except (TypeError, ValueError):  # the program insists on float32
            sizes, threshold = _moves(copy(), params, data), 1e-4
    for suspect, size in zip(program.rows, sizes, strict=True):
        if not size <= threshold:
            found = (
                f"moves by {size:.3g}" if np.isfinite(size) else "was not finite where it was tried"
            )
            raise rows_meet(
                program.sites[suspect.index].address,
                suspect.plate,
                f"a row's log-weight {found} with its values in other rows of plate '{suspect.plate}' (operation: {suspect.why})",
            )


def _moves(program: Analysed, params: list[PyTree], data: list[PyTree]) -> list[float]:
    """Largest relative change of rows whose own values stay, for each suspect; NaN where nothing was finite."""
    inputs = inputs_of(params, data, program.closed)

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def run(consts: list[Array], inputs: PyTree) -> list[jax.Array]:
        closed, inputs = ClosedJaxpr(program.closed.jaxpr, consts), Inputs(*inputs)
        trial = lambda key: [_move(program, closed, inputs, s, key) for s in program.rows]
        return jax.lax.map(trial, jax.random.split(inputs.key, NUM_TRIALS))

    given = (inputs.params, inputs.data, inputs.key)
    sizes = [np.asarray(x) for x in run(program.closed.consts, given)]
    return [float("nan") if np.isnan(x).all() else float(np.nanmax(x)) for x in sizes]


def _move(
    program: Analysed, closed: ClosedJaxpr, inputs: Inputs, suspect: PyTree, key: jax.Array
) -> jax.Array:
    site = program.sites[suspect.index]
    k1, k2, k3, k4 = jax.random.split(key, 4)
    leaves = [*nudged(inputs.params, k1), *inputs.data]
    quick, order = with_quick_draws(closed), list(program.sites)
    atoms = [program.numbers[i].value for i in order]
    draws = lambda k: dict(zip(order, evaluate(quick, [*leaves, k], {}, atoms), strict=True))
    here, there = draws(k2), draws(k3)[suspect.index]
    values = here[suspect.index]
    axis = suspect.axis + sum(r.axis is not None for r in site.regions)
    size = values.shape[axis]
    stays = jax.random.permutation(k4, jnp.arange(size) < max(1, size // 2))
    keep = stays.reshape([-1 if a == axis else 1 for a in range(values.ndim)])

    def rows(values: jax.Array) -> jax.Array:
        at = here | {suspect.index: values}
        forced = {i: Forced(marker_layout(x, program.sites[i])) for i, x in at.items()}
        return evaluate(closed, [*leaves, inputs.key], forced, [suspect.rows])[0].astype(float)

    before, after = rows(values), rows(jnp.where(keep, values, there))
    change = jnp.abs(after - before) / (1 + jnp.abs(before))
    # A row that loses its finite value by another one's moves, too.
    change = jnp.where(jnp.isfinite(before) & ~jnp.isfinite(after), jnp.inf, change)
    change = jnp.where(stays & jnp.isfinite(before), change, 0.0)
    return jnp.where((stays & jnp.isfinite(before)).any(), change.max(), jnp.nan)

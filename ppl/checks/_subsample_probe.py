"""Trying whether the rows of a subsampled plate meet: everything in some rows is replaced, and the others are looked at.

A random half of the plate's rows keeps its latent values, data and indices; the others get those of another draw, perturbed
data and other indices. Terms inside of the plate must not move in the rows that stay, and terms outside not at all. Eight pairs
are tried, at parameters on both sides of those given. A dependence that needs rarer values than these is not found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._compat import ClosedJaxpr
from .._quiet import quiet
from ..analysis import Meeting, RowProgram, meetings, population_differs
from ..evaluation import Forced, evaluate
from ._inputs import as_wide
from ._moves import nudged
from ._probe_inputs import COMPILER_OPTIONS, Inputs, inputs_of, marker_layout
from ._quick_draws import with_quick_draws
from ._row_probe import NUM_TRIALS


def check_subsampled(
    trace: Callable[[], RowProgram], params: list[PyTree], data: list[Array | np.ndarray]
) -> None:
    """Raise if rows of a subsampled plate meet, or a term outside sees them.

    Args:
        trace: makes the program, in the precision that is in force.
        params: leaves of the parameters.
        data: leaves of the data.
    """
    program = trace()
    found = meetings(program)
    if not found:
        return
    for meeting in found:
        if meeting.term.axis(meeting.plate) is not None and program.plates[meeting.plate][0] == 1:
            raise population_differs(
                program,
                meeting,
                f"perhaps, by {meeting.link.why}; one row alone does not show it, two would",
            )
    with jax.ensure_compile_time_eval(), quiet():
        try:
            with jax.enable_x64(True):
                wide = trace()
                sizes, threshold = (
                    _moves(wide, meetings(wide), as_wide(params), as_wide(data)),
                    1e-8,
                )
        except (TypeError, ValueError):  # the program insists on float32
            sizes, threshold = _moves(program, found, params, data), 1e-4
    for meeting, size in zip(found, sizes, strict=True):
        if not size <= threshold:
            how = (
                f"it moves by {size:.3g}"
                if np.isfinite(size)
                else "it was not finite where it was tried"
            )
            raise population_differs(program, meeting, f"{how}; operation: {meeting.link.why}")


def _moves(
    program: RowProgram, found: Sequence[Meeting], params: list[Any], data: list[Any]
) -> list[float]:
    """Largest relative change of what must stay, for each meeting; NaN where nothing was finite."""
    inputs = inputs_of(params, data, program.closed)

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def run(consts: list[PyTree], inputs: PyTree) -> dict[str, list[jax.Array]]:
        closed, inputs = ClosedJaxpr(program.closed.jaxpr, consts), Inputs(*inputs)
        trial = lambda key: {
            p: _move(program, closed, inputs, p, found, key) for p in program.plates
        }
        return jax.lax.map(trial, jax.random.split(inputs.key, NUM_TRIALS))

    sizes = run(program.closed.consts, (inputs.params, inputs.data, inputs.key))
    by_plate = {p: iter(map(np.asarray, many)) for p, many in sizes.items()}
    own = [next(by_plate[m.plate]) for m in found]
    return [float("nan") if np.isnan(x).all() else float(np.nanmax(x)) for x in own]


def _move(
    program: RowProgram,
    closed: ClosedJaxpr,
    inputs: Inputs,
    plate: str,
    found: Sequence[Meeting],
    key: jax.Array,
) -> list[jax.Array]:
    """Largest change of each term that is in doubt in the rows of one plate that stay."""
    k1, k2, k3, k4, k5 = jax.random.split(key, 5)
    rows, full = program.plates[plate]
    stays = jax.random.permutation(k4, jnp.arange(rows) < max(1, rows // 2))
    at = lambda axis, ndim: stays.reshape([-1 if a == axis else 1 for a in range(ndim)])
    params = nudged(inputs.params, k1)
    order = list(program.sites)
    indices = [
        jax.random.randint(jax.random.fold_in(k5, n), (m,), 0, int(min(size, 2**31 - 1)))
        for n, (_, (m, size)) in enumerate(sorted(program.plates.items()))
    ]
    mine = sorted(program.plates).index(plate)
    leaves = lambda data, indices, key: [*params, *data, *indices, key]
    quick = with_quick_draws(closed)
    draws = lambda k: dict(
        zip(
            order,
            evaluate(
                quick, leaves(inputs.data, indices, k), {}, [program.values[i] for i in order]
            ),
            strict=True,
        )
    )
    here, there = draws(k2), draws(k3)
    data, other, others = list(inputs.data), dict(here), list(indices)
    for n in program.rows(plate):
        data[n] = jnp.where(
            at(0, data[n].ndim), data[n], perturbed(data[n], jax.random.fold_in(k5, 100 + n))
        )
    for i, site in program.sites.items():
        info = program.infos[site.address]
        if plate in info.dims:
            axis = info.dims.index(plate) + sum(r.axis is not None for r in site.regions)
            other[i] = jnp.where(at(axis, here[i].ndim), here[i], there[i])
    fresh = jax.random.randint(jax.random.fold_in(k5, 99), (rows,), 0, int(min(full, 2**31 - 1)))
    others[mine] = jnp.where(stays, indices[mine], fresh)
    terms = [m.term for m in found if m.plate == plate]

    def values(
        data: list[PyTree], indices: list[PyTree], values: dict[int, PyTree]
    ) -> list[jax.Array]:
        forced = {i: Forced(marker_layout(x, program.sites[i])) for i, x in values.items()}
        return evaluate(closed, leaves(data, indices, inputs.key), forced, [t.atom for t in terms])

    pairs = zip(values(inputs.data, indices, here), values(data, others, other), terms, strict=True)
    return [
        _change(x, y, at(axis, x.ndim) if (axis := t.axis(plate)) is not None else True)
        for x, y, t in pairs
    ]


def _change(before: jax.Array, after: jax.Array, stays: Any) -> jax.Array:
    before, after = before.astype(float), after.astype(float)
    change = jnp.abs(after - before) / (1 + jnp.abs(before))
    # What loses its finite value by another row's moves, too.
    change = jnp.where(jnp.isfinite(before) & ~jnp.isfinite(after), jnp.inf, change)
    counts = jnp.broadcast_to(stays & jnp.isfinite(before), before.shape)
    return jnp.where(counts.any(), jnp.where(counts, change, 0.0).max(), jnp.nan)


def perturbed(x: jax.Array, key: jax.Array) -> jax.Array:
    """An array of the same kind with other rows."""
    k1, k2, k3, k4 = jax.random.split(key, 4)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return (
            x * (1 + 0.5 * jax.random.normal(k1, x.shape)) + 0.3 * jax.random.normal(k2, x.shape)
        ).astype(x.dtype)
    shuffled = jax.random.permutation(k1, x)
    if x.dtype == bool:
        drawn = jax.random.bernoulli(k2, shape=x.shape)
    elif jnp.issubdtype(x.dtype, jnp.integer):
        drawn = jax.random.randint(k3, x.shape, x.min(), x.max() + 1).astype(x.dtype)
    else:
        return shuffled
    return jnp.where(jax.random.bernoulli(k4), drawn, shuffled)

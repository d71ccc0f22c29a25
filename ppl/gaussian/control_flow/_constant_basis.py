"""Scans that leave the basis as it is: their steps are affine maps of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ...traces import scan as scan_statements
from .._forms import Beyond, Form
from ._kinds import as_arrays, as_values, rows_of_step
from ._scan import Scan


def pushed(scan: Scan) -> list[PyTree]:
    """The results of a scan."""
    # A value const + sum_d coefs_d basis_d with a fixed basis is the pair (const, coefs [columns, *shape]): both are carried.
    outer, num_carry, columns = scan.outer, len(scan.init), scan.outer.size
    kinds = [*scan.kinds, *scan.y_kinds]

    def given(old: PyTree, new: PyTree) -> PyTree:
        if isinstance(old, Form):
            return Form(new[0], new[1], rows_of_step(old.rows))
        return old if new is None else new

    def step(carry: PyTree, x: PyTree) -> PyTree:
        inner = outer.inner()
        inner.belief = outer.belief
        xs = [given(old, new) for old, new in zip(scan.xs, x, strict=True)]
        outs = inner.run(scan.body, [*scan.consts, *as_values(carry, scan.kinds), *xs], scan.reads)
        made = as_arrays(outs, kinds, columns)
        return made[:num_carry], made[num_carry:]

    def in_steps(x: PyTree) -> PyTree:
        # const [T, ...] and coefs [columns, T, ...] -> [T, columns, ...]: both are sliced along time.
        if isinstance(x, Form):
            return x.const, jnp.moveaxis(x.coefs, 1, 0)
        return None if isinstance(x, Beyond) else x

    init, xs = as_arrays(scan.init, scan.kinds, columns), [in_steps(x) for x in scan.xs]
    if scan.has_statements:
        carry, ys = scan_statements(step, init, xs, scan.length)
    else:
        carry, ys = jax.lax.scan(step, init, xs, scan.length, scan.eqn.params["reverse"])
    found = []
    for y, kind in zip(ys, scan.y_kinds, strict=True):
        if isinstance(kind, tuple):
            y = Form(y[0], jnp.moveaxis(y[1], 1, 0), tuple(a + 1 for a in kind))
        found.append(kind if isinstance(kind, Beyond) else y)
    return [*as_values(carry, scan.kinds), *found]

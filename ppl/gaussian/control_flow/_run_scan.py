"""Scans with the belief carried along, or with a basis that stays as it is.

A scan whose steps add to the basis or condition it hands on the belief of the values that the next step, or what follows the
scan, reads; or the beliefs are found in parallel, and then all steps run at once. Where a statement reads the stacked values of
the steps, the noise of all steps is the basis afterwards. A scan that leaves the basis as it is hands on the coefficients of its
values.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..._compat import Equation
from ...traces import scan as scan_statements
from .._forms import is_certain
from ._constant_basis import pushed
from ._maps import joined_results, read_results, step_maps, why_lost
from ._parallel import is_parallel, together
from ._scan import Scan

if TYPE_CHECKING:
    from .._integrator import Integrator


def run_scan(outer: Integrator, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
    """The results of a scan."""
    scan = Scan(outer, eqn, args)
    if not scan.is_changed:
        return pushed(scan)
    scan.lost = why_lost(scan)
    scan.is_joined = scan.lost is None and bool(read_results(scan))
    return together(scan) if is_parallel(scan) else _filtered(scan)


def _filtered(scan: Scan) -> list[PyTree]:
    """The results of a scan, with the belief of what is handed on carried, in one vector."""
    outer, num_carry, start = scan.outer, len(scan.init), scan.start()
    # Joined, all noise is asked for what is known of it later, and not the states.
    first = dataclasses.replace(start, later=None) if start and scan.is_joined else start

    # The carry of the loop is (certain values, N(mean, root root^T) of the uncertain ones); a step predicts and conditions, and
    # makes the statements of its observations.
    def step(carry: tuple[PyTree, ...], x: list[Array]) -> PyTree:
        certain, belief = carry
        inner = outer.inner()
        outs, belief = scan.filter_step(inner, certain, belief, x)
        maps = step_maps(scan, certain, x, inner.made)[1] if scan.is_joined else None
        ys = [y for y in outs[num_carry:] if is_certain(y)]
        return (scan.certain(outs[:num_carry]), belief), (ys, maps)

    init = [jnp.asarray(x) for x in scan.certain(scan.init)]
    (certain, belief), (ys, maps) = scan_statements(step, (init, first), scan.slices(), scan.length)
    if scan.is_joined:
        return joined_results(scan, certain, maps, start, ys)
    return scan.results(certain, belief, ys)

"""Branches, which hold no statement that meets the sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..._compat import Equation, no_handlers
from ...traces import cond
from .._forms import Beyond, is_certain
from .._lift import holds_statement
from ._kinds import Kind, as_arrays, as_values, either, kind_of

if TYPE_CHECKING:
    from .._integrator import Integrator


def run_cond(outer: Integrator, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
    """The results of a choice between branches, which hold no statement that meets the sites.

    Raises:
        ValueError: one does.
    """
    which, operands, is_read = args[0], args[1:], outer.is_read
    branches, has_statements = eqn.params["branches"], holds_statement(eqn)
    kinds: list[Kind] = [None] * len(eqn.outvars)
    for branch in branches:
        probe = outer.inner(is_dry=True)
        probe.belief = outer.belief
        outs: list[PyTree] = []

        def run(
            branch: PyTree = branch, probe: Integrator = probe, outs: list[PyTree] = outs
        ) -> None:
            outs.extend(kind_of(x) for x in probe.run(branch, operands, is_read))

        with no_handlers():
            jax.eval_shape(run)
        if probe.has_changed or not is_certain(which) and has_statements:
            raise ValueError(
                f"{outer.label}: a statement in a branch of ppl.cond meets the sites {list(outer.names)}, or chooses the "
                "branch by them. Write it with jnp.where outside of the branches, or keep these sites as choices."
            )
        kinds = [either(a, b) for a, b in zip(kinds, outs, strict=True)]
    if not is_certain(which):
        return [Beyond("a branch chosen by it")] * len(kinds)
    columns = outer.size

    def taken(branch: PyTree) -> Callable[[], PyTree]:
        def fn() -> list[PyTree]:
            inner = outer.inner()
            inner.belief = outer.belief
            return as_arrays(inner.run(branch, operands, is_read), kinds, columns)

        return fn

    fns = [taken(b) for b in branches]
    if has_statements:
        outs = cond(jnp.asarray(which, bool), fns[1], fns[0])
    else:
        outs = jax.lax.switch(which, fns)
    return as_values(outs, kinds)

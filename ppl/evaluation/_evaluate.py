"""Evaluate a traced program with the values of chosen sites replaced: the reference, which passes only make faster.

Input: a jaxpr that contains site markers (`jaxprs/_primitive.py`), its inputs, and for some sites a forced value.
Output: values of any of its top-level variables. Sites that are not forced keep their own draw; since keys
are inputs of the jaxpr, two evaluations with the same key share all remaining noise (common random numbers).

Layout of a forced value: time axes of the enclosing scans (outermost first), then the axes of the enclosing
`particles` (outermost first), then the site's own shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._compat import ClosedJaxpr, Equation, Jaxpr, Var
from .._types import Key
from ..jaxprs import Interpreter, holds_marker, inner_jaxprs, key_p, scan_again, site_p


class Forced(NamedTuple):
    """A replacement for a site's value: everywhere, or only where `mask` is true (mask broadcasts from the left axes)."""

    value: jax.Array
    mask: jax.Array | None = None


def evaluate(
    closed: ClosedJaxpr,
    inputs: Sequence[Key] | tuple[Array],
    forced: Mapping[int, Forced],
    read: Sequence[Var] | tuple[Var] | None = None,
) -> list[jax.Array]:
    """Run `closed` on `inputs`; return the values of the variables `read` (default: its outputs).

    Args:
        closed: a traced program.
        inputs: values of its inputs.
        forced: site index -> what replaces its value.
        read: atoms of the program's top level.
    """
    return [jnp.asarray(x) for x in Evaluator(closed, inputs, forced).outputs(read)]


class Evaluator(Interpreter):
    """One evaluation of a program, or of the body of a loop in it; its arguments are those of `evaluate`."""

    def __init__(
        self, closed: ClosedJaxpr, inputs: Sequence[PyTree], forced: Mapping[int, PyTree]
    ) -> None:
        super().__init__(closed, inputs)
        self.forced = forced
        for eqn in closed.jaxpr.eqns:
            if is_replaced_whole(eqn, forced):
                draw = eqn.outvars[0]
                self.env[draw] = self.replacement(forced[eqn.params["index"]], draw.aval)

    def replacement(self, given: PyTree, aval: PyTree) -> Array:
        """The value of a site that is replaced everywhere."""
        return jnp.asarray(given.value, aval.dtype).reshape(aval.shape)

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        if eqn.primitive is site_p:
            return [_masked(args[0], self.forced.get(eqn.params["index"]))]
        if eqn.primitive is key_p:
            return args
        if holds_marker(eqn):
            return {"scan": self.scan, "cond": self.cond}[eqn.primitive.name](eqn, args)
        return super().results(eqn, args)

    def scan(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        """A loop with sites inside; of a forced value each step gets its own."""
        body = eqn.params["jaxpr"]
        step = lambda inputs, forced: self.inner(body, inputs, forced)
        return scan_again(eqn, args, step, self.forced_inside(eqn))

    def cond(self, eqn: Equation, args: list[Array]) -> list[PyTree]:
        """A choice between branches with sites inside."""

        def branch(body: ClosedJaxpr) -> Callable[..., list[PyTree]]:
            return lambda *inputs: self.inner(body, inputs, self.forced)

        return jax.lax.switch(args[0], [branch(b) for b in eqn.params["branches"]], *args[1:])

    def inner(
        self, body: ClosedJaxpr, inputs: tuple[Array, ...], forced: PyTree
    ) -> list[jax.Array]:
        """The outputs of a loop's or branch's body as arrays."""
        return evaluate(body, inputs, forced)

    def forced_inside(self, eqn: Equation) -> dict[int, PyTree]:
        """The replacements of sites inside of an equation."""
        inside = {i for jaxpr in inner_jaxprs(eqn) for i in sites_in(jaxpr)} if self.forced else ()
        return {i: given for i, given in self.forced.items() if i in inside}


def is_replaced_whole(eqn: Equation, forced: Mapping[int, PyTree]) -> bool:
    """Whether the equation is a marker whose value is given everywhere, so that nothing before it counts."""
    given = forced.get(eqn.params["index"]) if eqn.primitive is site_p else None
    return given is not None and given.mask is None


def _masked(draw: jax.Array, forced: Forced | None) -> jax.Array:
    if forced is None:
        return draw
    assert forced.mask is not None  # else the marker does not run
    value = jnp.asarray(forced.value, draw.dtype).reshape(draw.shape)
    mask = forced.mask.reshape(forced.mask.shape + (1,) * (draw.ndim - forced.mask.ndim))
    return jnp.where(mask, value, draw)


def sites_in(jaxpr: Jaxpr) -> set[int]:
    """Indices of the sites whose markers a jaxpr holds."""
    found = {eqn.params["index"] for eqn in jaxpr.eqns if eqn.primitive is site_p}
    return found.union(*(sites_in(i) for eqn in jaxpr.eqns for i in inner_jaxprs(eqn)))

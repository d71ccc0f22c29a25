"""One interpreter of jaxprs. What runs a traced program in another way than JAX extends it.

Input: a closed jaxpr, and the values of its inputs. Output: the values of some of its variables. A subclass says what a value is
(`read`) and what an equation makes of such values (`results`); `scan_again` is a loop whose body is run by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
from jaxtyping import Array, PyTree

from .._compat import CALLS, Atom, ClosedJaxpr, Equation, Literal, Var, bind, scan_counts
from .._types import Key
from ._jaxprs import needed


class Interpreter:
    """One run of a program, equation by equation.

    Attributes:
        closed: the program.
        env: variable -> value, of what is known so far.
        live: the variables that the values asked for last depend on, but for those known before.

    Args:
        closed: the program.
        inputs: values of its inputs; or variable -> value, of what is known ahead.
    """

    def __init__(
        self, closed: ClosedJaxpr, inputs: Sequence[PyTree] | Mapping[Var, PyTree]
    ) -> None:
        self.closed, self.live = closed, frozenset[Var]()
        self.env: dict[Var, PyTree] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        is_named = isinstance(inputs, Mapping)
        self.env.update(inputs if is_named else zip(closed.jaxpr.invars, inputs, strict=True))

    def outputs(
        self, read: Sequence[Atom] | None = None, eqns: Sequence[Equation] | None = None
    ) -> list[PyTree]:
        """The values of atoms (default: of the program's outputs), made by those of `eqns` (default: of all) that they need."""
        jaxpr = self.closed.jaxpr
        read = jaxpr.outvars if read is None else read
        eqns, self.live = needed(jaxpr.eqns if eqns is None else eqns, read, given=self.env)
        self.run(eqns)
        return [self.read(v) for v in read]

    def run(self, eqns: Sequence[Equation]) -> None:
        """Run equations one after the other; the environment gains their results."""
        for eqn in eqns:
            found = self.results(eqn, [self.read(v) for v in eqn.invars])
            self.env.update(zip(eqn.outvars, found, strict=True))

    def read(self, atom: Atom) -> PyTree:
        """The value of a variable or literal."""
        return atom.val if isinstance(atom, Literal) else self.env[atom]

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        """What an equation makes of the values of its operands."""
        return bind(eqn, args)


def called(eqn: Equation) -> ClosedJaxpr:
    """The program that an equation of `CALLS` runs on its operands."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())


def scan_again(
    eqn: Equation,
    args: Sequence[PyTree] | tuple[Key],
    body: Callable[..., PyTree],
    more: PyTree = (),
) -> list[Array]:
    """The results of a scan with another body.

    Args:
        eqn: the scan.
        args: its operands.
        body: `(inputs of the scan's body, a step of more) -> its outputs`.
        more: a pytree of arrays with time in front.
    """
    num_consts, num_carry = scan_counts(eqn.params)
    first_x = num_consts + num_carry
    consts, init, xs = args[:num_consts], args[num_consts:first_x], args[first_x:]

    def step(carry: list[Array], now: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
        x, more = now
        outs = body([*consts, *carry, *x], more)
        return outs[:num_carry], outs[num_carry:]

    how = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(step, list(init), (list(xs), more), **how)
    return [*carry, *ys]

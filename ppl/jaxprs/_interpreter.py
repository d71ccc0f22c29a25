"""What a jaxpr holds, and the one interpreter of jaxprs: what runs a traced program in another way than JAX extends it.

Input: a closed jaxpr, and the values of its inputs. Output: the values of some of its variables. A subclass says what a value is
(`read`) and what an equation makes of such values (`results`); `scan_again` is a loop whose body is run by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
from jaxtyping import Array, PyTree

from .._compat import (
    CALLS,
    Atom,
    ClosedJaxpr,
    Equation,
    Jaxpr,
    Literal,
    Var,
    bind,
    scan_counts,
)
from .._types import Key
from ._primitive import MARKERS

_TURNS = 8  # of a `while` loop where parameters are like those given; elsewhere they are many


def inner_jaxpr(value: object) -> Jaxpr | None:
    """The open jaxpr behind an equation parameter, or None."""
    if isinstance(value, ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, Jaxpr) else None


def inner_jaxprs(eqn: Equation) -> Iterator[Jaxpr]:
    """The open jaxprs among an equation's parameters."""
    for param in eqn.params.values():
        for item in param if isinstance(param, tuple | list) else (param,):
            if (jaxpr := inner_jaxpr(item)) is not None:
                yield jaxpr


def holds_marker(eqn: PyTree) -> bool:
    """Whether an equation is a marker or has one inside."""
    return eqn.primitive in MARKERS or any(
        holds_marker(inner) for jaxpr in inner_jaxprs(eqn) for inner in jaxpr.eqns
    )


def needed(
    eqns: Sequence[Equation],
    read: Iterable[PyTree],
    inputs: Callable[..., PyTree] = lambda eqn: eqn.invars,
    given: Iterable[Var] = (),
) -> tuple[list[PyTree], set[PyTree]]:
    """Those of `eqns` that `read` depends on, in order, and those with effects; all variables that count.

    `inputs`: the atoms that an equation reads. `given`: variables that are known without their equations.
    """
    given = set(given)
    live = {v for v in read if not isinstance(v, Literal)} - given
    found = []
    for eqn in reversed(eqns):
        if eqn.effects or not live.isdisjoint(eqn.outvars):
            found.append(eqn)
            live |= {v for v in inputs(eqn) if not isinstance(v, Literal)} - given
    return found[::-1], live


def settled[F](
    step: Callable[[list[F]], list[F]], carry: list[F], join: Callable[[F, F], F]
) -> tuple[list[F], list[F]]:
    """Facts of what a loop carries, to which one more round adds none, and what that round returns.

    Args:
        step: facts before a round -> facts after it; what it returns beside those of the carry is handed on.
        carry: facts before the first round.
        join: the fact of a value that is one of two.
    """
    while True:
        outs = step(carry)
        joined = list(map(join, carry, outs))
        if joined == carry:
            return carry, outs
        carry = joined


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


def work_of(jaxpr: Jaxpr) -> float:
    """How many numbers one evaluation computes, `while` loops taken to turn 8 times."""
    total = 0.0
    for eqn in jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        times = _TURNS if eqn.primitive.name == "while" else times
        inner = sum(work_of(j) for j in inner_jaxprs(eqn))
        total += times * inner or sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
    return total

"""Draw the noise of a loop before the loop.

Input: a traced program. Output: the same program, in which the random numbers of every `ppl.scan` that hang on nothing but keys
and step numbers are drawn for all steps at once and enter the scan as one more sequence. One kernel then draws what took a
handful of small ones in each step. The keys, and so the numbers, are the same. Equations outside of the scans, and the variables
that they define, are kept.

Left in the loop: what depends on the carry or on real-valued inputs (a Gamma's draw depends on its shape), the draws of sites
that are always replaced, which nobody reads, and noise of more than `MAX_BYTES` in all (reverse mode stores most noise in any
case, plain evaluation does not).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._compat import (
    JITS,
    ClosedJaxpr,
    Equation,
    Jaxpr,
    Literal,
    Var,
    is_counter_based,
    scan_counts,
)
from .._types import Key
from ..jaxprs import (
    Interpreter,
    called,
    holds_marker,
    inner_jaxprs,
    needed,
    scan_again,
    site_p,
)

MAX_BYTES = 2**26


def hoist_noise(closed: ClosedJaxpr, replaced: Collection[int] = ()) -> ClosedJaxpr:
    """`closed` with the noise of its scans drawn before them.

    Args:
        closed: a traced program with site markers.
        replaced: indices of sites whose values are always replaced.
    """
    jaxpr = closed.jaxpr
    eqns, constvars, consts = [], list(jaxpr.constvars), list(closed.consts)
    is_changed = False
    for eqn in jaxpr.eqns:
        made = _drawn_before(eqn, replaced)
        if made is None:
            eqns.append(eqn)
            continue
        is_changed = True
        eqns += _spliced(eqn, made.jaxpr)
        constvars += made.jaxpr.constvars
        consts += made.consts
    if not is_changed:
        return closed
    return ClosedJaxpr(jaxpr.replace(eqns=eqns, constvars=constvars), consts)


def _drawn_before(eqn: Equation, replaced: Collection[int]) -> ClosedJaxpr | None:
    """A program that does what a scan's equation does, its noise first; None where there is nothing to draw first."""
    if eqn.primitive.name != "scan" or not holds_marker(eqn):
        return None
    inner = hoist_noise(eqn.params["jaxpr"], replaced)  # the loops inside give theirs to this body
    body = _opened(inner) if any(_mixes(e) for e in inner.jaxpr.eqns) else inner
    num_consts, num_carry = scan_counts(eqn.params)
    first_x, length = num_consts + num_carry, eqn.params["length"]
    variables = body.jaxpr.invars
    noise = _noise([*variables[:num_consts], *variables[first_x:]], body.jaxpr, replaced)
    # Noise of all steps at once must fit: else each step draws its own, as before.
    num_bytes = lambda v: math.prod(v.aval.shape) * v.aval.dtype.itemsize
    if length * sum(map(num_bytes, noise)) > MAX_BYTES:
        noise = []
    if not noise and inner is eqn.params["jaxpr"]:
        return None
    # What decides noise is integers and keys: those from outside are the same at every step, those of xs one a step.
    pure = [e for e in body.jaxpr.eqns if not e.effects]
    discrete = lambda names, values: {
        v: x for v, x in zip(names, values, strict=True) if _is_discrete(v)
    }

    def run(*args: PyTree) -> list[PyTree]:
        known = discrete(variables[:num_consts], args[:num_consts])
        moving = discrete(variables[first_x:], args[first_x:])

        # One step's noise, to be mapped over all steps.
        def draw(*now: Array) -> list[PyTree]:
            env = {**known, **dict(zip(moving, now, strict=True))}
            return _Opening(body, env).outputs(noise, pure)

        def step(inputs: list[Key], drawn: list[Array]) -> list[PyTree]:
            env = dict(zip([*variables, *noise], [*inputs, *drawn], strict=True))
            return _Opening(body, env).outputs()

        drawn = jax.jit(jax.vmap(draw, axis_size=length))(*moving.values())
        return scan_again(eqn, args, step, drawn)

    made = jax.make_jaxpr(run)(*(v.aval for v in eqn.invars))
    defined = {v for e in made.jaxpr.eqns for v in e.outvars}
    # Results that are inputs, or one another, cannot take the names of the equation's own.
    return made if len(defined.intersection(made.jaxpr.outvars)) == len(eqn.outvars) else None


def _mixes(eqn: Equation) -> bool:
    """Whether an equation calls a function that draws and is given real numbers (a Bernoulli's draw and its probability)."""
    return (
        eqn.primitive.name in JITS
        and draws(eqn)
        and not all(isinstance(v, Literal) or _is_discrete(v) for v in eqn.invars)
    )


def _noise(inputs: Iterable[Var], jaxpr: Jaxpr, replaced: Collection[int]) -> list[Var]:
    """What is random, read in a loop with body `jaxpr`, and hangs on nothing but those `inputs` that are known before it."""
    known = {v for v in [*jaxpr.constvars, *inputs] if _is_discrete(v)}
    random: dict[Var, None] = {}
    for eqn in jaxpr.eqns:
        arguments = [v for v in eqn.invars if not isinstance(v, Literal)]
        if not eqn.effects and not holds_marker(eqn) and known.issuperset(arguments):
            known.update(eqn.outvars)
            if draws(eqn) or not random.keys().isdisjoint(arguments):
                random.update(dict.fromkeys(eqn.outvars))

    def read(eqn: Equation) -> list[PyTree]:
        is_replaced = eqn.primitive is site_p and eqn.params["index"] in replaced
        return eqn.invars[is_replaced:]

    # Noise that only other noise reads needs no place in the loop.
    late = [e for e in jaxpr.eqns if e.effects or not known.issuperset(e.outvars)]
    _, live = needed(late, jaxpr.outvars, read)
    return [v for v in random if v in live and not _is_key(v)]


class _Opening(Interpreter):
    """Writes the functions that mix out."""

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        if not _mixes(eqn):
            return super().results(eqn, args)
        return _Opening(called(eqn), args).outputs()


def _opened(body: ClosedJaxpr) -> ClosedJaxpr:
    """`body` with the functions that mix written out."""
    run = lambda *args: _Opening(body, args).outputs()
    return jax.make_jaxpr(run)(*(v.aval for v in body.jaxpr.invars))


def _spliced(eqn: Equation, jaxpr: Jaxpr) -> list[Equation]:
    """The equations of `jaxpr`, reading and defining the variables of `eqn` in place of its own inputs and outputs."""
    names = dict(zip(jaxpr.invars, eqn.invars, strict=True))
    outs = dict(zip(jaxpr.outvars, eqn.outvars, strict=True))

    def rename(atoms: PyTree, table: dict[PyTree, PyTree]) -> list[PyTree]:
        return [a if isinstance(a, Literal) else table.get(a, a) for a in atoms]

    return [
        e.replace(invars=rename(e.invars, names | outs), outvars=rename(e.outvars, outs))
        for e in jaxpr.eqns
    ]


def _is_key(variable: PyTree) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jax.dtypes.prng_key)


def _is_discrete(variable: PyTree) -> bool:
    """Whether an input may decide noise: integers, booleans and keys whose draws do not change in batches."""
    if _is_key(variable):
        return is_counter_based(variable.aval.dtype)
    return not jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def draws(eqn: Equation) -> bool:
    """Whether an equation draws random numbers."""
    if eqn.primitive.name == "random_bits":
        return True
    return any(draws(e) for jaxpr in inner_jaxprs(eqn) for e in jaxpr.eqns)

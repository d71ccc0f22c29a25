"""Draw the noise of a loop before the loop.

Input: a traced program. Output: the same program, in which the random numbers of every `ppl.scan` that hang on nothing but keys
and step numbers are drawn for all steps at once and enter the scan as one more sequence. One kernel then draws what took a
handful of small ones in each step. The keys, and so the numbers, are the same. Equations outside of the scans, and the variables
that they define, are kept.

Left in the loop: what depends on the carry or on real-valued inputs (a Gamma's draw depends on its shape), the draws of listed
sites, which nobody reads, and noise of more than `MAX_BYTES` in all (reverse mode stores most noise in any case, plain
evaluation does not).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._compat import JITS, ClosedJaxpr, Jaxpr, Literal, Var, bind, is_counter_based, scan_counts
from ..jaxprs import holds_marker, inner_jaxprs, needed, site_p

MAX_BYTES = 2**26


class _Early(NamedTuple):
    """Equations of a loop's body that can run before the loop, and the noise among their results that the others read."""

    eqns: list[Any]
    noise: list[Any]


def hoist_noise(closed: ClosedJaxpr, listed: Collection[int] = ()) -> ClosedJaxpr:
    """`closed` with the noise of its scans drawn before them.

    Args:
        closed: a traced program with site markers.
        listed: indices of sites whose values are always replaced.
    """
    jaxpr = closed.jaxpr
    eqns, constvars, consts = [], list(jaxpr.constvars), list(closed.consts)
    is_changed = False
    for eqn in jaxpr.eqns:
        made = _drawn_before(eqn, listed)
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


def _drawn_before(eqn: Any, listed: Collection[int]) -> ClosedJaxpr | None:
    """A program that does what a scan's equation does, its noise first; None where there is nothing to draw first."""
    if eqn.primitive.name != "scan" or not holds_marker(eqn):
        return None
    inner = hoist_noise(eqn.params["jaxpr"], listed)  # the loops inside give theirs to this body
    body = _opened(inner) if any(_mixes(e) for e in inner.jaxpr.eqns) else inner
    num_consts, num_carry = scan_counts(eqn.params)
    first_x, length = num_consts + num_carry, eqn.params["length"]
    variables = body.jaxpr.invars
    early = _early([*variables[:num_consts], *variables[first_x:]], body.jaxpr, listed)
    size = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in early.noise)
    if length * size > MAX_BYTES:
        early = _Early([], [])
    if not early.noise and inner is eqn.params["jaxpr"]:
        return None
    late, _ = needed(body.jaxpr.eqns, body.jaxpr.outvars, given=early.noise)

    def run(*args: Any) -> list[Any]:
        consts, init, xs = args[:num_consts], args[num_consts:first_x], args[first_x:]
        known = {
            v: x for v, x in zip(variables[:num_consts], consts, strict=True) if _is_discrete(v)
        }
        moving = {v: x for v, x in zip(variables[first_x:], xs, strict=True) if _is_discrete(v)}

        def draw(*now: Any) -> list[Any]:
            env = {**known, **dict(zip(moving, now, strict=True))}
            return _run(body, early.eqns, env, early.noise)

        def step(carry: Any, x: Any) -> tuple[Any, Any]:
            x, noise = x
            env = dict(zip(variables, [*consts, *carry, *x], strict=True))
            env.update(zip(early.noise, noise, strict=True))
            outs = _run(body, late, env, body.jaxpr.outvars)
            return outs[:num_carry], outs[num_carry:]

        noise = jax.jit(jax.vmap(draw, axis_size=length))(*moving.values())
        reverse, unroll = eqn.params["reverse"], eqn.params["unroll"]
        carry, ys = jax.lax.scan(
            step, list(init), (list(xs), noise), length, reverse=reverse, unroll=unroll
        )
        return [*carry, *ys]

    made = jax.make_jaxpr(run)(*(v.aval for v in eqn.invars))
    defined = {v for e in made.jaxpr.eqns for v in e.outvars}
    # Results that are inputs, or one another, cannot take the names of the equation's own.
    return made if len(defined.intersection(made.jaxpr.outvars)) == len(eqn.outvars) else None


def _mixes(eqn: Any) -> bool:
    """Whether an equation calls a function that draws and is given real numbers (a Bernoulli's draw and its probability)."""
    return (
        eqn.primitive.name in JITS
        and draws(eqn)
        and not all(isinstance(v, Literal) or _is_discrete(v) for v in eqn.invars)
    )


def _early(inputs: Iterable[Var], jaxpr: Jaxpr, listed: Collection[int]) -> _Early:
    """What can run before a loop with body `jaxpr`, whose `inputs` are known by then."""
    known = {v for v in [*jaxpr.constvars, *inputs] if _is_discrete(v)}
    random: dict[Var, None] = {}
    for eqn in jaxpr.eqns:
        arguments = [v for v in eqn.invars if not isinstance(v, Literal)]
        if not eqn.effects and not holds_marker(eqn) and known.issuperset(arguments):
            known.update(eqn.outvars)
            if draws(eqn) or not random.keys().isdisjoint(arguments):
                random.update(dict.fromkeys(eqn.outvars))

    def read(eqn: Any) -> list[Any]:
        is_replaced = eqn.primitive is site_p and eqn.params["index"] in listed
        return eqn.invars[is_replaced:]

    is_early = lambda eqn: not eqn.effects and known.issuperset(eqn.outvars)
    _, live = needed([e for e in jaxpr.eqns if not is_early(e)], jaxpr.outvars, read)
    noise = [v for v in random if v in live and not _is_key(v)]
    return _Early(needed([e for e in jaxpr.eqns if is_early(e)], noise)[0], noise)


def _run(body: ClosedJaxpr, eqns: list[Any], env: dict[Var, Any], read: Iterable[Any]) -> list[Any]:
    """The values of `read` by those equations of `body`, from what `env` knows; calls that mix are opened."""
    env.update(zip(body.jaxpr.constvars, body.consts, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in eqns:
        args = [value(v) for v in eqn.invars]
        env.update(
            zip(eqn.outvars, _called(eqn, args) if _mixes(eqn) else bind(eqn, args), strict=True)
        )
    return [value(v) for v in read]


def _called(eqn: Any, args: list[Any]) -> list[Any]:
    inner = eqn.params["jaxpr"]
    return _run(
        inner,
        inner.jaxpr.eqns,
        dict(zip(inner.jaxpr.invars, args, strict=True)),
        inner.jaxpr.outvars,
    )


def _opened(body: ClosedJaxpr) -> ClosedJaxpr:
    """`body` with the functions that mix written out."""

    def run(*args: Any) -> list[Any]:
        env = dict(zip(body.jaxpr.invars, args, strict=True))
        return _run(body, body.jaxpr.eqns, env, body.jaxpr.outvars)

    return jax.make_jaxpr(run)(*(v.aval for v in body.jaxpr.invars))


def _spliced(eqn: Any, jaxpr: Jaxpr) -> list[Any]:
    """The equations of `jaxpr`, reading and defining the variables of `eqn` in place of its own inputs and outputs."""
    names = dict(zip(jaxpr.invars, eqn.invars, strict=True))
    outs = dict(zip(jaxpr.outvars, eqn.outvars, strict=True))

    def rename(atoms: Any, table: dict[Any, Any]) -> list[Any]:
        return [a if isinstance(a, Literal) else table.get(a, a) for a in atoms]

    return [
        e.replace(invars=rename(e.invars, names | outs), outvars=rename(e.outvars, outs))
        for e in jaxpr.eqns
    ]


def _is_key(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jax.dtypes.prng_key)


def _is_discrete(variable: Any) -> bool:
    """Whether an input may decide noise: integers, booleans and keys whose draws do not change in batches."""
    if _is_key(variable):
        return is_counter_based(variable.aval.dtype)
    return not jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def draws(eqn: Any) -> bool:
    """Whether an equation draws random numbers."""
    if eqn.primitive.name == "random_bits":
        return True
    return any(draws(e) for jaxpr in inner_jaxprs(eqn) for e in jaxpr.eqns)

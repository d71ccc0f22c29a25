"""Derivatives in arguments: what an expectation checks for its parameters is checked for what else is differentiated.

`jax.grad(lambda x: expectation.value(params, key, x))` treats an argument, or a value that the function closes over, as a
parameter. Supports that it moves, parameters of laws in which a strategy has no derivative, and thresholds that it sets would be
missed. So each of these values passes through an identity whose derivative rule runs the checks with the value as an input of
the analysed program. Nothing happens where nobody differentiates, and nothing is left of it in the compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._compat import ClosedJaxpr, Tracer, with_inputs
from ..analysis import Analysed, check_sites
from ..jaxprs import Analysis
from ..strategies import StrategyError
from ._jumps import suspects_of

Array = jax.Array


def watched(
    program: Analysed, args: tuple[PyTree, ...], search: Callable[[int], None] | None
) -> Analysed:
    """The program, which refuses derivatives in its arguments where they would be biased.

    Args:
        program: analysed and checked for its parameters.
        args: the arguments.
        search: looks for jumps that leaf number n of the arguments sets; None where nobody is to look.
    """
    consts = program.closed.consts
    numbers = {id(x): n for n, x in enumerate(jax.tree.leaves(args))}
    places = [i for i, x in enumerate(consts) if _is_variable(x)]
    if not places:
        return program
    # The rules outlive this trace: they must not hold its tracers.
    shapes = [_shape_of(x) for x in consts]
    traced = dataclasses.replace(program, closed=program.closed.replace(consts=shapes))
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(args)]
    leaf_of = {i: numbers.get(id(consts[i])) for i in places}
    known: dict[str, bool] = {}

    def check(place: int) -> None:
        """Checks all values at once; only if one of them is at fault, this one by itself."""
        if "sound" not in known:
            known["sound"] = _faults(traced, places) == (None, False)
        if known["sound"]:
            return
        error, is_suspect = _faults(traced, [place])
        leaf = leaf_of[place]
        label = (
            "a value that the function closes over"
            if leaf is None
            else f"argument {leaf}, args{paths[leaf]}"
        )
        if error is not None:
            raise _refusal(label, str(error)) from error
        if is_suspect and search is not None:
            if leaf is None:
                why = "It decides a comparison. Pass it as an argument, so that jumps can be searched for."
                raise _refusal(label, why)
            try:
                search(leaf)
            except ValueError as err:
                raise _refusal(label, str(err)) from err

    passed = [_guarded(x, i, check) if i in leaf_of else x for i, x in enumerate(consts)]
    return dataclasses.replace(program, closed=program.closed.replace(consts=passed))


def _is_variable(x: PyTree) -> bool:
    return isinstance(x, Tracer) and jnp.issubdtype(x.dtype, jnp.inexact)


def _shape_of(x: PyTree) -> PyTree:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Tracer) else x


def _guarded(x: Array, place: int, check: Callable[[int], None]) -> Array:
    """`x`, whose derivative is checked first."""

    @jax.custom_jvp
    def identity(x: Array) -> Array:
        return x

    @identity.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> PyTree:
        check(place)
        return primals[0], tangents[0]

    return identity(x)


def _faults(program: Analysed, places: list[int]) -> tuple[StrategyError | None, bool]:
    """What forbids derivatives in some of the program's constants, and whether they may set a jump."""
    jaxpr, consts = program.closed.jaxpr, program.closed.consts
    chosen = set(places)
    inputs = [*(v for i, v in enumerate(jaxpr.constvars) if i in chosen), *jaxpr.invars]
    rest = [v for i, v in enumerate(jaxpr.constvars) if i not in chosen]
    values = [x for i, x in enumerate(consts) if i not in chosen]
    closed = ClosedJaxpr(with_inputs(jaxpr, rest, inputs), values)
    draws = {i: (s.range, s.noise) for i, s in program.sites.items()}
    facts = Analysis(closed, [True] * len(places) + [False] * len(jaxpr.invars), draws)
    try:
        check_sites(program.sites, program.numbers, facts)
    except StrategyError as error:
        return error, False
    before, after = suspects_of(program), suspects_of(dataclasses.replace(program, facts=facts))
    return None, not after.keys() <= before.keys()


def _refusal(label: str, why: str) -> ValueError:
    return ValueError(
        f"A derivative in {label} of an expectation was asked for. {why} (Where no derivative is wanted, pass "
        "jax.lax.stop_gradient of the value.)"
    )

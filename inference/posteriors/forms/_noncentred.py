"""Sites whose place and scale move with other latent values, drawn as standard ones that are shifted and scaled.

z ~ law(loc, scale) becomes z = loc + scale e, e ~ law(0, 1): the same joint law, without the funnel that a chain on (scale, z)
meets where the data say little of z.

Reference: Papaspiliopoulos, Roberts and Skold 2007; Gorinova, Moore and Hoffman 2020, arXiv:1906.03028.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

from .... import ppl
from ....ppl.densities import Eliminated
from ....ppl.language import Program, name_of
from ..._arguments import simulated
from ._elimination import is_moved, readers_of

_FAMILIES = ("Normal", "Cauchy", "Laplace", "Logistic", "Gumbel")
_OF_NORMAL = ("LogNormal",)  # transforms of a normal law


def noncentred(program: Program, args: tuple) -> tuple[Program, tuple[str, ...]]:
    """The program with such sites drawn from their standard laws, and their names; the program itself where there are none."""
    if isinstance(program, Eliminated):
        inside, names = noncentred(program.program, args)
        return (program.rebuilt(lambda _: inside), names) if names else (program, ())
    trace = simulated(program, args)
    heard = readers_of(program, trace, args)
    names = tuple(
        n
        for n in trace.choices
        if (info := trace.sites[n]).distribution in _FAMILIES + _OF_NORMAL
        and not (info.is_imputed or info.is_masked)
        and is_moved(heard, n)
    )
    if not names:
        return program, ()
    transformed = [n for n in names if trace.sites[n].distribution in _OF_NORMAL]
    found = as_standard(program, names, transformed)
    try:
        left = simulated(found, args).choices
    except Exception:  # a program that no handler can change
        return program, ()
    return (found, names) if not set(names) & set(left) else (program, ())


def as_standard(
    program: Program, names: Collection[str], transformed: Collection[str] = ()
) -> Program:
    """The program with these sites drawn from their standard laws, under the names "<site>_decentered"."""
    config = {}
    for name in names:
        if name in transformed:
            config[name], name = TransformReparam(), f"{name}_base"
        config[name] = LocScaleReparam(centered=0.0)
    run: Any = handlers.reparam(program.run, config=config)
    run.__name__ = name_of(program)
    return ppl.Program(run)

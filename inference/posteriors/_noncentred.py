"""Sites whose place and scale move with other latent values, drawn as standard ones that are shifted and scaled.

z ~ law(loc, scale) becomes z = loc + scale e, e ~ law(0, 1): the same joint law, without the funnel that a chain on (scale, z)
meets where the data say little of z.

Reference: Papaspiliopoulos, Roberts and Skold 2007; Gorinova, Moore and Hoffman 2020, arXiv:1906.03028.
"""

from __future__ import annotations

from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam

from ... import ppl
from ...ppl.densities import Eliminated
from ...ppl.language import Program, name_of
from ._elimination import is_moved, readers_of, simulated

_FAMILIES = ("Normal", "Cauchy", "Laplace", "Logistic", "Gumbel")


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
        if (info := trace.sites[n]).distribution in _FAMILIES
        and not (info.regions or info.is_imputed or info.is_masked)
        and is_moved(heard, n)
    )
    if not names:
        return program, ()
    found = as_standard(program, names)
    try:
        left = simulated(found, args).choices
    except Exception:  # a program that no handler can change
        return program, ()
    return (found, names) if not set(names) & set(left) else (program, ())


def as_standard(program: Program, names: tuple[str, ...]) -> Program:
    """The program with these sites drawn from their standard laws, under the names "<site>_decentered"."""
    config = {name: LocScaleReparam(centered=0.0) for name in names}
    run = handlers.reparam(program.run, config=config)
    run.__name__ = name_of(program)
    return ppl.Program(run)

"""Flat laws without a total (`ImproperUniform`): what stands or falls with them.

A posterior under them exists only where data speak of every coordinate. What shows in the program is refused: a site from which
no chain of log-probs leads to an observation, and elements along which the log-density does not change at all. A direction in
which it falls too slowly (separable classes in a logistic regression) does not show there; `infer` and `nuts` look along the
coordinates of their draws.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ...ppl._compat import is_concrete
from ...ppl._types import Key
from ...ppl.language import Program
from ...ppl.traces import SiteInfo, Trace, stand_ins
from .._arguments import Arguments
from .._depends import depends

NUM_POINTS = 8
UNNORMALISED = "not normalised: up to the constant of its improper priors"


def improper_sites(sites: Mapping[str, SiteInfo]) -> list[str]:
    """The latent sites with an improper law."""
    return [
        n for n, s in sites.items() if s.kind == "latent" and s.distribution == "ImproperUniform"
    ]


def check_proper(method: str, program: Program, args: tuple, trace: Trace) -> None:
    """Refuse a posterior that cannot be normalised.

    Args:
        method: who asks.
        program: the program, with all its sites.
        args: its arguments.
        trace: its abstract trace.

    Raises:
        ValueError: an improper site, or some of its elements, that no observation or factor depends on.
    """
    improper = improper_sites(trace.sites)
    for name in improper:
        if not _reaches_data(program, name, trace, args):
            raise ValueError(
                f"{method}: site '{name}' has an improper law, and no observation or factor depends on it, so that there is no "
                "posterior. Give it a proper prior, or leave it out."
            )
    if not improper or not is_concrete(args):
        return
    for name, slope in _slopes(program, args, improper).items():
        if (flat := ~np.any(slope != 0, axis=0)).any():
            where = [list(map(int, i)) for i in np.argwhere(flat)[:3]] if flat.ndim else "all"
            raise ValueError(
                f"{method}: site '{name}' has an improper law, and the log-density does not change along {int(flat.sum())} of "
                f"its {flat.size} elements (at {where}), so that there is no posterior. Give them a proper prior, or leave them "
                "out (a column of zeros, a group without rows)."
            )


def _reaches_data(program: Program, name: str, trace: Trace, args: tuple) -> bool:
    """Whether an observation or a factor depends on the site, or on a latent site whose law does, and so on."""
    seen, ahead = {name}, [name]
    while ahead:
        for reader in _readers(program, ahead.pop(), trace, args):
            if trace.sites[reader].kind in ("observed", "factor"):
                return True
            if reader not in seen:
                seen.add(reader)
                ahead.append(reader)
    return False


def _readers(program: Program, site: str, trace: Trace, args: tuple) -> list[str]:
    """Sites whose log-probs depend on the value of a site."""
    split = Arguments(args)
    arrays = split.arrays(args)

    def log_probs(own: Array, rest: Mapping[str, Array], arrays: list[Array]) -> dict[str, PyTree]:
        return program.trace({**rest, site: own}, *split.join(arrays)).log_probs

    rest = {n: x for n, x in trace.choices.items() if n != site}
    inputs = trace.choices[site], rest, arrays
    closed, shapes = jax.make_jaxpr(log_probs, return_shape=True)(*inputs)
    marks = depends(closed.jaxpr, [i == 0 for i in range(len(closed.jaxpr.invars))])
    return [name for name, mark in zip(sorted(shapes), marks, strict=True) if mark]


def _slopes(program: Program, args: tuple, names: list[str]) -> dict[str, np.ndarray]:
    """Derivatives of the log-density by the values of sites, [points, ...]."""
    split = Arguments(args)

    def at(key: Key, args: tuple) -> dict[str, PyTree]:
        with stand_ins():
            choices = program.simulate(key, *args).choices
        rest = {n: x for n, x in choices.items() if n not in names}
        density = lambda own: program.log_density({**rest, **own}, *args)
        return jax.grad(density)({n: choices[n] for n in names})

    def run(keys: Key, arrays: list[Array]) -> dict[str, PyTree]:
        return jax.lax.map(lambda key: at(key, split.join(arrays)), keys)

    keys = jax.random.split(jax.random.key(0), NUM_POINTS)
    return {n: np.asarray(x) for n, x in jax.jit(run)(keys, split.arrays(args)).items()}

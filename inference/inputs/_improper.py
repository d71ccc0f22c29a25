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
from ._readers import Readers

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
    improper, readers = improper_sites(trace.sites), Readers(program, args, trace)
    for name in improper:
        if not readers.is_heard(name):
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

"""Which sites read the value of another, and whether anything that is observed does."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
from jaxtyping import Array, PyTree

from ...ppl._compat import ClosedJaxpr
from ...ppl.language import Program
from ...ppl.traces import Trace
from .._arguments import Arguments
from .._depends import depends


class Readers:
    """`readers(site)`: the sites whose log-probs depend on the value of a latent site, itself included.

    Args:
        program: the program; it is traced once, when it is first asked about.
        args: its arguments.
        trace: its abstract trace.
    """

    def __init__(self, program: Program, args: tuple, trace: Trace) -> None:
        self._program, self._args, self._trace = program, args, trace

    def __call__(self, site: str) -> list[str]:
        closed, names = self._log_probs
        is_site = [name == site for name in sorted(self._trace.choices)]
        rest = [False] * (len(closed.jaxpr.invars) - len(is_site))
        marks = depends(closed.jaxpr, [*is_site, *rest])
        return [name for name, mark in zip(names, marks, strict=True) if mark]

    def is_heard(self, site: str) -> bool:
        """Whether an observation or factor depends on a latent site, by itself or through other latent sites."""
        found, to_do = {site}, [site]
        while to_do:
            new = set(self(to_do.pop())) - found
            if any(n not in self._trace.choices for n in new):
                return True
            found |= new
            to_do += new
        return False

    @functools.cached_property
    def _log_probs(self) -> tuple[ClosedJaxpr, list[str]]:
        """The log-probs as a function of all latent values and arrays, and the sites that have them."""
        split = Arguments(self._args)

        # All values are inputs: as constants they would be checked, and no scale is 0.
        def log_probs(choices: Mapping[str, Array], arrays: list[Array]) -> dict[str, PyTree]:
            return self._program.trace(choices, *split.join(arrays)).log_probs

        choices = {
            n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in self._trace.choices.items()
        }
        run = jax.make_jaxpr(log_probs, return_shape=True)
        closed, shapes = run(choices, split.arrays(self._args))
        return closed, sorted(shapes)

"""NaN that becomes a whole number: a missing code, which JAX reads as 0, the first group.

Input: an equation, and what is known of its operands. Output: what holds NaN where real numbers become whole ones or truth
values, or where the place of the largest is asked for. It may not count, as in `jnp.where(jnp.isnan(g), 0.0, e[g.astype(int)])`:
`heard` runs the program with other whole numbers there. A comparison with NaN is false, as everywhere, and is no such place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._compat import Equation, aval_of
from ._known import Known

_MOST = 2.0**30
_MAKES = frozenset(("convert_element_type", "argmax", "argmin"))


class Cast(NamedTuple):
    """NaN of which a whole number is made.

    Attributes:
        place: of the first, behind the axes of steps.
        count: how many there are.
        lowest: whole number beside it, or place; 0 where there is none.
        highest: likewise.
        inputs: numbers of the inputs from which it is computed.
        eqn: the equation that makes it.
    """

    place: tuple[int, ...]
    count: int
    lowest: int
    highest: int
    inputs: frozenset[int]
    eqn: Equation

    @property
    def others(self) -> tuple[int, ...]:
        """Whole numbers to try in its place: those beside it, and their neighbours."""
        return (self.lowest, self.lowest + 1, self.highest, self.highest + 1)

    def where(self, args: Sequence[Array], made: Array) -> Array:
        """Which results are made of NaN, in a run."""
        is_nan = jnp.isnan(args[0])
        return is_nan if is_nan.shape == made.shape else is_nan.any(self.eqn.params["axes"])


def nan_as_whole(eqn: Equation, operands: Sequence[Known | None]) -> Iterator[Cast]:
    """What is NaN in the operand of one equation that makes whole numbers.

    Args:
        eqn: of a program.
        operands: what is known of its operands, see `walk`.
    """
    known = operands[0] if operands else None
    if eqn.primitive.name not in _MAKES or known is None:
        return
    was, now = (aval_of(v).dtype for v in (eqn.invars[0], eqn.outvars[0]))
    if not jnp.issubdtype(was, jnp.floating) or jnp.issubdtype(now, jnp.inexact):
        return
    array = np.asarray(known.value(), float)
    is_nan = np.isnan(array)
    if not is_nan.any():
        return
    place = tuple(int(i) for i in np.argwhere(is_nan)[0])
    axes = eqn.params.get("axes")
    there = array[np.isfinite(array)] if axes is None else np.arange(array.shape[axes[0]])
    ends = np.clip([there.min(), there.max()], -_MOST, _MOST) if there.size else (0, 0)
    yield Cast(place, int(is_nan.sum()), int(ends[0]), int(ends[1]), known.inputs, eqn)
